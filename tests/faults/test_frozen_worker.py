"""One of two workers stopped with SIGSTOP for a while: it comes back to frames that others have."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pipeline.stream import Stream
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import standing
from tests.stub_line import write_stub_bundle

FROZEN_S = 2.0  # four times as long as it takes to be given up
SLOW = {"start": (50_000_000, 0), "step": (50_000_000, 0), "finish": (50_000_000, 0)}


def test_what_another_worker_answered_stands_when_the_frozen_one_returns(
    stub_line: StubLine, hurt: HurtServer, tmp_path: Path
) -> None:
    """The frames it held have the other's verdict, before and after."""
    write_stub_bundle(tmp_path / "slow", SLOW)
    line = stub_line(bundle=str(tmp_path / "slow"), worker={"processes": 2})
    with standing(line, hurt) as here:
        here.wait_captured(20)
        frozen = here.signal("inspect", signal.SIGSTOP)
        held = _pending(here.stream, frozen)
        time.sleep(FROZEN_S)
        here.wait_for(lambda: not held & set(here.stream.open_ids("left")))
        before = _verdicts(here.stream)
        os.kill(frozen, signal.SIGCONT)
        here.wait_captured(30)
        after = _verdicts(here.stream)
        here.finish()
        require_sound(here)
    assert held
    assert held <= before.keys()
    assert {name: after[name] for name in before if name in after} == {
        name: told for name, told in before.items() if name in after
    }


def _pending(stream: Stream, pid: int) -> set[str]:
    """Frames that a worker holds."""
    key = stream._of("left").frames
    entries = stream._commands.xpending_range(key, "inspect", "-", "+", 100)
    mine = [one for one in entries if one["consumer"].decode().endswith(f"-{pid}")]
    return {f"left/{one['message_id'].decode()}" for one in mine}


def _verdicts(stream: Stream) -> dict[str, tuple[str, int]]:
    """Verdicts in the stream, with their places in it."""
    found = stream.follow_verdicts("left", "0", 1000)
    return {d.verdict.frame_id: (d.entry_id, d.verdict.decided_ns) for d in found}

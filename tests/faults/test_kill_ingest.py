"""kill -9 of a camera's process whose images lie in shared memory."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import psutil

from engines.contracts import Reason
from pipeline.shared import shared_paths
from tests.faults.conftest import Runner, Running
from tests.tiny_line import write_line, write_parts


def test_frames_in_shared_memory_outlive_the_process_that_wrote_them(
    tmp_path: Path,
    grey_bundle: Path,
    running: Runner,
) -> None:
    """Twice killed and started again: each frame has one verdict, and no image was lost."""
    write_parts(tmp_path / "parts", 20)
    line = write_line(
        tmp_path,
        grey_bundle,
        camera={
            "source": {"kind": "folder", "path": "parts", "rate_hz": 50, "loop": True},
            "overrun": "reject",
            "gate_ms": 30_000,
            "transport": "shared",
            "originals_bytes": 200_000,
        },
        sinks={"jsonl": {}},
    )
    with running(line) as here:
        killed: set[int] = set()
        for frames in (20, 60):
            here.wait_for(partial(_captured_more_than, here, frames))
            here.wait_for(partial(_cameras_but, killed))
            killed |= _cameras_but(killed)
            for pid in killed:
                if psutil.pid_exists(pid):
                    os.kill(pid, signal.SIGKILL)
        here.wait_for(partial(_captured_more_than, here, 120))
        here.stop.set()
        verdicts = here.finish()
        here.assert_all_answered_once(verdicts, here.ledgers["left"].captured)
    assert len(killed) == 2
    # What was journalled and not admitted at a kill is answered by the next start.
    assert set(here.ledgers["left"].undecided) <= {Reason.TRANSPORT_RESTART, Reason.OVERRUN}
    assert here.ledgers["left"].undecided.get(Reason.TRANSPORT_RESTART, 0) <= 2
    assert not shared_paths(tmp_path / "run")


def _captured_more_than(here: Running, frames: int) -> bool:
    return here.stream.ledger("left").captured > frames


def _cameras_but(known: set[int]) -> set[int]:
    """Process ids of our cameras that are not known yet."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "ingest" in child.cmdline()} - known

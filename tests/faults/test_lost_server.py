"""kill -9 of the embedded server, mid-stream."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

from engines.contracts import Decision, Reason, Verdict
from pipeline.config import load_line
from pipeline.supervisor import run_line
from tests.tiny_line import write_line, write_parts

FRAMES = 60


def test_every_part_is_answered_though_the_server_is_killed(
    tmp_path: Path, grey_bundle: Path
) -> None:
    """A new server, a new epoch; what was open is UNDECIDED(transport_restart); each part once."""
    write_parts(tmp_path / "parts", FRAMES)
    line = write_line(
        tmp_path,
        grey_bundle,
        camera={
            "source": {"kind": "folder", "path": "parts", "rate_hz": 20},
            "gate_ms": 20_000,
            "credits": 64,
        },
        sinks={"jsonl": {}},
    )
    settings = load_line(line)
    record = settings.run_dir / "verdicts.jsonl"
    killer = threading.Thread(target=_kill_server, args=(settings.run_dir, record))
    killer.start()
    ledger = run_line(settings, threading.Event(), line)["left"]
    killer.join()
    verdicts = [Verdict.model_validate_json(text) for text in record.read_bytes().splitlines()]
    assert Counter(verdict.part_id for verdict in verdicts) == Counter(
        f"{number:04d}" for number in range(FRAMES)
    )
    assert (ledger.residual, ledger.open) == (0, 0)
    undecided = {v.reason for v in verdicts if v.decision is Decision.UNDECIDED}
    assert undecided <= {Reason.TRANSPORT_RESTART}
    assert len({verdict.frame_id.split("-")[0] for verdict in verdicts}) == 2


def _kill_server(run_dir: Path, record: Path) -> None:
    until = time.monotonic() + 60
    while not (record.exists() and record.read_bytes().count(b"\n") >= FRAMES // 4):
        if time.monotonic() > until:
            return
        time.sleep(0.01)
    os.kill(int((run_dir / "redis" / "redis.pid").read_text()), signal.SIGKILL)

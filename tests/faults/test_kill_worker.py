"""kill -9 of the worker, twice, mid-stream."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

from engines.contracts import Decision
from tests.faults.conftest import Runner, Running
from tests.tiny_line import write_line, write_parts

FRAMES = 90


def test_every_frame_has_one_verdict_though_the_worker_is_killed_twice(
    tmp_path: Path,
    grey_bundle: Path,
    running: Runner,
) -> None:
    """Residual 0, one verdict per frame, none of them a silent PASS, nothing left behind."""
    write_parts(tmp_path / "parts", FRAMES)
    line = write_line(
        tmp_path,
        grey_bundle,
        camera={
            "source": {"kind": "folder", "path": "parts", "rate_hz": 30},
            "overrun": "wait",
            "gate_ms": 30_000,
        },
        sinks={"jsonl": {}},
        worker={"reclaim_idle_ms": 300, "renew_ms": 50},
    )
    with running(line) as here:
        for killed_at in (FRAMES // 5, FRAMES // 2):
            here.wait_for(partial(_captured_more_than, here, killed_at))
            [worker] = here.worker_pids()
            os.kill(worker, signal.SIGKILL)
            here.wait_for(partial(_is_replaced, here, worker))
            here.pulse.end("inspect", f"{os.uname().nodename}-{worker}")
        verdicts = here.finish()
        here.assert_all_answered_once(verdicts, FRAMES)
    bad = {verdict.part_id for verdict in verdicts if int(verdict.part_id) % 5 == 0}
    passed = {verdict.part_id for verdict in verdicts if verdict.decision is Decision.PASS}
    assert not bad & passed


def _captured_more_than(here: Running, frames: int) -> bool:
    return here.stream.ledger("left").captured > frames


def _is_replaced(here: Running, worker: int) -> bool:
    return bool(set(here.worker_pids()) - {worker})

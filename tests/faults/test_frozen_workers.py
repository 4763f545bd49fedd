"""Every worker stopped with SIGSTOP: the gate keeper answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from engines.contracts import Reason
from pipeline import crew
from tests.faults.conftest import Runner
from tests.tiny_line import CATEGORY, write_line, write_parts

FRAMES = 40
GATE_MS = 500


def test_every_part_is_answered_before_its_gate_though_all_workers_are_frozen(
    tmp_path: Path,
    grey_bundle: Path,
    running: Runner,
) -> None:
    """What no worker decides is UNDECIDED(deadline) ahead of the gate, by the default margin."""
    write_parts(tmp_path / "parts", FRAMES)
    camera = {
        "source": {"kind": "folder", "path": "parts", "rate_hz": 25},
        "gate_ms": GATE_MS,
        "credits": 32,
        "category": CATEGORY,
    }
    line = write_line(
        tmp_path,
        grey_bundle,
        cameras=[{**camera, "name": name} for name in ("left", "right")],
        sinks={"jsonl": {}},
        worker={"processes": 2},
    )
    with running(line) as here:
        workers = here.worker_pids()
        assert {psutil.Process(worker).nice() for worker in workers} == {min(19, os.nice(0) + 5)}
        here.wait_for(lambda: max(ledger.captured for ledger in here.now()) >= FRAMES // 4)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        here.wait_for(lambda: all(ledger.captured == FRAMES for ledger in here.now()))
        here.wait_for(lambda: all(ledger.open == 0 for ledger in here.now()))
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        verdicts = here.finish()
        here.assert_all_answered_once(verdicts, 2 * FRAMES)
    late = [verdict for verdict in verdicts if verdict.reason is Reason.DEADLINE]
    assert len(late) >= FRAMES
    past_ms = {v.frame_id: (v.decided_ns - v.captured_ns) / 1e6 - GATE_MS for v in late}
    assert not {frame_id: ms for frame_id, ms in past_ms.items() if ms > 0}


def test_a_worker_that_hangs_is_started_again(
    tmp_path: Path, grey_bundle: Path, running: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody continues it: the supervisor ends it, and a new one takes over what it held."""
    monkeypatch.setattr(crew, "SILENT_S", 0.5)
    write_parts(tmp_path / "parts", FRAMES)
    line = write_line(
        tmp_path,
        grey_bundle,
        camera={
            "source": {"kind": "folder", "path": "parts", "rate_hz": 40},
            "overrun": "wait",
            "gate_ms": 30_000,
        },
        sinks={"jsonl": {}},
        worker={"reclaim_idle_ms": 300},
    )
    with running(line) as here:
        [hung] = here.worker_pids()
        here.wait_for(lambda: here.stream.ledger("left").captured >= FRAMES // 4)
        os.kill(hung, signal.SIGSTOP)
        verdicts = here.finish()
        here.assert_all_answered_once(verdicts, FRAMES)
    assert not [verdict for verdict in verdicts if verdict.reason]

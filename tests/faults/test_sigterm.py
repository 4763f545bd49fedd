"""SIGTERM under load: what is in flight is answered, nothing is left, and the end is in order."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from engines.contracts import Reason
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import Standing, standing
from tests.stub_line import stub_camera, write_stub_bundle

DRAIN_S = 2.0
SPARE_S = 1.0  # for the machine of a test
SLOW = {"start": (20_000_000, 0), "step": (120_000_000, 0), "finish": (10_000_000, 0)}


def pending_of(here: Standing, consumer: str) -> int:
    """Frames that a worker has and has not answered."""
    groups = here.stream._commands.xpending_range(
        here.stream._of("left").frames, "inspect", "-", "+", 1000, consumername=consumer
    )
    return len(groups)


def test_a_worker_that_is_told_to_end_answers_what_it_has(
    stub_line: StubLine, hurt: HurtServer
) -> None:
    """Two seconds later it has ended in order and holds nothing; the other one has the rest."""
    line = stub_line(cameras=[stub_camera(rate_hz=100)], worker={"processes": 2})
    with standing(line, hurt) as here:
        here.wait_acted(100)
        first, _ = here.pids("inspect")
        consumer = next(name for name in here.pulse.living("inspect") if name.endswith(f"-{first}"))
        process = psutil.Process(first)
        os.kill(first, signal.SIGTERM)
        began_s = time.monotonic()
        here.wait_for(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
        assert time.monotonic() - began_s < DRAIN_S + SPARE_S
        assert pending_of(here, consumer) == 0
        here.wait_acted(200)
        assert first not in here.pids("inspect")
        assert here.stream.ledger("left").undecided == {}
        here.finish()
        require_sound(here)


@pytest.mark.parametrize("slots", [1, 16])
def test_a_line_that_is_told_to_end_leaves_no_part_without_a_verdict(
    stub_line: StubLine, hurt: HurtServer, tmp_path: Path, slots: int
) -> None:
    """With far more parts waiting than it can inspect: those are UNDECIDED(shutdown), in time."""
    bundle = write_stub_bundle(tmp_path / "slow", SLOW).folder
    line = stub_line(
        bundle=bundle,
        cameras=[stub_camera(rate_hz=200, overrun="reject", credits=200)],
        worker={"processes": 1, "slots": slots, "batch_max": slots},
    )
    with standing(line, hurt) as here:
        here.wait_for(lambda: here.stream.ledger("left").open > 180)
        began_s = time.monotonic()
        here.stop.set()
        here.wait_for(lambda: here.stream.ledger("left").open == 0 or bool(here.ledgers))
        took_s = time.monotonic() - began_s
        here.join()
        left = require_sound(here)
    assert left.decisions[Reason.SHUTDOWN] > 0
    assert took_s < DRAIN_S + SPARE_S

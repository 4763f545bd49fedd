"""kill -9 of a worker that has nothing in hand, and of one in the middle of a batch."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import standing
from tests.stub_line import stub_camera, write_stub_bundle

RECOVERY_S = 3.0  # with a second worker
LONG = {"start": (1_000_000, 0), "step": (150_000_000, 0), "finish": (1_000_000, 0)}


def test_a_batch_that_dies_with_its_worker_is_judged_by_the_other(
    stub_line: StubLine, hurt: HurtServer, tmp_path: Path
) -> None:
    """Every call takes long, so any moment lies within one; nothing is undecided for it."""
    write_stub_bundle(tmp_path / "long", LONG)
    cameras = [stub_camera(rate_hz=20)]
    line = stub_line(bundle=str(tmp_path / "long"), cameras=cameras, worker={"processes": 2})
    with standing(line, hurt) as here:
        here.wait_captured(10)
        here.wait_for(lambda: here.stream.backlog("left") > 3)
        here.signal("inspect", signal.SIGKILL)
        taken = set(here.stream.open_ids("left"))
        here.wait_for(lambda: not taken & set(here.stream.open_ids("left")), 2 * RECOVERY_S)
        here.wait_captured(20)
        here.finish()
        left = require_sound(here)
    assert set(left.decisions) == {"PASS", "FAIL"}


def test_a_worker_that_dies_before_it_reads_leaves_nothing_undecided(
    stub_line: StubLine, hurt: HurtServer
) -> None:
    """Killed while no frame is open: the next frames wait for the worker that replaces it."""
    with standing(stub_line(cameras=[stub_camera(rate_hz=3)]), hurt) as here:
        here.wait_captured(3)
        here.wait_for(lambda: not here.stream.open_ids("left"))
        here.wait_replaced("inspect", here.signal("inspect", signal.SIGKILL))
        here.wait_captured(3)
        here.finish()
        left = require_sound(here)
    assert set(left.decisions) <= {"PASS", "FAIL"}

"""A thousand times every connection is lost."""

from __future__ import annotations

import time

import psutil

from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import Standing, standing

LOST = 250  # connections, of four processes each
SPARE = 6  # descriptors that a process may have more after than before


def test_a_thousand_reconnects_leave_nothing_behind(stub_line: StubLine, hurt: HurtServer) -> None:
    """Each process has as many descriptors as before, and each part one verdict."""
    with standing(stub_line(), hurt) as here:
        here.wait_captured(20)
        before = _descriptors(here)
        for _ in range(LOST):
            hurt.drop_clients()
            time.sleep(0.02)
        here.recovery_s()
        here.wait_captured(20)
        after = _descriptors(here)
        assert before.keys() == after.keys()
        grown = {pid: after[pid] - before[pid] for pid in before}
        assert max(grown.values()) <= SPARE, grown
        here.finish()
        require_sound(here)


def _descriptors(here: Standing) -> dict[int, int]:
    pids = [pid for role in ("ingest", "inspect", "sink") for pid in here.pids(role)]
    return {pid: psutil.Process(pid).num_fds() for pid in pids}

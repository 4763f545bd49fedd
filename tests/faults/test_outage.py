"""A server of somebody else that is away for long, while processes of the line die."""

from __future__ import annotations

import signal

import pytest

from pipeline import crew
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import Standing, standing


def test_a_long_outage_does_not_give_up_the_line(
    stub_line: StubLine, hurt: HurtServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker dies meanwhile and finds no server more often than a broken one would be tried."""
    monkeypatch.setattr(crew, "QUICK_MAX", 2)
    with standing(stub_line(), hurt) as here:
        here.wait_captured(10)
        hurt.stop()
        killed = here.signal("inspect", signal.SIGKILL)
        for _ in range(crew.QUICK_MAX + 1):
            killed = _next_end(here, killed)
        hurt.start()
        here.recovery_s()
        here.wait_captured(20)
        here.finish()
        require_sound(here)


def _next_end(here: Standing, known: int) -> int:
    """Wait for the next worker, and until it has ended by itself; its process id."""
    here.wait_for(lambda: here.pids("inspect") not in ([], [known]))
    [pid] = here.pids("inspect")
    here.wait_for(lambda: pid not in here.pids("inspect"))
    return pid

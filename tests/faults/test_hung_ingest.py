"""A camera's process that stands still: nothing is wrong with it but that it does not move."""

from __future__ import annotations

import signal

import pytest

from pipeline import crew
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import standing


def test_a_camera_that_hangs_is_started_again(
    stub_line: StubLine, hurt: HurtServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended and replaced, and what it had journalled is answered."""
    monkeypatch.setattr(crew, "SILENT_S", 1.0)
    with standing(stub_line(), hurt) as here:
        here.wait_for(lambda: here.beats(here.pids("ingest")[0], "ingest"))
        here.wait_for(lambda: here.oldest_s() > 0)  # a frame is on its way
        hung = here.signal("ingest", signal.SIGSTOP)
        here.wait_replaced("ingest", hung)
        here.wait_captured(20)
        here.finish()
        require_sound(here)

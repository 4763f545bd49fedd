"""A sink that stands still: the gate hears nothing, so it is started again."""

from __future__ import annotations

import signal

import pytest

from pipeline import crew
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import standing


def test_a_sink_that_hangs_is_started_again(
    stub_line: StubLine, hurt: HurtServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdicts wait in the stream meanwhile; each is acted on once."""
    monkeypatch.setattr(crew, "SILENT_S", 1.0)
    with standing(stub_line(), hurt) as here:
        hung = here.signal("sink", signal.SIGSTOP)
        here.wait_captured(20)
        here.wait_replaced("sink", hung)
        here.finish()
        left = require_sound(here)
    assert set(left.decisions) == {"PASS", "FAIL"}

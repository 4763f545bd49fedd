"""The server has no byte left."""

from __future__ import annotations

import time

import pytest

from engines.contracts import Reason
from pipeline import crew
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import standing
from tests.stub_line import stub_camera

FULL_S = 3.0


@pytest.mark.parametrize("transport", ["inline", "shared"])
def test_a_full_server_stops_no_process_and_loses_no_part(
    stub_line: StubLine, hurt: HurtServer, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    """Nobody can beat, so nobody is taken for hung; what comes meanwhile is answered at once."""
    monkeypatch.setattr(crew, "SILENT_S", 1.0)
    with standing(stub_line(cameras=[stub_camera(transport=transport)]), hurt) as here:
        before = {role: here.pids(role) for role in ("ingest", "inspect", "sink")}
        here.wait_captured(10)
        hurt.fill()
        time.sleep(FULL_S + 3.0)  # the last beats live for three seconds
        hurt.empty()
        here.recovery_s()
        here.wait_captured(20)
        assert {role: here.pids(role) for role in before} == before
        here.finish()
        left = require_sound(here)
    assert set(left.decisions) <= {"PASS", "FAIL", Reason.TRANSPORT, Reason.OVERRUN}

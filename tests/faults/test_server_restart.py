"""The server is stopped, or killed, and comes back: with what it held, or empty."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.contracts import Reason
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import standing

RECOVERY_S = 10.0


@pytest.mark.parametrize("appendonly", [False, True], ids=["forgets", "remembers"])
def test_a_server_that_comes_back_costs_no_part_its_verdict(
    stub_line: StubLine, tmp_path: Path, appendonly: bool
) -> None:
    """Stopped once and killed once; what was open is answered, and the ledger counts it all."""
    with (
        HurtServer(tmp_path / "server", appendonly=appendonly) as server,
        standing(stub_line(), server) as here,
    ):
        for hurt in (server.stop, server.kill):
            here.wait_acted(20)
            hurt()
            server.start()
            assert here.recovery_s() <= RECOVERY_S
        here.wait_acted(20)
        here.finish()
        left = require_sound(here)
    epochs = {verdict.frame_id.partition("-")[0] for verdict in left.verdicts}
    assert len(epochs) == 3
    assert set(left.decisions) <= {"PASS", "FAIL", Reason.TRANSPORT_RESTART, Reason.OVERRUN}

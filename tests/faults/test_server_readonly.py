"""The server takes no writes: it has become the replica of one that is away."""

from __future__ import annotations

import time

from engines.contracts import Reason
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import standing


def test_a_server_without_writes_loses_no_part(stub_line: StubLine, hurt: HurtServer) -> None:
    """Everybody tries again until it takes them; each part is answered once."""
    with standing(stub_line(), hurt) as here:
        here.wait_captured(10)
        hurt.forbid_writes()
        time.sleep(2.0)
        hurt.allow_writes()
        assert here.recovery_s() <= 10
        here.wait_captured(20)
        here.finish()
        left = require_sound(here)
    assert set(left.decisions) <= {"PASS", "FAIL", Reason.TRANSPORT_RESTART, Reason.OVERRUN}

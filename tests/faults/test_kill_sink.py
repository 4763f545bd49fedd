"""kill -9 of the sink, which keeps the gate and tells it."""

from __future__ import annotations

import signal

from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import standing


def test_what_a_killed_sink_had_not_acted_on_the_next_one_does(
    stub_line: StubLine, hurt: HurtServer
) -> None:
    """Twice killed: every verdict is in the file once, and the gate was told once."""
    with standing(stub_line(), hurt) as here:
        for _ in range(2):
            here.wait_captured(20)
            here.wait_replaced("sink", here.signal("sink", signal.SIGKILL))
        here.wait_captured(20)
        here.finish()
        left = require_sound(here)
    assert set(left.decisions) == {"PASS", "FAIL"}

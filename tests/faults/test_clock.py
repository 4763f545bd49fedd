"""The server's clock is set while parts are on their way, and no worker lives to judge them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from engines.contracts import Reason
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer, has_compiler
from tests.faults.standing import standing
from tests.stub_line import stub_camera

GATE_MS = 1000
SPARE_S = 0.25  # for the test to see what is open


@pytest.mark.skipif(not has_compiler(), reason="no C compiler: the server's clock cannot be set")
@pytest.mark.parametrize(
    "step_s", [3600.0, -3600.0, -0.4], ids=["forward", "back", "a little back"]
)
def test_every_part_is_answered_before_its_gate_though_the_clock_is_set(
    stub_line: StubLine, tmp_path: Path, step_s: float
) -> None:
    """Measured by our own clock: nothing stays open for longer than its gate."""
    line = stub_line(cameras=[stub_camera(gate_ms=GATE_MS, rate_hz=20)], worker={"processes": 1})
    with (
        HurtServer(tmp_path / "server", clock=True) as server,
        standing(line, server) as here,
    ):
        here.wait_captured(20)
        worker = here.signal("inspect", signal.SIGSTOP)
        seen: dict[str, float] = {}
        longest_s, began_s, is_set = 0.0, time.monotonic(), False
        while time.monotonic() - began_s < 4.0:
            open_now = here.stream.open_ids("left")
            now_s = time.monotonic()
            seen = {name: seen.get(name, now_s) for name in open_now}
            longest_s = max([longest_s, *(now_s - since_s for since_s in seen.values())])
            if not is_set and now_s - began_s > 1.0:
                server.step_clock(step_s)
                is_set = True
            time.sleep(0.01)
        os.kill(worker, signal.SIGCONT)
        here.finish()
        left = require_sound(here)
    assert longest_s <= GATE_MS / 1e3 + SPARE_S
    assert left.decisions[Reason.DEADLINE] >= 20

"""What lies between a line and its server is cut, slow or lossy."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from engines.contracts import Reason
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import standing
from tests.faults.weather import Weather

BAD_S = 2.0


def _cut(weather: Weather) -> None:
    weather.is_cut = True


def _slow(weather: Weather) -> None:
    weather.delay_s = 0.02


def _lossy(weather: Weather) -> None:
    weather.loss = 0.1


@pytest.mark.parametrize("worsen", [_cut, _slow, _lossy, Weather.drop])
def test_bad_weather_costs_no_part_its_verdict(
    stub_line: StubLine, hurt: HurtServer, worsen: Callable[[Weather], None]
) -> None:
    """What could not pass is answered when it can; nothing is answered twice."""
    with standing(stub_line(), hurt, networked=True) as here:
        assert here.network is not None
        here.wait_captured(10)
        worsen(here.network)
        time.sleep(BAD_S)
        here.network.calm()
        here.recovery_s()
        here.wait_captured(20)
        here.finish()
        left = require_sound(here)
    assert set(left.decisions) <= {"PASS", "FAIL", Reason.TRANSPORT_RESTART, Reason.OVERRUN}

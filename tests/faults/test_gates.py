"""What chaos says of gates: who was late, and whom nobody could have answered."""

from __future__ import annotations

import pytest

from tests.faults.gates import HAND_S, MARGIN_MS, READY_S, Excuse, Sight, judged, least_ms


def sight(gate_s: float, stamped_ms: float = 50.0, seen_ms: float = 45.0) -> Sight:
    """A verdict on a part whose gate comes at a moment."""
    name, seen_s = f"left/1-{round(gate_s)}", gate_s - seen_ms / 1e3
    return Sight(name, gate_s - 1.0, gate_s, seen_s, stamped_ms, seen_ms, "deadline")


@pytest.mark.parametrize(
    ("stamped_ms", "seen_ms", "is_late"),
    [(MARGIN_MS, 0.1, False), (MARGIN_MS - 0.1, 4.0, True), (MARGIN_MS, -0.1, True)],
)
def test_a_verdict_is_in_time_by_its_stamp_and_by_what_was_seen(
    stamped_ms: float, seen_ms: float, is_late: bool
) -> None:
    """The margin for who wrote it, the gate for who saw it."""
    told = judged([sight(10.0, stamped_ms, seen_ms)], [])
    assert (told.checked, bool(told.late)) == (1, is_late)
    assert (told.least_stamped_ms, told.least_seen_ms) == (stamped_ms, seen_ms)


def test_only_gates_within_an_outage_are_excused() -> None:
    """From its beginning until the line is ready again; a part before or after has to be right."""
    outage = Excuse(10.0, 12.0, "gate")
    gates = [sight(at, -100.0) for at in (9.9, 10.1, 12.0 + READY_S - 0.1, 12.0 + READY_S + 0.1)]
    told = judged(gates, [outage])
    assert (told.checked, told.excused, len(told.late)) == (2, 2, 2)


def test_what_met_an_injury_is_known_by_it() -> None:
    """The least time before the gate, of parts whose gate came while it lasted."""
    gates = [sight(1.0, 7.0), sight(5.0, 30.0), sight(6.0, 20.0), sight(6.5, 1.0)]
    assert least_ms(gates, (4.0, 7.0), [Excuse(6.4, 6.6, "gate")]) == 20.0
    assert least_ms(gates, (4.0, 7.0), []) == 1.0
    assert least_ms(gates, (2.0, 3.0), []) is None


def test_a_part_in_the_hand_of_a_camera_that_dies_is_excused_and_no_other() -> None:
    """It was exposed at that very moment; what was exposed before or after has to be right."""
    death = Excuse(10.0, 13.0, "held")
    exposed = [sight(at + 1.0, -100.0) for at in (9.8, 10.0 - HAND_S / 2, 10.3, 11.5)]
    told = judged(exposed, [death])
    assert (told.checked, told.excused) == (3, 1)


def test_what_is_seen_after_a_step_of_the_clock_is_excused() -> None:
    """Its age seems to be an hour, and its gate long gone."""
    stamped_before = sight(10.5 - 3600, -3_600_000, -3_600_000)
    assert judged([stamped_before], [Excuse(10.0, 12.0, "clock")]).excused == 1
    assert judged([stamped_before], [Excuse(10.0, 12.0, "gate")]).excused == 0

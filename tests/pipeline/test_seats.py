"""Laws of a seat: how ready parts are shared by its loops, and when what they hold is alive."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.seats import Loop, Seat


def seat(free: list[int], ready: int) -> Seat:
    """Loops with so much room, and so many parts; of bundle and judge nothing is asked."""
    made = Seat(cast("Any", None), cast("Any", None), -1, tuple(Loop(room) for room in free))
    made.ready.extend([cast("Any", None)] * ready)
    return made


@pytest.mark.parametrize(
    ("free", "ready", "shares"),
    [
        ([16], 5, [5]),
        ([3], 5, [3]),
        ([16, 16], 1, [1, 1]),
        ([16, 16], 4, [2, 2]),
        ([16, 10], 4, [2, 0]),
        ([16, 10], 8, [6, 1]),
        ([16, 15], 4, [2, 2]),
        ([0, 2], 4, [0, 2]),
    ],
)
def test_parts_go_to_whoever_has_most_room(free: list[int], ready: int, shares: list[int]) -> None:
    """Where two have as much, whoever asks first has the odd one."""
    made = seat(free, ready)
    assert [made.share_of(number) for number in range(len(free))] == shares


@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(0, 40))
def test_all_that_fits_is_taken(free: list[int], ready: int) -> None:
    """In as many rounds as it takes, each of which brings something; nobody takes too much."""
    made = seat(free, ready)
    while made.ready and any(loop.free for loop in made.loops):
        left = len(made.ready)
        for number, loop in enumerate(made.loops):
            taken = made.share_of(number)
            assert taken <= loop.free
            loop.free -= taken
            for _ in range(taken):
                made.ready.pop(0)
        assert len(made.ready) < left
    assert made.room == sum(free) - ready


def due(made: Seat, *deadlines_ns: int) -> None:
    """Parts are ready that have these deadlines."""
    for deadline_ns in deadlines_ns:
        made.add(cast("Any", SimpleNamespace(deadline_ns=deadline_ns)))


def test_a_loop_at_work_leaves_parts_to_whoever_has_time_first() -> None:
    """It takes what is due before all that it has, and what is more than one part for each loop."""
    made = seat([16, 16], 0)
    made.loops[0].latest_ns = 500
    due(made, 700)
    assert (made.share_of(0), made.share_of(1)) == (0, 1)
    due(made, 0, 600, 400)
    assert [part.deadline_ns for part in made.ready] == [400, 600, 700, 0]
    assert made.share_of(0) == 2
    made.ready[2:] = []
    assert made.share_of(0) == 1
    made.ready[:1] = []
    assert made.share_of(0) == 0


def test_an_only_loop_leaves_nothing() -> None:
    """Who is in flight is joined at the next turn."""
    made = seat([16], 0)
    made.loops[0].latest_ns = 500
    due(made, 700, 800)
    assert made.share_of(0) == 2


def test_what_is_held_lives_while_all_loops_beat() -> None:
    """One that rests does not count; one that has stopped does."""
    made = seat([1, 1], 0)
    made.loops[0].beat_s, made.loops[1].beat_s = 7.0, 9.0
    assert made.beat_s == 7.0
    made.loops[0].beat_s = math.inf
    assert made.beat_s == 9.0

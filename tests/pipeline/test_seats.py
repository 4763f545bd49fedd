"""Laws of a seat: how ready parts are shared by its loops, and when what they hold is alive."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.inspector import Part
from pipeline.seats import IDLE, Loop, Seat


def seat(free: list[int], *deadlines_ns: int) -> Seat:
    """Loops with so much room, and parts that are due then; the rest is not asked for."""
    made = Seat(cast("Any", None), cast("Any", None), -1, tuple(Loop(room) for room in free))
    made.ready.extend(cast("Any", SimpleNamespace(deadline_ns=due_ns)) for due_ns in deadlines_ns)
    return made


def deadlines(parts: list[Part]) -> list[int]:
    """What tells them apart."""
    return [part.deadline_ns for part in parts]


@pytest.mark.parametrize(
    ("free", "ready", "shares"),
    [
        ([16], 5, [5]),
        ([3], 5, [3]),
        ([16, 16], 1, [1, 0]),
        ([16, 16], 2, [1, 1]),
        ([16, 16], 4, [1, 1]),
        ([16, 10], 4, [2, 1]),
        ([16, 15], 4, [2, 1]),
        ([16, 16], 8, [3, 3]),
        ([16, 10], 8, [6, 1]),
        ([0, 2], 4, [0, 2]),
    ],
)
def test_parts_go_to_whoever_has_most_room(free: list[int], ready: int, shares: list[int]) -> None:
    """Where two have as much, whoever asks first has the odd one."""
    made = seat(free, *range(1, ready + 1))
    assert [len(made.take(number)) for number in range(len(free))] == shares


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 40)), min_size=1, max_size=4),
    st.lists(st.integers(0, 40), max_size=40),
)
def test_nobody_takes_too_much_and_nothing_is_lost(
    loops: list[tuple[int, int]], due_ns: list[int]
) -> None:
    """Parts taken and parts left are those that were ready; all are left only to loops at work."""
    made = seat([room for room, _ in loops], *due_ns)
    for loop, (_, first_ns) in zip(made.loops, loops, strict=True):
        loop.due_ns = first_ns or IDLE
    is_idle = [loop.due_ns == IDLE and loop.free > 0 for loop in made.loops]
    taken: list[int] = []
    for number, loop in enumerate(made.loops):
        room = loop.free
        mine = deadlines(made.take(number))
        assert len(mine) <= room == loop.free + len(mine)
        taken += mine
    assert sorted(taken + deadlines(made.ready)) == sorted(due_ns)
    assert taken or not (due_ns and any(is_idle))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(0, 40))
def test_all_that_fits_is_taken(free: list[int], ready: int) -> None:
    """By loops that come back idle, in as many rounds as it takes, each of which brings some."""
    made = seat(free, *range(1, ready + 1))
    while made.ready and any(loop.free for loop in made.loops):
        left = len(made.ready)
        for number, loop in enumerate(made.loops):
            loop.due_ns, room = IDLE, loop.free
            taken = made.take(number)
            assert len(taken) == room - loop.free <= room
        assert len(made.ready) < left
    assert made.room == sum(free) - ready


def test_a_loop_at_work_leaves_parts_to_whoever_has_time_first() -> None:
    """It takes what is due before all that it has, wherever that stands in line."""
    made = seat([16, 16], 700, 400)
    made.loops[0].due_ns, made.loops[1].due_ns = 500, 300
    assert (made.take(1), deadlines(made.take(0))) == ([], [400])
    made.loops[1].due_ns = IDLE
    assert deadlines(made.take(1)) == [700]


def test_a_part_that_is_due_late_is_not_passed_for_ever() -> None:
    """Who came first goes first, as soon as there are more parts than loops."""
    made = seat([16, 16], 9000, 600, 700)
    made.loops[0].due_ns = made.loops[1].due_ns = 500
    assert deadlines(made.take(0)) == [9000]


def test_an_only_loop_leaves_nothing() -> None:
    """Who is in flight is joined at the next turn."""
    made = seat([16], 700, 800)
    made.loops[0].due_ns = 500
    assert deadlines(made.take(0)) == [700, 800]


def test_what_is_held_lives_while_all_loops_beat() -> None:
    """One that rests does not count; one that has stopped does."""
    made = seat([1, 1])
    made.loops[0].beat_s, made.loops[1].beat_s = 7.0, 9.0
    assert made.beat_s == 7.0
    made.loops[0].beat_s = math.inf
    assert made.beat_s == 9.0

"""Frames in tiles through the slots: admitted whole, answered once, and not by their neighbours.

A tile is 4 x 4 pixels of one value, which is its score; the depth is the score's last digit. Tiles
of 255 cannot step, those of 254 leave no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engines.contracts import BadConfig, EngineFault, Evidence, Finding, Progress, Reason, Rows
from engines.depths import Depths
from engines.inspector import Inspector, Part, inspect_all
from engines.mosaic import Mosaic
from engines.scheduler import Policy, Scheduler
from engines.tiles import Tiling

SIDE = 4
POISON, SILENT = 255, 254
some = settings(max_examples=40, deadline=None)
values = st.integers(0, 99)
grids = st.tuples(st.integers(1, 3), st.integers(1, 3))


class Plain:
    """A backend that finds what a tile shows; ``tick_ns`` passes with every call."""

    key = "plain:f64"

    def __init__(self, capacity: int, tick_ns: int = 0) -> None:
        self.capacity, self.tick_ns, self.now_ns = capacity, tick_ns, 0
        self.value = np.zeros(capacity, np.int64)
        self.left = np.zeros(capacity, np.int32)
        self.started = 0

    def start(self, rows: Rows, slots: list[int]) -> Progress:
        """Depth by the last digit; a forced or limited plan is not looked at."""
        self.value[slots] = rows.image[:, 0, 0, 0]
        self.left[slots] = self.value[slots] % 10
        self.started += len(slots)
        return self._progress(slots)

    def step(self, slots: list[int]) -> Progress:
        """One step; a poisoned row breaks the batch."""
        if (self.value[slots] == POISON).any():
            raise EngineFault("a row cannot step")
        self.left[slots] -= 1
        return self._progress(slots)

    def finish(self, slots: list[int]) -> Evidence:
        """The value, everywhere."""
        self.now_ns += self.tick_ns
        scores = np.where(self.value[slots] == SILENT, np.nan, self.value[slots])
        scores = scores.astype(np.float32)
        return Evidence(np.repeat(scores, SIDE**2).reshape(-1, SIDE, SIDE), scores)

    def close(self) -> None:
        """Nothing to release."""

    def _progress(self, slots: list[int]) -> Progress:
        self.now_ns += self.tick_ns
        left = self.left[slots].copy()
        return Progress(left, np.zeros_like(left), left.copy())


def tiling_of(grid: tuple[int, int]) -> Tiling:
    """Tiles side by side."""
    return Tiling((SIDE, SIDE), *grid)


def frame_of(
    number: int, tiles: Sequence[int], grid: tuple[int, int], deadline_ns: int = 0
) -> Part:
    """A frame whose tiles show these values."""
    shown = np.array(tiles, np.uint8).reshape(grid).repeat(SIDE, 0).repeat(SIDE, 1)
    image = np.repeat(shown[..., None], 3, axis=2)
    return Part(str(number), 0, "plate", image, deadline_ns=deadline_ns)


def inspector_of(backend: Plain, grid: tuple[int, int], **options: Any) -> Inspector:  # noqa: ANN401
    """Raw scores are compared."""
    return Inspector(backend, mosaic=Mosaic(tiling_of(grid)), **options)


def check(finding: Finding, tiles: Sequence[int], grid: tuple[int, int]) -> None:
    """The finding is that of its own tiles, each in its place."""
    assert finding.reason is None
    assert finding.anomaly_score == max(tiles)
    shown = np.array(tiles).reshape(grid).repeat(SIDE, 0).repeat(SIDE, 1)
    np.testing.assert_array_equal(finding.anomaly_map, shown)
    assert finding.calls == sum(value % 10 for value in tiles)
    assert finding.steps == finding.steps_planned == max(tiles) % 10


class Arrivals(RuleBasedStateMachine):
    """Frames arrive and turns pass in any order."""

    @initialize(grid=grids, spare=st.integers(0, 9), batch_max=st.integers(1, 9))
    def open(self, grid: tuple[int, int], spare: int, batch_max: int) -> None:
        """Room for one frame and some rows; any batch."""
        self.grid, self.count = grid, grid[0] * grid[1]
        self.capacity = self.count + spare
        self.inspector = inspector_of(Plain(self.capacity), grid, batch_max=batch_max)
        self.frames: list[list[int]] = []
        self.answered: list[str] = []

    @precondition(lambda self: self.inspector.free_slots)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """A frame, while there is room for one."""
        tiles = data.draw(st.lists(values, min_size=self.count, max_size=self.count))
        self.inspector.admit([frame_of(len(self.frames), tiles, self.grid)])
        self.frames.append(tiles)

    @rule()
    def turn(self) -> None:
        """Whatever is done is answered."""
        for finding in self.inspector.step():
            check(finding, self.frames[int(finding.frame_id)], self.grid)
            self.answered.append(finding.frame_id)

    @invariant()
    def room_is_for_whole_frames(self) -> None:
        """What is free is never more than what frames in flight leave."""
        flying = self.inspector.in_flight
        assert flying == len(self.frames) - len(self.answered)
        assert self.inspector.free_slots >= self.capacity // self.count - flying
        if not flying:
            assert self.inspector.free_slots == self.capacity // self.count

    def teardown(self) -> None:
        """Everything ends, and each frame is answered once."""
        if not hasattr(self, "inspector"):
            return
        bound = sum(sum(value % 10 + 2 for value in tiles) for tiles in self.frames)
        for _ in range(bound):
            self.turn()
        assert self.inspector.in_flight == 0
        assert sorted(self.answered, key=int) == [str(i) for i in range(len(self.frames))]


TestArrivals = Arrivals.TestCase
TestArrivals.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


@some
@given(data=st.data(), grid=grids, spare=st.integers(0, 20))
def test_neighbours_do_not_matter(data: st.DataObject, grid: tuple[int, int], spare: int) -> None:
    """A frame finds the same alone and among any others, whatever the slots."""
    count = grid[0] * grid[1]
    lists = st.lists(st.lists(values, min_size=count, max_size=count), min_size=1, max_size=9)
    frames = [frame_of(i, tiles, grid) for i, tiles in enumerate(data.draw(lists))]
    company = inspect_all(inspector_of(Plain(count + spare), grid), frames)
    together = {finding.frame_id: finding for finding in company}
    for frame in frames:
        (alone,) = inspect_all(inspector_of(Plain(count), grid), [frame])
        found = together[frame.frame_id]
        np.testing.assert_array_equal(found.anomaly_map, alone.anomaly_map)
        for name in ("anomaly_score", "plan", "level", "steps", "calls", "reason"):
            assert getattr(found, name) == getattr(alone, name)


def test_a_frame_that_never_fits_is_refused_at_once() -> None:
    """Fewer slots than tiles are refused when the worker starts, with the mend."""
    with pytest.raises(BadConfig, match=r"takes 4: set worker\.slots to 4 or more"):
        inspector_of(Plain(3), (2, 2))


def test_no_frame_is_admitted_in_part() -> None:
    """Where three of four tiles would fit nobody takes a slot."""
    inspector = inspector_of(Plain(7), (2, 2))
    inspector.admit([frame_of(0, [1, 2, 3, 4], (2, 2))])
    assert inspector.free_slots == 0
    with pytest.raises(IndexError):
        inspector.admit([frame_of(1, [1, 1, 1, 1], (2, 2))])
    assert [finding.frame_id for finding in inspector.drain()] == ["0"]
    assert inspector.free_slots == 1


def test_a_tile_without_evidence_is_told() -> None:
    """The others' evidence stays, beside the reason why there is none of one."""
    inspector = inspector_of(Plain(8), (2, 2))
    inspector.admit([frame_of(0, [11, SILENT, 33, 22], (2, 2))])
    (finding,) = inspector.drain()
    assert (finding.anomaly_score, finding.reason) == (33, Reason.NO_EVIDENCE)
    assert finding.anomaly_map[0, -1] == 11  # the least of the rest


def test_a_tile_that_breaks_takes_only_its_own_frame_along() -> None:
    """Its frame is answered by what was found so far; the frames beside it find all."""
    inspector = inspector_of(Plain(12), (2, 2))
    broken, sound = [10, POISON, 42, 30], [11, 12, 13, 14]
    inspector.admit([frame_of(0, broken, (2, 2)), frame_of(1, sound, (2, 2))])
    found = {finding.frame_id: finding for finding in inspector.drain()}
    assert found["0"].reason is Reason.BAD_FRAME
    assert found["0"].anomaly_score in (30, -1) or math.isnan(found["0"].anomaly_score)
    check(found["1"], sound, (2, 2))
    assert inspector.free_slots == 3


@some
@given(lists=st.lists(st.lists(values, min_size=4, max_size=4), min_size=1, max_size=12))
def test_what_cannot_be_in_time_is_answered_whole_and_in_time(lists: list[list[int]]) -> None:
    """Every frame is answered once and before its deadline, found or given up."""
    deadline_ns = 60
    backend = Plain(16, tick_ns=1)
    depths = Depths((0, 9), 0, 1)
    scheduler = Scheduler(Policy(8, margin_ns=10), depths=depths)
    inspector = inspector_of(backend, (2, 2), scheduler=scheduler, clock=lambda: backend.now_ns)
    frames = [frame_of(i, tiles, (2, 2), deadline_ns) for i, tiles in enumerate(lists)]
    answered = []
    for finding in inspect_all(inspector, frames):
        answered.append(finding.frame_id)
        assert backend.now_ns <= deadline_ns
        if finding.reason is None:
            check(finding, lists[int(finding.frame_id)], (2, 2))
        else:
            assert finding.reason is Reason.DEADLINE
    assert sorted(answered, key=int) == [str(i) for i in range(len(lists))]
    assert inspector.free_slots == 4


def test_a_frame_that_is_late_is_not_computed() -> None:
    """All its tiles are given up before one of them starts."""
    backend = Plain(8, tick_ns=1)
    backend.now_ns = 100
    inspector = inspector_of(backend, (2, 2), clock=lambda: backend.now_ns)
    inspector.admit([frame_of(0, [1, 2, 3, 4], (2, 2), deadline_ns=50)])
    (finding,) = inspector.drain()
    assert finding.reason is Reason.DEADLINE
    assert math.isnan(finding.anomaly_score)
    assert (backend.started, inspector.free_slots) == (0, 2)

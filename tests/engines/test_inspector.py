"""In-flight batching: no part lost or doubled, whatever arrives, whatever breaks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engines.contracts import EngineFault, Evidence, Finding, Int32, Progress, Reason, Rows
from engines.inspector import Inspector, Part, inspect_all
from tests.engines.exported import draw_parts, exported

STAGES = ("start", "step", "finish")
QUICK = settings(max_examples=40, deadline=None)
DEPTHS = st.lists(st.integers(0, 6), max_size=30)


class CountedBackend:
    """A backend whose findings are known: pixel 0 says how deep a part is, the rest its score.

    It keeps rows as a real one does, refuses what a runtime would refuse, and counts its calls.
    A row whose last pixel names a stage fails that stage, and whoever shares the batch with it.
    """

    key = "counted:f64"

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.image = np.zeros((capacity, 4), np.int64)  # depth, score, -, poison
        self.steps_left = np.full(capacity, -1, np.int32)
        self.batches: dict[str, list[int]] = {stage: [] for stage in STAGES}
        self.mixed = 0  # step batches whose rows had different depths left

    def start(self, rows: Rows, slots: list[int]) -> Progress:
        """Take the depth from the picture."""
        self._admit("start", slots, rows.image[:, 0, :, 0].astype(np.int64))
        self.image[slots] = rows.image[:, 0, :, 0]
        self.steps_left[slots] = self.image[slots, 0]
        return self._progress(slots)

    def step(self, slots: list[int]) -> Progress:
        """One call for every row named."""
        self._admit("step", slots, self.image[slots])
        assert (self.steps_left[slots] > 0).all()
        self.mixed += len(set(self.steps_left[slots].tolist())) > 1
        self.steps_left[slots] -= 1
        return self._progress(slots)

    def finish(self, slots: list[int]) -> Evidence:
        """The score that the picture carries; a row is empty afterwards."""
        self._admit("finish", slots, self.image[slots])
        assert (self.steps_left[slots] == 0).all()
        self.steps_left[slots] = -1
        scores = self.image[slots, 1].astype(np.float32)
        return Evidence(np.repeat(scores, 4).reshape(-1, 2, 2), scores)

    def close(self) -> None:
        """Nothing to release."""

    @property
    def calls(self) -> int:
        """Denoiser calls made."""
        return len(self.batches["step"])

    def _admit(self, stage: str, slots: list[int], rows: np.ndarray) -> None:
        assert 0 < len(slots) == len(set(slots))
        assert set(slots) <= set(range(self.capacity))
        if (rows[:, 3] == STAGES.index(stage) + 1).any():
            raise EngineFault(f"a row cannot {stage}")
        self.batches[stage].append(len(slots))

    def _progress(self, slots: list[int]) -> Progress:
        left: Int32 = self.steps_left[slots].copy()
        return Progress(left, np.zeros_like(left), left.copy())


def make_part(number: int, depth: int, poison: str = "") -> Part:
    """A part of known depth whose score is its number."""
    stage = STAGES.index(poison) + 1 if poison else 0
    pixels = np.array([depth, number % 256, 0, stage], np.uint8)
    return Part(str(number), 0, "plate", np.repeat(pixels.reshape(1, 4, 1), 3, axis=2))


def make_parts(depths: Sequence[int]) -> list[Part]:
    """One part per depth."""
    return [make_part(number, depth) for number, depth in enumerate(depths)]


def check(finding: Finding, depth: int) -> None:
    """The finding is of its own part, from first to last step."""
    assert finding.reason is None
    assert finding.anomaly_score == int(finding.frame_id) % 256
    assert (finding.anomaly_map == finding.anomaly_score).all()
    assert finding.steps == finding.steps_planned == depth


class Arrivals(RuleBasedStateMachine):
    """Parts arrive and turns pass in any order."""

    @initialize(capacity=st.integers(1, 9), batch_max=st.integers(1, 9))
    def open(self, capacity: int, batch_max: int) -> None:
        """Any number of slots, any batch."""
        self.backend = CountedBackend(capacity)
        self.batch_max = batch_max
        self.inspector = Inspector(self.backend, batch_max)
        self.depths: list[int] = []
        self.answered: list[str] = []

    @precondition(lambda self: self.inspector.free_slots)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """As many as have a slot."""
        most = self.inspector.free_slots
        depths = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=most))
        first = len(self.depths)
        self.inspector.admit(make_part(first + i, depth) for i, depth in enumerate(depths))
        self.depths += depths

    @rule()
    def turn(self) -> None:
        """Whatever is done is answered."""
        self.take(self.inspector.step())

    @invariant()
    def slots_add_up(self) -> None:
        """A slot is free or in flight; a part is in flight or answered."""
        assert self.inspector.free_slots + self.inspector.in_flight == self.backend.capacity
        assert self.inspector.in_flight + len(self.answered) == len(self.depths)

    @invariant()
    def batches_are_bounded(self) -> None:
        """No call has more rows than it may."""
        assert all(max(sizes, default=0) <= self.batch_max for sizes in self.batches())

    def teardown(self) -> None:
        """What is left ends within a bounded number of turns, each part answered once."""
        if not hasattr(self, "inspector"):
            return
        bound = sum(self.depths) + 2 * len(self.depths)  # a start and a finish for each
        for _ in range(bound):
            self.take(self.inspector.step())
        assert self.inspector.in_flight == 0
        assert sorted(self.answered, key=int) == [str(i) for i in range(len(self.depths))]

    def take(self, findings: list[Finding]) -> None:
        """Note the answers."""
        for finding in findings:
            check(finding, self.depths[int(finding.frame_id)])
            self.answered.append(finding.frame_id)

    def batches(self) -> list[list[int]]:
        """Sizes of all calls so far."""
        return list(self.backend.batches.values())


TestArrivals = Arrivals.TestCase
TestArrivals.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@QUICK
@given(depths=DEPTHS, capacity=st.integers(1, 9), batch_max=st.integers(1, 9))
def test_all_parts_pass_through_any_number_of_slots(
    depths: list[int], capacity: int, batch_max: int
) -> None:
    """inspect_all answers each part once and never has more in flight than slots."""
    inspector = Inspector(CountedBackend(capacity), batch_max)
    taken = 0

    def feed() -> Iterator[Part]:
        nonlocal taken
        for part in make_parts(depths):
            taken += 1
            yield part

    answered: list[str] = []
    for finding in inspect_all(inspector, feed()):
        check(finding, depths[int(finding.frame_id)])
        answered.append(finding.frame_id)
        assert taken - len(answered) < capacity
    assert sorted(answered, key=int) == [str(i) for i in range(len(depths))]
    assert (inspector.free_slots, inspector.in_flight) == (capacity, 0)


def test_parts_of_different_depth_share_a_batch() -> None:
    """Rows with one, three and five steps to go are denoised in the same call."""
    backend = CountedBackend(3)
    findings = list(inspect_all(Inspector(backend), make_parts([1, 3, 5])))
    assert [finding.steps for finding in findings] == [1, 3, 5]
    assert backend.batches["step"] == [3, 2, 2, 1, 1]  # (1, 3, 5), (2, 4), (1, 3), (2), (1)
    assert backend.mixed == 3


def test_in_flight_batching_needs_few_calls() -> None:
    """Forty frames over sixteen rows need no more calls than full batches and one deepest part."""
    depths = [1 + (7 * i) % 10 for i in range(40)]
    backend, alone = CountedBackend(16), CountedBackend(1)
    assert len(list(inspect_all(Inspector(backend), make_parts(depths)))) == 40
    assert len(list(inspect_all(Inspector(alone), make_parts(depths)))) == 40
    assert alone.calls == sum(depths)
    assert backend.calls <= math.ceil(sum(depths) / 16) + max(depths)
    assert 8 * backend.calls < alone.calls


def test_a_slot_is_free_as_soon_as_its_part_is_done() -> None:
    """A new part joins a batch that is still being denoised, in the slot of one that left."""
    backend = CountedBackend(2)
    inspector = Inspector(backend)
    inspector.admit(make_parts([1, 4]))
    assert next_answered(inspector) == ["0"]
    inspector.admit([make_part(2, 1)])
    assert next_answered(inspector) == ["2"]
    assert backend.batches["step"] == [2, 2]


def next_answered(inspector: Inspector) -> list[str]:
    """Turns until somebody is answered: who."""
    while not (findings := inspector.step()):
        pass
    return [finding.frame_id for finding in findings]


@QUICK
@given(
    poisoned=st.lists(st.booleans(), min_size=2, max_size=12).filter(lambda rows: not all(rows)),
    stage=st.sampled_from(STAGES),
    depth=st.integers(1, 3),
)
def test_only_the_poison_rows_go_without_evidence(
    poisoned: list[bool], stage: str, depth: int
) -> None:
    """When a batch raises, each row is tried alone, and only those that fail alone are lost."""
    inspector = Inspector(CountedBackend(len(poisoned)), len(poisoned))
    inspector.admit(make_part(i, depth, stage if bad else "") for i, bad in enumerate(poisoned))
    findings = {int(finding.frame_id): finding for finding in inspector.drain()}
    assert sorted(findings) == list(range(len(poisoned)))
    for number, bad in enumerate(poisoned):
        if bad:
            assert findings[number].reason is Reason.BAD_FRAME
            assert math.isnan(findings[number].anomaly_score)
        else:
            check(findings[number], depth)
    assert inspector.free_slots == len(poisoned)


@pytest.mark.parametrize("stage", STAGES)
def test_a_backend_that_fails_for_every_row_is_broken(stage: str) -> None:
    """Two rows that both fail alone are a fault of the engine, not of two frames."""
    inspector = Inspector(CountedBackend(4))
    inspector.admit([make_part(0, 1, stage), make_part(1, 1, stage)])
    with pytest.raises(EngineFault, match=f"cannot {stage}"):
        inspector.drain()


@pytest.mark.parametrize("stage", STAGES)
def test_a_broken_backend_answers_for_nothing(stage: str) -> None:
    """After a fault no part comes out, even where a caller goes on."""
    inspector = Inspector(CountedBackend(4))
    inspector.admit([make_part(0, 1, stage), make_part(1, 1, stage)])
    for _ in range(3):
        with pytest.raises(EngineFault):
            inspector.drain()
    assert inspector.in_flight == 2


def test_a_score_that_is_no_number_is_no_evidence() -> None:
    """NaN from a finish graph is a finding with a reason."""

    class Silent(CountedBackend):
        def finish(self, slots: list[int]) -> Evidence:
            evidence = super().finish(slots)
            return Evidence(evidence.anomaly_map, np.full_like(evidence.anomaly_score, np.nan))

    (finding,) = inspect_all(Inspector(Silent(1)), make_parts([2]))
    assert finding.reason is Reason.NO_EVIDENCE


def test_nobody_is_admitted_without_a_slot() -> None:
    """One part too many is an IndexError; those before it are inspected."""
    inspector = Inspector(CountedBackend(2))
    with pytest.raises(IndexError):
        inspector.admit(make_parts([1, 1, 1]))
    assert [finding.frame_id for finding in inspector.drain()] == ["0", "1"]


def test_real_graphs_find_the_same_in_any_company(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """OpenVINO's findings of parts in flight together are those of the parts one by one."""
    sketch = exported("DeCo-Diff", tmp_path_factory)
    parts = draw_parts(sketch.method, 9, seed=3)
    found = {}
    for capacity in (1, 4):
        with sketch.openvino(capacity=capacity) as backend:
            found[capacity] = {f.frame_id: f for f in inspect_all(Inspector(backend), parts)}
    assert found[1].keys() == found[4].keys() == {part.frame_id for part in parts}
    for frame_id, alone in found[1].items():
        together = found[4][frame_id]
        assert (together.plan, together.level, together.steps) == (
            alone.plan,
            alone.level,
            alone.steps,
        )
        assert together.anomaly_score == pytest.approx(alone.anomaly_score, rel=1e-4)

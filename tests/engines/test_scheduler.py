"""The scheduler's laws, on a timed stub and a clock that passes only in calls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engines.backend import BUCKETS, bucket_of
from engines.backend_stub import COSTS, CallCost, TimedStub, VirtualClock, watermarked
from engines.bundle import GRAPHS
from engines.calibration import ExitRule
from engines.calibration_fit import Wanted, fit_entry
from engines.contracts import ADAPTIVE, BadBundle, Finding, Reason
from engines.costs import CostTable, measure_costs
from engines.depths import DepthMix, Depths
from engines.inspector import Inspector, Part
from engines.scheduler import Policy, Scheduler
from engines.trajectories import Walked

MS = 1_000_000
STEPS = (0, 1, 2, 4, 8)
CAMERAS = ("left", "right", "top")


class Recorded(TimedStub):
    """A stub that knows how many rows each of its calls had."""

    def __init__(self, capacity: int, clock: VirtualClock, steps: Sequence[int] = STEPS) -> None:
        self.rows: list[int] = []
        super().__init__(capacity, clock.spend, steps=steps)

    def _call(self, graph: str, rows: int) -> None:
        self.rows.append(rows)
        super()._call(graph, rows)  # type: ignore[arg-type]


def inspector_of(
    stub: TimedStub, clock: VirtualClock, policy: Policy, steps: Sequence[int] = STEPS
) -> Inspector:
    """An inspector that knows what calls cost and how deep plans are."""
    depths = Depths(tuple(steps), min(steps), 1)
    scheduler = Scheduler(policy, measure_costs(stub, clock), depths)
    return Inspector(stub, scheduler=scheduler, clock=clock)


def part(number: int, deadline_ns: int = 0, camera: str = "left", plan: int = ADAPTIVE) -> Part:
    """A part whose picture carries its number; its depth follows from its bytes."""
    return Part(str(number), 0, "stub", watermarked(number), plan, deadline_ns, camera)


class Line(RuleBasedStateMachine):
    """Parts of three cameras arrive with any deadlines, time passes, turns are taken."""

    @initialize(
        capacity=st.integers(1, 12), batch_max=st.integers(1, 12), fill_ms=st.integers(0, 5)
    )
    def open(self, capacity: int, batch_max: int, fill_ms: int) -> None:
        """Any number of slots, any batch, patient or not."""
        self.clock = VirtualClock()
        self.stub = Recorded(capacity, self.clock)
        self.batch_max = batch_max
        policy = Policy(batch_max, margin_ns=5 * MS, fill_ns=fill_ms * MS)
        self.inspector = inspector_of(self.stub, self.clock, policy)
        self.deadlines: dict[str, int] = {}
        self.answered: list[str] = []

    @precondition(lambda self: self.inspector.free_slots)
    @rule(
        gates_ms=st.lists(st.integers(1, 300), min_size=1, max_size=12),
        camera=st.sampled_from(CAMERAS),
        plan=st.integers(ADAPTIVE, len(STEPS) - 1),
    )
    def arrive(self, gates_ms: list[int], camera: str, plan: int) -> None:
        """As many as have a slot; some come too late already."""
        for gate_ms in gates_ms[: self.inspector.free_slots]:
            number = len(self.deadlines)
            deadline_ns = self.clock.now_ns + gate_ms * MS
            self.deadlines[str(number)] = deadline_ns
            self.inspector.admit([part(number, deadline_ns, camera, plan)])

    @rule(wait_ms=st.integers(0, 50))
    def wait(self, wait_ms: int) -> None:
        """Time passes without anybody doing anything."""
        self.clock.spend(wait_ms * MS)

    @rule()
    def turn(self) -> None:
        """Whoever is done or lost is answered."""
        began_ns = self.clock.now_ns
        for finding in self.inspector.step():
            self.check(finding, began_ns)

    def check(self, finding: Finding, began_ns: int) -> None:
        """Own evidence, worked for before its time; or given up without a call."""
        self.answered.append(finding.frame_id)
        if finding.reason is None:
            assert finding.anomaly_score == int(finding.frame_id)
            assert finding.steps == finding.steps_planned
            assert began_ns <= self.deadlines[finding.frame_id]
        else:
            assert finding.reason is Reason.DEADLINE
            assert self.clock.now_ns == began_ns

    @invariant()
    def nobody_is_lost_or_doubled(self) -> None:
        """A part is in flight or answered once; slots add up."""
        assert self.inspector.in_flight + len(self.answered) == len(self.deadlines)
        assert self.inspector.free_slots + self.inspector.in_flight == self.stub.capacity
        assert len(set(self.answered)) == len(self.answered)

    @invariant()
    def batches_are_bounded(self) -> None:
        """No call has more rows than it may."""
        assert max(self.stub.rows, default=0) <= self.batch_max

    def teardown(self) -> None:
        """What is left ends within a bounded number of turns."""
        if not hasattr(self, "inspector"):
            return
        for _ in range((max(STEPS) + 3) * self.inspector.in_flight + 1):
            self.clock.spend(1)
            if 0 < self.inspector.patience_s < math.inf:
                self.clock.spend(self.inspector.patience_s * 1e9)
            self.turn()
        assert self.inspector.in_flight == 0


TestLine = Line.TestCase
TestLine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def depth_at(load: float, gate_ms: float = 100.0, frames: int = 1500) -> float:
    """Mean depth of a line that is offered so much of what it can do at full depth."""
    clock = VirtualClock()
    steps = (1, 2, 4, 8)
    stub = TimedStub(64, clock.spend, steps=steps)
    inspector = inspector_of(stub, clock, Policy(16, 10 * MS), steps)
    interval_ns = 1e9 / (780 * load)
    made, arrived = [], 0
    first_ns = clock.now_ns
    while arrived < frames or inspector.in_flight:
        while arrived < frames and inspector.free_slots:
            due_ns = first_ns + round(arrived * interval_ns)
            if due_ns > clock.now_ns:
                break
            inspector.admit([part(arrived, due_ns + round(gate_ms * MS))])
            arrived += 1
        if not inspector.in_flight:
            clock.spend(interval_ns)
        made += [f.steps for f in inspector.step() if f.reason is None]
    return sum(made[frames // 3 :]) / len(made[frames // 3 :])


def test_depth_falls_as_load_rises() -> None:
    """More load never means more depth, and little load means all of it."""
    depths = [depth_at(load) for load in (0.5, 1.2, 1.6, 2.0)]
    assert depths[0] == pytest.approx(3.75, rel=0.1)
    assert depths == sorted(depths, reverse=True)
    assert depths[-1] < 0.5 * depths[0]


def test_depth_falls_with_the_gate() -> None:
    """A gate that is near buys fewer steps than one that is far, at the same load."""
    near, far = depth_at(0.5, gate_ms=30), depth_at(0.5, gate_ms=200)
    assert near < far


def test_whoever_is_due_first_is_answered_first() -> None:
    """Among frames of one depth the order is that of their deadlines, not of their arrival."""
    clock = VirtualClock()
    stub = TimedStub(8, clock.spend, costs=dict.fromkeys(COSTS, CallCost(0, MS)), steps=(2,))
    inspector = inspector_of(stub, clock, Policy(1), (2,))
    gates = [500, 300, 400, 200]
    inspector.admit(part(n, clock.now_ns + gate * MS) for n, gate in enumerate(gates))
    assert [finding.frame_id for finding in inspector.drain()] == ["3", "1", "2", "0"]


@pytest.mark.parametrize(
    ("cost", "order"),
    [
        (CallCost(0, MS), ["start", "step", "step", "step", "finish", "start"]),
        (CallCost(MS, 0), ["start", "step", "start", "step", "step"]),
    ],
)
def test_who_walks_waits_only_where_company_saves_time(cost: CallCost, order: list[str]) -> None:
    """Where rows share nothing a frame walks to its end before the next starts; else they join."""
    clock, called = VirtualClock(), []

    class Noting(TimedStub):
        def _call(self, graph: str, rows: int) -> None:
            called.append(graph)
            super()._call(graph, rows)  # type: ignore[arg-type]

    stub = Noting(8, clock.spend, costs=dict.fromkeys(COSTS, cost), steps=(3,))
    inspector = inspector_of(stub, clock, Policy(4), (3,))
    inspector.admit([part(0, clock.now_ns + 500 * MS)])
    inspector.step()
    inspector.admit([part(1, clock.now_ns + 600 * MS)])
    inspector.drain()
    assert called[: len(order)] == order


def test_a_hopeless_frame_costs_nothing() -> None:
    """A frame that not even the shallowest plan can save is given up before any call."""
    clock = VirtualClock()
    stub = Recorded(4, clock, (1, 2))
    inspector = inspector_of(stub, clock, Policy(4, margin_ns=5 * MS), (1, 2))
    inspector.admit([part(0, clock.now_ns + 6 * MS)])
    (finding,) = inspector.drain()
    assert (finding.reason, stub.rows) == (Reason.DEADLINE, [])


@pytest.mark.parametrize("batch_max", [1, 2, 3])
def test_no_camera_starves_beside_a_flood(batch_max: int) -> None:
    """Where nobody can be in time any more, cameras take turns."""
    clock = VirtualClock()
    stub = TimedStub(64, clock.spend, steps=(1,))
    inspector = inspector_of(stub, clock, Policy(batch_max, margin_ns=MS), (1,))
    flood = [part(n, clock.now_ns + 80 * MS, "left") for n in range(40)]
    few = [part(40 + n, clock.now_ns + 81 * MS, "right") for n in range(4)]
    inspector.admit([*flood, *few])
    saved = {int(f.frame_id) for f in inspector.drain() if f.reason is None}
    assert {40, 41, 42, 43} <= saved
    assert saved & set(range(40))


def test_a_frame_waits_for_company_only_so_long() -> None:
    """With patience and nothing else to do the first frame waits, and no longer than was said."""
    clock = VirtualClock()
    stub = Recorded(4, clock, (1,))
    inspector = inspector_of(stub, clock, Policy(4, fill_ns=3 * MS), (1,))
    inspector.admit([part(0)])
    assert not inspector.step()
    assert 0 < inspector.patience_s <= 0.003
    inspector.admit([part(1)])
    clock.spend(3 * MS)
    inspector.drain()
    assert stub.rows == [2, 2, 2]


def test_a_frame_that_waits_for_company_is_not_made_late() -> None:
    """Patience ends early enough for the deadline."""
    clock = VirtualClock()
    stub = Recorded(4, clock, (1,))
    inspector = inspector_of(stub, clock, Policy(4, fill_ns=500 * MS), (1,))
    inspector.admit([part(0, clock.now_ns + 50 * MS)])
    inspector.step()
    assert inspector.patience_s < 0.05
    clock.spend(inspector.patience_s * 1e9)
    (finding,) = inspector.drain()
    assert finding.reason is None


def test_forced_depth_is_never_limited() -> None:
    """A replay's plan is taken as it was, however near the gate."""
    clock = VirtualClock()
    inspector = inspector_of(TimedStub(4, clock.spend, steps=STEPS), clock, Policy(4), STEPS)
    inspector.admit([part(0, clock.now_ns + 40 * MS, plan=4)])
    (finding,) = inspector.drain()
    assert (finding.plan, finding.steps) == (4, 8)


GOOD = Walked(np.linspace(0, 1, 80, dtype=np.float32)[:, None].repeat(9, 1), np.ones(80, np.bool_))
ENTRY = fit_entry({0: GOOD}, [0] * 80, Wanted())


def slow_line(plan: int = ADAPTIVE) -> list[Finding]:
    """What becomes of a row of eight steps when somebody else takes the machine after three."""
    clock = VirtualClock()
    stub = TimedStub(1, clock.spend, costs=dict.fromkeys(COSTS, CallCost(MS, 0)), steps=(8,))
    scheduler = Scheduler(
        Policy(1), measure_costs(stub, clock), Depths((8,), 1, 1), ExitRule({"stub": ENTRY})
    )
    inspector = Inspector(stub, scheduler=scheduler, clock=clock)
    inspector.admit([part(0, clock.now_ns + 100 * MS, plan=plan)])
    for _ in range(4):
        inspector.step()
    clock.spend(94 * MS)
    return inspector.drain()


def test_rows_at_a_cut_point_leave_in_time() -> None:
    """A row that would be late at its next cut point stops at this one, if it has a threshold."""
    (finding,) = slow_line()
    assert finding.reason is None
    assert 3 <= finding.steps < finding.steps_planned == 8


def test_a_forced_depth_is_never_cut() -> None:
    """A row whose plan was asked for is walked to its end or given up."""
    (finding,) = slow_line(plan=0)
    assert finding.reason is Reason.DEADLINE


@pytest.mark.parametrize("spike_ms", [300, 6000])
@pytest.mark.parametrize("steps", [(0, 2, 5), (2, 5)])
def test_one_slow_call_is_forgotten(spike_ms: int, steps: tuple[int, ...]) -> None:
    """After a call that took far longer than the gate, frames are soon inspected as before."""
    clock = VirtualClock()
    stub = TimedStub(8, clock.spend, steps=steps)
    inspector = inspector_of(stub, clock, Policy(8, 5 * MS), steps)
    depths: list[float] = []
    for number in range(300):
        if number == 50:
            stub.delay_ns = spike_ms * MS
        inspector.admit([part(number, clock.now_ns + 100 * MS)])
        depths += [f.steps if f.reason is None else -1 for f in inspector.drain()]
        clock.spend(20 * MS)
    assert depths[:50] == depths[-250:-200] or sum(depths[-50:]) == pytest.approx(
        sum(depths[:50]), rel=0.2
    )
    assert min(depths[-50:]) >= 0


def test_prices_that_refuse_everything_are_tried_again() -> None:
    """Where warm-up met a busy machine, frames are refused for a while, not for ever."""
    clock = VirtualClock()
    stub = TimedStub(8, clock.spend, steps=(1,))
    costs = CostTable()
    for graph in GRAPHS:
        for size in (1, 2, 4, 8):
            for _ in range(3):
                costs.note(graph, size, 2000 * MS)
    scheduler = Scheduler(Policy(8, 5 * MS), costs, Depths((1,), 1, 1))
    inspector = Inspector(stub, scheduler=scheduler, clock=clock)
    answered = []
    for number in range(200):
        inspector.admit([part(number, clock.now_ns + 100 * MS)])
        answered += [f.reason is None for f in inspector.drain()]
        clock.spend(50 * MS)
    assert not answered[0]
    assert all(answered[-50:])


@given(burst=st.integers(1, 8), gate_ms=st.integers(60, 400))
@settings(max_examples=40, deadline=None)
def test_a_larger_burst_saves_no_fewer(burst: int, gate_ms: int) -> None:
    """One frame more at once never costs the answer of another."""

    def saved(count: int) -> int:
        clock = VirtualClock()
        costs = {graph: CallCost(20 * MS, 45 * MS) for graph in GRAPHS} | {
            "step": CallCost(MS, MS),
            "finish": CallCost(MS, MS),
        }
        stub = TimedStub(16, clock.spend, costs=costs, steps=(0,))
        inspector = inspector_of(stub, clock, Policy(16, 5 * MS), (0,))
        inspector.admit(part(n, clock.now_ns + gate_ms * MS) for n in range(count))
        return sum(finding.reason is None for finding in inspector.drain())

    assert saved(burst + 1) >= saved(burst) - 1
    assert saved(burst + 1) > 0 or saved(1) == 0


def test_an_urgent_frame_does_not_wait_for_patient_ones() -> None:
    """Rows that are due later do not take up the room of a frame that is due now."""
    clock = VirtualClock()
    stub = TimedStub(8, clock.spend, steps=(16,))
    inspector = inspector_of(stub, clock, Policy(4, 5 * MS), (16,))
    inspector.admit(part(n, clock.now_ns + 5000 * MS) for n in range(4))
    inspector.step()
    inspector.admit([part(4, clock.now_ns + 60 * MS)])
    assert all(finding.reason is None for finding in inspector.drain())


def test_spared_steps_are_room_for_others() -> None:
    """Where nearly everybody leaves early, load is judged by the steps that are made."""
    mix = DepthMix(Depths((8,), 0, 1))
    for _ in range(500):
        mix.note_made(0, 8)
    assert mix.share_made < 0.01


def test_draining_waits_for_nobody() -> None:
    """With all the patience in the world a drain takes no longer than the calls."""
    clock = VirtualClock()
    stub = TimedStub(8, clock.spend, steps=(1,))
    inspector = inspector_of(stub, clock, Policy(8, fill_ns=10_000 * MS), (1,))
    inspector.admit([part(0)])
    began_ns = clock.now_ns
    assert len(inspector.drain()) == 1
    assert clock.now_ns - began_ns < 20 * MS


def test_a_full_house_waits_for_nobody() -> None:
    """No company can come where there is no slot for it."""
    clock = VirtualClock()
    stub = TimedStub(2, clock.spend, steps=(1,))
    inspector = inspector_of(stub, clock, Policy(8, fill_ns=10_000 * MS), (1,))
    inspector.admit([part(0), part(1)])
    inspector.step()
    assert stub.calls["start"] == 1


@pytest.mark.parametrize("batch_max", [16, 17, 40])
def test_batches_beyond_the_largest_bucket_are_split(batch_max: int) -> None:
    """A policy may name any batch; calls keep to the buckets there are."""
    clock = VirtualClock()
    stub = Recorded(40, clock, (1, 2))
    inspector = inspector_of(stub, clock, Policy(batch_max), (1, 2))
    inspector.admit(part(n) for n in range(40))
    assert len(inspector.drain()) == 40
    assert max(stub.rows) <= BUCKETS[-1]


def test_plans_that_do_not_ascend_are_refused() -> None:
    """A limit by number would not be one by depth."""
    with pytest.raises(BadBundle, match="do not ascend"):
        Depths((1, 3, 2), 1, 1)


@pytest.mark.parametrize(
    ("steps_min", "unit", "made", "left"), [(0, 1, 3, 0), (1, 2, 0, 2), (1, 2, 2, 0), (3, 2, 1, 3)]
)
def test_cut_points_are_whole_units(steps_min: int, unit: int, made: int, left: int) -> None:
    """The next one lies at a multiple of the unit, and not before the least."""
    assert Depths((4,), steps_min, unit).steps_to_cut(made) == left


@given(took=st.lists(st.floats(1, 1e9), min_size=1, max_size=50), rows=st.integers(1, 16))
def test_a_cost_lies_among_what_was_seen(took: list[float], rows: int) -> None:
    """The mean stays between the fastest and the slowest call, and the sure time is no less."""
    costs = CostTable()
    for ns in took:
        costs.note("step", rows, ns)
    mean = costs.call_ns("step", rows)
    assert min(took) * (1 - 1e-9) <= mean <= max(took) * (1 + 1e-9)
    assert costs.sure_ns("step", rows) >= mean
    assert costs.call_ns("step", bucket_of(rows)) == mean


@given(call=st.floats(0, 1e7), row=st.floats(1, 1e6), at_hand=st.integers(1, 16))
def test_a_call_has_as_many_rows_as_pay(call: float, row: float, at_hand: int) -> None:
    """The chosen batch costs at most 5 % more per row than any other, and is the smallest such."""
    costs = CostTable()
    for size in BUCKETS:
        costs.note("step", size, CallCost(call, row).of(size))
    chosen = costs.rows_of("step", at_hand)
    best = min(costs.row_ns("step", count) for count in range(1, at_hand + 1))
    assert costs.row_ns("step", chosen) <= 1.05 * best * (1 + 1e-9)
    if call == 0:
        assert chosen == 1


@given(plans=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=60))
def test_the_mix_is_a_distribution(plans: list[tuple[int, int]]) -> None:
    """Shares stay a distribution, and a lower limit never means more steps."""
    mix = DepthMix(Depths(STEPS, 0, 1))
    for wish, limit in plans:
        mix.note(min(wish, limit), limit)
    expected = [mix.steps_below(limit) for limit in range(len(STEPS))]
    assert expected == sorted(expected)
    assert 0 <= expected[-1] <= STEPS[-1] * (1 + 1e-9)
    assert mix.stepping_below(0) == 0


def test_equally_deep_plans_are_one_limit() -> None:
    """Of D3AD's plans of ten calls only the last is a limit: the others are shallower in level."""
    assert Depths((0, 2, 5, 10, 10, 10), 0, 1).limits == (5, 2, 1, 0)

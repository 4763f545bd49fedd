"""Early exit: verdicts stay, steps are spared, and the bound is what was seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.backend_stub import TimedStub, VirtualClock, watermarked
from engines.calibration import Calibration, Entry
from engines.calibration_fit import Wanted, fit_entry
from engines.contracts import ADAPTIVE, Decision, Evidence, Float32
from engines.exits import Exit, Walks, fit_exits, leaves_at
from engines.inspector import Inspector, Part, inspect_all
from engines.scheduler import Policy, Scheduler
from engines.trajectories import Walked, scores_along

KEY = "stub:f32"
THRESHOLD = 1.0
CALLS = (0, 1, 2, 3)


def walks_of(rng: np.random.Generator, parts: int, drift: float) -> Walks:
    """Good parts, then odd ones, whose surprise moves by up to ``drift`` along the walk."""
    first = np.repeat((0.3, 1.8), parts) + rng.normal(0, 0.1, 2 * parts)
    moves = rng.uniform(-drift, drift, (2 * parts, len(CALLS) - 1))
    surprise = np.cumsum(np.column_stack([first, moves]), axis=1)
    return Walks(CALLS, surprise, np.arange(2 * parts) < parts)


def test_what_no_step_changes_leaves_at_once() -> None:
    """Where evidence is clear from the start no good part makes a step, and no verdict changes."""
    walk = walks_of(np.random.default_rng(0), 200, drift=0.01)
    fitted = fit_exits(walk, THRESHOLD, changed_max=0.05, confidence=0.95)
    assert fitted is not None
    promise = fitted.promise
    assert (promise.parts, promise.changed_good, promise.changed_odd) == (100, 0, 0)
    assert promise.bound == pytest.approx(1 - 0.05 ** (1 / 100), rel=1e-6)
    assert promise.calls_good < 0.2 < promise.calls_good_full == 3
    assert fitted.exits[0].decides(0.0)
    assert fitted.exits[0].decides(5.0)


def test_a_walk_that_decides_late_is_walked() -> None:
    """Where the last step alone tells good from odd nobody leaves before it."""
    rng = np.random.default_rng(1)
    surprise = np.column_stack([rng.uniform(0.2, 2, (200, 3)), rng.uniform(0, 2, 200)])
    walk = Walks(CALLS, surprise, np.arange(200) < 100)
    assert fit_exits(walk, THRESHOLD, changed_max=0.5, confidence=0.95) is None


def test_exits_that_break_the_bound_are_not_used() -> None:
    """Ten parts cannot show that a twentieth of verdicts changes at most."""
    walk = walks_of(np.random.default_rng(2), 20, drift=0.01)
    assert fit_exits(walk, THRESHOLD, changed_max=0.05, confidence=0.95) is None
    assert fit_exits(walk, THRESHOLD, changed_max=0.3, confidence=0.95) is not None


def test_a_part_teaches_or_tests_but_never_both() -> None:
    """A part and its anomalous copy lie in the same half, also where parts are odd in number."""
    count = 61
    surprise = np.tile([0.2, 0.2], (2 * count, 1))
    surprise[count:] = 2.0
    surprise[0] = [1.9, 0.2]  # a teaching part that looks odd at first
    walk = Walks((0, 3), surprise, np.arange(2 * count) < count)
    fitted = fit_exits(walk, THRESHOLD, changed_max=1.0, confidence=0.9)
    assert fitted is not None
    assert fitted.promise.parts == 30
    assert fitted.exits[0].fail_above == pytest.approx(1.9)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), drift=st.floats(0, 0.5))
def test_limits_never_cross_the_threshold(seed: int, drift: float) -> None:
    """What leaves as calm passes, what leaves as strange fails: limits enclose the threshold."""
    walk = walks_of(np.random.default_rng(seed), 40, drift)
    fitted = fit_exits(walk, THRESHOLD, changed_max=1.0, confidence=0.9)
    for limits in fitted.exits.values() if fitted else ():
        assert limits.pass_below is None or limits.pass_below <= THRESHOLD
        assert limits.fail_above is None or limits.fail_above >= THRESHOLD


def test_the_bound_holds_on_parts_never_seen() -> None:
    """Over many fits early exit changes more verdicts than promised about as seldom as it says."""
    rng, broken, made = np.random.default_rng(3), 0, 0
    for _ in range(100):
        walk, fresh = walks_of(rng, 200, 0.35), walks_of(rng, 2000, 0.35)
        fitted = fit_exits(walk, THRESHOLD, changed_max=1.0, confidence=0.9)
        if fitted is not None:
            made += 1
            broken += changed_share(fresh, fitted.exits) > fitted.promise.bound
    assert made > 50
    assert broken / made < 0.2


def changed_share(walk: Walks, exits: dict[int, Exit]) -> float:
    """Share of verdicts at their exit that are not those of the whole walk: good or odd parts'."""
    places = [leaves_at(walk.steps, at, exits) for at in walk.surprise]
    at = walk.surprise[np.arange(len(places)), places]
    changed = (at > THRESHOLD) != (walk.surprise[:, -1] > THRESHOLD)
    return float(max(changed[walk.is_good].mean(), changed[~walk.is_good].mean()))


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_the_threshold_makes_room_for_what_leaving_early_rejects(seed: int) -> None:
    """Good parts that fail where they leave are counted, and the promise holds with them."""
    rng = np.random.default_rng(seed)
    final = np.concatenate([rng.normal(1, 0.1, 400), rng.normal(3, 0.3, 400)])
    first = final + rng.normal(0, 0.05, 800)
    scores = np.column_stack([first, first, first, final]).astype(np.float32)
    walks, taken = {0: Walked(scores, np.arange(800) < 400)}, [0] * 800
    without, entry = (fit_entry(walks, taken, Wanted(max_changed=m)) for m in (None, 0.05))
    assert entry.exits[0]
    assert entry.evidence.exceeding <= without.evidence.exceeding
    assert entry.threshold >= without.threshold
    assert entry.threshold > without.threshold or entry.exit_evidence[0].changed_good == 0


class Settling(TimedStub):
    """A stub whose score falls to its watermark as a row is stepped."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(8, clock.spend, steps=(4,))

    def _finish(self, slots: list[int]) -> Evidence:
        evidence = super()._finish(slots)
        score: Float32 = evidence.anomaly_score + 0.01 * self._left[slots].astype(np.float32)
        return Evidence(evidence.anomaly_map, score)


@pytest.fixture(scope="module")
def entry() -> Entry:
    """Good parts score below 100, their odd copies above 1000; steps hardly matter."""
    rng = np.random.default_rng(4)
    final = np.concatenate([rng.uniform(0, 100, 160), rng.uniform(1000, 2000, 160)])
    scores = final[:, None] + 0.01 * np.arange(4, -1, -1)
    walk = Walked(scores.astype(np.float32), np.arange(320) < 160)
    return fit_entry({0: walk}, [0] * 320, Wanted(0.1, 0.9, max_changed=0.05))


@pytest.mark.parametrize("uses_exits", [True, False])
def test_rows_leave_early_with_the_same_verdict(entry: Entry, uses_exits: bool) -> None:
    """With exits clear frames take no step; the decision is that of the whole walk."""
    calibration = Calibration(bundle_id="b", entries={KEY: {"stub": entry}})
    rule = calibration.exit_rule(KEY)
    clock = VirtualClock()
    inspector = Inspector(
        Settling(clock), scheduler=Scheduler(Policy(8), exits=rule if uses_exits else None)
    )
    parts = [Part(str(n), 0, "stub", watermarked(n), ADAPTIVE) for n in (5, 50, 1500)]
    findings = sorted(inspect_all(inspector, parts), key=lambda f: int(f.frame_id))
    decisions = [calibration.judge(finding, KEY).decision for finding in findings]
    assert decisions == [Decision.PASS, Decision.PASS, Decision.FAIL]
    steps = [finding.steps for finding in findings]
    assert all(f.steps_planned == 4 for f in findings)
    assert steps == [0, 0, 0] if uses_exits else steps == [4, 4, 4]


def test_a_forced_plan_is_walked_to_its_end(entry: Entry) -> None:
    """A replay honours the depth that was used."""
    calibration = Calibration(bundle_id="b", entries={KEY: {"stub": entry}})
    inspector = Inspector(
        Settling(VirtualClock()), scheduler=Scheduler(Policy(8), exits=calibration.exit_rule(KEY))
    )
    (finding,) = inspect_all(inspector, [Part("0", 0, "stub", watermarked(5), plan=0)])
    assert finding.steps == 4


def test_scores_along_a_plan_are_those_of_shorter_walks() -> None:
    """Column k is what a row scores after k calls."""
    stub = Settling(VirtualClock())
    images = [watermarked(number) for number in range(20)]
    scores = scores_along(stub, 0, images, 0)
    expected = np.arange(20)[:, None] + 0.01 * np.arange(4, -1, -1)
    assert np.allclose(scores, expected)

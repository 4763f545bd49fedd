"""Laws of surprise, thresholds and masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.bounds import error_bound
from engines.calibration import Calibration, Entry, load_calibration
from engines.calibration_fit import Wanted, fit_calibration, fit_entry, good_images_needed
from engines.contracts import (
    BadBundle,
    BadData,
    Decision,
    Evidence,
    Finding,
    Progress,
    Reason,
    Rows,
    UInt8,
)
from engines.masks import mask_of, regions
from engines.tail import Tail
from engines.tiles import Tiling
from engines.trajectories import Walked

if TYPE_CHECKING:
    from engines.bundle import Bundle

KEY = "numpy:f32"
SIZE = 16
PLANS = 3
some = settings(max_examples=60, deadline=None)
goods = st.lists(st.floats(0, 100, width=32), min_size=60, max_size=200)
finite = st.floats(-1e6, 1e6)


class Contrast:
    """A backend with a known answer: plan p maps 4 x 4 block maxima, p + 1 times as strong."""

    def __init__(self, capacity: int = 8) -> None:
        self.capacity = capacity
        self.key = KEY
        self._rows: dict[int, list[Any]] = {}  # slot -> [map, plan, steps left]

    def start(self, rows: Rows, slots: list[int]) -> Progress:
        """Block maxima of the first channel."""
        for i, slot in enumerate(slots):
            blocks = rows.image[i, ..., 0].astype(np.float32).reshape(4, SIZE // 4, 4, SIZE // 4)
            anomaly_map = blocks.max(axis=(1, 3))
            chosen = int(rows.plan[i]) if rows.plan[i] >= 0 else int(anomaly_map.max()) % PLANS
            self._rows[slot] = [anomaly_map * np.float32(chosen + 1), chosen, chosen]
        return self._progress(slots)

    def step(self, slots: list[int]) -> Progress:
        """One step of the plan."""
        for slot in slots:
            self._rows[slot][2] -= 1
        return self._progress(slots)

    def finish(self, slots: list[int]) -> Evidence:
        """The map, and its maximum."""
        maps = np.stack([self._rows[slot][0] for slot in slots])
        return Evidence(maps, maps.max(axis=(1, 2)))

    def close(self) -> None:
        """Forget every row."""
        self._rows.clear()

    def _progress(self, slots: list[int]) -> Progress:
        plans = np.array([self._rows[s][1] for s in slots], np.int32)
        return Progress(np.array([self._rows[s][2] for s in slots], np.int32), plans, plans)


def bundle_of(*categories: str) -> Bundle:
    """As much of a bundle as a calibration reads."""
    bundle = SimpleNamespace(
        bundle_id="0123456789ab",
        tiling=Tiling((SIZE, SIZE)),
        manifest=SimpleNamespace(
            categories=categories, plans=(None,) * PLANS, steps_min=0, steps_unit=1
        ),
        category_id=lambda name: [*categories, name].index(name),
    )
    return cast("Bundle", bundle)


def images(count: int, seed: int = 0) -> list[UInt8]:
    """Good parts: noise, never brighter than 100."""
    draws = np.random.default_rng(seed)
    return [draws.integers(0, 200, (SIZE, SIZE, 3), np.uint8) // 2 for _ in range(count)]


def finding(score: float, plan: int = 0, category: str = "disc") -> Finding:
    """A part with one hot cell."""
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[1, 2] = score
    return Finding("cam/1-1", category, anomaly_map, score, plan, plan, plan, plan)


def entry_of(good: Sequence[float], max_false_reject: float, confidence: float) -> Entry:
    """The entry of parts that make no step."""
    scores = np.array(good)[:, None]
    walk = Walked(scores, np.ones(len(good), np.bool_))
    return fit_entry({0: walk}, [0] * len(good), Wanted(max_false_reject, confidence))


def calibration_of(entry: Entry) -> Calibration:
    """One entry, for the category disc."""
    return Calibration(bundle_id="b", entries={KEY: {"disc": entry}})


@pytest.fixture(scope="module")
def fitted() -> Calibration:
    """A calibration by the inspector, for two categories."""
    held_out = {"disc": images(60), "board": images(70, seed=1)}
    return fit_calibration(bundle_of("disc", "board"), Contrast(), held_out)


@some
@given(goods, finite, finite)
def test_surprise_is_strictly_increasing(good: list[float], a: float, b: float) -> None:
    """A higher score is a higher surprise, and no surprise is negative or infinite."""
    low, high = sorted((a, b))
    tail = Tail.fit(good)
    first, second = tail.surprise(low), tail.surprise(high)
    assert 0 < first <= second < math.inf
    if high - low > 1e-3:
        assert first < second


@some
@given(goods, st.floats(0.01, 50))
def test_the_limit_is_the_inverse_of_surprise(good: list[float], surprise: float) -> None:
    """The score that belongs to a surprise has that surprise."""
    tail = Tail.fit(good)
    assert tail.surprise(tail.score_at(surprise)) == pytest.approx(surprise, rel=1e-3)


def test_every_knot_of_a_tail_has_its_score_and_nothing_has_that_of_no_number() -> None:
    """The inverse is exact where the tail is given, and where one end meets the next."""
    tail = Tail(good=3, scores=(1.0, 2.5, 3.0), surprises=(0.2, 0.5, 2.0), scale=0.1)
    assert [tail.score_at(surprise) for surprise in tail.surprises] == list(tail.scores)
    assert tail.score_at(0.35) == pytest.approx(1.75)
    assert Tail(good=1, scores=(4.0,), surprises=(0.3,), scale=1.0).score_at(0.3) == 4.0
    assert math.isnan(tail.score_at(math.nan))


@some
@given(goods, finite, st.integers(0, 40))
def test_the_surprise_of_one_score_is_that_of_many(good: list[float], far: float, at: int) -> None:
    """Between the knots, on them, and far from all of them."""
    tail = Tail.fit(good)
    near = tail.scores[at % len(tail.scores)]
    values = np.array([near, near + tail.scale, near - tail.scale, far])
    many = tail.surprise_of(values).tolist()
    assert [tail.surprise(value) for value in values.tolist()] == pytest.approx(many, rel=1e-12)


def test_surprise_is_minus_log_probability_among_good_parts() -> None:
    """Of 999 good scores, one in ten has surprise above 1, and the tail continues past them."""
    good = np.random.default_rng(0).exponential(size=999)
    tail = Tail.fit(good.tolist())
    assert np.mean(tail.surprise_of(good) > 1) == pytest.approx(0.1, abs=0.005)
    assert tail.surprise(math.log(1e5)) == pytest.approx(5, rel=0.15)


def test_surprise_falls_towards_zero_below_every_good_score() -> None:
    """Far below the smallest good score there is still an order, and no surprise."""
    tail = Tail.fit(list(range(100)))
    values = tail.surprise_of(-np.logspace(0, 30, 31))
    assert np.all(np.diff(values) < 0)
    assert 0 < values[-1] < 1e-20


def test_equal_scores_still_give_a_tail() -> None:
    """Good parts that all score the same leave a steep but finite tail."""
    tail = Tail.fit([2.0] * 60)
    assert tail.surprise(2.0) < tail.surprise(2.01) < math.inf


@pytest.mark.parametrize("scores", [[1.0] * 3, [1.0] * 20 + [math.nan]])
def test_a_tail_needs_finite_scores(scores: list[float]) -> None:
    """Too few scores, or one that is no number, are refused."""
    with pytest.raises(BadData, match="finite scores"):
        Tail.fit(scores)


@some
@given(goods, st.floats(0.05, 0.5), st.floats(0.5, 0.95))
def test_calibration_meets_its_bound_on_its_own_data(
    good: list[float], max_false_reject: float, confidence: float
) -> None:
    """No more good parts exceed the threshold than the bound of the promise allows."""
    entry = entry_of(good, max_false_reject, confidence)
    calibration = calibration_of(entry)
    decisions = [calibration.judge(finding(s), KEY).decision for s in good]
    assert decisions.count(Decision.FAIL) == entry.evidence.exceeding
    assert entry.evidence.exceeding / len(good) <= entry.evidence.bound <= max_false_reject


def test_the_threshold_is_the_lowest_that_keeps_the_promise() -> None:
    """200 good scores allow 4 above a 5 % promise at 95 % confidence: the bound with 5 is 5.2 %."""
    good = np.random.default_rng(1).normal(size=200).tolist()
    entry = entry_of(good, 0.05, 0.95)
    assert entry.evidence.exceeding == 4
    assert error_bound(5, 200, 0.95) > 0.05


def test_the_promise_holds_on_parts_never_seen() -> None:
    """Over many calibrations the true rate breaks the promise about as seldom as it says."""
    draws = np.random.default_rng(2)
    broken = 0
    for _ in range(200):
        good = draws.normal(size=100)
        entry = entry_of(good.tolist(), 0.05, 0.9)
        limit = entry.tails[0].score_at(entry.threshold)
        broken += 0.5 * math.erfc(limit / math.sqrt(2)) > 0.05
    assert broken / 200 <= 0.15


def test_a_promise_that_the_data_cannot_carry_is_refused() -> None:
    """58 good images cannot promise 5 % at 95 %; the refusal says that 59 can."""
    assert good_images_needed(0.05, 0.95) == 59
    with pytest.raises(BadData, match=r"'disc' has 58 .* needs 59"):
        fit_calibration(bundle_of("disc"), Contrast(), {"disc": images(58)})
    with pytest.raises(BadData, match="needs 59"):
        entry_of([1.0] * 58, 0.05, 0.95)


def test_a_category_that_the_bundle_does_not_know_is_refused() -> None:
    """Good images of a foreign category calibrate nothing."""
    with pytest.raises(BadData, match="knows no 'fabric'"):
        fit_calibration(bundle_of("disc"), Contrast(), {"fabric": images(60)})


def test_every_plan_and_the_unknown_category_are_calibrated(fitted: Calibration) -> None:
    """Each category has a tail per plan; "unknown" rests on an even share of all."""
    entries = fitted.entries[KEY]
    assert set(entries) == {"disc", "board", "unknown"}
    assert all(set(entry.tails) == set(range(PLANS)) for entry in entries.values())
    assert entries["unknown"].evidence.good == entries["board"].evidence.good
    assert all(0 <= rate <= 0.1 for rate in entries["disc"].exceeding_by_plan.values())


def test_plans_are_compared_by_surprise(fitted: Calibration) -> None:
    """A plan whose scores are three times as strong makes no part more surprising."""
    shallow = fitted.judge(finding(120.0, plan=0), KEY)
    deep = fitted.judge(finding(360.0, plan=2), KEY)
    assert shallow.surprise == pytest.approx(deep.surprise)
    assert shallow.decision is deep.decision is Decision.FAIL


@some
@given(goods, finite, st.floats(0.01, 5), st.floats(0.01, 5))
def test_raising_the_threshold_never_fails_a_passed_part(
    good: list[float], score: float, a: float, b: float
) -> None:
    """What passes at a threshold passes at every higher one."""
    entry = entry_of(good, 0.2, 0.9)
    low, high = (
        calibration_of(entry.model_copy(update={"threshold": t})).judge(finding(score), KEY)
        for t in sorted((a, b))
    )
    assert (low.decision, high.decision) != (Decision.PASS, Decision.FAIL)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_no_finite_score_is_undecided(fitted: Calibration, score: float) -> None:
    """A score that is no number is never a PASS, and keeps the reason it came with."""
    judged = fitted.judge(finding(score), KEY)
    assert (judged.decision, judged.reason) == (Decision.UNDECIDED, Reason.NO_EVIDENCE)
    lost = Finding("f", "disc", np.zeros((1, 1), np.float32), score, 0, 0, 0, 0, Reason.DEADLINE)
    assert fitted.judge(lost, KEY).reason is Reason.DEADLINE


def test_what_is_not_calibrated_is_undecided(fitted: Calibration) -> None:
    """Neither another backend, nor a plan without a tail, nor a category without an entry."""
    assert fitted.judge(finding(1.0), "tensorrt:fp16").decision is Decision.UNDECIDED
    assert fitted.judge(finding(1.0, plan=7), KEY).decision is Decision.UNDECIDED
    stranger = fitted.judge(finding(1.0, category="cable"), KEY)
    assert stranger.decision is Decision.UNDECIDED


def test_what_is_not_calibrated_is_refused_at_load(fitted: Calibration) -> None:
    """Loading names the backend, category or bundle that lacks a calibration."""
    fitted.require(KEY, ["disc", "board", "unknown"], "0123456789ab")
    with pytest.raises(BadBundle, match="tensorrt:fp16"):
        fitted.require("tensorrt:fp16", ["disc"])
    with pytest.raises(BadBundle, match="fabric"):
        fitted.require(KEY, ["disc", "fabric"])
    with pytest.raises(BadBundle, match="belongs to bundle"):
        fitted.require(KEY, ["disc"], "another")


def test_a_calibration_survives_its_file(fitted: Calibration, tmp_path: Path) -> None:
    """What is read is what was written, under the same id; other content has another id."""
    fitted.save(tmp_path / "calibration.json")
    read = load_calibration(tmp_path / "calibration.json")
    assert read == fitted
    assert read.calibration_id == fitted.calibration_id
    other = fitted.model_copy(update={"bundle_id": "another"})
    assert other.calibration_id != fitted.calibration_id


@pytest.mark.parametrize("damage", ["{", '{"bundle_id": "b"}', '{"bundle_id": "b", "entries": 3}'])
def test_a_damaged_calibration_is_refused(tmp_path: Path, damage: str) -> None:
    """A file that is no calibration is refused with its name."""
    path = tmp_path / "calibration.json"
    path.write_text(damage)
    with pytest.raises(BadBundle, match=r"calibration\.json"):
        load_calibration(path)


def test_joining_keeps_what_is_not_replaced(fitted: Calibration) -> None:
    """A second backend is added beside the first; the newer entry of a category wins."""
    entry = fitted.entries[KEY]["board"]
    newer = Calibration(
        bundle_id=fitted.bundle_id, entries={KEY: {"disc": entry}, "torch:f32": {"disc": entry}}
    )
    joined = fitted.joined(newer)
    assert set(joined.entries) == {KEY, "torch:f32"}
    assert joined.entries[KEY]["disc"] == joined.entries[KEY]["board"] == entry


@some
@given(st.integers(0, 2**32 - 1), st.floats(0, 3), st.floats(0, 3))
def test_raising_the_pixel_limit_only_shrinks_the_mask(seed: int, a: float, b: float) -> None:
    """Every pixel of the stricter mask is in the laxer one, and a failed part shows something."""
    anomaly_map = np.random.default_rng(seed).exponential(size=(5, 7)).astype(np.float32)
    failed = Finding("f", "disc", anomaly_map, float(anomaly_map.max()), 0, 0, 0, 0)
    lax, strict = (
        mask_of(failed, SimpleNamespace(decision=Decision.FAIL, pixel_limit=limit), (40, 33))  # type: ignore[arg-type]
        for limit in sorted((a, b))
    )
    assert not np.any(strict & ~lax)
    assert strict.any()


def test_a_mask_is_empty_unless_the_part_failed(fitted: Calibration) -> None:
    """PASS and UNDECIDED show no mask; FAIL shows the pixels above the limit."""
    shown = {}
    for score in (1.0, math.nan, 900.0):
        measured = finding(score)
        judged = fitted.judge(measured, KEY)
        shown[judged.decision] = mask_of(measured, judged, (32, 32))
    assert shown[Decision.FAIL][8:16, 16:24].any()
    assert not shown[Decision.PASS].any()
    assert not shown[Decision.UNDECIDED].any()


def test_regions_are_the_strongest_patches_of_a_mask() -> None:
    """Each connected patch is one region in mask pixels, strongest first, at most 32."""
    anomaly_map = np.zeros((64, 64), np.float32)
    anomaly_map[10:14, 20:26] = 2
    anomaly_map[40:43, 5:7] = 5
    first, second = regions(anomaly_map > 1, anomaly_map)
    assert (first.x, first.y, first.w, first.h, first.area_px, first.peak) == (5, 40, 2, 3, 6, 5)
    assert (second.x, second.y, second.w, second.h, second.area_px) == (20, 10, 6, 4, 24)
    dots = np.zeros((64, 64), np.float32)
    dots[::4, ::4] = np.arange(1, 257).reshape(16, 16)
    found = regions(dots > 0, dots)
    assert [region.peak for region in found] == list(range(256, 224, -1))


def test_no_mask_has_no_regions() -> None:
    """An empty mask gives no region."""
    assert regions(np.zeros((8, 8), np.bool_), np.ones((4, 4), np.float32)) == ()

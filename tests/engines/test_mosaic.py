"""Laws of one finding from many: the most surprising tile decides, and what is unseen cannot pass.

Tiles take plans of different scale: by plan 1 the same thing scores ten times as high, plus five.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.calibration import Calibration, Entry, Promise
from engines.contracts import Decision, Finding, Reason
from engines.mosaic import Mosaic
from engines.tail import Tail
from engines.tiles import Tiling

KEY = "numpy:f32"
LIMIT = 1.5  # surprise
TILING = Tiling((16, 16), 2, 2, 0.25)
some = settings(max_examples=60, deadline=None)
scores = st.lists(st.tuples(st.floats(0, 3, width=32), st.integers(0, 1)), min_size=4, max_size=4)


def scaled(value: float, plan: int) -> float:
    """The raw score of the same thing at a plan."""
    return 10 * value + 5 if plan else value


def calibration() -> Calibration:
    """Good parts score evenly between 0 and 1 at plan 0."""
    good = np.linspace(0, 1, 200)
    tails = {plan: Tail.fit([scaled(value, plan) for value in good]) for plan in (0, 1)}
    promise = Promise(good=200, exceeding=0, bound=0.1, max_false_reject=0.1, confidence=0.9)
    entry = Entry(threshold=LIMIT, evidence=promise, exceeding_by_plan={}, tails=tails)
    return Calibration(bundle_id="b", entries={KEY: {"disc": entry}})


CALIBRATION = calibration()
MOSAIC = Mosaic(TILING, lambda finding: CALIBRATION.judge(finding, KEY))


def tile(value: float, plan: int = 0, reason: Reason | None = None) -> Finding:
    """A tile with one spot in its middle, where nobody else looks."""
    anomaly_map = np.full((4, 4), scaled(0.0, plan), np.float32)
    anomaly_map[1, 1] = scaled(value, plan)
    score = math.nan if reason else float(anomaly_map.max())
    return Finding("cam/1-1", "disc", anomaly_map, score, plan, plan + 3, plan, plan, reason)


@some
@given(tiles=scores)
def test_the_most_surprising_tile_decides(tiles: list[tuple[float, int]]) -> None:
    """Whatever plans tiles took: score, plan, level and steps are all of one of them."""
    found = [tile(*one) for one in tiles]
    whole = MOSAIC.whole(found)
    judged = CALIBRATION.judge(whole, KEY)
    surprises = [CALIBRATION.judge(one, KEY).surprise or math.nan for one in found]
    assert judged.surprise == max(surprises)
    decisive = found[surprises.index(max(surprises))]
    for name in ("anomaly_score", "plan", "level", "steps", "steps_planned", "frame_id"):
        assert getattr(whole, name) == getattr(decisive, name)
    assert whole.calls == sum(one.steps for one in found)
    fails = any(CALIBRATION.judge(one, KEY).decision is Decision.FAIL for one in found)
    assert judged.decision is (Decision.FAIL if fails else Decision.PASS)


@some
@given(tiles=scores)
def test_maps_of_all_plans_meet_on_one_scale(tiles: list[tuple[float, int]]) -> None:
    """Each tile's spot is as far above the limit on the frame's map as on its own."""
    found = [tile(*one) for one in tiles]
    whole = MOSAIC.whole(found)
    relative = CALIBRATION.judge(whole, KEY).relative(whole.anomaly_map)
    assert relative is not None
    spots = [relative[row + 1, column + 1] for row in (0, 3) for column in (0, 3)]
    for one, spot in zip(found, spots, strict=True):
        own = CALIBRATION.judge(one, KEY).relative(one.anomaly_map)
        assert own is not None
        assert spot == pytest.approx(own[1, 1], abs=1e-4)


@some
@given(tiles=scores, missing=st.sets(st.integers(0, 3), min_size=1))
def test_what_is_not_wholly_seen_does_not_pass(
    tiles: list[tuple[float, int]], missing: set[int]
) -> None:
    """FAIL of any tile with evidence stands; else a tile without makes the frame UNDECIDED."""
    found = [
        tile(*one, Reason.DEADLINE if number in missing else None)
        for number, one in enumerate(tiles)
    ]
    judged = CALIBRATION.judge(MOSAIC.whole(found), KEY)
    fails = any(CALIBRATION.judge(one, KEY).decision is Decision.FAIL for one in found)
    assert judged.decision is (Decision.FAIL if fails else Decision.UNDECIDED)
    assert judged.reason is (None if fails else Reason.DEADLINE)


def test_a_tile_that_cannot_be_judged_is_not_seen() -> None:
    """A score without a tail, and one that is no number, are no evidence."""
    stray = Finding("cam/1-1", "disc", np.ones((4, 4), np.float32), 9.0, 7, 0, 1, 1)
    silent = Finding("cam/1-1", "disc", np.ones((4, 4), np.float32), math.nan, 0, 0, 1, 1)
    for odd in (stray, silent):
        judged = CALIBRATION.judge(MOSAIC.whole([tile(0.1), odd, tile(0.1), tile(0.1)]), KEY)
        assert (judged.decision, judged.reason) == (Decision.UNDECIDED, Reason.NO_EVIDENCE)
        nothing = MOSAIC.whole([odd] * 4)
        assert math.isnan(nothing.anomaly_score)
        assert nothing.reason is Reason.NO_EVIDENCE


def test_without_thresholds_the_highest_score_decides() -> None:
    """All tiles then have the same depth, and raw maps are merged as they are."""
    found = [tile(value) for value in (0.1, 0.4, 0.9, 0.2)]
    whole = Mosaic(TILING).whole(found)
    assert whole.anomaly_score == pytest.approx(0.9)
    np.testing.assert_array_equal(
        whole.anomaly_map, TILING.merge([one.anomaly_map for one in found])
    )


def test_a_frame_that_is_not_cut_keeps_its_finding() -> None:
    """One tile is the frame itself."""
    one = tile(0.3)
    assert Mosaic(Tiling((16, 16))).whole([one]) is one

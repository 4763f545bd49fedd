"""Laws of another threshold: what stays, what goes, and what may still be promised."""

from __future__ import annotations

import numpy as np
import pytest

from engines.bounds import error_bound
from engines.calibration import Calibration, Entry, Promise
from engines.contracts import BadConfig
from engines.exits import Exit
from engines.retuning import expected_above, promise_at, with_threshold
from engines.tail import Tail

GOOD = 100


def calibration() -> Calibration:
    """One category with an early exit, and another beside it."""
    tail = Tail.fit(np.random.default_rng(1).normal(size=GOOD).tolist())
    entry = Entry(
        threshold=1.5,
        evidence=Promise(good=GOOD, exceeding=2, bound=0.05, max_false_reject=0.05, confidence=0.9),
        exceeding_by_plan={0: 0.02},
        tails={0: tail},
        cut_tails={0: {1: tail}},
        exits={0: {1: Exit(pass_below=0.5, fail_above=4)}},
    )
    return Calibration(bundle_id="b", entries={"stub:f32": {"plate": entry, "disc": entry}})


def test_only_the_named_threshold_changes() -> None:
    """The other category and the tails are as they were, the id is another."""
    old = calibration()
    new = with_threshold(old, "stub:f32", "plate", 2.0)
    assert new.entries["stub:f32"]["disc"] == old.entries["stub:f32"]["disc"]
    plate = new.entries["stub:f32"]["plate"]
    assert plate.threshold == 2.0
    assert plate.tails == old.entries["stub:f32"]["plate"].tails
    assert new.calibration_id != old.calibration_id
    assert Calibration.model_validate_json(new.model_dump_json()) == new


def test_early_exits_of_the_old_threshold_go() -> None:
    """Limits on either side of the old threshold say nothing of the new one."""
    plate = with_threshold(calibration(), "stub:f32", "plate", 2.0).entries["stub:f32"]["plate"]
    assert plate.exits == {}
    assert plate.exit_evidence == {}
    assert plate.cut_tails  # a row in need may still leave and be judged


def test_a_higher_threshold_keeps_the_promise_and_a_lower_one_says_what_is_left() -> None:
    """Below the calibrated threshold the bound is that of the parts expected above it."""
    entry = calibration().entries["stub:f32"]["plate"]
    assert promise_at(entry, 3.0).bound == entry.evidence.bound
    lower = promise_at(entry, 1.0)
    assert lower.exceeding == 10
    assert lower.max_false_reject == pytest.approx(error_bound(10, GOOD, 0.9))
    assert expected_above(entry, 1.0) == pytest.approx(0.1)


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_threshold_is_refused(threshold: float) -> None:
    """A threshold is a number above 0."""
    with pytest.raises(BadConfig, match="number above 0"):
        with_threshold(calibration(), "stub:f32", "plate", threshold)


def test_a_category_without_one_is_refused() -> None:
    """Nobody sets a threshold where nothing was calibrated."""
    with pytest.raises(BadConfig, match="no threshold for x"):
        with_threshold(calibration(), "stub:f32", "x", 1.0)

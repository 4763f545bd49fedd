"""Comparing two runs: a faithful replay has no differences, and every other part is named."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as laws
from hypothesis import strategies as st

from engines.contracts import Decision, Reason, Verdict
from pipeline.comparison import Difference, compare_verdicts

START_NS = 1_700_000_000_000_000_000


def verdict(number: int, **changes: object) -> Verdict:
    """A verdict on frame ``number``."""
    known = Verdict(
        frame_id=f"top/3-{number}",
        camera="top",
        decision=Decision.PASS,
        anomaly_score=0.25 + number,
        plan=1,
        steps=3,
        captured_ns=START_NS,
        decided_ns=START_NS + 1,
    )
    return known.model_copy(update=changes)


def test_the_same_verdicts_do_not_differ() -> None:
    """A run compared with its faithful replay has no differences, whatever the order."""
    original = [verdict(number) for number in range(5)]
    again = [
        verdict(
            number, frame_id=f"top/9-{number}", source_frame_id=f"top/3-{number}", replayed=True
        )
        for number in reversed(range(5))
    ]
    assert compare_verdicts(original, again) == []
    assert compare_verdicts(original, original) == []
    assert compare_verdicts(again, again) == []
    replayed_twice = [one.model_copy(update={"frame_id": f"x{i}"}) for i, one in enumerate(again)]
    assert compare_verdicts(again, replayed_twice) == []


def test_every_difference_is_told_part_by_part() -> None:
    """Changed fields, a missing part and an extra one each come once, in order."""
    original = [verdict(0), verdict(1), verdict(2)]
    again = [verdict(0, decision=Decision.FAIL, steps=4), verdict(2), verdict(7)]
    found = compare_verdicts(original, again)
    assert found == [
        Difference(
            "top/3-0", "changed", {"decision": (Decision.PASS, Decision.FAIL), "steps": (3, 4)}
        ),
        Difference("top/3-1", "missing", {}),
        Difference("top/3-7", "extra", {}),
    ]
    assert str(found[0]) == "top/3-0 changed decision PASS -> FAIL, steps 3 -> 4"
    assert str(found[1]) == "top/3-1 missing"


@given(gap=st.floats(0, 1), tolerance=st.floats(0, 1))
@laws(max_examples=40, deadline=None)
def test_scores_may_differ_by_the_tolerance(gap: float, tolerance: float) -> None:
    """A score difference is told exactly when it is larger than the tolerance."""
    one, other = verdict(0, anomaly_score=0.0), verdict(0, anomaly_score=gap)
    assert bool(compare_verdicts([one], [other], tolerance)) == (gap > tolerance)


def test_an_undecided_part_differs_from_a_decided_one() -> None:
    """No score against a score is a difference at any tolerance."""
    lost = verdict(0, decision=Decision.UNDECIDED, reason=Reason.DEADLINE, anomaly_score=None)
    (difference,) = compare_verdicts([verdict(0)], [lost], tolerance=1e9)
    assert set(difference.changes) == {"decision", "reason", "anomaly_score"}

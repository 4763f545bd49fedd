"""The public report: sums over cameras, latencies and speed of all verdicts."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from engines.contracts import Decision, Reason, Verdict
from pipeline import report
from pipeline.report import Tally, print_report, run_report
from pipeline.stream import Ledger

SECOND_NS = 1_000_000_000
KEYS = {
    "captured",
    "pass",
    "fail",
    "undecided",
    "residual",
    "image_auroc",
    "pixel_auroc",
    "frames_per_second",
    "latency_ms",
    "mean_steps",
}
counts = st.integers(0, 50)


def verdict(number: int, latency_ms: float = 10, decision: Decision = Decision.PASS) -> Verdict:
    """A verdict every tenth of a second."""
    decided = 1_000 * SECOND_NS + number * SECOND_NS // 10
    return Verdict(
        frame_id=f"left/1-{number}",
        camera="left",
        decision=decision,
        reason=Reason.DEADLINE if decision is Decision.UNDECIDED else None,
        captured_ns=decided - int(latency_ms * 1e6),
        decided_ns=decided,
        steps=number % 4,
    )


def tallied(*verdicts: Verdict) -> Tally:
    """A tally of these."""
    tally = Tally()
    for one in verdicts:
        tally.add(one)
    return tally


@settings(max_examples=50, deadline=None)
@given(
    ledgers=st.lists(
        st.builds(
            Ledger,
            captured=st.integers(200, 400),
            passed=counts,
            failed=counts,
            undecided=st.dictionaries(st.sampled_from([r.value for r in Reason]), counts),
            open=counts,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_report_adds_up(ledgers: list[Ledger]) -> None:
    """Captured is pass, fail, undecided and residual, over any cameras."""
    report = run_report({str(i): ledger for i, ledger in enumerate(ledgers)}, Tally())
    assert set(report) == KEYS
    told = report["pass"] + report["fail"] + sum(report["undecided"].values()) + report["residual"]
    assert told == report["captured"] == sum(ledger.captured for ledger in ledgers)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_latencies_are_those_of_all_verdicts() -> None:
    """Percentiles in milliseconds, undecided parts included."""
    latencies = [float(i) for i in range(1, 101)]
    given_up = verdict(100, 5_000, Decision.UNDECIDED)
    tally = tallied(*(verdict(i, ms) for i, ms in enumerate(latencies)), given_up)
    told = run_report({}, tally)["latency_ms"]
    assert told["p50"] == pytest.approx(np.quantile([*latencies, 5_000], 0.5))
    assert told["p999"] > told["p99"] >= told["p50"]


def test_steps_are_of_judged_parts_alone() -> None:
    """A part that was never denoised does not lower the mean."""
    tally = tallied(verdict(2), verdict(3), verdict(0, decision=Decision.UNDECIDED))
    assert run_report({}, tally)["mean_steps"] == 2.5


def test_speed_is_between_the_first_and_the_last() -> None:
    """Eleven verdicts in one second are ten a second, in whatever order they were seen."""
    order = [verdict(i) for i in (5, 0, 10, 3, 1, 2, 4, 6, 9, 8, 7)]
    assert tallied(*order).frames_per_second == pytest.approx(10)


def test_a_line_that_runs_for_months_keeps_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """All verdicts are counted; latencies and steps are those of the newest."""
    monkeypatch.setattr(report, "NEWEST", 10)
    tally = tallied(*(verdict(i, latency_ms=i) for i in range(95)))
    assert (tally.count, tally.decisions["PASS"]) == (95, 95)
    assert 10 <= len(tally.latency_ms) == len(tally.steps) < 20
    assert tally.latency_ms[-1] == pytest.approx(94)


def test_nothing_is_no_number() -> None:
    """Without verdicts, and with one, there is no speed; without truth no AUROC."""
    report = run_report({"left": Ledger(0, 0, 0, {}, 0)}, Tally())
    assert report["frames_per_second"] is None
    assert report["latency_ms"] == {"p50": None, "p99": None, "p999": None}
    assert report["mean_steps"] is report["image_auroc"] is report["pixel_auroc"] is None
    assert tallied(verdict(1)).frames_per_second is None


def test_a_clock_that_jumps_back_gives_no_negative_latency() -> None:
    """A verdict decided before its capture took no time."""
    assert tallied(verdict(1, latency_ms=-50)).percentile(0.5) == 0.0


def test_people_see_every_number() -> None:
    """The table names all that the report holds."""
    ledger = Ledger(13, 7, 3, {"deadline": 2, "overrun": 1}, 0)
    console = Console(record=True, width=80, file=io.StringIO())
    print_report(run_report({"left": ledger}, tallied(verdict(1))), console, "Line press-3")
    told = console.export_text()
    for word in ("Line press-3", "captured", "13", "undecided deadline", "latency ms p50", "10.0"):
        assert word in told

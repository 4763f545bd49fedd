"""Laws of the scheduler's bench: names, ratios, and frames that stay themselves."""

from __future__ import annotations

import itertools

import pytest

from engines.backend_stub import VirtualClock
from engines.contracts import BadData, Reason
from pipeline.bench import marked
from pipeline.bench.arrivals import JITTER, NS, Answered, arrivals, feed, stub_line
from pipeline.bench.marked import swaps_through_redis
from pipeline.bench.report import Report
from pipeline.bench.scheduler import (
    GATE_MS,
    POLICY,
    Frames,
    bench_scheduler,
    recovery_s,
    run_to_completion,
)

TINY = Frames(
    saturation=1500, identity=500, through_redis=60, load_s=2.5, on_time=1500, on_time_real=60
)


@pytest.fixture(scope="module")
def report() -> Report:
    """The whole bench with few frames."""
    return bench_scheduler(TINY)


def value(report: Report, name: str) -> float:
    """One figure by its name."""
    (found,) = [one for one in report.results if one.name == name]
    return found.value


def test_results_have_their_stable_names(report: Report) -> None:
    """What is promised to be there is there, once."""
    names = [one.name for one in report.results]
    assert len(set(names)) == len(names)
    assert {
        "scheduler.in_flight",
        "scheduler.in_flight.shrinking",
        "scheduler.last_part",
        "scheduler.swaps",
        "scheduler.swaps.redis",
        "scheduler.recovery",
        "scheduler.overload.announced",
        "scheduler.on_time.virtual",
        "scheduler.on_time.real",
    } <= set(names)


def test_in_flight_batching_beats_whole_batches(report: Report) -> None:
    """On a virtual clock this is arithmetic: half as many frames again, whatever the machine."""
    (found,) = [one for one in report.results if one.name == "scheduler.in_flight"]
    assert found.ratio >= 1.5


def test_no_frame_is_another(report: Report) -> None:
    """Every finding carries its own frame's watermark, in process and through Redis."""
    assert value(report, "scheduler.swaps") == value(report, "scheduler.swaps.redis") == 0


def test_the_last_part_waits_for_nobody(report: Report) -> None:
    """It sees its own steps and at most one more."""
    assert value(report, "scheduler.last_part") <= 1


def test_depth_falls_at_twice_the_load_and_comes_back(report: Report) -> None:
    """Shallow only while it must be; nobody is late without a word."""
    first, _, third, last = (value(report, f"scheduler.depth.{k}") for k in range(1, 5))
    assert third < 0.6 * first
    assert last == pytest.approx(first, rel=0.15)
    assert value(report, "scheduler.recovery") <= 5
    assert value(report, "scheduler.overload.late") == 0


def test_verdicts_through_redis_are_complete() -> None:
    """As many verdicts as frames, over two cameras."""
    assert swaps_through_redis(40) == (40, 0)


def test_a_lost_frame_is_counted_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no further verdict comes, the bench ends and says how many there were."""
    feed_all = marked._feed
    monkeypatch.setattr(marked, "_feed", lambda stream, all_, end: feed_all(stream, all_ - 1, end))
    monkeypatch.setattr(marked, "NO_PROGRESS_S", 0.5)
    assert swaps_through_redis(8) == (7, 0)


@pytest.mark.parametrize("lane", ["_feed", "_is_own"])
def test_a_crash_beside_the_worker_ends_the_bench(
    monkeypatch: pytest.MonkeyPatch, lane: str
) -> None:
    """What ends the feed or the collecting is raised at once instead of being waited for."""

    def crash(*_: object) -> None:
        raise BadData("this went wrong")

    monkeypatch.setattr(marked, lane, crash)
    with pytest.raises(BadData, match="went wrong"):
        swaps_through_redis(8)


def test_arrivals_keep_their_rate() -> None:
    """Periodic with a jitter of a tenth: in the long run exactly as fast as asked."""
    times = list(arrivals(itertools.repeat(100.0, 500), first_ns=7))
    assert times == sorted(times)
    assert (times[-1] - 7) / NS == pytest.approx(5.0, abs=2 * JITTER / 100)


def test_what_cannot_be_done_is_said_before_its_gate() -> None:
    """At five times what can be done: evidence in time, or a word before the gate."""
    line = stub_line(VirtualClock(), POLICY)
    due = arrivals(itertools.repeat(10_000.0, 1500), line.clock())
    answers = list(feed(line, due, GATE_MS))
    given_up = [answer for answer in answers if answer.reason is Reason.DEADLINE]
    assert len(answers) == 1500
    assert given_up
    assert all(GATE_MS - answer.latency_ms >= 5 for answer in given_up)
    assert all(answer.latency_ms <= GATE_MS for answer in answers)


def answers_of(*seconds: tuple[int, ...] | None) -> list[Answered]:
    """Frames of so many steps in each second; None for one that was given up, () for no frame."""
    return [
        Answered(0, k * NS + number, k * NS + number, steps, reason, is_own=True)
        for k, second in enumerate(seconds)
        for number, steps in enumerate((0,) if second is None else second)
        for reason in [Reason.DEADLINE if second is None else None]
    ]


@pytest.mark.parametrize(
    ("seconds", "back_s"),
    [
        (((4, 4), (4, 4)), 0),
        (((2, 2), (4, 4)), 1),
        (((4, 4), (4, 3), (4, 4)), 2),  # 3.5 is less than 95 % of 4
        (((4, 4), (), (4, 4)), 2),
        (((4, 4), None, (4, 4)), 2),
        ((None, None), 2),
    ],
)
def test_a_second_without_evidence_is_no_recovery(
    seconds: tuple[tuple[int, ...] | None, ...], back_s: float
) -> None:
    """Depth is back after the last second that was empty, given up, or shallower by 5 %."""
    assert recovery_s(answers_of(*seconds), depth=4.0) == back_s


def test_rows_that_leave_as_they_end_are_the_stronger_baseline() -> None:
    """A batch whose ended rows leave is faster than one that is carried whole to its end."""
    assert run_to_completion(320, shrinks=True) > run_to_completion(320, shrinks=False)

"""Laws of the line bench: what is counted, and that a real line is behind it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from engines.bundle import Bundle, open_bundle
from engines.contracts import Decision, EngineFault, Reason, Verdict
from pipeline.bench.line import (
    Alone,
    Spent,
    bench_line,
    engine_alone,
    in_turns,
    rate_of,
    spent_per_frame,
)
from pipeline.bench.report import quantiles
from pipeline.bench.stage import ENGINE, LATE, ROLES, Look, Seen, run_stage

pytestmark = pytest.mark.slow

DEMO = Path(__file__).parents[2] / "configs" / "bundles" / "demo"
FEW = 16  # frames
needs_demo = pytest.mark.skipif(not DEMO.exists(), reason="the demo bundle is not here")


def verdict(decided_ms: int, reason: Reason | None = None) -> Verdict:
    """A verdict on a frame captured at 0, so many milliseconds later."""
    return Verdict(
        frame_id="bench/1-1",
        camera="bench",
        decision=Decision.UNDECIDED if reason else Decision.PASS,
        reason=reason,
        captured_ns=0,
        decided_ns=decided_ms * 1_000_000,
    )


EACH_S = {"ingest": 0.01, "inspect": 0.06, "sink": 0.01, "server": 0.01, ENGINE: 0.05}


def looks(*verdicts: int) -> list[Look]:
    """One look a second; every role spends 10 ms on each verdict, inspect 60, of them 50 inside."""
    return [
        Look(float(at), count, {role: 1 + count * each_s for role, each_s in EACH_S.items()})
        for at, count in enumerate(verdicts)
    ]


def seen(frames: int) -> Seen:
    """A run of so many frames, ten a second."""
    found = Seen(looks=looks(0, frames // 4, frames // 2, frames, frames))
    for number in range(frames):
        found.add(verdict(100 * (number + 1)))
    return found


def test_a_rate_leaves_out_how_the_line_fills() -> None:
    """The first tenth of the moments does not count, in whatever order they were seen."""
    steady = [10_000_000_000 + number * 100_000_000 for number in range(18)]
    assert rate_of([*reversed(steady), 0, 1]) == pytest.approx(10)


def test_too_few_verdicts_make_no_rate() -> None:
    """A sentence with the mend, not an infinite rate."""
    with pytest.raises(EngineFault, match="--frames"):
        rate_of([5])


@pytest.mark.parametrize("reason", Reason)
def test_frames_without_evidence_are_not_quick_ones(reason: Reason) -> None:
    """What was refused at once would make the latency look good, for whatever reason it was."""
    found = Seen()
    for one in (verdict(7), verdict(0, reason), verdict(9)):
        found.add(one)
    assert found.without_evidence == {reason: 1}
    assert found.latency_ms == [7, 9]
    assert len(found.steps) == 2


def test_a_line_that_did_not_inspect_has_no_figures() -> None:
    """What load does to a line may be measured; all else ends the bench with one sentence."""
    found = Seen()
    for one in (verdict(7), verdict(0, Reason.OVERRUN)):
        found.add(one)
    found.require_evidence(but=LATE)
    with pytest.raises(EngineFault, match="of 2 frames the line did not inspect 1 overrun;"):
        found.require_evidence()
    found.add(verdict(0, Reason.ENGINE_FAULT))
    with pytest.raises(EngineFault, match="1 engine_fault;"):
        found.require_evidence(but=LATE)


def test_the_far_tail_needs_ten_frames_beyond_it() -> None:
    """Below ten thousand values the 99.9th percentile would only be the slowest of them."""
    assert [name for name, _ in quantiles([1.0] * 9_999)] == ["p50", "p99"]
    assert dict(quantiles([1.0] * 9_980 + [2.0] * 20)) == {"p50": 1, "p99": 1, "p999": 2}


def test_processor_time_is_that_of_the_verdicts_between_two_looks() -> None:
    """Starting up and idling afterwards belong to no frame."""
    spent = spent_per_frame(seen(40))
    assert {**spent.by_role, ENGINE: spent.engine} == pytest.approx(EACH_S)


def test_a_line_that_nobody_watched_has_no_costs() -> None:
    """Too short a run is refused."""
    with pytest.raises(EngineFault, match="watched"):
        spent_per_frame(Seen(decided_ns=[1, 2], looks=looks(0)))


def test_the_host_pays_for_all_but_the_engine() -> None:
    """A worker's own share is what its other threads spend."""
    spent = Spent({"ingest": 1.0, "inspect": 6.0, "sink": 2.0, "server": 3.0}, engine=5.5)
    assert spent.around == 6.5


@needs_demo
@pytest.mark.parametrize(("frames", "turns"), [(40, 1), (1000, 2), (9000, 3)])
def test_line_and_engine_take_turns(
    monkeypatch: pytest.MonkeyPatch, frames: int, turns: int
) -> None:
    """A machine that grows slower all the while slows both alike; short runs have one turn."""
    asked: list[str] = []

    def now() -> float:
        return 100.0 - 4 * len(asked)

    def stage(_: Path, count: int, rate_hz: float) -> Seen:
        asked.append(f"line {count} {rate_hz:.0f}")
        return Seen(decided_ns=[int(number * 1e9 / now()) for number in range(100)])

    def engine(_: Bundle, count: int) -> Alone:
        asked.append(f"engine {count}")
        return Alone(now(), 0.05, 0.1, now(), 0.15, 0)

    monkeypatch.setattr("pipeline.bench.line.engine_alone", engine)
    monkeypatch.setattr("pipeline.bench.line.run_stage", stage)
    alone, full = in_turns(open_bundle(DEMO), frames)
    each = frames // turns
    assert asked == [f"engine {each}", *[f"line {each} 0", f"engine {each}"] * turns]
    assert sum(rate_of(seen.decided_ns) for seen in full) / turns == pytest.approx(alone.rate)
    assert alone.slowest_s == 96.0


@needs_demo
def test_results_are_called_by_their_stable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever follows a machine over months finds each of them again."""
    asked = []

    def stage(
        _: Path, frames: int | None, rate_hz: float, idle_s: float | None = None, **gate: float
    ) -> Seen:
        asked.append((frames, rate_hz, idle_s, gate))
        return seen(40)

    monkeypatch.setattr(
        "pipeline.bench.line.engine_alone", lambda *_: Alone(20, 0.05, 0.1, 0.2, 0.15, 0)
    )
    monkeypatch.setattr("pipeline.bench.line.run_stage", stage)
    report = bench_line(DEMO, frames=40, idle_s=1.0, loaded_frames=50)
    assert [(one.name, one.ratio > 0) for one in report.results] == [
        (f"line.{name}", True)
        for name in (
            "saturation",
            "host_cpu",
            "host_cpu_near_gate",
            "engine_cpu",
            "p50",
            "p99",
            "idle_ingest",
            "idle_sink",
        )
    ]
    assert report.results[0].ratio == pytest.approx(0.5)
    assert asked[1] == (50, pytest.approx(8), None, {"gate_ms": 100.0})
    assert report.machine["line_missed"] == "0 of 40"
    assert report.results[1].value == pytest.approx(40)


@needs_demo
def test_a_real_line_answers_and_is_gone() -> None:
    """Every role is a process of its own, works for the frames, and ends with the bench."""
    before = set(psutil.Process().children())
    found = run_stage(DEMO, FEW, 0.0)
    assert len(found.decided_ns) == len(found.latency_ms) == FEW
    assert found.residual == 0
    assert {role for look in found.looks for role in look.cpu_s} == {*ROLES, ENGINE}
    last = max(found.looks, key=lambda look: look.cpu_s.get(ENGINE, 0.0)).cpu_s
    assert 0 < last[ENGINE] < last["inspect"]
    assert set(psutil.Process().children()) <= before


@needs_demo
def test_a_line_and_the_engine_alone_take_the_same_steps() -> None:
    """Else the one would be measured against an engine that works more, or less, for a frame."""
    found = run_stage(DEMO, FEW, 0.0)
    alone = engine_alone(open_bundle(DEMO), FEW)
    assert alone.steps == pytest.approx(sum(found.steps) / FEW)


@needs_demo
def test_an_idle_line_is_watched_until_it_is_told_to_stop() -> None:
    """One part comes, and then nothing for the time asked; what ending costs is not looked at."""
    found = run_stage(DEMO, None, 1e-4, 0.5)
    assert len(found.decided_ns) == 1
    assert found.looks[-1].cpu_s.keys() == {*ROLES, ENGINE}

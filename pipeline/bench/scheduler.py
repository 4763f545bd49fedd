"""What scheduling is worth, on a timed stub: in-flight batching, depth under load, identity.

Calls of the stub take what a small graphics processor takes: a step of sixteen rows costs little
more than one of a single row. Depths of 1, 2, 4 and 8 are asked for equally often. Where it says
"virtual", time passes only in calls, and so the figures do not depend on the machine; the price of
deciding is given beside them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engines.backend import start_inputs
from engines.backend_stub import TimedStub, VirtualClock, watermarked
from engines.contracts import ADAPTIVE, Rows
from engines.scheduler import Policy
from pipeline.bench.arrivals import (
    NS,
    Answered,
    RealClock,
    StubLine,
    arrivals,
    feed,
    part_of,
    stub_line,
)
from pipeline.bench.machine import machine_facts
from pipeline.bench.marked import swaps_through_redis
from pipeline.bench.report import Report, Result, quantiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

GATE_MS, MARGIN_MS = 100.0, 10
BATCH = 16
POLICY = Policy(BATCH, MARGIN_MS * 1_000_000)
BACKLOG_HZ = 1e6  # far more than anybody inspects: a queue that is never empty
PATIENT_MS = 1e9
DEEP = 0.95  # of the depth before: as deep as ever
WARM_UP_S = 1.0  # left out of depths: the mix of wishes is being learned
LOADS = (0.5, 1.0, 2.0, 0.5)  # of saturation at full depth
STATIC = "run-to-completion, {}"
ANNOUNCED_MS = 5.0


@dataclass(frozen=True, slots=True)
class Frames:
    """How many frames each part of the bench takes."""

    saturation: int = 20_000
    identity: int = 100_000
    through_redis: int = 2_000
    load_s: float = 10.0  # of each load
    on_time: int = 20_000
    on_time_real: int = 3_000

    @classmethod
    def full(cls) -> Frames:
        """As many as it takes to show what is promised."""
        return cls(identity=1_000_000, through_redis=50_000, on_time=100_000, on_time_real=30_000)


def bench_scheduler(frames: Frames = Frames()) -> Report:
    """All parts in turn."""
    full_hz, results = in_flight(frames.saturation)
    results += last_part()
    results += identity(frames.identity)
    results += identity_through_redis(frames.through_redis)
    results += under_load(full_hz, frames.load_s)
    results += on_time(full_hz, frames.on_time, VirtualClock, "virtual")
    results += on_time(full_hz, frames.on_time_real, RealClock, "real")
    return Report(machine_facts(), tuple(results))


def in_flight(frames: int) -> tuple[float, list[Result]]:
    """Frames/s at saturation and full depth, against batches that run to completion."""
    line = stub_line(VirtualClock(), POLICY)
    began_s = time.perf_counter()
    answers = list(feed(line, backlog(line, frames), PATIENT_MS))
    deciding_us = (time.perf_counter() - began_s) / frames * 1e6
    ours_hz = answered_hz(answers)
    results = []
    for name, shrinks in (("scheduler.in_flight", False), ("scheduler.in_flight.shrinking", True)):
        theirs_hz = run_to_completion(frames, shrinks=shrinks)
        kind = STATIC.format("rows leave as they end" if shrinks else "whole batches")
        results.append(Result(name, ours_hz, "frames/s", kind, ours_hz / theirs_hz))
    frame_us = 1e6 / ours_hz
    results.append(
        Result(
            "scheduler.deciding", deciding_us, "us/frame", "a frame's calls", frame_us / deciding_us
        )
    )
    return ours_hz, results


def run_to_completion(frames: int, *, shrinks: bool) -> float:
    """Frames/s of the same stub where no frame joins before a whole batch has ended.

    With ``shrinks`` rows that have ended leave the calls, otherwise they wait inside for the rest.
    """
    clock = VirtualClock()
    stub = TimedStub(BATCH, clock.spend)
    began_ns = clock()
    for first in range(0, frames, BATCH):
        numbers = range(first, min(first + BATCH, frames))
        slots = list(range(len(numbers)))
        left = stub.start(_marked_rows(numbers), slots).steps_left
        for made in range(int(left.max())):
            going = [slot for slot in slots if left[slot] > made]
            if not shrinks:
                clock.spend(stub.cost_ns("step", len(slots)) - stub.cost_ns("step", len(going)))
            stub.step(going)
        stub.finish(slots)
    return frames * NS / (clock() - began_ns)


def _marked_rows(numbers: Sequence[int]) -> Rows:
    count = len(numbers)
    return start_inputs(list(map(watermarked, numbers)), [0] * count, [ADAPTIVE] * count)


def last_part() -> list[Result]:
    """Steps that the last part before a stop sees, beyond its own: it waits for nobody."""
    worst = max(_steps_beyond(before) for before in range(BATCH))
    return [Result("scheduler.last_part", worst, "steps", "its own steps + 1", 2 / (1 + worst))]


def _steps_beyond(before: int) -> int:
    """Step calls from the arrival of the last part, ``before`` others in flight, to its answer."""
    line = stub_line(VirtualClock(), POLICY)
    line.inspector.admit(part_of(number, 0) for number in range(before))
    for _ in range(before % 7):
        line.inspector.step()
    line.inspector.admit([part_of(before, 0)])
    calls_before = line.backend.calls["step"]
    while True:
        for finding in line.inspector.step():
            if finding.frame_id == str(before):
                return line.backend.calls["step"] - calls_before - finding.steps


def identity(frames: int) -> list[Result]:
    """Frames in process whose finding carries another frame's watermark."""
    line = stub_line(VirtualClock(), POLICY)
    answers = feed(line, backlog(line, frames), PATIENT_MS)
    swapped = sum(not answer.is_own for answer in answers)
    return [Result("scheduler.swaps", swapped, f"of {frames:,} frames", "none", float(not swapped))]


def identity_through_redis(frames: int) -> list[Result]:
    """The same through a server, a reader and a writer."""
    count, swapped = swaps_through_redis(frames)
    wrong = swapped + frames - count
    told = f"of {frames:,} frames"
    return [Result("scheduler.swaps.redis", wrong, told, "none", float(not wrong))]


def under_load(full_hz: float, seconds: float) -> list[Result]:
    """Mean depth at each load, and how soon it is back when the load falls."""
    line = stub_line(VirtualClock(), POLICY)
    spans = [[full_hz * load] * round(full_hz * load * seconds) for load in LOADS]
    ends = np.cumsum([len(span) for span in spans])
    answers = list(feed(line, arrivals(itertools.chain(*spans), line.clock()), GATE_MS))
    by_load = [
        [a for a in answers if end - len(span) <= a.number < end]
        for span, end in zip(spans, ends, strict=True)
    ]
    depth = [depth_of(settled(part)) for part in by_load]
    results = [
        Result(
            f"scheduler.depth.{k + 1}",
            depth[k],
            "steps",
            f"at {LOADS[0]} load",
            depth[k] / depth[0],
        )
        for k in range(len(LOADS))
    ]
    back_s = recovery_s(by_load[-1], depth[0])
    results.append(Result("scheduler.recovery", back_s, "s", "5 s", 5 / max(back_s, 1.0)))
    return results + announced("scheduler.overload", by_load[2])


def on_time(
    full_hz: float, frames: int, make_clock: Callable[[], VirtualClock | RealClock], named: str
) -> list[Result]:
    """Share of frames answered in time by evidence at 0.9 of saturation."""
    line = stub_line(make_clock(), POLICY)
    due = arrivals(itertools.repeat(0.9 * full_hz, frames), line.clock())
    answers = list(feed(line, due, GATE_MS))
    missed = Counter(str(a.reason or "late") for a in answers if a.reason or a.latency_ms > GATE_MS)
    share = 1 - sum(missed.values()) / frames
    told = ", ".join(f"{n} {reason}" for reason, n in missed.items()) or "none missed"
    name = f"scheduler.on_time.{named}"
    return [
        Result(name, 100 * share, "%", f"{frames:,} frames, {told}", share),
        *(
            Result(f"{name}.{p}", ms, "ms", f"gate {GATE_MS:.0f} ms", GATE_MS / ms)
            for p, ms in quantiles([answer.latency_ms for answer in answers])
        ),
    ]


def backlog(line: StubLine, frames: int) -> Iterator[int]:
    """A queue that is never empty."""
    return arrivals(itertools.repeat(BACKLOG_HZ, frames), line.clock())


def answered_hz(answers: Sequence[Answered]) -> float:
    """Frames/s from the first arrival to the last answer."""
    return len(answers) * NS / (answers[-1].answered_ns - answers[0].arrived_ns)


def settled(answers: Sequence[Answered]) -> list[Answered]:
    """Those that arrived after the first second."""
    first_ns = min(answer.arrived_ns for answer in answers)
    return [a for a in answers if a.arrived_ns > first_ns + WARM_UP_S * NS]


def depth_of(answers: Iterable[Answered]) -> float:
    """Mean denoiser calls of frames with evidence; 0 where there are none."""
    steps = [answer.steps for answer in answers if answer.reason is None]
    return statistics.fmean(steps) if steps else 0.0


def recovery_s(answers: Sequence[Answered], depth: float) -> float:
    """Whole seconds from the first arrival until every later second is as deep as ever.

    That is within 5 %; a second without a frame, or without evidence on any, is a shallow one.
    """
    first_ns = min(answer.arrived_ns for answer in answers)
    by_second: dict[int, list[Answered]] = {}
    for answer in answers:
        by_second.setdefault((answer.arrived_ns - first_ns) // NS, []).append(answer)
    seconds = range(max(by_second) + 1)
    shallow = [k for k in seconds if depth_of(by_second.get(k, ())) < DEEP * depth]
    return float(shallow[-1] + 1) if shallow else 0.0


def announced(name: str, answers: Sequence[Answered]) -> list[Result]:
    """How many went without evidence under overload, and how long before their gate it was told."""
    given_up = [a for a in answers if a.reason is not None]
    late = sum(a.reason is None and a.latency_ms > GATE_MS for a in answers)
    ahead_ms = min((GATE_MS - a.latency_ms for a in given_up), default=GATE_MS)
    share = len(given_up) / len(answers)
    return [
        Result(f"{name}.late", late, f"of {len(answers):,} frames", "none", float(not late)),
        Result(f"{name}.given_up", 100 * share, "%", "of these frames", 1 - share),
        Result(
            f"{name}.announced", ahead_ms, "ms before the gate", "5 ms", ahead_ms / ANNOUNCED_MS
        ),
    ]

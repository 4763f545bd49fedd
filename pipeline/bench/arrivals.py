"""Frames that arrive whether or not anybody is ready for them, at any load, on any clock."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engines.backend_stub import WATERMARKS, TimedStub, VirtualClock, watermarked
from engines.costs import measure_costs
from engines.depths import Depths
from engines.inspector import Inspector, Part
from engines.scheduler import Policy, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from engines.bundle import GraphName
    from engines.contracts import Finding, Reason

STEPS = (1, 2, 4, 8)  # denoiser calls of the stub's plans, asked for equally often
SLOTS = 64
JITTER = 0.1  # of the interval between two frames
NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one frame."""

    number: int
    arrived_ns: int
    answered_ns: int
    steps: int
    reason: Reason | None
    is_own: bool  # the finding carries the watermark of its own frame

    @property
    def latency_ms(self) -> float:
        """From arrival to answer."""
        return (self.answered_ns - self.arrived_ns) / 1e6


class RealClock:
    """Nanoseconds of the system's monotonic clock; spending them is sleeping."""

    def __call__(self) -> int:
        """What time it is."""
        return time.monotonic_ns()

    def spend(self, spent_ns: float) -> None:
        """Let time pass: asleep for most of it, awake for the end, which a sleep would miss."""
        end_ns = time.monotonic_ns() + spent_ns
        if spent_ns > WAKE_NS:
            time.sleep((spent_ns - WAKE_NS) / NS)
        while time.monotonic_ns() < end_ns:
            pass


WAKE_NS = 200_000


@dataclass(frozen=True, slots=True, eq=False)
class StubLine:
    """An inspector over a timed stub, and the clock that both live by."""

    clock: VirtualClock | RealClock
    backend: TimedStub
    inspector: Inspector


def stub_line(
    clock: VirtualClock | RealClock,
    policy: Policy,
    steps: Sequence[int] = STEPS,
) -> StubLine:
    """A line whose calls take what a stub's take."""
    backend = TimedStub(SLOTS, clock.spend, steps=steps)
    return line_over(backend, clock, policy, Depths(tuple(steps), min(steps), 1))


def line_over(
    backend: TimedStub,
    clock: VirtualClock | RealClock,
    policy: Policy,
    depths: Depths | None = None,
) -> StubLine:
    """A line over a stub that lives by this clock; without ``depths`` no frame's is limited."""
    scheduler = Scheduler(policy, measure_costs(backend, clock), depths)
    return StubLine(clock, backend, Inspector(backend, scheduler=scheduler, clock=clock))


class TableStub(TimedStub):
    """A stub whose calls take what they took elsewhere, by graph and batch size.

    ``rows_ns``: what every row adds to a call of a graph.
    """

    def __init__(
        self,
        capacity: int,
        spend: Callable[[float], None],
        calls_ns: Mapping[tuple[GraphName, int], float],
        *,
        rows_ns: Mapping[GraphName, float],
        steps: Sequence[int],
    ) -> None:
        super().__init__(capacity, spend, steps=steps)
        self._calls_ns, self._rows_ns = calls_ns, rows_ns
        self._sizes = sorted({batch for _, batch in calls_ns})

    def cost_ns(self, graph: GraphName, rows: int) -> float:
        """That of the smallest batch which holds the rows, or of the largest there is."""
        place = min(bisect_left(self._sizes, rows), len(self._sizes) - 1)
        return self._calls_ns[graph, self._sizes[place]] + rows * self._rows_ns.get(graph, 0.0)


def arrivals(rates_hz: Iterable[float], first_ns: int, seed: int = 0) -> Iterator[int]:
    """When each frame arrives, ns: one per rate, periodic with ``JITTER``."""
    rng = np.random.default_rng(seed)
    at_ns = float(first_ns)
    for rate_hz in rates_hz:
        at_ns += NS / rate_hz
        yield round(at_ns + NS / rate_hz * JITTER * rng.uniform(-0.5, 0.5))


def exposures(
    offsets: NDArray[np.float64], rate_hz: float, periods: int, first_ns: int
) -> list[int]:
    """When frames of cameras arrive that each expose at ``rate_hz``, ascending, ns.

    ``offsets`` [cameras]: where in its period each does; all 0 is in phase, to the nanosecond.
    """
    due = offsets + np.arange(periods)[:, None]  # [periods, cameras]
    return [first_ns + round(at) for at in np.sort(due, axis=None) * NS / rate_hz]


def feed(line: StubLine, due: Iterable[int], gate_ms: float) -> Iterator[Answered]:
    """Every frame, as it is answered; ``due``: when each arrives, ascending, ns."""
    source = enumerate(due)
    coming = next(source, None)
    arrived: dict[str, int] = {}
    inspector, clock = line.inspector, line.clock
    while coming is not None or inspector.in_flight:
        fresh: list[Part] = []
        _rest(line, coming)
        now_ns = clock()
        while coming is not None and coming[1] <= now_ns and len(fresh) < inspector.free_slots:
            number, at_ns = coming
            arrived[str(number)] = at_ns
            fresh.append(part_of(number, at_ns + round(gate_ms * 1e6)))
            coming = next(source, None)
        inspector.admit(fresh)
        for finding in inspector.step():
            yield _answered(finding, arrived.pop(finding.frame_id), clock())


def _rest(line: StubLine, coming: tuple[int, int] | None) -> None:
    """As a worker does: until the next frame arrives, or for as long as there is nothing to do."""
    rest_ns = line.inspector.patience_s * NS
    if coming is not None:
        rest_ns = min(rest_ns, coming[1] - line.clock())
    if 0 < rest_ns < math.inf:
        line.clock.spend(rest_ns)


def part_of(number: int, deadline_ns: int) -> Part:
    """A frame whose image carries its number; a deadline of 0 is none."""
    mark = number % WATERMARKS
    return Part(str(number), 0, "stub", watermarked(mark), deadline_ns=deadline_ns)


def _answered(finding: Finding, arrived_ns: int, now_ns: int) -> Answered:
    number = int(finding.frame_id)
    return Answered(
        number,
        arrived_ns,
        now_ns,
        finding.steps,
        finding.reason,
        finding.reason is not None or int(finding.anomaly_score) == number % WATERMARKS,
    )

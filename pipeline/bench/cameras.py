"""Cameras that share one engine, on a virtual clock: which of their frames would miss the gate.

The worker's own scheduler decides over calls that take what they took when they were measured.
Frames go as deep as they ask to: with more cameras depth would fall before a frame is missed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from engines.backend_stub import VirtualClock
from pipeline.bench.arrivals import NS, TableStub, exposures, feed, line_over
from pipeline.config import WorkerSettings
from pipeline.loading import policy_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engines.bundle import GraphName
    from pipeline.bench.arrivals import Answered

Seconds = dict["GraphName", float]  # of one call
Phases = Literal["in phase", "at random phases"]
PHASES: tuple[Phases, ...] = ("in phase", "at random phases")
DRAWS = 3  # of random phases
FRAMES, PERIODS_MIN = 1500, 5  # of all cameras together, and of each


@dataclass(frozen=True, slots=True)
class Costs:
    """What a frame costs on one machine."""

    calls_s: Mapping[int, Seconds]  # seconds of one call, by batch size and graph
    depth: float  # denoiser calls of a frame, on average
    spread: tuple[int, ...]  # those of equal parts of the frames, ascending
    finishes: float  # calls of finish of a frame
    host_s: float  # processor time per frame outside the engine
    cores: int
    transport_hz: float  # frames per second

    def engine_s(self, batch: int) -> float:
        """Time of one frame in the engine, where frames go in batches of this size."""
        call = self.calls_s[batch]
        called_s = call["start"] + self.depth * call["step"] + self.finishes * call["finish"]
        return called_s / batch

    def frame_s(self, batch: int) -> float:
        """The same with the processor time around it."""
        return self.engine_s(batch) + self.host_s / self.cores

    @property
    def batch(self) -> int:
        """The size of batches in which most gets done."""
        return min(self.calls_s, key=self.frame_s)

    @property
    def computed_hz(self) -> float:
        """Frames per second that engine and host get done."""
        return 1 / self.frame_s(self.batch)

    @property
    def full_hz(self) -> float:
        """Frames per second of everything together."""
        return min(self.computed_hz, self.transport_hz)


def is_carried(costs: Costs, cameras: int, rate_hz: float, gate_ms: float, phases: Phases) -> bool:
    """Whether every frame of so many cameras is in time, and has the depth it asks for."""
    margin_ms = WorkerSettings().margin_ms
    return not any(
        one.reason is not None or _whole_ms(costs, one) > gate_ms - margin_ms
        for one in _answers(costs, cameras, rate_hz, gate_ms, phases)
    )


def slowest_ms(costs: Costs, cameras: int, rate_hz: float, gate_ms: float, phases: Phases) -> float:
    """The longest that a frame takes from exposure to verdict."""
    answers = _answers(costs, cameras, rate_hz, gate_ms, phases)
    return max(_whole_ms(costs, one) for one in answers)


def _whole_ms(costs: Costs, answered: Answered) -> float:
    """With the time around the engine, as if nothing of it overlapped."""
    return answered.latency_ms + 1e3 * costs.host_s


def _answers(
    costs: Costs, cameras: int, rate_hz: float, gate_ms: float, phases: Phases
) -> Iterator[Answered]:
    """Frames of all cameras as they are answered, with new phases in every draw."""
    periods = max(PERIODS_MIN, -(-FRAMES // cameras))
    for seed in range(DRAWS if phases == "at random phases" else 1):
        rng = np.random.default_rng(seed)
        offsets = rng.uniform(size=cameras) if phases == "at random phases" else np.zeros(cameras)
        clock = VirtualClock()
        policy = replace(policy_of(WorkerSettings()), batch_max=max(costs.calls_s))
        line = line_over(_stub(costs, clock), clock, policy)
        due = exposures(offsets, rate_hz, periods, line.clock())
        yield from feed(line, due, gate_ms - 1e3 * costs.host_s)


def _stub(costs: Costs, clock: VirtualClock) -> TableStub:
    """Calls as measured; a row costs its share of the host when it starts, its looks at the end."""
    times: dict[GraphName, float] = {"start": 1.0, "step": 1.0, "finish": costs.finishes}
    calls_ns = {
        (graph, batch): NS * call[graph] * times[graph]
        for (batch, call), graph in itertools.product(costs.calls_s.items(), times)
    }
    return TableStub(
        WorkerSettings().slots,
        clock.spend,
        calls_ns,
        rows_ns={"start": NS * costs.host_s / costs.cores},
        steps=costs.spread,
    )

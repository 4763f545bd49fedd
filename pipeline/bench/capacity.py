"""How many cameras one machine carries at a rate and a gate, from costs measured on it.

Engine and host share the cores: a frame takes its share of an engine call, which has all of them,
and so much processor time around it. Of the rate that this gives, LOAD is planned for, as the line
bench loads a line. So many cameras are then fed to the worker's scheduler on a virtual clock, once
all in phase and once at random phases, and as many are left out as it takes that no frame misses
the gate.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.backend import BUCKETS
from engines.bundle import GRAPHS, open_bundle
from engines.costs import measure_costs
from pipeline.bench.cameras import PHASES, Costs, is_carried, slowest_ms
from pipeline.bench.depth import measured_depth, refuse_tiles
from pipeline.bench.line import LOAD, around_engine_s
from pipeline.bench.machine import machine_facts
from pipeline.bench.report import Report, Result
from pipeline.bench.transport import bench_transport
from pipeline.bench.turns import deepest_plan
from pipeline.config import WorkerSettings
from pipeline.loading import backend_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engines.bundle import Bundle
    from pipeline.bench.cameras import Phases, Seconds
    from pipeline.bench.depth import Depth

TRANSPORT_FRAMES, TRANSPORT_ROUNDS = 200, 3
UNHURRIED_MS = 1e9


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many cameras, and what stands in the way of one more."""

    cameras: int
    bottleneck: str  # "engine", "host CPU", "transport" or "gate"
    phases: Phases  # of the cameras, where they are harder to carry
    by_phases: dict[Phases, int]  # how many miss no frame
    by_load: int  # how many leave the machine its reserve
    frames_hz: float  # of all cameras together, at full load

    def sentence(self, rate_hz: float, gate_ms: float) -> str:
        """The answer for people."""
        noun = "camera" if self.cameras == 1 else "cameras"
        asked = f"{self.cameras} {noun} at {rate_hz:g} Hz with a gate of {gate_ms:g} ms"
        if self.bottleneck != "gate":
            return f"{asked}; the bottleneck is the {self.bottleneck}"
        if not self.cameras:
            return f"{asked}; the gate is too short for any"
        return f"{asked}; with one more, {self.phases}, frames would miss the gate"

    def told(self) -> str:
        """How the answer came about."""
        by_phases = ", ".join(f"{count} {phases}" for phases, count in self.by_phases.items())
        return f"{by_phases}, {self.by_load} by load"


def capacity_of(costs: Costs, rate_hz: float, gate_ms: float) -> Capacity:
    """From measured costs: as many as load leaves room for and of which none misses a frame."""
    frames_hz = costs.full_hz
    by_load = math.floor(LOAD * frames_hz / rate_hz + 1e-9)

    def most(phases: Phases) -> int:
        return _most(by_load, lambda n: is_carried(costs, n, rate_hz, gate_ms, phases))

    by_phases = {phases: most(phases) for phases in PHASES}
    phases = min(PHASES, key=by_phases.__getitem__)
    cameras = by_phases[phases]
    if cameras < by_load or not is_carried(costs, 1, _easy_hz(costs, rate_hz), gate_ms, phases):
        bottleneck, frames_hz = "gate", cameras * rate_hz
    elif costs.transport_hz < costs.computed_hz:
        bottleneck = "transport"
    else:
        is_engine = costs.engine_s(costs.batch) >= costs.host_s / costs.cores
        bottleneck = "engine" if is_engine else "host CPU"
    return Capacity(cameras, bottleneck, phases, by_phases, by_load, frames_hz)


def _easy_hz(costs: Costs, rate_hz: float) -> float:
    """A rate at which one camera leaves the machine its reserve."""
    return min(rate_hz, LOAD * costs.full_hz)


def _most(limit: int, is_carried: Callable[[int], bool]) -> int:
    """The largest number up to ``limit`` that is carried, by halving."""
    if limit and is_carried(limit):
        return limit
    carried, refused = 0, limit
    while refused - carried > 1:
        middle = (carried + refused) // 2
        if is_carried(middle):
            carried = middle
        else:
            refused = middle
    return carried


def bench_capacity(
    bundle_path: Path | str,
    rate_hz: float,
    gate_ms: float,
    *,
    data: Path | None = None,
    frames: int,
) -> Report:
    """Measure engine, host and transport on this machine, then answer."""
    machine, bundle = machine_facts(), refuse_tiles(open_bundle(bundle_path))
    calls_s, depth = _engine_costs(bundle, data)
    costs = Costs(
        calls_s=calls_s,
        depth=depth.calls,
        spread=(*depth.spread[:-1], len(bundle.manifest.plans[deepest_plan(bundle)].levels)),
        finishes=depth.finishes,
        host_s=around_engine_s(bundle, frames),
        cores=machine["cores"],
        transport_hz=_transport_hz(bundle.manifest.image_size),
    )
    found = capacity_of(costs, rate_hz, gate_ms)
    facts = {
        "answer": found.sentence(rate_hz, gate_ms),
        "cameras": found.told(),
        "bundle": bundle.bundle_id,
        "depth": f"{depth.calls:.2f} calls: {depth.told}",
        "call_ms": [
            f"{graph}.{batch} {1e3 * call[graph]:.1f}"
            for graph in ("start", "step", "finish")
            for batch, call in calls_s.items()
        ],
    }
    return Report(machine | facts, results_of(found, costs, rate_hz, gate_ms))


def results_of(found: Capacity, costs: Costs, rate_hz: float, gate_ms: float) -> tuple[Result, ...]:
    """The answer, then how many cameras each resource would carry if it were the only one."""
    asked = f"{rate_hz:g} Hz and a gate of {gate_ms:g} ms each"
    single = f"one camera at {rate_hz:g} Hz"
    by_itself_hz = {
        "engine": 1 / costs.engine_s(costs.batch),
        "host_cpu": costs.cores / costs.host_s,
        "transport": costs.transport_hz,
    }
    if found.cameras:
        slowest = slowest_ms(costs, found.cameras, rate_hz, gate_ms, found.phases)
    else:
        slowest = slowest_ms(costs, 1, _easy_hz(costs, rate_hz), UNHURRIED_MS, found.phases)
    gate = f"the gate, {max(1, found.cameras)} {found.phases}"
    return (
        Result("capacity.cameras", found.cameras, "cameras", asked, found.frames_hz / rate_hz),
        *(
            Result(f"capacity.{resource}", hz, "frames/s", single, hz / rate_hz)
            for resource, hz in by_itself_hz.items()
        ),
        Result("capacity.slowest", slowest, "ms", gate, gate_ms / slowest),
    )


def _engine_costs(bundle: Bundle, data: Path | None) -> tuple[dict[int, Seconds], Depth]:
    """Every bucket of every graph on one engine with all threads.

    A worker may have two that share them, which get no less done.
    """
    chosen = WorkerSettings()
    with backend_of(chosen, bundle) as backend:
        table = measure_costs(backend, time.perf_counter_ns)
        calls_s: dict[int, Seconds] = {
            size: {graph: table.call_ns(graph, size) / 1e9 for graph in GRAPHS}
            for size in BUCKETS
            if size <= chosen.batch_max
        }
        return calls_s, measured_depth(bundle, backend, data)


def _transport_hz(size: tuple[int, int]) -> float:
    """Frames of this size per second, through the stream: that is how a line's travel by itself."""
    side = math.ceil(math.sqrt(math.prod(size)))  # a square of as many bytes
    report = bench_transport(TRANSPORT_FRAMES, TRANSPORT_ROUNDS, side=side)
    name = f"transport.inline_{side * side * 3 // 1000}kB"
    return next(one.value for one in report.results if one.name == name)

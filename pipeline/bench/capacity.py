"""How many cameras one machine carries at a rate and a gate, from costs measured on it.

Engine and host share the cores: a frame takes its share of an engine call, which has all of them,
and so much processor time around it. Bigger batches cost less per frame and make each wait longer;
with the earliest deadline first, a frame waits for one call under way and then goes through with
its batch. Of the rate found, LOAD is planned for, as the line bench loads a line.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.backend import BUCKETS, open_backend
from engines.bundle import GRAPHS, open_bundle
from engines.costs import measure_costs
from pipeline.bench.depth import measured_depth
from pipeline.bench.line import LOAD, around_engine_s
from pipeline.bench.machine import machine_facts
from pipeline.bench.report import Report, Result
from pipeline.bench.transport import bench_transport
from pipeline.bench.turns import deepest_plan
from pipeline.config import SinkSettings, WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from engines.bundle import Bundle
    from pipeline.bench.depth import Depth

TRANSPORT_FRAMES, TRANSPORT_ROUNDS = 200, 3
MARGIN_S = SinkSettings().margin_ms / 1e3  # before the gate everything is answered
Seconds = dict[str, float]  # of one call, by graph


@dataclass(frozen=True, slots=True)
class Costs:
    """What a frame costs on one machine."""

    calls_s: Mapping[int, Seconds]  # seconds of one call, by batch size and graph
    depth: float  # denoiser calls of a frame, on average
    deepest: int  # of any frame
    host_s: float  # processor time per frame outside the engine
    cores: int
    transport_hz: float  # frames per second

    def engine_s(self, batch: int) -> float:
        """Time of one frame in the engine, where frames go in batches of this size."""
        call = self.calls_s[batch]
        return (call["start"] + self.depth * call["step"] + call["finish"]) / batch

    def frame_s(self, batch: int) -> float:
        """The same with the processor time around it."""
        return self.engine_s(batch) + self.host_s / self.cores

    def slowest_s(self, batch: int) -> float:
        """From exposure to verdict for a frame that takes every step and comes at a bad moment."""
        call = self.calls_s[batch]
        through = call["start"] + self.deepest * call["step"] + call["finish"]
        return max(call[graph] for graph in ("start", "step", "finish")) + through + self.host_s


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many cameras, in what batches, and what stands in the way of one more."""

    cameras: int
    bottleneck: str  # "engine", "host CPU", "transport" or "gate"
    batch: int
    frames_hz: float  # of all cameras together, at full load

    def sentence(self, rate_hz: float, gate_ms: float) -> str:
        """The answer for people."""
        noun = "camera" if self.cameras == 1 else "cameras"
        asked = f"{self.cameras} {noun} at {rate_hz:g} Hz with a gate of {gate_ms:g} ms"
        if self.bottleneck == "gate":
            return f"{asked}; the gate is too short for {'more' if self.cameras else 'any'}"
        return f"{asked}; the bottleneck is the {self.bottleneck}"


def capacity_of(costs: Costs, rate_hz: float, gate_ms: float) -> Capacity:
    """Pure arithmetic over measured costs."""
    in_time = [b for b in costs.calls_s if costs.slowest_s(b) + MARGIN_S <= gate_ms / 1e3]
    if not in_time:
        return Capacity(0, "gate", min(costs.calls_s), 0.0)
    batch = min(in_time, key=costs.frame_s)
    computed_hz, free_hz = 1 / costs.frame_s(batch), 1 / min(map(costs.frame_s, costs.calls_s))
    frames_hz = min(computed_hz, costs.transport_hz)
    cameras = _cameras(frames_hz, rate_hz)
    if costs.transport_hz < computed_hz:
        bottleneck = "transport"
    elif _cameras(min(free_hz, costs.transport_hz), rate_hz) > cameras:
        bottleneck = "gate"
    else:
        bottleneck = "engine" if costs.engine_s(batch) >= costs.host_s / costs.cores else "host CPU"
    return Capacity(cameras, bottleneck, batch, frames_hz)


def bench_capacity(
    bundle_path: Path | str,
    rate_hz: float,
    gate_ms: float,
    *,
    data: Path | None = None,
    frames: int,
) -> Report:
    """Measure engine, host and transport on this machine, then answer."""
    machine, bundle = machine_facts(), open_bundle(bundle_path)
    calls_s, depth = _engine_costs(bundle, data)
    costs = Costs(
        calls_s=calls_s,
        depth=depth.calls,
        deepest=len(bundle.manifest.plans[deepest_plan(bundle)].levels),
        host_s=around_engine_s(bundle, frames),
        cores=machine["cores"],
        transport_hz=_transport_hz(),
    )
    found = capacity_of(costs, rate_hz, gate_ms)
    facts = {
        "answer": found.sentence(rate_hz, gate_ms),
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
        "engine": 1 / costs.engine_s(found.batch),
        "host_cpu": costs.cores / costs.host_s,
        "transport": costs.transport_hz,
    }
    slowest_ms = 1e3 * costs.slowest_s(found.batch)
    gate = f"the gate, in batches of {found.batch}"
    return (
        Result("capacity.cameras", found.cameras, "cameras", asked, found.frames_hz / rate_hz),
        *(
            Result(f"capacity.{resource}", hz, "frames/s", single, hz / rate_hz)
            for resource, hz in by_itself_hz.items()
        ),
        Result("capacity.slowest", slowest_ms, "ms", gate, gate_ms / slowest_ms),
    )


def _cameras(frames_hz: float, rate_hz: float) -> int:
    return math.floor(LOAD * frames_hz / rate_hz + 1e-9)


def _engine_costs(bundle: Bundle, data: Path | None) -> tuple[dict[int, Seconds], Depth]:
    """Every bucket of every graph, as a worker of this machine would run it."""
    chosen = WorkerSettings()
    with open_backend(
        bundle, chosen.backend, chosen.precision, chosen.slots, threads=chosen.threads
    ) as backend:
        table = measure_costs(backend, time.perf_counter_ns)
        calls_s: dict[int, Seconds] = {
            size: {graph: table.call_ns(graph, size) / 1e9 for graph in GRAPHS}
            for size in BUCKETS
            if size <= chosen.batch_max
        }
        return calls_s, measured_depth(bundle, backend, data)


def _transport_hz() -> float:
    report = bench_transport(TRANSPORT_FRAMES, TRANSPORT_ROUNDS)
    return next(one.value for one in report.results if one.unit == "frames/s")

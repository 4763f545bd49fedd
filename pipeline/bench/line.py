"""What a line makes of its engine: rate when full, latency at 80 % load, cost of what is around.

A real line (embedded server, ingest, worker and sink as processes of their own) inspects simulator
frames that were drawn before the start. Beside it the engine alone inspects the same frames in this
process, in turns with it, so that a machine that changes its pace changes both. At 80 % load parts
come when the belt brings them (periodic, 10 % jitter), whether or not the line keeps up, to a gate
100 ms away; a latency counts from the moment a part was due.

What is around the engine is user and system time of ingest, server and sink, and of the worker's
threads but those that inspect, from the first tenth of the verdicts to the last: no start, no
drawing of parts, and not this process, which only looks on. It is told for a full line, whose gate
is a minute away, and for the one at 80 % load, where no frame waits for company. What those threads
and their engines spend beside others is told by itself, against what they spend alone. Exposures
come in the model's size (196 kB at 256 pixels), so none is scaled, and travel by shared memory, as
they do beside any server of a line's own; nine of ten parts are good.
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engines.bundle import Bundle, open_bundle
from engines.contracts import EngineFault, Frame
from engines.images import to_model_input
from engines.inspector import Inspector, Part, inspect_all
from pipeline.bench.machine import machine_facts
from pipeline.bench.report import Report, Result, quantiles
from pipeline.bench.stage import (
    CAMERA,
    ENGINE,
    LATE,
    ROLES,
    TRANSPORT,
    Seen,
    run_stage,
    simulator,
)
from pipeline.config import WorkerSettings
from pipeline.loading import backend_of, calibrated, engines_of, inspectors_of
from pipeline.sources import open_source
from pipeline.sources.settings import SimulatorSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FRAMES, IDLE_S = 200, 5.0
FULL = 20_000  # frames at 80 % load, as many as a promise of p99 is measured on
LOAD = 0.8  # of the rate at saturation
GATE_MS = 100.0  # of parts on the belt
TURNS, TURN = 3, 500  # of the line and the engine alone, and the fewest frames that are worth one
FIRST = 0.1  # of the frames, which only fill the line
SINGLES = 48  # frames inspected one by one: each that is drawn, so as deep as they are in a line
IDLE_HZ = 1e-4
TICK_S = 0.01  # processor time is counted in these
ALONE, SINGLE = "engine alone, same frames", "engine alone, one frame"
OWN, CORE = "CPU time of the engine alone", "one core"


class Alone(NamedTuple):
    """The engine without a line."""

    rate: float  # frames per second
    cpu_s: float  # processor time per frame
    single_s: float  # one frame by itself, in the mean over its depths
    slowest_s: float  # one frame by itself, at most
    own_s: float  # the same as single_s, on one of a worker's engines with its share of the threads
    steps: float  # denoiser calls per frame


class Spent(NamedTuple):
    """Processor seconds per frame of a line."""

    by_role: dict[str, float]
    engine: float  # of the worker's, what its inspecting thread and the engine's spend

    @property
    def around(self) -> float:
        """What is spent outside the engine."""
        return sum(self.by_role.values()) - self.engine


def bench_line(
    bundle_path: Path | str,
    frames: int = FRAMES,
    idle_s: float = IDLE_S,
    *,
    loaded_frames: int | None = None,
) -> Report:
    """Saturate a line, load it to 80 %, then let it idle; EngineFault where it answered too few.

    ``loaded_frames``: how many are inspected at 80 % load, if not as many as at saturation.
    """
    machine, bundle = machine_facts(), open_bundle(bundle_path)
    alone, full = in_turns(bundle, frames)
    saturation = statistics.mean(rate_of(seen.decided_ns) for seen in full)
    loaded = run_stage(bundle.folder, loaded_frames or frames, LOAD * saturation, gate_ms=GATE_MS)
    loaded.require_evidence(but=LATE)
    idle = run_stage(bundle.folder, None, IDLE_HZ, idle_s)
    spent = mean_spent(full)
    results = (
        Result("line.saturation", saturation, "frames/s", ALONE, saturation / alone.rate),
        *_cpu(spent, spent_per_frame(loaded).around, alone),
        *_latencies(loaded, alone),
        *_idle(idle),
    )
    facts = {
        "bundle": bundle.bundle_id,
        "frames": frames,
        "line_load": f"{LOAD * saturation:.1f} Hz, gate {GATE_MS:.0f} ms",
        "line_missed": f"{loaded.without_evidence.total()} of {len(loaded.decided_ns)}",
        "line_residual": sum(seen.residual for seen in (*full, loaded)),
        "line_cpu_ms": [f"{role} {1e3 * s:.2f}" for role, s in spent.by_role.items()],
        "line_steps": f"{_steps(*full)}, engine alone {alone.steps:.2f}, at 80 % {_steps(loaded)}",
        "line_transport": TRANSPORT,
        "engine_alone": f"{alone.rate:.1f} frames/s, {1e3 * alone.cpu_s:.1f} ms CPU per frame",
        "engine_single": f"{1e3 * alone.single_s:.1f} ms in the mean, "
        f"{1e3 * alone.slowest_s:.1f} ms the slowest of {SINGLES}; "
        f"{1e3 * alone.own_s:.1f} ms on one of a worker's engines",
    }
    return Report(machine | facts, results)


def in_turns(bundle: Bundle, frames: int) -> tuple[Alone, list[Seen]]:
    """The engine alone in the mean, and the lines at saturation that ran in between.

    A machine's pace may change within seconds, so both take turns; too short a turn says nothing.
    The turns share the ``frames``.
    """
    turns = max(1, min(TURNS, frames // TURN))
    each = frames // turns
    alone, full = [engine_alone(bundle, each)], []
    for _ in range(turns):
        full.append(_saturated(bundle, each))
        alone.append(engine_alone(bundle, each))
    # Those in the middle stand beside two lines, the first and the last beside one.
    weights = [1, *[2] * (turns - 1), 1]
    mean = Alone(*(statistics.fmean(values, weights) for values in zip(*alone, strict=True)))
    return mean._replace(slowest_s=max(one.slowest_s for one in alone)), full


def engine_alone(bundle: Bundle, frames: int) -> Alone:
    """The same frames without server, roles and answers: flat out, then one by one.

    A worker's own schedulers decide, so that the line and this take the same steps. Flat out it has
    a worker's engines; a frame by itself has one, and all threads.
    """
    chosen, parts = WorkerSettings(), list(_parts(bundle, frames))
    source = iter(parts)

    def inspect(inspector: Inspector) -> list[tuple[int, int]]:
        return [(time.monotonic_ns(), one.steps) for one in inspect_all(inspector, source)]

    with _engines(bundle, chosen, engines_of(chosen, bundle)) as inspectors:
        cpu_s = time.process_time()
        with ThreadPoolExecutor(len(inspectors)) as pool:
            done = list(itertools.chain(*pool.map(inspect, inspectors)))
        cpu_s = (time.process_time() - cpu_s) / frames
        own_s = statistics.mean(_single_s(inspectors[0], part) for part in parts[:SINGLES])
    with _engines(bundle, chosen, 1) as (inspector,):
        singles = [_single_s(inspector, part) for part in parts[:SINGLES]]
    done_ns, steps = zip(*done, strict=True)
    mean_s, steps_each = statistics.mean(singles), statistics.mean(steps)
    return Alone(rate_of(done_ns), cpu_s, mean_s, max(singles), own_s, steps_each)


@contextmanager
def _engines(bundle: Bundle, chosen: WorkerSettings, count: int) -> Iterator[list[Inspector]]:
    """A worker's inspectors, whose calls are warm."""
    with backend_of(chosen, bundle, engines=count) as backend:
        found = inspectors_of(chosen, bundle, calibrated(bundle), backend, clock=time.monotonic_ns)
        yield [inspector for inspector, _ in found]


def around_engine_s(bundle: Bundle, frames: int) -> float:
    """Processor seconds per frame that a line at saturation spends outside its engine."""
    return max(spent_per_frame(_saturated(bundle, frames)).around, TICK_S / frames)


def _saturated(bundle: Bundle, frames: int) -> Seen:
    """A line that is given frames as fast as it takes them, and inspects every one."""
    seen = run_stage(bundle.folder, frames, 0.0)
    seen.require_evidence()
    return seen


def rate_of(moments_ns: Sequence[int]) -> float:
    """Frames per second between these moments, without the first tenth of them."""
    kept = np.sort(moments_ns)[int(FIRST * len(moments_ns)) :]
    if len(kept) < 2 or kept[-1] == kept[0]:
        raise EngineFault(f"{len(moments_ns)} verdicts are too few for a rate; give more --frames")
    return float((len(kept) - 1) / (kept[-1] - kept[0]) * 1e9)


def spent_per_frame(seen: Seen) -> Spent:
    """Processor time by role between the first tenth of the verdicts and the last look at all."""
    total = len(seen.decided_ns)
    running = [look for look in seen.looks if look.cpu_s.keys() >= {*ROLES, ENGINE}]
    window = [look for look in running if look.verdicts >= max(1, FIRST * total)]
    last = next((look for look in window if look.verdicts >= total), window[-1] if window else None)
    if last is None or last.verdicts == window[0].verdicts:
        raise EngineFault("the line was over before it could be watched; give more --frames")
    first, count = window[0], last.verdicts - window[0].verdicts
    each = {role: (last.cpu_s[role] - first.cpu_s[role]) / count for role in (*ROLES, ENGINE)}
    return Spent({role: each[role] for role in ROLES}, each[ENGINE])


def mean_spent(runs: Sequence[Seen]) -> Spent:
    """The mean of what frames cost in runs of equally many."""
    spent = [spent_per_frame(seen) for seen in runs]
    by_role = {role: statistics.mean(one.by_role[role] for one in spent) for role in ROLES}
    return Spent(by_role, statistics.mean(one.engine for one in spent))


def _parts(bundle: Bundle, frames: int) -> Iterator[Part]:
    """What ingest and a worker make of the same source."""
    settings = SimulatorSettings(**simulator(frames, 0.0, bundle.frame_size))
    with open_source(settings, CAMERA) as source:
        for number, frame in enumerate(source.frames(threading.Event())):
            if not isinstance(frame, Frame):
                continue
            yield Part(
                frame_id=str(number),
                category_id=bundle.category_id(frame.category),
                category=bundle.category_name(frame.category),
                image=to_model_input(frame.image, bundle.frame_size),
            )


def _single_s(inspector: Inspector, part: Part) -> float:
    began = time.perf_counter()
    inspector.admit([part])
    inspector.drain()
    return time.perf_counter() - began


def _cpu(spent: Spent, loaded_s: float, alone: Alone) -> Iterator[Result]:
    """What a frame costs around the engine, and what the engine costs beside all that.

    Near a gate, ``loaded_s``, nothing waits for company, and each frame wakes every process.
    """
    told = (
        ("host_cpu", spent.around),
        ("host_cpu_near_gate", loaded_s),
        ("engine_cpu", spent.engine),
    )
    for name, spent_s in told:
        each_s = max(spent_s, 1e-6)
        yield Result(f"line.{name}", 1e3 * each_s, "ms/frame", OWN, alone.cpu_s / each_s)


def _steps(*runs: Seen) -> str:
    steps = [count for seen in runs for count in seen.steps]
    return f"{statistics.mean(steps):.2f}" if steps else "none"


def _latencies(loaded: Seen, alone: Alone) -> Iterator[Result]:
    """Camera to verdict; how many times the engine's own time for one frame is in it."""
    if not loaded.latency_ms:
        raise EngineFault(
            "no frame was inspected at 80 % load; see what doctor says of the machine"
        )
    for name, took_ms in quantiles(loaded.latency_ms):
        yield Result(f"line.{name}", took_ms, "ms", SINGLE, 1e3 * alone.single_s / took_ms)


def _idle(seen: Seen) -> Iterator[Result]:
    """Share of a core that a role takes while no part comes; a tick is the least that shows."""
    quiet = [look for look in seen.looks if look.verdicts and look.cpu_s.keys() >= set(ROLES)]
    first, last = quiet[len(quiet) // 4], quiet[-1]
    for role in ("ingest", "sink"):
        spent_s = max(last.cpu_s[role] - first.cpu_s[role], TICK_S)
        share = spent_s / (last.at_s - first.at_s)
        yield Result(f"line.idle_{role}", share, "of a core", CORE, 1 / share)

"""The CPU engine against torch eager in f32, and against the machine's own matrix product.

Both run the same bundle on the same rows, in turns, in one process; figures are medians over the
rounds. A whole pass is start, every step of its plan, and finish.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from engines.backend import open_backend
from engines.bundle import GRAPHS, Bundle, open_bundle
from engines.contracts import ADAPTIVE, Backend, BadBundle, Rows
from pipeline.bench.machine import machine_facts, matmul_peak
from pipeline.bench.operations import graph_operations
from pipeline.bench.report import Report, Result
from pipeline.doctor.machine import cpu_flags

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ROUNDS, BATCHES, PEAK_SIDE = 7, (1, 8), 1536
TORCH, PEAK = "torch eager f32", "measured matmul peak"
Seconds = dict[str, list[float]]  # by graph, and "pass" for all of them


def bench_engine(
    bundle_path: Path | str,
    rounds: int = ROUNDS,
    batches: Sequence[int] = BATCHES,
    precisions: Sequence[str] | None = None,
    peak_side: int = PEAK_SIDE,
) -> Report:
    """OpenVINO at each precision against torch, per graph and batch; BadBundle without steps."""
    bundle = open_bundle(bundle_path)
    results: list[Result] = []
    peaks: dict[str, float] = {}
    with open_backend(bundle, "torch", "f32", capacity=max(batches)) as reference:
        for precision in precisions or usable_precisions():
            peaks[precision] = matmul_peak(precision, peak_side)
            with open_backend(bundle, "openvino", precision, capacity=max(batches)) as ours:
                for batch in batches:
                    timed = _in_turns(bundle, ours, reference, batch, rounds)
                    results += _results(bundle, precision, batch, timed, peaks[precision])
    facts = {f"matmul_gflops_{name}": round(peak / 1e9, 1) for name, peak in peaks.items()}
    return Report(machine_facts() | facts | {"bundle": bundle.bundle_id}, tuple(results))


def usable_precisions() -> tuple[str, ...]:
    """What this processor computes natively: emulated bf16 would only be slow."""
    return ("f32", "bf16") if cpu_flags() & {"avx512_bf16", "amx_bf16"} else ("f32",)


def _in_turns(
    bundle: Bundle, ours: Backend, reference: Backend, batch: int, rounds: int
) -> tuple[Seconds, Seconds]:
    """Both backends over the same rows, alternating; the first round warms up and is dropped."""
    rows = _rows(bundle, batch)
    kept: tuple[Seconds, Seconds] = (defaultdict(list), defaultdict(list))
    for turn in range(rounds + 1):
        for backend, seconds in zip((ours, reference), kept, strict=True):
            measured = _pass(backend, rows)
            for name, values in (measured if turn else {}).items():
                seconds[name] += values
    return kept


def _rows(bundle: Bundle, batch: int) -> Rows:
    height, width = bundle.manifest.image_size
    draw = np.random.default_rng(0)
    return Rows(
        image=draw.integers(0, 256, (batch, height, width, 3), np.uint8),
        category=np.zeros(batch, np.int64),
        seed=np.arange(batch, dtype=np.int64),
        plan=np.full(batch, _deepest_plan(bundle), np.int32),
    )


def _deepest_plan(bundle: Bundle) -> int:
    """The plan with most steps, forced, so that both backends walk the same way."""
    depths = [len(plan.levels) for plan in bundle.manifest.plans]
    if not depths or not max(depths):
        raise BadBundle(f"bundle {bundle.folder} has no plan with a step; there is nothing to time")
    return depths.index(max(depths)) if depths else ADAPTIVE


def _pass(backend: Backend, rows: Rows) -> Seconds:
    """One whole pass: seconds of start, of each step, of finish, and of all."""
    slots, seconds = list(range(len(rows))), defaultdict(list)
    clock = [time.perf_counter()]
    progress = backend.start(rows, slots)
    clock.append(time.perf_counter())
    while int(progress.steps_left.max()) > 0:
        progress = backend.step(slots)
        clock.append(time.perf_counter())
    backend.finish(slots)
    clock.append(time.perf_counter())
    spans = [after - before for before, after in itertools.pairwise(clock)]
    seconds["start"], seconds["step"], seconds["finish"] = [spans[0]], spans[1:-1], [spans[-1]]
    seconds["pass"] = [clock[-1] - clock[0]]
    return seconds


def _results(
    bundle: Bundle, precision: str, batch: int, timed: tuple[Seconds, Seconds], peak: float
) -> list[Result]:
    """Speed-up over torch per graph and pass, then the share of the peak per graph."""
    ours, theirs = (
        {name: statistics.median(values) for name, values in seconds.items()} for seconds in timed
    )
    tail = f"{precision}_b{batch}"
    speed = [
        Result(
            f"engine.vs_torch.{name}.{tail}", 1e3 * s / batch, "ms/frame", TORCH, theirs[name] / s
        )
        for name, s in ours.items()
    ]
    shares = []
    for graph in GRAPHS:
        rate = graph_operations(bundle.path(f"{graph}.onnx"), batch) / ours[graph]
        name = f"engine.of_peak.{graph}.{tail}"
        shares.append(Result(name, rate / 1e9, "GFLOP/s", PEAK, rate / peak))
    return speed + shares

"""Benches: every figure is a ratio to something measured in the same run on the same machine.

Each is a function from what was asked to a report; heavy imports happen when one is run. Every
report is kept in ``runs/bench/<name>.json``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

from engines.contracts import BadConfig
from pipeline.bench.report import Report, Result

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["BENCHES", "Asked", "Report", "Result", "print_bench", "run_bench"]

FOLDER = Path("runs/bench")
ALL = "all"
CPU = "openvino"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a bench may be told; each takes what it understands."""

    bundle: Path
    data: Path | None = None  # test frames, in the MVTec layout, to measure depth on
    frames: int = 200  # through the line
    rate_hz: float = 5.0  # of each camera, for `capacity`
    gate_ms: float = 500.0
    full: bool = False  # `scheduler`, `line`: as many frames as their promises name
    folder: Path = FOLDER  # where reports are kept
    bundles: tuple[Path, ...] = ()  # to compare, for `presets`
    backend: str = CPU  # `engine`: the one that is measured
    precision: str = "auto"  # of a device's engine; the CPU's are all measured


def run_bench(what: str, asked: Asked) -> Report:
    """Run one bench by name, or all of them one after the other, and keep each report."""
    known = BENCHES | ALONE
    if what not in {*known, ALL}:
        raise BadConfig(f"there is no bench {what!r}; choose one of {', '.join([*known, ALL])}")
    reports = []
    for name in BENCHES if what == ALL else [what]:
        report = known[name](asked)
        report.write(asked.folder / f"{name}.json")  # at once: a later one may fail
        reports.append(report)
    joined = reduce(add, reports)
    if what == ALL:
        joined.write(asked.folder / f"{ALL}.json")
    return joined


def print_bench(report: Report, console: Console) -> None:
    """The machine, then every result with its ratio; bundles compared once more side by side."""
    for table in report.tables():
        console.print(table)
    if any(one.name.startswith("presets.") for one in report.results):
        from pipeline.bench.presets import preset_table

        console.print(preset_table(report))


def _transport(asked: Asked) -> Report:
    del asked
    from pipeline.bench.transport import bench_transport

    return bench_transport()


def _engine(asked: Asked) -> Report:
    # Spinning OpenMP threads of two runtimes in one process wait for each other's cores; the
    # choice must stand before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if asked.backend != CPU:
        from pipeline.bench.device import bench_device

        return bench_device(asked.bundle, asked.backend, asked.precision)
    from pipeline.bench.engine import bench_engine

    return bench_engine(asked.bundle, asked.data)


def _scheduler(asked: Asked) -> Report:
    from pipeline.bench.scheduler import Frames, bench_scheduler

    return bench_scheduler(Frames.full() if asked.full else Frames())


def _line(asked: Asked) -> Report:
    from pipeline.bench.line import FULL, bench_line

    return bench_line(asked.bundle, asked.frames, loaded_frames=FULL if asked.full else None)


def _capacity(asked: Asked) -> Report:
    from pipeline.bench.capacity import bench_capacity

    return bench_capacity(
        asked.bundle, asked.rate_hz, asked.gate_ms, data=asked.data, frames=asked.frames
    )


def _dashboard(asked: Asked) -> Report:
    del asked
    from pipeline.bench.dashboard import bench_dashboard

    return bench_dashboard()


def _presets(asked: Asked) -> Report:
    from pipeline.bench.presets import bench_presets

    return bench_presets(asked.bundles, asked.data)


BENCHES = {
    "transport": _transport,
    "engine": _engine,
    "scheduler": _scheduler,
    "line": _line,
    "capacity": _capacity,
}
ALONE = {  # not of `all`
    "presets": _presets,  # it compares the bundles it is told
    "dashboard": _dashboard,  # it needs the extra of that name
}

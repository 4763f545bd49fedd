"""Benches: every figure is a ratio to something measured in the same run on the same machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from engines.contracts import BadConfig
from pipeline.bench.report import Report, Result

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Report", "Result", "print_bench", "run_bench"]

BENCHES = ("transport", "engine", "all")


def run_bench(what: str, bundle: Path | str) -> Report:
    """Run one bench by name, or all; ``bundle`` is what the engine bench inspects with."""
    if what not in BENCHES:
        raise BadConfig(f"there is no bench {what!r}; choose one of {', '.join(BENCHES)}")
    reports = []
    if what in {"transport", "all"}:
        from pipeline.bench.transport import bench_transport

        reports.append(bench_transport())
    if what in {"engine", "all"}:
        # Spinning OpenMP threads of two runtimes in one process wait for each other's cores; the
        # choice must stand before torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from pipeline.bench.engine import bench_engine

        reports.append(bench_engine(bundle))
    return reports[0] if len(reports) == 1 else reports[0] + reports[1]


def print_bench(report: Report, console: Console) -> None:
    """The machine, then every result with its ratio."""
    for table in report.tables():
        console.print(table)

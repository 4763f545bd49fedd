"""Numbers of a run, from ledgers and verdicts: what ``run`` and ``demo`` print and save."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from engines.contracts import Decision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.console import Console

    from engines.contracts import Verdict
    from pipeline.stream import Ledger

NEWEST = 100_000  # verdicts whose latency and steps are told: a line may run for months


@dataclass(slots=True)
class Tally:
    """What verdicts add up to; counts of all, two numbers of each of the newest."""

    count: int = 0
    decisions: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    latency_ms: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    first_ns: int = 0
    last_ns: int = 0

    def add(self, verdict: Verdict) -> None:
        """Count one verdict."""
        self.count += 1
        self.decisions[verdict.decision] += 1
        if verdict.reason:
            self.reasons[verdict.reason] += 1
        latency_ms = max(0.0, (verdict.decided_ns - verdict.captured_ns) / 1e6)
        _append(self.latency_ms, latency_ms)
        if verdict.decision != Decision.UNDECIDED:
            _append(self.steps, verdict.steps)
        self.first_ns = min(self.first_ns or verdict.decided_ns, verdict.decided_ns)
        self.last_ns = max(self.last_ns, verdict.decided_ns)

    @property
    def frames_per_second(self) -> float | None:
        """Verdicts per second between the first and the last."""
        seconds = (self.last_ns - self.first_ns) / 1e9
        return round((self.count - 1) / seconds, 3) if seconds > 0 else None

    def percentile(self, share: float) -> float | None:
        """Camera-to-verdict latency below which this share of the verdicts lies, ms."""
        return round(float(np.quantile(self.latency_ms, share)), 3) if self.latency_ms else None


def run_report(ledgers: Mapping[str, Ledger], tally: Tally) -> dict[str, Any]:
    """The public report of ``run`` and ``demo``; AUROC is null without truth."""
    undecided: Counter[str] = Counter()
    for ledger in ledgers.values():
        undecided.update(ledger.undecided)
    return {
        "captured": sum(ledger.captured for ledger in ledgers.values()),
        "pass": sum(ledger.passed for ledger in ledgers.values()),
        "fail": sum(ledger.failed for ledger in ledgers.values()),
        "undecided": dict(sorted(undecided.items())),
        "residual": sum(ledger.residual for ledger in ledgers.values()),
        "image_auroc": None,
        "pixel_auroc": None,
        "frames_per_second": tally.frames_per_second,
        "latency_ms": {
            "p50": tally.percentile(0.5),
            "p99": tally.percentile(0.99),
            "p999": tally.percentile(0.999),
        },
        "mean_steps": round(float(np.mean(tally.steps)), 3) if tally.steps else None,
    }


def summary_table(report: Mapping[str, Any], title: str) -> Table:
    """The report for people: every number with its name, nested ones flattened."""
    table = Table(title=title, show_header=False, min_width=48)
    for name, value in _flat(report):
        table.add_row(name, "-" if value is None else str(value))
    return table


def print_report(report: Mapping[str, Any], console: Console, title: str = "Line") -> None:
    """Print the summary."""
    console.print(summary_table(report, title))


def _append(numbers: list[Any], number: float) -> None:
    """Add to a list that forgets its older half now and then; any thread may slice it."""
    numbers.append(number)
    if len(numbers) >= 2 * NEWEST:
        del numbers[:NEWEST]


def _flat(report: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in report.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}".replace("_", " "), value if value != {} else 0

"""What a bench says: ratios measured in one run, with the machine they were measured on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from engines.contracts import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import JustifyMethod

P999_MIN = 10_000  # values: ten of them lie beyond


@dataclass(frozen=True, slots=True)
class Result:
    """One figure and what it was measured against in the same run.

    ``ratio`` is ours over theirs where more is better, theirs over ours where less is better: above
    1 always means that ours is the better one.
    """

    name: str
    value: float
    unit: str
    against: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Report:
    """All results of one run."""

    machine: dict[str, Any]
    results: tuple[Result, ...]

    def as_json(self) -> dict[str, Any]:
        """The public, stable keys: ``machine`` and ``results``."""
        return {"machine": self.machine, "results": [asdict(result) for result in self.results]}

    def __add__(self, other: Report) -> Report:
        """Two benches of one machine as one report."""
        return Report(self.machine | other.machine, self.results + other.results)

    def write(self, path: Path) -> Path:
        """Write the JSON and return where; BadData where there is no place for it."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.as_json(), indent=1) + "\n", "utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise BadData(f"{path} cannot be written ({reason}): name another file") from None
        return path

    def tables(self) -> Sequence[Table]:
        """The machine, then the results."""
        machine = Table(show_header=False, show_edge=False, title="machine", title_justify="left")
        for name, found in self.machine.items():
            machine.add_row(name.replace("_", " "), _text(found))
        results = Table(show_edge=False, title="results", title_justify="left")
        for column in ("name", "value", "unit", "against", "ratio"):
            justify: JustifyMethod = "right" if column in {"value", "ratio"} else "left"
            results.add_column(column, justify=justify, no_wrap=column in {"name", "unit"})
        for one in self.results:
            value, ratio = _digits(one.value), f"{one.ratio:.2f}"
            results.add_row(one.name, value, one.unit, one.against, ratio)
        return machine, results


def quantiles(values: Sequence[float]) -> Iterator[tuple[str, float]]:
    """The median, the 99th percentile and, where there are enough values for one, the 99.9th."""
    for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999)):
        if name != "p999" or len(values) >= P999_MIN:
            yield name, float(np.quantile(values, share))


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _text(found: object) -> str:
    if isinstance(found, float):
        return _digits(found)
    return ", ".join(map(str, found)) if isinstance(found, list | tuple) else str(found)

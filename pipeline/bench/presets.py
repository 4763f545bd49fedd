"""Bundles side by side: what a preset costs and what it finds, in one run on the same test frames.

Each takes the precision a worker takes by itself, and its better batch size. Frames are as deep as
a worker's scheduler lets them go, good and defective ones nine to one. Accuracy is ``evaluate``'s.
Speed is compared with EfficientAD-S at the bundle's own size and precision (at 256 px where that is
smaller, for its encoder takes no less); everything else with the bundle named first.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.table import Table

from engines.backend import BUCKETS, open_backend
from engines.bundle import open_bundle
from engines.contracts import BadConfig
from engines.evaluation import evaluate_on
from pipeline.bench.depth import GOOD_SHARE, measured_depth
from pipeline.bench.efficientad import SMALLEST
from pipeline.bench.engine import OURS, PUBLISHED, RIVALS, ROUNDS, Timed, native
from pipeline.bench.machine import machine_facts
from pipeline.bench.report import Report, Result
from pipeline.bench.rivals import rivals_at
from pipeline.bench.turns import drawn_rows, in_turns, timed_pass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from engines.backend import BatchedBackend
    from engines.bundle import Bundle
    from pipeline.bench.rivals import Rival
    from pipeline.bench.turns import Seconds

PREFIX = "presets."
BATCHES, MEGA, LEAST = (1, 8), 1e6, 1e-3
UNITS = {
    "image_auroc": "image AUROC",
    "pixel_ap": "pixel AP",
    "calls": "calls/frame",
    "megabytes": "MB",
}
FALLS = ("calls", "megabytes")  # of which less is better


class Row(NamedTuple):
    """One bundle; rates in frames per second."""

    label: str
    precision: str
    side: str  # of its model input, px
    rate: float
    rival_rate: float
    against: str
    found: dict[str, float | None]  # by the name of a figure


def bench_presets(
    bundles: Sequence[Path],
    data: Path | None,
    *,
    rounds: int = ROUNDS,
    batches: Sequence[int] = BATCHES,
) -> Report:
    """A row per bundle; BadConfig without bundles or without test frames."""
    if not bundles or data is None:
        raise BadConfig(
            "bench presets compares bundles on test frames: "
            "assayline bench presets BUNDLE BUNDLE --data DIR"
        )
    rows = [_row(path, data, rounds, batches) for path in bundles]
    facts: dict[str, object] = {f"{row.label}": f"{row.side} px, {row.precision}" for row in rows}
    results = [result for row in rows for result in _results(row, rows[0])]
    return Report(machine_facts() | facts, tuple(results))


def preset_table(report: Report) -> Table:
    """The same figures with a line per bundle."""
    known = [one for one in report.results if one.name.startswith(PREFIX)]
    lines: dict[str, dict[str, str]] = {}
    for one in known:
        label, _, figure = one.name.removeprefix(PREFIX).rpartition(".")
        told = f"{one.value:.3g} ({one.ratio:.1f}x)" if figure == "rate" else f"{one.value:.3g}"
        lines.setdefault(label, {})[figure] = told
    figures = list(dict.fromkeys(figure for line in lines.values() for figure in line))
    table = Table("bundle", *figures, show_edge=False, title="presets", title_justify="left")
    for label, line in lines.items():
        table.add_row(label, *(line.get(figure, "-") for figure in figures))
    return table


def _row(path: Path, data: Path, rounds: int, batches: Sequence[int]) -> Row:
    bundle = open_bundle(path)
    height, width = bundle.manifest.image_size
    size = (max(height, SMALLEST), max(width, SMALLEST))
    with open_backend(bundle, "openvino", "auto", capacity=BUCKETS[-1]) as ours:
        precision = ours.key.partition(":")[2]
        depth = measured_depth(bundle, ours, data)
        (rival,) = rivals_at(size, native(precision), max(batches), [PUBLISHED])
        timed = [_timed(bundle, ours, rival, size, batch=b, rounds=rounds) for b in batches]
        mean = evaluate_on(bundle, ours, data).mean
    good, defective = mean.mean_steps_good or 0.0, mean.mean_steps_defect or 0.0
    return Row(
        label=bundle.manifest.training.get("settings", {}).get("preset") or path.stem,
        precision=precision,
        side=f"{width} x {height}",
        rate=max(one.rate_at(depth) for one in timed),
        rival_rate=max(one.rate(PUBLISHED) for one in timed),
        against=f"{RIVALS[PUBLISHED]}, {size[1]} x {size[0]} {native(precision)}",
        found={
            "image_auroc": mean.image_auroc,
            "pixel_ap": mean.pixel_ap,
            "calls": GOOD_SHARE * good + (1 - GOOD_SHARE) * defective,
            "megabytes": _bytes(bundle) / MEGA,
        },
    )


def _timed(
    bundle: Bundle,
    ours: BatchedBackend,
    rival: Rival,
    size: tuple[int, int],
    *,
    batch: int,
    rounds: int,
) -> Timed:
    rows = drawn_rows(bundle, batch)
    images = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)
    runs: dict[str, Callable[[], Seconds]] = {
        OURS: partial(timed_pass, ours, rows),
        PUBLISHED: partial(rival.timed_pass, images),
    }
    return Timed(batch, in_turns(runs, rounds), {})


def _bytes(bundle: Bundle) -> int:
    """What a line is sent: every file that the manifest names."""
    return sum(bundle.path(name).stat().st_size for name in bundle.manifest.files)


def _results(row: Row, first: Row) -> Iterator[Result]:
    name = f"{PREFIX}{row.label}"
    yield Result(f"{name}.rate", row.rate, "frames/s", row.against, row.rate / row.rival_rate)
    for figure, unit in UNITS.items():
        value, other = row.found[figure], first.found[figure]
        if value is not None and other is not None:
            ours, theirs = max(value, LEAST), max(other, LEAST)
            ratio = theirs / ours if figure in FALLS else ours / theirs
            yield Result(f"{name}.{figure}", value, unit, first.label, ratio)

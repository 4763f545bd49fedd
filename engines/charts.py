"""Charts of an evaluation for people: scores, depth, ROC and precision-recall curves, as PNG.

The only room of matplotlib, which comes with the extra ``train``; it is imported by whoever asks
for charts. Figures are made without pyplot, so nothing here is global. Good parts are blue, plain
and solid; defects are orange, hatched and dashed, so the charts also read in grey.
"""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from engines.contracts import Decision
from engines.metrics import curves, pooled
from engines.tables import outlined

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from engines.metrics import Curves, Float64
    from engines.tables import CategoryRow, Measured

# Okabe and Ito's colours, which the colour-blind tell apart.
GOOD: dict[str, Any] = {"facecolor": "#0072B2", "edgecolor": "#004c77"}
DEFECT: dict[str, Any] = {"facecolor": "#E69F00", "edgecolor": "#7a4100", "hatch": "////"}
IMAGE, PIXEL, INK, SOFT, FAINT = "#0072B2", "#D55E00", "#222222", "#555555", "#8c8c8c"
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "agg.path.chunksize": 10_000,  # curves of millions of pixels
}
SCORE_BINS = 40
SURPRISE = "surprise: −log10 of the share of good parts that score higher (square-root axis)"
TICKS = [0.5, *(digit * 10.0**power for power in range(9) for digit in (1, 2, 5))]
DEPTH_BINS = 12  # more different levels than this share bars
DPI = 110
SMALL_PER_INCH, SMALL_INCHES = 18.5, 0.125  # letters of the small print, and one of its lines


def draw_charts(
    folder: Path,
    category: str,
    measured: Sequence[Measured],
    row: CategoryRow,
    size_hw: tuple[int, int],
    *,
    origin: str,
) -> None:
    """Write ``CATEGORY_scores.png``, ``_depth.png`` and ``_curves.png`` into ``folder``.

    ``measured`` are images with evidence; without both good and defective ones there are no curves.
    ``origin``: what was measured, which stands below each chart.
    """
    with rc_context(STYLE):  # type: ignore[arg-type]
        figures = {
            "scores": score_figure(category, measured),
            "depth": depth_figure(category, measured),
        }
        if row.image_auroc is not None:
            figures["curves"] = curve_figure(category, measured, row, size_hw)
        for name, figure in figures.items():
            sign(figure, origin)
            figure.savefig(folder / f"{category}_{name}.png", dpi=DPI)


def sign(figure: Figure, origin: str) -> None:
    """Write below a chart what was measured; it grows by what that takes."""
    width, height = figure.get_size_inches()
    lines = wrap(origin, int(width * SMALL_PER_INCH))
    figure.set_size_inches(width, height + SMALL_INCHES * len(lines))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", size=7, color=SOFT)


def score_figure(category: str, measured: Sequence[Measured]) -> Figure:
    """How many good and how many defective images have which score, and where the threshold is.

    Surprise has a square-root axis, because that of plain defects is far out.
    """
    good, defects = _split(measured)
    judged = measured[0].judgement
    threshold = judged.threshold if judged else None
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    figure.suptitle(f"{category}: scores of test images", x=0.01, ha="left")
    axes = figure.subplots()
    if threshold is None:
        edges = np.histogram_bin_edges([one.rank for one in measured], SCORE_BINS)
        axes.set(xlabel="raw anomaly score")
    else:
        top = 1.02 * min(max(threshold, *(one.rank for one in measured)), TICKS[-1])
        edges = np.square(np.linspace(0, np.sqrt(top), SCORE_BINS + 1))
        axes.axvline(threshold, color=INK, linestyle="--", label=f"threshold {threshold:.3g}")
        axes.set(xlabel=SURPRISE, xlim=(0, top))
        axes.set_xscale("function", functions=(_root, np.square))
        axes.set_xticks([0, *(tick for tick in TICKS if top / 300 < tick < top)])
    for parts, name, look in ((good, "good", GOOD), (defects, "defective", DEFECT)):
        label = f"{name} (n = {len(parts)})"
        ranks = np.clip([one.rank for one in parts], edges[0], edges[-1])
        axes.hist(ranks, edges.tolist(), alpha=0.75, label=label, **look)
    axes.set(ylabel="images")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)
    return figure


def depth_figure(category: str, measured: Sequence[Measured]) -> Figure:
    """Noise level and denoiser calls of good parts beside each type of defect, a row per type."""
    good, defects = _split(measured)
    kinds = sorted({one.item.defect for one in defects})
    rows = {kind: [one for one in defects if one.item.defect == kind] for kind in kinds}
    if len(kinds) != 1:
        rows = {"all defects": defects} | rows
    figure = Figure(figsize=(10, 1.1 + 1.8 * len(rows)), layout="constrained")
    figure.suptitle(f"{category}: depth chosen for each image\n", x=0.01, ha="left")
    panels = figure.subplots(len(rows), 2, sharex="col", sharey=True, squeeze=False)
    levels = _depth_bins([one.finding.level for one in measured])
    steps = _depth_bins([one.finding.steps for one in measured])
    for (kind, shown), (left, right) in zip(rows.items(), panels, strict=True):
        level = _bars(left, good, shown, "level", levels)
        left.set_title(f"{kind} (n = {len(shown)}): mean level {level}")
        right.set_title(f"mean calls {_bars(right, good, shown, 'steps', steps)}")
        left.set_ylabel("share of images")
        for panel in (left, right):
            panel.tick_params(labelbottom=True)
    panels[0][0].set_ylim(bottom=0)  # of all panels, once every bar stands: it fixes the top too
    panels[-1][0].set_xlabel("noise level at the end (none counts −1: left before any)")
    panels[-1][1].set_xlabel("denoiser calls per image")
    keys = [Patch(label=f"good (n = {len(good)})", **GOOD), Patch(label="defective", **DEFECT)]
    figure.legend(handles=keys, loc="upper right", ncols=2)
    return figure


def curve_figure(
    category: str, measured: Sequence[Measured], row: CategoryRow, size_hw: tuple[int, int]
) -> Figure:
    """ROC curve and precision-recall curve of images, and of pixels where there are masks."""
    figure = Figure(figsize=(10, 5.6), layout="compressed")
    figure.suptitle(f"{category}: how well scores tell defective from good", x=0.01, ha="left")
    roc, recall = figure.subplots(1, 2)
    truth, ranks = [not one.item.is_good for one in measured], [one.rank for one in measured]
    error = f" ± {row.image_auroc_se:.3f}" if row.image_auroc_se is not None else ""
    _curve(roc, recall, "images", curves(truth, ranks), (row.image_auroc, error, row.image_ap))
    truths, maps = outlined(measured, size_hw)
    if truths:
        found = curves(*pooled(truths, maps))
        _curve(roc, recall, "pixels", found, (row.pixel_auroc, "", row.pixel_ap))
    roc.plot([0, 1], [0, 1], color=FAINT, linestyle=":", label="chance")
    _mark_threshold(roc, recall, measured)
    roc.set(title="ROC curve", xlabel="false-positive rate", ylabel="true-positive rate")
    recall.set(title="Precision-recall curve", xlabel="recall", ylabel="precision")
    for axes, corner in ((roc, "lower right"), (recall, "lower left")):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.legend(loc=corner)
    return figure


def _curve(
    roc: Axes,
    recall: Axes,
    what: str,
    found: Curves | None,
    areas: tuple[float | None, str, float | None],
) -> None:
    """One ranking in both panels; ``areas``: AUROC, its error in words, AP."""
    area, error, precision = areas
    if found is None or area is None or precision is None:
        return
    colour, line = (IMAGE, "-") if what == "images" else (PIXEL, "--")
    style: dict[str, Any] = {"color": colour, "linestyle": line, "linewidth": 2}
    rates = (found.false_positive_rate, found.true_positive_rate)
    roc.plot(*rates, label=f"{what}: AUROC {area:.3f}{error}", **style)
    label = f"{what}: AP {precision:.3f}"
    recall.plot(found.recall, found.precision, drawstyle="steps-post", label=label, **style)


def _mark_threshold(roc: Axes, recall: Axes, measured: Sequence[Measured]) -> None:
    """Where the calibrated threshold stands on the curves of images."""
    if any(one.judgement is None for one in measured):
        return
    good, defects = _split(measured)
    wrong, right = _failed(good), _failed(defects)
    caught, rejected = right / len(defects), wrong / len(good)
    mark: dict[str, Any] = {"color": INK, "marker": "D", "linestyle": "none", "clip_on": False}
    told = f"threshold: {caught:.0%} found,\n{rejected:.1%} of good rejected"
    roc.plot(rejected, caught, label=told, zorder=3, **mark)
    if wrong + right:
        told = f"threshold: {right / (wrong + right):.0%} of rejects defective"
        recall.plot(caught, right / (wrong + right), label=told, zorder=3, **mark)


def _bars(
    axes: Axes,
    good: Sequence[Measured],
    defects: Sequence[Measured],
    what: str,
    bins: tuple[Float64, list[str]],
) -> str:
    """Shares over the ``what`` of the findings; returns the means in words."""
    (edges, names), said = bins, []
    for parts, side, look in ((defects, 1, DEFECT), (good, -1, GOOD)):
        values = [getattr(one.finding, what) for one in parts]
        counts = np.histogram(values, edges)[0]
        (used,) = np.nonzero(counts)  # an empty bar would still show its edge
        axes.bar(used + side * 0.2, counts[used] / max(len(parts), 1), 0.38, **look)
        said.append(f"{np.mean(values):.1f}" if values else "–")
    axes.set_xticks(np.arange(len(names)), names, size=10 if len(names) <= 8 else 8)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return f"{said[0]}, good {said[1]}"


def _depth_bins(values: Sequence[int]) -> tuple[Float64, list[str]]:
    """Edges and names of bars: one for each value that occurs, or equal spans where many do."""
    distinct = np.unique(values)
    if len(distinct) <= DEPTH_BINS:
        names = ["none" if value < 0 else str(value) for value in distinct]
        return np.append(distinct, distinct[-1] + 1) - 0.5, names
    some = distinct[distinct >= 0]
    width = -(-(int(np.ptp(some)) + 1) // DEPTH_BINS)
    starts = np.arange(some[0], some[-1] + 1, width)
    names = [f"{start}–\n{start + width - 1}" if width > 1 else str(start) for start in starts]
    edges = np.append(starts, starts[-1] + width) - 0.5
    return (edges, names) if distinct[0] >= 0 else (np.append(-1.5, edges), ["none", *names])


def _split(measured: Sequence[Measured]) -> tuple[list[Measured], list[Measured]]:
    return (
        [one for one in measured if one.item.is_good],
        [one for one in measured if not one.item.is_good],
    )


def _failed(measured: Sequence[Measured]) -> int:
    return sum(
        one.judgement is not None and one.judgement.decision is Decision.FAIL for one in measured
    )


def _root(values: Float64) -> Float64:
    """Square root; layout asks for places a rounding below 0."""
    return np.asarray(np.sqrt(np.maximum(values, 0)), np.float64)

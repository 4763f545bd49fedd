"""Rows of an evaluation: what was measured on test images becomes the field's metrics.

Images are ranked by surprise where there is a calibration, else by the raw score. Maps are compared
between the median good part and the limit of their plan, which leaves the order of one plan's
pixels as it is and makes those of several comparable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from engines.contracts import Decision, Finding, Float32
from engines.dataset import Item
from engines.masks import Mask, stretched
from engines.metrics import auroc, auroc_by_quartile, auroc_se, pixel_metrics, ranking_metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.calibration import Judgement

Number = float | None  # None where a metric does not exist

COLUMNS = {
    "image_auroc": "I-AUROC",
    "image_ap": "I-AP",
    "image_f1max": "I-F1max",
    "pixel_auroc": "P-AUROC",
    "pixel_ap": "P-AP",
    "pixel_f1max": "P-F1max",
    "aupro": "AUPRO",
    "mean_steps_good": "calls, good",  # of the denoiser
    "mean_steps_defect": "calls, defect",
    "mean_level_good": "level, good",
    "mean_level_defect": "level, defect",
}


class Row(BaseModel):
    """The public metrics of one category, or their mean over categories."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    image_auroc: Number = None
    image_auroc_se: Number = None  # over the choice of test images
    image_ap: Number = None
    image_f1max: Number = None
    pixel_auroc: Number = None
    pixel_ap: Number = None
    pixel_f1max: Number = None
    aupro: Number = None
    mean_steps_good: Number = None  # denoiser calls per good part, of all its tiles
    mean_steps_defect: Number = None
    mean_level_good: Number = None  # of the noise, as the finding ends with it
    mean_level_defect: Number = None


class CategoryRow(Row):
    """One category, with what the threshold did to its test images."""

    good: int  # test images of good parts
    defect: int
    masks: int  # of the defects, how many have a truth mask
    undecided: int  # images without evidence; they are in no metric
    false_rejects: int | None  # good parts failed; None without a calibration
    escapes: int | None  # defects passed
    image_auroc_by_defect: dict[str, Number]
    image_auroc_by_severity: dict[str, Number]  # by quartile, mildest q1; empty where unknown


class Table(BaseModel):
    """One row per category and their mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    categories: dict[str, CategoryRow]
    mean: Row


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One test image: what is known of it, what was found, what was decided."""

    item: Item
    truth: Mask | None
    finding: Finding
    judgement: Judgement | None  # None without a calibration
    severity: float | None = None  # of a simulated defect

    @property
    def rank(self) -> float:
        """The number that orders images; NaN without evidence."""
        if self.judgement is None:
            return self.finding.anomaly_score
        return math.nan if self.judgement.surprise is None else self.judgement.surprise

    def pixels(self, size_hw: tuple[int, int]) -> Float32:
        """The anomaly map [H, W], relative to its plan's limit where there is one."""
        anomaly_map = stretched(self.finding.anomaly_map, size_hw)
        relative = self.judgement.relative(anomaly_map) if self.judgement else None
        return anomaly_map if relative is None else relative


def table_of(measured: Mapping[str, Sequence[Measured]], size_hw: tuple[int, int]) -> Table:
    """One row per category, and their mean."""
    rows = {name: category_row(found, size_hw) for name, found in measured.items()}
    return Table(categories=rows, mean=mean_row(list(rows.values())))


def category_row(measured: Sequence[Measured], size_hw: tuple[int, int]) -> CategoryRow:
    """All metrics of one category's test images."""
    seen = [one for one in measured if math.isfinite(one.rank)]
    good = [one for one in seen if one.item.is_good]
    defects = [one for one in seen if not one.item.is_good]
    kinds = sorted({one.item.defect for one in defects})
    images = ranking_metrics([not o.item.is_good for o in seen], [o.rank for o in seen], "image")
    return CategoryRow(
        **images,
        image_auroc_se=auroc_se([one.rank for one in good], [one.rank for one in defects]),
        **pixel_metrics(*outlined(seen, size_hw)),
        mean_steps_good=_mean([one.finding.calls for one in good]),
        mean_steps_defect=_mean([one.finding.calls for one in defects]),
        mean_level_good=_mean([one.finding.level for one in good]),
        mean_level_defect=_mean([one.finding.level for one in defects]),
        good=sum(one.item.is_good for one in measured),
        defect=sum(not one.item.is_good for one in measured),
        masks=sum(one.truth is not None for one in defects),
        undecided=len(measured) - len(seen),
        false_rejects=_count(good, Decision.FAIL),
        escapes=_count(defects, Decision.PASS),
        image_auroc_by_defect={
            kind: auroc([o.rank for o in good], [o.rank for o in defects if o.item.defect == kind])
            for kind in kinds
        },
        image_auroc_by_severity=_by_severity(good, defects),
    )


def outlined(
    measured: Sequence[Measured], size_hw: tuple[int, int]
) -> tuple[list[Mask], list[Float32]]:
    """Truth masks and maps [H, W] of the images whose pixels are known; none where no defect is."""
    known = [one for one in measured if one.truth is not None and math.isfinite(one.rank)]
    if all(one.item.is_good for one in known):
        return [], []
    truths = [one.truth for one in known if one.truth is not None]
    return truths, [one.pixels(size_hw) for one in known]


def _by_severity(good: Sequence[Measured], defects: Sequence[Measured]) -> dict[str, Number]:
    known = [(one.rank, one.severity) for one in defects if one.severity is not None]
    if not known:
        return {}
    ranks, severities = zip(*known, strict=True)
    return auroc_by_quartile([one.rank for one in good], ranks, severities)


def mean_row(rows: Sequence[Row]) -> Row:
    """Each metric's mean over the categories that have it; test images of two are independent."""
    columns = {
        name: [v for row in rows if (v := getattr(row, name)) is not None]
        for name in Row.model_fields
    }
    errors, ranked = columns["image_auroc_se"], columns["image_auroc"]
    joint = math.hypot(*errors) / len(errors) if errors and len(errors) == len(ranked) else None
    means = {name: _mean(values) for name, values in columns.items()}
    return Row(**means | {"image_auroc_se": joint})


def cells_of(table: Table) -> list[list[str]]:
    """The table in words: its head, a line per category, the mean; a dash where there is none."""
    rows = [*table.categories.items(), ("mean", table.mean)]
    lines = [[name, *(_cell(row, column) for column in COLUMNS)] for name, row in rows]
    return [["category", *COLUMNS.values()], *lines]


def markdown_of(table: Table) -> str:
    """The table for a README."""
    cells = cells_of(table)
    cells[-1][0] = "**mean**"
    head, *lines = ("| " + " | ".join(row) + " |" for row in cells)
    return "\n".join([head, "|---|" + "---:|" * len(COLUMNS), *lines])


def _cell(row: Row, name: str) -> str:
    """One number: means with one decimal, metrics as .948, image AUROC with its error."""
    value = getattr(row, name)
    if value is None:
        return "–"
    if name.startswith("mean_"):
        return f"{value:.1f}"
    error = row.image_auroc_se if name == "image_auroc" else None
    return _share(value) + (f" ± {_share(error)}" if error is not None else "")


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _count(measured: Sequence[Measured], decision: Decision) -> int | None:
    if any(one.judgement is None for one in measured):
        return None
    return sum(one.judgement is not None and one.judgement.decision is decision for one in measured)


def _mean(values: Sequence[float]) -> Number:
    return float(np.mean(values)) if values else None

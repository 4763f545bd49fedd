"""Verdicts of a simulated line against the truth its parts were drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from rich.table import Table

from engines.contracts import Decision, Float32, UInt8
from engines.images import decode_image, decode_map, encode_png, overlay
from engines.masks import stretched
from engines.metrics import auroc, auroc_by_quartile, pixel_metrics
from pipeline.simulator import SimulatedLine, Truth

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pipeline.config import LineSettings
    from pipeline.stream import VerdictDelivery

TRUTH_STRIDE = 4  # pixels are compared on every fourth row and column
SHEET_COLUMNS, SHEET_ROWS, SHEET_SIDE = 6, 4, 256


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One verdict, kept small."""

    camera: str
    part_id: str
    decision: Decision
    surprise: float
    anomaly_map: Float32 | None  # [h', w'] in units of its limit
    mask_png: bytes
    picture_png: bytes  # for parts not passed


class Judged:
    """Collects verdicts as they come; scored when the run is over."""

    def __init__(self, settings: LineSettings) -> None:
        self.lines = {
            camera.name: SimulatedLine(
                camera.name,
                parts=camera.source.parts,
                seed=camera.source.seed,
                defect_rate=camera.source.defect_rate,
                rendered=camera.source.rendered,
            )
            for camera in settings.cameras
            if camera.source.kind == "simulator"
        }
        self.answers: list[Answer] = []

    def add(self, delivery: VerdictDelivery) -> None:
        """Keep one verdict."""
        verdict = delivery.verdict
        self.answers.append(
            Answer(
                camera=verdict.camera,
                part_id=verdict.part_id,
                decision=verdict.decision,
                surprise=math.nan if verdict.surprise is None else verdict.surprise,
                anomaly_map=decode_map(delivery.map_png) if delivery.map_png else None,
                mask_png=delivery.mask_png,
                picture_png=delivery.picture_png,
            )
        )

    def truths(self) -> list[Truth]:
        """What each answered part really was."""
        return [self.lines[answer.camera].truth(answer.part_id) for answer in self.answers]


def score_against_truth(judged: Judged) -> dict[str, Any]:
    """AUROC of images and pixels, confusion, and image AUROC per quartile of severity."""
    truths = judged.truths()
    known = [
        (a, t) for a, t in zip(judged.answers, truths, strict=True) if a.anomaly_map is not None
    ]
    good = [a.surprise for a, t in known if t.defect is None]
    bad = [(a.surprise, t.severity) for a, t in known if t.defect is not None]
    surprises, severities = [s for s, _ in bad], [s for _, s in bad]
    masks = [t.mask[::TRUTH_STRIDE, ::TRUTH_STRIDE] for _, t in known]
    maps = [_resized(a.anomaly_map, m.shape) for (a, _), m in zip(known, masks, strict=True)]
    quartiles = auroc_by_quartile(good, surprises, severities)
    return {
        "image_auroc": _rounded(auroc(good, surprises) if good and bad else None),
        "pixel_auroc": _rounded(pixel_metrics(masks, maps)["pixel_auroc"]),
        "image_auroc_by_severity": {name: _rounded(value) for name, value in quartiles.items()},
        "confusion": _confusion(judged.answers, truths),
    }


def confusion_table(confusion: dict[str, dict[str, int]]) -> Table:
    """Truth in rows, decisions in columns."""
    table = Table(title="Decisions against truth", min_width=48)
    table.add_column("truth")
    for decision in Decision:
        table.add_column(decision.value, justify="right")
    for truth, counts in confusion.items():
        table.add_row(truth, *(str(counts[decision.value]) for decision in Decision))
    return table


def write_contact_sheet(judged: Judged, path: Path) -> Path:
    """Pictures of rejected parts with their masks outlined, the most surprising first."""
    rejects = [a for a in judged.answers if a.decision is Decision.FAIL and a.picture_png]
    rejects.sort(key=lambda answer: answer.surprise, reverse=True)
    spread = rejects[:: max(1, len(rejects) // (SHEET_COLUMNS * SHEET_ROWS))]
    tiles = [_tile(answer) for answer in spread[: SHEET_COLUMNS * SHEET_ROWS]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(_sheet(tiles)))
    return path


def _confusion(answers: Sequence[Answer], truths: Sequence[Truth]) -> dict[str, dict[str, int]]:
    counts = {truth: {d.value: 0 for d in Decision} for truth in ("good", "defective")}
    for answer, truth in zip(answers, truths, strict=True):
        counts["defective" if truth.defect else "good"][answer.decision.value] += 1
    return counts


def _tile(answer: Answer) -> UInt8:
    picture = cv2.resize(decode_image(answer.picture_png), (SHEET_SIDE, SHEET_SIDE))
    drawn = decode_image(answer.mask_png)[..., 0]
    mask = cv2.resize(drawn, (SHEET_SIDE, SHEET_SIDE), interpolation=cv2.INTER_NEAREST) > 0
    tile = overlay(picture.astype(np.uint8), mask)
    words = f"{answer.part_id}  surprise {answer.surprise:.1f}"
    cv2.putText(tile, words, (6, SHEET_SIDE - 8), 0, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return tile


def _sheet(tiles: Sequence[UInt8]) -> UInt8:
    empty = np.zeros((SHEET_SIDE, SHEET_SIDE, 3), np.uint8)
    full = [*tiles, *[empty] * (-len(tiles) % SHEET_COLUMNS or (0 if tiles else SHEET_COLUMNS))]
    rows = [full[i : i + SHEET_COLUMNS] for i in range(0, len(full), SHEET_COLUMNS)]
    return np.vstack([np.hstack(row) for row in rows])


def _resized(surprise: Float32 | None, size: Iterable[int]) -> Float32:
    assert surprise is not None  # noqa: S101 - filtered by the caller
    height, width = size
    return stretched(surprise, (height, width))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

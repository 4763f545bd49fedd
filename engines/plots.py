"""Pictures of an evaluation for people: contact sheets and a histogram of scores, as PNG."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.contracts import Decision, Float32, UInt8
from engines.dataset import load_model_input
from engines.images import encode_png, overlay
from engines.masks import Mask, mask_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from engines.tables import Measured

ROWS_MAX = 16
GAP = 4
TRUTH_RGB = (64, 255, 64)
GOOD_RGB, DEFECT_RGB, INK = (60, 140, 60), (210, 60, 40), (40, 40, 40)


def draw_category(
    folder: Path, category: str, measured: Sequence[Measured], size_hw: tuple[int, int]
) -> None:
    """Write ``CATEGORY.png`` (contact sheet) and ``CATEGORY_scores.png`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    seen = [one for one in measured if math.isfinite(one.rank)]
    if not seen:
        return
    sheet = contact_sheet(_telling(seen), size_hw)
    (folder / f"{category}.png").write_bytes(encode_png(sheet))
    good = [one.rank for one in seen if one.item.is_good]
    defects = [one.rank for one in seen if not one.item.is_good]
    threshold = seen[0].judgement.threshold if seen[0].judgement else None
    drawn = histogram(good, defects, threshold)
    (folder / f"{category}_scores.png").write_bytes(encode_png(drawn))


def contact_sheet(measured: Sequence[Measured], size_hw: tuple[int, int]) -> UInt8:
    """Input, anomaly map, and mask (red) against truth (green outline), two images to a row.

    All maps share one colour scale, from their median to their greatest value.
    """
    maps = [one.pixels(size_hw) for one in measured]
    low, high = float(np.median(maps)), float(np.max(maps))
    rows = [_row(one, m, low, high, size_hw) for one, m in zip(measured, maps, strict=True)]
    if len(rows) % 2:
        rows.append(np.full_like(rows[0], 255))
    gap = np.full((rows[0].shape[0], 3 * GAP, 3), 255, np.uint8)
    half = len(rows) // 2
    pairs = zip(rows[:half], rows[half:], strict=True)
    return np.concatenate([np.concatenate([a, gap, b], axis=1) for a, b in pairs])


def histogram(good: Sequence[float], defects: Sequence[float], threshold: float | None) -> UInt8:
    """Good (green, up) against defects (red, down) along the square root of what ranks them."""
    values = np.asarray([*good, *defects, *([threshold] if threshold else [])])
    edges = np.linspace(*_ends(_compressed(values)), 61)
    canvas = np.full((260, 640, 3), 255, np.uint8)
    for scores, colour, way in ((good, GOOD_RGB, -1), (defects, DEFECT_RGB, 1)):
        counts = np.histogram(_compressed(np.asarray(scores)), edges)[0]
        for i, share in enumerate(counts / max(1, counts.max())):
            if share == 0:
                continue
            corner = (20 + i * 10, 130 + way * round(110 * float(share)))
            cv2.rectangle(canvas, (28 + i * 10, 130), corner, colour, -1)
    if threshold is not None:
        at = 20 + round(
            600 * float((_compressed(np.asarray(threshold)) - edges[0]) / np.ptp(edges))
        )
        cv2.line(canvas, (at, 10), (at, 250), INK, 1)
    _write(canvas, f"good {len(good)}", (20, 16), GOOD_RGB)
    _write(canvas, f"defect {len(defects)}", (20, 254), DEFECT_RGB)
    return canvas


def _telling(measured: Sequence[Measured]) -> list[Measured]:
    """The good parts closest to rejection, and defects spread from the least to the most seen."""
    by_rank = sorted(measured, key=lambda one: one.rank)
    good = [one for one in by_rank if one.item.is_good][-ROWS_MAX // 4 :]
    defects = [one for one in by_rank if not one.item.is_good]
    places = np.linspace(0, len(defects) - 1, min(len(defects), ROWS_MAX - len(good)))
    return good + [defects[round(place)] for place in places]


def _row(
    one: Measured, anomaly_map: Float32, low: float, high: float, size_hw: tuple[int, int]
) -> UInt8:
    image = load_model_input(one.item, size_hw)
    shade = np.clip((anomaly_map - low) / max(high - low, 1e-12), 0, 1)
    heat = cv2.applyColorMap((shade * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    failed = one.judgement is not None and one.judgement.decision is Decision.FAIL
    mask = (
        mask_of(one.finding, one.judgement, size_hw) if one.judgement else np.zeros(size_hw, bool)
    )
    marked = overlay(image, mask)
    if one.truth is not None:
        marked = _outlined(marked, one.truth)
    picture = image.copy()
    _write(
        picture, f"{one.item.defect} {one.rank:.3g}", (4, 12), DEFECT_RGB if failed else GOOD_RGB
    )
    gap = np.full((size_hw[0], GAP, 3), 255, np.uint8)
    row = np.concatenate([picture, gap, heat.astype(np.uint8), gap, marked], axis=1)
    return np.concatenate([row, np.full((GAP, row.shape[1], 3), 255, np.uint8)])


def _outlined(image: UInt8, truth: Mask) -> UInt8:
    contours, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, TRUTH_RGB, 1)
    return image


def _compressed(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Square root with its sign: surprise of plain defects is far out."""
    return np.asarray(np.sign(values) * np.sqrt(np.abs(values)), np.float64)


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1


def _write(image: UInt8, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Text on a white rim, so that it reads on any part."""
    for ink, width in (((255, 255, 255), 3), (colour, 1)):
        cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, ink, width, cv2.LINE_AA)

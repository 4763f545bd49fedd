"""Pictures of an evaluation for people, as PNG: contact sheets drawn here, charts in their room."""

from __future__ import annotations

import math
import unicodedata
from textwrap import wrap
from typing import TYPE_CHECKING

import cv2
import numpy as np

from engines.contracts import BadConfig, Decision, Float32, UInt8
from engines.dataset import load_model_input
from engines.images import encode_png, overlay
from engines.masks import Mask, mask_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from engines.tables import CategoryRow, Measured

    Draw = Callable[[str, Sequence[Measured], CategoryRow, tuple[int, int]], None]

ROWS_MAX = 16
GAP = 4
TRUTH_RGB = (64, 255, 64)
GOOD_RGB, DEFECT_RGB, INK_RGB = (40, 120, 40), (200, 40, 30), (34, 34, 34)
LEGEND = "test image | anomaly map, one scale for all | mask (red) and truth (green)"
LETTER = 0.45  # width of a letter, of the height of a line


def artist(folder: Path, origin: str) -> Draw:
    """What draws a category into ``folder``; raises BadConfig, before any work, where it cannot.

    ``origin``: what was measured; every picture says it.
    """
    try:
        from engines.charts import draw_charts
    except ModuleNotFoundError as error:
        raise BadConfig(
            "charts need matplotlib: run pip install 'assayline[train]', or leave out --plot"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise BadConfig(f"{folder} cannot hold charts ({reason}): name another folder") from error

    def draw(
        category: str, measured: Sequence[Measured], row: CategoryRow, size_hw: tuple[int, int]
    ) -> None:
        seen = [one for one in measured if math.isfinite(one.rank)]
        if seen:
            draw_sheet(folder, category, seen, size_hw, origin)
            draw_charts(folder, category, seen, row, size_hw, origin=origin)

    return draw


def draw_sheet(
    folder: Path, category: str, seen: Sequence[Measured], size_hw: tuple[int, int], origin: str
) -> None:
    """Write the contact sheet ``CATEGORY.png`` of images with evidence into ``folder``."""
    sheet = contact_sheet(_telling(seen), size_hw)
    width, unit = sheet.shape[1], line_px(size_hw)
    fitting = max(int(width / unit / LETTER), 20)  # letters of a line
    head, foot = (
        text_band(wrap(_ascii(said), fitting), width, unit)
        for said in (f"{category}: {LEGEND}", origin)
    )
    (folder / f"{category}.png").write_bytes(encode_png(np.concatenate([head, sheet, foot])))


def contact_sheet(measured: Sequence[Measured], size_hw: tuple[int, int]) -> UInt8:
    """Input, anomaly map, and mask (red) against truth (green outline), two images to a row.

    Above each image stands what it is, what it got and what was decided.

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
    gap = np.full((size_hw[0], GAP, 3), 255, np.uint8)
    row = np.concatenate([image, gap, heat.astype(np.uint8), gap, marked], axis=1)
    colour = INK_RGB if one.judgement is None else DEFECT_RGB if failed else GOOD_RGB
    return np.concatenate([text_band([_told(one)], row.shape[1], line_px(size_hw), colour), row])


def _told(one: Measured) -> str:
    """What a test image is, what it got, what was decided."""
    if one.judgement is None:
        return f"{one.item.defect}: raw score {one.rank:.3g}"
    return f"{one.item.defect}: surprise {one.rank:.3g}, {one.judgement.decision}"


def _outlined(image: UInt8, truth: Mask) -> UInt8:
    contours, _ = cv2.findContours(truth.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, TRUTH_RGB, 1)
    return image


def line_px(size_hw: tuple[int, int]) -> int:
    """How high a line of text is that reads well beside pictures of a size."""
    return max(16, round(size_hw[1] / 16))


def text_band(
    lines: Sequence[str], width: int, unit: int, colour: tuple[int, int, int] = INK_RGB
) -> UInt8:
    """Lines of text on white, ``unit`` pixels high each, [len(lines) * unit, width, 3]."""
    band = np.full((unit * len(lines), width, 3), 255, np.uint8)
    scale, thick = unit * 0.026, max(1, unit // 16)
    for number, text in enumerate(lines):
        at = (GAP, round((number + 0.72) * unit))
        cv2.putText(
            band, _ascii(text), at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thick, cv2.LINE_AA
        )
    return band


def _ascii(text: str) -> str:
    """Letters that the font of contact sheets has; what it lacks becomes the nearest or "?"."""
    plain = unicodedata.normalize("NFKD", text)
    return (
        "".join(c for c in plain if not unicodedata.combining(c))
        .encode("ascii", "replace")
        .decode()
    )

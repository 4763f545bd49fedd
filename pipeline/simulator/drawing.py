"""Anti-aliased coverage masks on the canvas: strokes, blobs, letters, jagged paths."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from engines.contracts import Float32, UInt8
from pipeline.simulator.surface import SIDE

Point = tuple[float, float]  # x, y in canvas pixels
_SHIFT = 4  # fractional bits of cv2's fixed-point coordinates


def blank() -> UInt8:
    """An empty mask."""
    return np.zeros((SIDE, SIDE), np.uint8)


def coverage(mask: UInt8, soften: float = 0.0) -> Float32:
    """A drawn mask as 0..1, its edge softened over ``soften`` canvas pixels."""
    amount = mask.astype(np.float32) * np.float32(1 / 255)
    return soft(amount, soften) if soften > 0 else amount


def soft(amount: Float32, sigma: float) -> Float32:
    """Gaussian blur over ``sigma`` canvas pixels."""
    return np.asarray(cv2.GaussianBlur(amount, (0, 0), sigma), np.float32)


def fixed(points: Float32) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Points [N, 2] in cv2's sixteenths of a pixel."""
    return np.round(np.asarray(points) * (1 << _SHIFT)).astype(np.int32)


def stroke(mask: UInt8, points: Float32, width: float) -> None:
    """Draw a line through ``points`` [N, 2]; widths below one pixel become fainter."""
    value = int(255 * min(1.0, width))
    thick = max(1, round(width))
    cv2.polylines(mask, [fixed(points)], False, value, thick, cv2.LINE_AA, _SHIFT)


def fill(mask: UInt8, points: Float32, value: int = 255) -> None:
    """Fill the polygon ``points`` [N, 2]."""
    cv2.fillPoly(mask, [fixed(points)], value, cv2.LINE_AA, _SHIFT)


def dot(mask: UInt8, centre: Point, radius: float, value: int = 255) -> None:
    """Fill a circle."""
    x, y, r = (round(v * (1 << _SHIFT)) for v in (*centre, radius))
    cv2.circle(mask, (x, y), r, value, -1, cv2.LINE_AA, _SHIFT)


def box(mask: UInt8, centre: Point, half: Point, angle_deg: float = 0.0, value: int = 255) -> None:
    """Fill a rectangle of the given half sizes, turned about its centre."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float32) * np.array(half)
    fill(mask, turned(corners, angle_deg) + np.array(centre), value)


def turned(points: Float32, angle_deg: float) -> Float32:
    """Points [N, 2] rotated about the origin."""
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return np.asarray(points @ np.array([[c, s], [-s, c]]), np.float32)


def blob(rng: np.random.Generator, centre: Point, radius: float, rough: float = 0.35) -> UInt8:
    """An irregular closed patch: a circle whose radius wanders by a few harmonics."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    wander = sum(
        rng.normal(0, rough / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        for k in range(1, 6)
    )
    reach = radius * np.clip(1 + wander, 0.4, 1.8)
    stretch = rng.uniform(0.7, 1.0)
    points = np.stack([reach * np.cos(angle), stretch * reach * np.sin(angle)], 1)
    mask = blank()
    fill(mask, turned(points.astype(np.float32), rng.uniform(0, 180)) + np.array(centre))
    return mask


def wandering(
    rng: np.random.Generator, start: Point, heading_deg: float, length: float, wander_deg: float
) -> Float32:
    """A path [N, 2] of 4-pixel steps whose heading walks at random: scratches, cracks, hairs."""
    steps = max(2, round(length / 4))
    heading = np.deg2rad(heading_deg + np.cumsum(rng.normal(0, wander_deg, steps)))
    moves = 4 * np.stack([np.cos(heading), np.sin(heading)], 1)
    return np.asarray(np.vstack([[start], np.array(start) + np.cumsum(moves, 0)]), np.float32)


@lru_cache(maxsize=256)
def letters(text: str, height: int, weight: float = 2.0) -> UInt8:
    """A tight patch holding ``text`` in capitals of ``height`` pixels."""
    scale, over = height / 22.0 * 4, 4  # drawn four times too large, then averaged
    thick = max(1, round(weight * over))
    (w, h), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    patch = np.zeros((h + base + 4 * thick, w + 4 * thick), np.uint8)
    origin = (2 * thick, h + 2 * thick)
    cv2.putText(patch, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    rows, columns = np.flatnonzero(patch.any(1)), np.flatnonzero(patch.any(0))
    patch = patch[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    size = max(1, patch.shape[1] // over), max(1, patch.shape[0] // over)
    return np.asarray(cv2.resize(patch, size, interpolation=cv2.INTER_AREA), np.uint8)


def write(mask: UInt8, patch: UInt8, centre: Point, angle_deg: float = 0.0) -> None:
    """Lay a patch of letters on the mask, turned clockwise about its own centre."""
    h, w = patch.shape
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), -angle_deg, 1.0)
    matrix[:, 2] += np.array(centre) - (w / 2, h / 2)
    turned_patch = cv2.warpAffine(patch, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
    np.maximum(mask, turned_patch, out=mask)

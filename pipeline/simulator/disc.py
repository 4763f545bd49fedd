"""A turned and drilled metal disc with an engraved mark, lying on a rubber belt."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from engines.contracts import Float32, Int64
from pipeline.simulator import drawing
from pipeline.simulator.surface import SIDE, Surface, texture, window

CENTRE = (SIDE / 2, SIDE / 2)
RIM, STEP, BORE = 214.0, 128.0, 46.0  # radii in canvas pixels
HOLES = tuple(
    (CENTRE[0] + 171 * np.cos(a), CENTRE[1] + 171 * np.sin(a), 19.0)
    for a in np.deg2rad(np.arange(30, 390, 60))
)
PIN = (CENTRE[0] + 88.0, CENTRE[1] + 34.0, 7.5)  # a dowel hole breaks the symmetry
MARK = "AX-40 7"
MARK_RADIUS = 86.0
METAL = (0.97, 1.0, 1.02)
_RINGS_PER_PIXEL = 4


@dataclass(frozen=True, slots=True, eq=False)
class Disc:
    """One disc: its turning marks, its tone, and what was done to it."""

    rings: Float32  # [R] turning marks over the radius
    streak: Float32  # [SIDE, SIDE] marks broken up along the cut
    grain: Float32  # [SIDE, SIDE]
    belt: Float32  # [SIDE, SIDE]
    azimuth: tuple[float, float]  # radians, of the two lamps' bow-tie highlights
    tone: float
    holes: tuple[tuple[float, float, float], ...] = HOLES  # x, y, radius
    mark: str = MARK
    struck_twice: tuple[float, float] | None = None  # canvas pixels between the two
    edits: tuple[Callable[[Surface], None], ...] = ()

    def damaged(self, edit: Callable[[Surface], None]) -> Disc:
        """This very disc with one more thing done to it."""
        return replace(self, edits=(*self.edits, edit))


def draw(rng: np.random.Generator) -> Disc:
    """A good disc: its own turning marks, tool chatter, anodic tone and place on the belt."""
    count = round(_RINGS_PER_PIXEL * SIDE)
    fine, coarse = rng.standard_normal((2, count)).astype(np.float32)
    rings = _smooth(fine, 3.0) * 0.65 + _smooth(coarse, 26.0) * 0.35
    return Disc(
        rings=np.asarray(rings, np.float32),
        streak=_streaks()[rng.integers(len(_streaks()))][:: rng.choice([-1, 1])],
        grain=window(texture("grain", 0.7, 0.7), rng),
        belt=window(texture("belt", 1.6, 1.6), rng),
        azimuth=(rng.normal(-2.2, 0.05), rng.normal(0.35, 0.05)),
        tone=float(np.clip(rng.normal(1.0, 0.02), 0.95, 1.05)),
    )


def build(disc: Disc) -> Surface:
    """Belt, shadow, turned faces, drilled holes, engraving, then whatever was done to this disc."""
    face, height = _blank_disc()
    metal = _turned_metal(disc)
    cut = drawing.blank()
    for x, y, radius in (*disc.holes, PIN):
        drawing.dot(cut, (x, y), radius)
    hole = drawing.coverage(cut)
    rubber = (0.085 + 0.012 * disc.belt) * _shadow()
    mark = _mark(disc.mark)
    if disc.struck_twice is not None:
        mark = np.maximum(
            mark, np.roll(mark, np.round(disc.struck_twice).astype(int)[::-1], (0, 1))
        )
    metal = metal * (1 - 0.6 * mark)
    solid = face * (1 - hole)
    grey = rubber + (metal - rubber) * solid
    colour = cv2.merge([grey * c for c in METAL])
    relief = height - 2.2 * mark - 5.0 * drawing.soft(hole, 1.6)
    relief += solid * (0.05 * disc.grain)
    surface = Surface(colour, relief, 0.10 * solid)
    for edit in disc.edits:
        edit(surface)
    return surface


def _turned_metal(disc: Disc) -> Float32:
    """Brightness of concentric grooves (Kajiya & Kay 1989): bow-ties towards the lamps."""
    cos2, sin2, ring, outer = _polar()
    marks = disc.rings[ring]
    bow = [
        cv2.exp(3.2 * (cos2 * math.cos(2 * a) + sin2 * math.sin(2 * a) - 1)) for a in disc.azimuth
    ]
    sheen = 0.95 * bow[0] + 0.45 * bow[1]
    rough = 1 + (0.055 + 0.08 * sheen) * marks + 0.04 * disc.streak + 0.028 * disc.grain
    return np.asarray(disc.tone * (0.33 + 0.52 * sheen) * rough * outer, np.float32)


def _smooth(values: Float32, sigma: float) -> Float32:
    smooth = cv2.GaussianBlur(values[None], (0, 0), sigma)[0]
    return np.asarray(smooth / smooth.std(), np.float32)


@lru_cache(maxsize=1)
def radius_map() -> Float32:
    """Distance of each canvas pixel from the disc's axis."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    return np.asarray(np.hypot(x - CENTRE[0], y - CENTRE[1]), np.float32)


@lru_cache(maxsize=1)
def _polar() -> tuple[Float32, Float32, Int64, Float32]:
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    angle = np.arctan2(y - CENTRE[1], x - CENTRE[0])
    radius = radius_map()
    ring = np.minimum(radius * _RINGS_PER_PIXEL, _RINGS_PER_PIXEL * SIDE - 1).astype(np.intp)
    outside = 0.5 + 0.5 * np.tanh((radius - STEP) / 2.4)
    return np.cos(2 * angle), np.sin(2 * angle), ring, np.asarray(0.84 + 0.16 * outside, np.float32)


@lru_cache(maxsize=1)
def _streaks() -> tuple[Float32, ...]:
    """Marks long along the cut and narrow across it, wrapped round the axis."""
    angle = np.arctan2(*(np.mgrid[:SIDE, :SIDE].astype(np.float32) - CENTRE[0]))
    around = ((angle / (2 * np.pi) + 0.5) * 1024).astype(np.float32)
    across = (radius_map() * 2.0).astype(np.float32)
    return tuple(
        np.asarray(
            cv2.remap(
                texture(f"streak{i}", 28.0, 1.1),
                around,
                across,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_WRAP,
            )
        )
        for i in range(6)
    )


@lru_cache(maxsize=1)
def _blank_disc() -> tuple[Float32, Float32]:
    """Coverage of the face, and its relief: rim and bore chamfers, a step between two faces."""
    radius = radius_map()
    face = np.clip(RIM + 0.5 - radius, 0, 1) * np.clip(radius - BORE + 0.5, 0, 1)
    height = np.minimum(np.minimum(RIM - radius, radius - BORE), 7.0) * 0.9
    height += 2.0 * (1 + np.tanh((radius - STEP) / 3.0))
    height -= 2.5 * np.exp(-(((radius - STEP + 5) / 2.0) ** 2))  # relief groove beside the step
    for x, y, hole in (*HOLES, PIN):
        yy, xx = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        height = np.minimum(height, 0.8 * (np.hypot(xx - x, yy - y) - hole) + 7.0)
    return face.astype(np.float32), drawing.soft(np.maximum(height, -4).astype(np.float32), 0.8)


@lru_cache(maxsize=1)
def _shadow() -> Float32:
    moved = np.roll(_blank_disc()[0], (7, 6), (0, 1))
    return np.asarray(1 - 0.65 * drawing.soft(moved, 7.0), np.float32)


@lru_cache(maxsize=64)
def _mark(text: str) -> Float32:
    """The engraving: letters set one by one on an arc."""
    mask = drawing.blank()
    angle = -90 - 15.5 * (len(text) - 1) / 2
    for letter in text:
        if letter != " ":
            at = np.deg2rad(angle)
            place = (CENTRE[0] + MARK_RADIUS * np.cos(at), CENTRE[1] + MARK_RADIUS * np.sin(at))
            drawing.write(mask, drawing.letters(letter, 29, 3.2), place, angle + 90)
        angle += 15.5
    return drawing.coverage(mask, 0.5)


def spot(rng: np.random.Generator, inner: float, outer: float) -> drawing.Point:
    """A random place on the face, clear of the holes."""
    for _ in range(50):
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(inner, outer)
        x, y = CENTRE[0] + radius * np.cos(angle), CENTRE[1] + radius * np.sin(angle)
        if all(np.hypot(x - hx, y - hy) > r + 12 for hx, hy, r in (*HOLES, PIN)):
            break
    return float(x), float(y)

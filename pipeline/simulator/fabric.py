"""A 2/1 twill: warp and weft yarns that rise over and dive under each other, seen close up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

from engines.contracts import Float32, Int64
from pipeline.simulator.surface import SIDE, Surface, texture, window

PITCH = 14.0  # canvas pixels between yarns
YARNS = 40
_WAVE = 3.2  # canvas pixels a yarn rises and dives
_WARP_COLOUR = (0.105, 0.165, 0.300)
_WEFT_COLOUR = (0.560, 0.555, 0.520)


@dataclass(frozen=True, slots=True, eq=False)
class Yarns:
    """One system of parallel yarns; row k of every array is yarn k, columns run along it."""

    place: Float32  # [YARNS] position across, canvas pixels
    thick: Float32  # [YARNS, SIDE] half width, canvas pixels
    tone: Float32  # [YARNS, SIDE] brightness, 1 = as dyed
    lift: Float32  # [YARNS, SIDE] extra height, canvas pixels; far below = not there

    def copy(self) -> Yarns:
        """Independent arrays, so that a weave may be damaged."""
        return Yarns(self.place, self.thick.copy(), self.tone.copy(), self.lift.copy())


@dataclass(frozen=True, slots=True, eq=False)
class Weave:
    """One stretch of cloth."""

    warp: Yarns
    weft: Yarns
    over: Float32  # [YARNS weft, YARNS warp] +1 where the warp is on top, -1 where the weft is
    fuzz: Float32  # [SIDE, SIDE]
    warp_fibre: Float32
    weft_fibre: Float32
    dye: float
    edits: tuple[Callable[[Surface], None], ...] = ()

    def damaged(self, edit: Callable[[Surface], None]) -> Weave:
        """This very cloth with one more thing done to it."""
        return replace(self, edits=(*self.edits, edit))


def draw(rng: np.random.Generator) -> Weave:
    """Good cloth: any phase of the repeat, uneven yarn count and spacing, dye lot."""
    phase = int(rng.integers(3))
    weft_row, warp_row = np.mgrid[:YARNS, :YARNS]
    over = np.where((weft_row + warp_row + phase) % 3 == 0, -1.0, 1.0).astype(np.float32)
    return Weave(
        warp=_spin(rng),
        weft=_spin(rng),
        over=over,
        fuzz=window(texture("fuzz", 0.8, 0.8), rng),
        warp_fibre=window(_fibres(), rng),
        weft_fibre=window(_fibres().T, rng),
        dye=float(np.clip(rng.normal(1.0, 0.02), 0.95, 1.05)),
    )


def build(weave: Weave) -> Surface:
    """Interlace the two systems, light what is on top, let what is below fall into shadow."""
    lying = _across(weave.warp, weave.over.T, weave.weft.place, 1.0)
    weft, weft_tone = _across(weave.weft, weave.over, weave.warp.place, -1.0)
    warp, warp_tone = (np.ascontiguousarray(a.T) for a in lying)
    top = np.clip((warp - weft) * 0.8 + 0.5, 0, 1)
    height = np.maximum(np.maximum(warp, weft), -5.0)
    fibre = weave.weft_fibre + top * (weave.warp_fibre - weave.weft_fibre)
    depth = np.clip(0.62 + 0.085 * height, 0.12, 1.25)
    bright = depth * (1 + 0.10 * fibre + 0.05 * weave.fuzz)
    warp_light = warp_tone * top * bright * weave.dye
    weft_light = weft_tone * (bright - top * bright)
    planes = [
        a * warp_light + b * weft_light for a, b in zip(_WARP_COLOUR, _WEFT_COLOUR, strict=True)
    ]
    relief = height + 0.22 * fibre + 0.12 * weave.fuzz
    surface = Surface(cv2.merge(planes), relief, np.full((SIDE, SIDE), 0.012, np.float32))
    for edit in weave.edits:
        edit(surface)
    return surface


def _spin(rng: np.random.Generator) -> Yarns:
    """Yarns of uneven count: each has its own weight, and thickens and thins along its length."""
    start = -PITCH * rng.uniform(0.5, 1.5)
    place = start + PITCH * np.arange(YARNS) + np.clip(rng.normal(0, 0.55, YARNS), -1.2, 1.2)
    own = np.clip(rng.normal(0, 0.035, (YARNS, 1)), -0.08, 0.08)
    along = _slow(rng)
    thick = PITCH * 0.53 * (1 + own + 0.05 * along)
    tone = 1 + np.clip(rng.normal(0, 0.03, (YARNS, 1)), -0.07, 0.07) + 0.03 * _slow(rng)
    lift = np.zeros((YARNS, SIDE))
    return Yarns(*(a.astype(np.float32) for a in (place, thick, tone, lift)))


def _slow(rng: np.random.Generator) -> Float32:
    """Unit variation along each yarn, slow over about three crossings: [YARNS, SIDE]."""
    knots = rng.standard_normal((YARNS, 14), np.float32)
    return np.asarray(cv2.resize(knots, (SIDE, YARNS), interpolation=cv2.INTER_CUBIC), np.float32)


def _across(
    yarns: Yarns, over: Float32, crossings: Float32, sign: float
) -> tuple[Float32, Float32]:
    """Height and tone of one system on the canvas, rows across the yarns: two arrays [SIDE, SIDE].

    A yarn is a half ellipse whose axis follows a smooth wave through its crossings.
    """
    nearest, offset = _nearest(yarns.place)
    wave = sign * _WAVE * (over @ _between(crossings)) + yarns.lift
    round_off = 1 - (offset[:, None] / yarns.thick[nearest]) ** 2
    profile = 0.62 * PITCH * (cv2.sqrt(np.maximum(round_off, 0)) - 0.6)
    profile += np.where(round_off > 0, np.float32(0), np.float32(-8))  # between yarns: far down
    profile += wave[nearest]
    return np.asarray(profile, np.float32), yarns.tone[nearest]


def _nearest(place: Float32) -> tuple[Int64, Float32]:
    """For each canvas row the nearest yarn and how far off its axis the row lies."""
    rows = np.arange(SIDE, dtype=np.float32)
    nearest = np.abs(rows[:, None] - place[None]).argmin(1)
    return nearest, rows - place[nearest]


def _between(crossings: Float32) -> Float32:
    """Weights [YARNS, SIDE] that carry values at crossings smoothly to every canvas pixel."""
    pixels = np.arange(SIDE, dtype=np.float32)
    at = np.interp(pixels, crossings, np.arange(YARNS, dtype=np.float32))
    low = np.minimum(at.astype(np.int64), YARNS - 2)
    share = 0.5 - 0.5 * np.cos(np.pi * np.clip(at - low, 0, 1))
    weights = np.zeros((YARNS, SIDE), np.float32)
    weights[low, np.arange(SIDE)] = 1 - share
    weights[low + 1, np.arange(SIDE)] += share
    return weights


@lru_cache(maxsize=1)
def _fibres() -> Float32:
    """Twisted staple fibres of the warp: fine lines running along y, leaning."""
    noise = texture("fibre", 0.9, 6.0)
    rows = np.arange(len(noise))
    leaned = np.stack([np.roll(noise[r], int(r * 0.45) % len(noise)) for r in rows])
    return np.ascontiguousarray(leaned, np.float32)

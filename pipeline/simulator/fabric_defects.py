"""What goes wrong with cloth between loom and inspection table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from engines.contracts import Float32
from pipeline.simulator import drawing
from pipeline.simulator.fabric import PITCH, YARNS, Weave, Yarns, build, draw
from pipeline.simulator.product import Product
from pipeline.simulator.surface import SIDE, Surface, grow, texture, window


def missing_yarn(weave: Weave, rng: np.random.Generator, severity: float) -> Weave:
    """A pick broke: over a stretch, a yarn thins out and is gone."""
    yarns, put = _choose(weave, rng)
    row, along = _yarn(rng), _stretch(rng, grow(severity, 30, 420))
    yarns.thick[row] *= 1 - grow(severity, 0.30, 0.98) * along
    yarns.lift[row] -= grow(severity, 1.5, 9.0) * along
    return put(yarns)


def thick_yarn(weave: Weave, rng: np.random.Generator, severity: float) -> Weave:
    """A slub: unspun fibre swells a yarn, which stands proud of its neighbours."""
    yarns, put = _choose(weave, rng)
    row, along = _yarn(rng), _stretch(rng, grow(severity, 40, 180))
    yarns.thick[row] *= 1 + grow(severity, 0.25, 0.75) * along
    yarns.lift[row] += grow(severity, 2.4, 8.0) * along
    for beside in (row - 1, row + 1):  # pushed away and under
        yarns.thick[beside] *= 1 - grow(severity, 0.08, 0.35) * along
        yarns.lift[beside] -= grow(severity, 0.3, 1.5) * along
    return put(yarns)


def float_yarn(weave: Weave, rng: np.random.Generator, severity: float) -> Weave:
    """A heddle stuck: a yarn skips crossings and floats on top, loose and a little askew."""
    over = weave.over.copy()
    row = _yarn(rng)
    first, count = int(rng.integers(5, 28)), 1 + round(grow(severity, 0, 9))
    crossings = slice(first, min(first + count, YARNS - 3))
    if rng.random() < 0.5:
        over[row, crossings] = -1.0
    else:
        over[crossings, row] = -1.0
    return replace(weave, over=over)


def colour_bar(weave: Weave, rng: np.random.Generator, severity: float) -> Weave:
    """A wrong cone: some neighbouring yarns are of another shade from edge to edge."""
    yarns, put = _choose(weave, rng)
    first = int(rng.integers(6, 28))
    band = slice(first, first + 1 + round(grow(severity, 1, 5)))
    yarns.tone[band] *= 1 + rng.choice([-0.8, 1.0]) * grow(severity, 0.32, 0.85)
    return put(yarns)


def hole(weave: Weave, rng: np.random.Generator, severity: float) -> Weave:
    """Yarns of both systems are cut: a dark hole with frayed ends."""
    x, y = _spot(rng)
    radius = grow(severity, 7.0, 24.0)
    torn = drawing.coverage(drawing.blob(rng, (x, y), radius, 0.4), 1.0)
    frayed = torn + 0.35 * torn * window(texture("fray", 1.5, 1.5), rng)
    gone = (np.clip(frayed * 1.3 - 0.15, 0, 1) * grow(severity, 0.8, 1.0)).astype(np.float32)
    curl = np.clip(drawing.soft(torn, 3.0) - torn, 0, 1)

    def edit(surface: Surface) -> None:
        surface.blend((0.018, 0.018, 0.020), gone)
        surface.height -= 6.0 * gone - 3.0 * curl

    return weave.damaged(edit)


def stain(weave: Weave, rng: np.random.Generator, severity: float) -> Weave:
    """Rusty water dried in the cloth: it tints, most at the tide line."""
    wet = _wet(rng, grow(severity, 18, 56))
    tide = np.clip(wet - drawing.soft(wet, 5.0), 0, 1)
    amount = np.clip((0.7 * wet + 1.6 * tide) * grow(severity, 0.32, 0.75), 0, 0.85)

    def edit(surface: Surface) -> None:
        for channel, absorbed in enumerate((0.30, 0.60, 1.0)):
            surface.colour[..., channel] *= 1 - absorbed * amount

    return weave.damaged(edit)


def oil_spot(weave: Weave, rng: np.random.Generator, severity: float) -> Weave:
    """The loom dripped: oil darkens the yarns, soft at the edge and slightly glossy."""
    wet = drawing.soft(_wet(rng, grow(severity, 12, 34)), grow(severity, 2.0, 4.0))

    def edit(surface: Surface) -> None:
        surface.dim(1 - grow(severity, 0.34, 0.75) * wet)
        surface.gloss += 0.05 * severity * wet

    return weave.damaged(edit)


def snag(weave: Weave, rng: np.random.Generator, severity: float) -> Weave:
    """Something pulled a loop out of the cloth: it lies on top and casts a shadow."""
    x, y = _spot(rng)
    path = drawing.wandering(rng, (x, y), rng.uniform(0, 360), grow(severity, 16, 90), 22.0)
    mask = drawing.blank()
    drawing.stroke(mask, path, grow(severity, 1.8, 5.0))
    loop = drawing.coverage(mask, 0.7)
    shadow = drawing.soft(np.roll(loop, (3, 3), (0, 1)), 2.0)
    tone = 0.9 + 0.08 * window(texture("fuzz", 0.8, 0.8), rng)

    def edit(surface: Surface) -> None:
        surface.dim(1 - 0.45 * shadow)
        surface.blend((0.56, 0.555, 0.52), loop * np.clip(tone, 0, 1) * grow(severity, 0.5, 1.0))
        surface.height += loop * (5.0 + 3.0 * drawing.soft(loop, 1.0) - 0.8 * surface.height)

    return weave.damaged(edit)


def _choose(weave: Weave, rng: np.random.Generator) -> tuple[Yarns, Callable[[Yarns], Weave]]:
    """A copy of one of the two systems, and the way to put it back."""
    if rng.random() < 0.5:
        return weave.warp.copy(), lambda yarns: replace(weave, warp=yarns)
    return weave.weft.copy(), lambda yarns: replace(weave, weft=yarns)


def _yarn(rng: np.random.Generator) -> int:
    return int(rng.integers(6, 32))


def _stretch(rng: np.random.Generator, length: float) -> Float32:
    """A soft-ended piece along a yarn, [SIDE] in 0..1."""
    middle = rng.uniform(0.25, 0.75) * SIDE
    distance = np.abs(np.arange(SIDE) - middle) - length / 2
    return np.asarray(np.clip(0.5 - distance / PITCH, 0, 1), np.float32)


def _spot(rng: np.random.Generator) -> drawing.Point:
    return float(rng.uniform(70, SIDE - 70)), float(rng.uniform(70, SIDE - 70))


def _wet(rng: np.random.Generator, radius: float) -> Float32:
    """A patch whose edge creeps along the yarns."""
    patch = drawing.coverage(drawing.blob(rng, _spot(rng), radius), 2.5)
    creep = 0.5 + 0.10 * window(texture("creep", 3.0, 3.0), rng)
    return np.asarray(np.clip((patch - creep) * 4 + 0.5, 0, 1) * (patch > 0.02), np.float32)


_DEFECTS: dict[str, Callable[[Weave, np.random.Generator, float], Weave]] = {
    "missing_yarn": missing_yarn,
    "thick_yarn": thick_yarn,
    "float_yarn": float_yarn,
    "colour_bar": colour_bar,
    "hole": hole,
    "stain": stain,
    "oil_spot": oil_spot,
    "snag": snag,
}
FABRIC = Product(draw, build, _DEFECTS)

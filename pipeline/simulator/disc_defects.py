"""What goes wrong with a disc between the lathe and the belt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from engines.contracts import Float32
from pipeline.simulator import drawing
from pipeline.simulator.disc import (
    BORE,
    CENTRE,
    HOLES,
    MARK,
    RIM,
    Disc,
    build,
    draw,
    radius_map,
    spot,
)
from pipeline.simulator.product import Product
from pipeline.simulator.surface import SIDE, Surface, grow, texture, window


def scratch(disc: Disc, rng: np.random.Generator, severity: float) -> Disc:
    """A hard edge was dragged over the face: a bright groove with a dark side."""
    start = spot(rng, BORE + 20, RIM - 30)
    length = grow(severity, 36, 150)
    path = drawing.wandering(rng, start, rng.uniform(0, 360), length, 3.0)
    mask = drawing.blank()
    drawing.stroke(mask, path, grow(severity, 1.5, 3.2))
    line = drawing.coverage(mask, 0.5) * _on_face()

    def edit(surface: Surface) -> None:
        surface.height -= grow(severity, 1.4, 4.0) * line
        surface.colour += (grow(severity, 0.12, 0.42) * line)[..., None]

    return disc.damaged(edit)


def dent(disc: Disc, rng: np.random.Generator, severity: float) -> Disc:
    """Something fell on it: a shallow pit whose walls catch the lamp."""
    x, y = spot(rng, BORE + 22, RIM - 26)
    radius = grow(severity, 8, 19)
    bowl = _bump(x, y, radius, rng.uniform(0.75, 1.0), rng.uniform(0, np.pi))

    def edit(surface: Surface) -> None:
        surface.height -= radius * grow(severity, 0.24, 0.55) * bowl
        surface.dim(1 - grow(severity, 0.12, 0.35) * bowl)

    return disc.damaged(edit)


def missing_hole(disc: Disc, rng: np.random.Generator, severity: float) -> Disc:
    """A drill was worn or skipped: the hole is undersized, at the worst not there at all."""
    which = int(rng.integers(len(HOLES)))
    x, y, radius = HOLES[which]
    left = radius * grow(severity, 0.86, 0.0) if severity < 0.9 else 0.0
    holes = tuple((x, y, left) if i == which else hole for i, hole in enumerate(HOLES))
    flat = drawing.blank()
    drawing.dot(flat, (x, y), radius + 7)
    plug = drawing.coverage(flat, 1.0) * grow(severity, 0.2, 1.0)

    def edit(surface: Surface) -> None:
        level = np.float32(7 * 0.9 + 4.0)
        depth = drawing.blank()
        if left > 0:
            drawing.dot(depth, (x, y), left)
        wanted = level - 5.0 * drawing.soft(drawing.coverage(depth), 1.6)
        surface.height += plug * (wanted - surface.height)

    return replace(disc, holes=holes).damaged(edit)


def burr(disc: Disc, rng: np.random.Generator, severity: float) -> Disc:
    """Drilling left a ragged bright lip standing round part of a hole."""
    x, y, radius = HOLES[int(rng.integers(len(HOLES)))]
    span = np.deg2rad(grow(severity, 70, 250))
    angle = rng.uniform(0, 2 * np.pi) + np.linspace(0, span, 40)
    ragged = rng.normal(0, grow(severity, 0.6, 1.8), 40)
    reach = radius + grow(severity, 1.0, 2.5) + ragged
    lip = drawing.blank()
    path = np.stack([x + reach * np.cos(angle), y + reach * np.sin(angle)], 1).astype(np.float32)
    drawing.stroke(lip, path, grow(severity, 3.0, 7.0))
    ridge = drawing.coverage(lip, 0.6)

    def edit(surface: Surface) -> None:
        surface.height += grow(severity, 1.6, 5.0) * ridge
        surface.blend((0.80, 0.81, 0.82), ridge * grow(severity, 0.55, 0.95))
        surface.gloss += 0.25 * severity * ridge

    return disc.damaged(edit)


def stain(disc: Disc, rng: np.random.Generator, severity: float) -> Disc:
    """Coolant dried on the face: a brownish film, darker at its tide line."""
    x, y = spot(rng, BORE + 25, RIM - 30)
    film = drawing.coverage(drawing.blob(rng, (x, y), grow(severity, 9, 36)), 1.2) * _on_face()
    tide = np.clip(film - drawing.soft(film, 3.5), 0, 1) * 2
    mottle = 1 + 0.25 * window(texture("film", 4.0, 4.0), rng)
    amount = np.clip((film * mottle + tide) * grow(severity, 0.10, 0.45), 0, 0.8)

    def edit(surface: Surface) -> None:
        for channel, absorbed in enumerate((0.55, 0.75, 1.0)):
            surface.colour[..., channel] *= 1 - absorbed * amount

    return disc.damaged(edit)


def crack(disc: Disc, rng: np.random.Generator, severity: float) -> Disc:
    """A fatigue crack runs outwards from a hole: thin, dark, jagged."""
    x, y, radius = HOLES[int(rng.integers(len(HOLES)))]
    heading = rng.uniform(0, 360)
    at = np.deg2rad(heading)
    start = (x + radius * np.cos(at), y + radius * np.sin(at))
    path = drawing.wandering(rng, start, heading, grow(severity, 26, 80), 17.0)
    mask = drawing.blank()
    drawing.stroke(mask, path, grow(severity, 1.5, 3.0))
    line = drawing.coverage(mask, 0.4) * _on_face()

    def edit(surface: Surface) -> None:
        surface.blend((0.03, 0.03, 0.03), line * grow(severity, 0.75, 1.0))
        surface.height -= grow(severity, 0.8, 2.5) * line

    return disc.damaged(edit)


def wrong_mark(disc: Disc, rng: np.random.Generator, severity: float) -> Disc:
    """The engraver was set wrongly: false letters, struck twice out of register."""
    letters = list(MARK)
    places = [i for i, letter in enumerate(letters) if letter != " "]
    for i in rng.choice(places, 1 + int(severity * 3), replace=False):
        letters[i] = str(rng.choice([c for c in "BCEHKMSTZ23589" if c != letters[i]]))
    twice = grow(severity, 2.0, 9.0)
    return replace(disc, mark="".join(letters), struck_twice=(float(rng.normal(0, 2)), twice))


def chipped_rim(disc: Disc, rng: np.random.Generator, severity: float) -> Disc:
    """A piece broke out of the outer edge."""
    angle = rng.uniform(0, 2 * np.pi)
    size = grow(severity, 3.5, 20)
    reach = RIM - 0.1 * size
    centre = (CENTRE[0] + reach * np.cos(angle), CENTRE[1] + reach * np.sin(angle))
    gone = drawing.coverage(drawing.blob(rng, centre, size, 0.45), 0.7) * _on_face()

    def edit(surface: Surface) -> None:
        surface.blend((0.10, 0.10, 0.105), gone * grow(severity, 0.7, 0.95))
        surface.height -= 4.0 * gone
        surface.gloss *= 1 - gone

    return disc.damaged(edit)


def _bump(x: float, y: float, radius: float, squash: float, angle: float) -> Float32:
    yy, xx = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    along = (xx - x) * np.cos(angle) + (yy - y) * np.sin(angle)
    beside = ((yy - y) * np.cos(angle) - (xx - x) * np.sin(angle)) / squash
    distance = (along**2 + beside**2) / radius**2
    return np.asarray(np.where(distance < 1, (1 - distance) ** 2, 0), np.float32)


def _on_face() -> Float32:
    """1 on the metal between bore and rim, 0 on the belt."""
    radius = radius_map()
    return np.asarray((radius > BORE) & (radius < RIM), np.float32)


_DEFECTS: dict[str, Callable[[Disc, np.random.Generator, float], Disc]] = {
    "scratch": scratch,
    "dent": dent,
    "missing_hole": missing_hole,
    "burr": burr,
    "stain": stain,
    "crack": crack,
    "wrong_mark": wrong_mark,
    "chipped_rim": chipped_rim,
}
DISC = Product(draw, build, _DEFECTS)

"""What goes wrong with a board between stencil and oven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from engines.contracts import Float32
from pipeline.simulator import drawing
from pipeline.simulator.board import Board, build, draw
from pipeline.simulator.board_layout import EDGE, SITES, TRACES, bare_board, silkscreen
from pipeline.simulator.components import TIN
from pipeline.simulator.product import Product
from pipeline.simulator.surface import Surface, grow, texture, window

_BY_SIZE = sorted(range(len(SITES)), key=lambda i: SITES[i].length * SITES[i].width)
_CHIPS = tuple(i for i in range(len(SITES)) if SITES[i].kind in "RCN")


def missing(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """The placer lost a component: bare pads remain. Worse means a larger one."""
    rank = int(np.clip(severity * len(_BY_SIZE) + rng.integers(-3, 4), 0, len(_BY_SIZE) - 2))
    which = _BY_SIZE[rank]
    return board.moved(which, replace(board.placed[which], strength=0.0))


def shifted(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """A component floated off its pads before the solder froze."""
    which = int(rng.choice(_CHIPS))
    placed = board.placed[which]
    heading = rng.uniform(0, 2 * np.pi)
    far = grow(severity, 2.2, 9.0)
    return board.moved(
        which,
        replace(
            placed,
            dx=placed.dx + far * np.cos(heading),
            dy=placed.dy + far * np.sin(heading),
            turn_deg=placed.turn_deg + rng.choice([-1, 1]) * grow(severity, 4, 34),
        ),
    )


def tombstone(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """One end wetted first and pulled the chip upright: it looks short, on one pad only."""
    which = int(rng.choice(_CHIPS))
    placed = board.placed[which]
    squash = grow(severity, 0.62, 0.30)
    along = drawing.turned(np.array([[1.0, 0.0]], np.float32), placed.site.angle_deg)[0]
    move = rng.choice([-1, 1]) * placed.site.length * (1 - squash) * 0.5
    moved = replace(
        placed,
        squash=squash,
        dx=placed.dx + move * float(along[0]),
        dy=placed.dy + move * float(along[1]),
        turn_deg=placed.turn_deg + rng.choice([-1, 1]) * grow(severity, 5, 24),
    )
    return board.moved(which, moved)


def bridge(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """Solder joins neighbouring legs of the IC."""
    chip = SITES[0]
    pitch = chip.length / 8.35
    first = rng.integers(0, 7 - int(2.2 * severity))
    x0 = chip.x + (first - 3.5) * pitch
    x1 = x0 + pitch * (1 + int(2.2 * severity))
    y = chip.y + rng.choice([-1, 1]) * (chip.width / 2 + rng.uniform(-2, 3))
    mask = drawing.blank()
    sag = grow(severity, 5.0, 11.0)
    drawing.stroke(mask, np.array([(x0, y), ((x0 + x1) / 2, y + 0.5), (x1, y)], np.float32), sag)
    drawing.dot(mask, (float(x0 + x1) / 2, float(y)), 0.6 * sag)
    solder = drawing.coverage(mask, 0.7)
    dome = drawing.soft(solder, 1.2)

    def edit(surface: Surface) -> None:
        surface.blend(TIN, 0.95 * solder)
        surface.height += solder * (7.0 + 3.0 * dome - surface.height)
        surface.gloss += solder * (0.55 - surface.gloss)

    return board.damaged(edit)


def broken_trace(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """A trace burnt open: a gap in the light line, scorched mask around it."""
    trace = TRACES[int(rng.integers(len(TRACES)))]
    longest = max(range(len(trace) - 1), key=lambda i: float(np.hypot(*_leg(trace, i))))
    start, leg = np.array(trace[longest]), np.array(_leg(trace, longest))
    reach = float(np.hypot(*leg))
    middle = start + leg * rng.uniform(0.35, 0.65)
    gap = leg / reach * min(grow(severity, 8.0, 30.0), 0.8 * reach) / 2
    mask = drawing.blank()
    ends = np.array([middle - gap, middle + gap], np.float32)
    drawing.stroke(mask, ends, 7.5)
    eaten = drawing.coverage(mask, 0.5)
    place = (float(middle[0]), float(middle[1]))
    scorch = drawing.coverage(drawing.blob(rng, place, grow(severity, 7.0, 18.0)), 2.0)
    scorch = scorch * _on_board() * grow(severity, 0.6, 0.95)

    def edit(surface: Surface) -> None:
        surface.blend((0.016, 0.15, 0.072), eaten * grow(severity, 0.75, 1.0))
        surface.blend((0.060, 0.042, 0.022), scorch * _bare(surface))
        surface.height -= 0.9 * eaten

    return board.damaged(edit)


def scratch(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """Handling scraped the mask: a pale line, copper showing where it went deep."""
    start = _spot(rng)
    path = drawing.wandering(rng, start, rng.uniform(0, 360), grow(severity, 40, 160), 2.5)
    mask = drawing.blank()
    drawing.stroke(mask, path, grow(severity, 1.5, 3.2))
    line = drawing.coverage(mask, 0.4) * _on_board()
    deep = line * (window(texture("deep", 6.0, 6.0), rng) > 0.8 - 0.8 * severity)

    def edit(surface: Surface) -> None:
        surface.blend((0.40, 0.52, 0.42), line * grow(severity, 0.45, 0.85))
        surface.blend((0.78, 0.50, 0.30), deep * severity)
        surface.height -= grow(severity, 0.5, 1.6) * line

    return board.damaged(edit)


def wrong_part(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """A wrong reel: a browner capacitor, or a tantalum or film part, too large for its pads."""
    which = int(rng.choice(_CHIPS))
    placed = board.placed[which]
    kind = "D" if severity < 0.3 else str(rng.choice(["T", "F"]))
    large = grow(severity, 1.05, 1.4)
    length, width = placed.site.length * large, placed.site.width * large
    site = replace(placed.site, kind=kind, length=length, width=width)
    return board.moved(which, replace(placed, site=site))


def missing_print(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """The screen was clogged: print is faint or gone in a patch."""
    x, y = ((128.0, 452.0), (214.0, 186.0), (392.0, 112.0), (370.0, 332.0))[int(rng.integers(4))]
    x += rng.normal(0, 12)
    patch = drawing.coverage(drawing.blob(rng, (x, y), grow(severity, 26, 60)), 2.0)
    gone = patch * silkscreen() * grow(severity, 0.7, 1.0)

    def edit(surface: Surface) -> None:
        surface.blend((0.022, 0.18, 0.088), np.clip(gone * 1.1, 0, 1) * _bare(surface))

    return board.damaged(edit)


def contamination(board: Board, rng: np.random.Generator, severity: float) -> Board:
    """Burnt flux or a fibre was left behind."""
    x, y = _spot(rng)
    if rng.random() < 0.35:
        path = drawing.wandering(rng, (x, y), rng.uniform(0, 360), grow(severity, 45, 140), 14.0)
        mask = drawing.blank()
        drawing.stroke(mask, path, grow(severity, 1.4, 2.6))
        hair = drawing.coverage(mask, 0.4) * _on_board()
        tone = (0.62, 0.60, 0.55)
        return board.damaged(lambda s: s.blend(tone, hair * grow(severity, 0.55, 0.95)))
    film = (
        drawing.coverage(drawing.blob(rng, (x, y), grow(severity, 11, 32), 0.5), 1.5) * _on_board()
    )
    mottle = np.clip(0.8 + 0.3 * window(texture("film", 4.0, 4.0), rng), 0, 1.3)

    def edit(surface: Surface) -> None:
        surface.blend((0.34, 0.22, 0.08), np.clip(film * mottle * grow(severity, 0.38, 0.85), 0, 1))
        surface.gloss += 0.10 * film * severity

    return board.damaged(edit)


def _leg(trace: tuple[tuple[float, float], ...], i: int) -> tuple[float, float]:
    return trace[i + 1][0] - trace[i][0], trace[i + 1][1] - trace[i][1]


def _spot(rng: np.random.Generator) -> drawing.Point:
    left, top, right, bottom = EDGE
    return float(rng.uniform(left + 30, right - 30)), float(rng.uniform(top + 30, bottom - 30))


def _on_board() -> Float32:
    mask = drawing.blank()
    left, top, right, bottom = EDGE
    mask[top:bottom, left:right] = 255
    return drawing.coverage(mask)


def _bare(surface: Surface) -> Float32:
    """1 where no component covers the board."""
    return np.asarray(np.abs(surface.height - bare_board().height) < 0.5, np.float32)


_DEFECTS: dict[str, Callable[[Board, np.random.Generator, float], Board]] = {
    "missing": missing,
    "shifted": shifted,
    "tombstone": tombstone,
    "bridge": bridge,
    "broken_trace": broken_trace,
    "scratch": scratch,
    "wrong_part": wrong_part,
    "missing_print": missing_print,
    "contamination": contamination,
}
BOARD = Product(draw, build, _DEFECTS)

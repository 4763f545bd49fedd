"""A populated circuit board lying on a rubber belt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from engines.contracts import AnyArray, Float32
from pipeline.simulator import drawing
from pipeline.simulator.board_layout import SITES, Site, bare_board
from pipeline.simulator.components import Sprite, sprite
from pipeline.simulator.surface import SIDE, Surface, texture, window

_SHADOW = np.array([[1, 0, 3], [0, 1, 3.5]], np.float32)  # falls to the lower right


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """One component as the machine set it down."""

    site: Site
    dx: float  # canvas pixels off its place
    dy: float
    turn_deg: float
    tone: tuple[float, float, float]  # batch colour, per channel
    squash: float = 1.0  # seen length over true length; a tombstone stands up
    strength: float = 1.0  # 0 = not there


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """One board: its placements, its solder-mask tone, and what was done to it."""

    placed: tuple[Placed, ...]
    mask_tone: tuple[float, float, float]
    haze: Float32  # [SIDE, SIDE] uneven mask thickness
    edits: tuple[Callable[[Surface], None], ...] = ()  # on the finished board

    def damaged(self, edit: Callable[[Surface], None]) -> Board:
        """This very board with one more thing done to it."""
        return replace(self, edits=(*self.edits, edit))

    def moved(self, which: int, placed: Placed) -> Board:
        """This very board with one component placed otherwise."""
        return replace(self, placed=(*self.placed[:which], placed, *self.placed[which + 1 :]))


def draw(rng: np.random.Generator) -> Board:
    """A good board: placement within a third of a pixel in the frame, reels of different tone."""
    tones = {kind: _tone(rng, 0.018, 0.035) for kind in "RCNQUXE"}
    play = np.clip(rng.standard_normal((len(SITES), 4)), -2, 2)
    placed = tuple(
        Placed(site, 0.35 * p[0], 0.35 * p[1], 0.5 * p[2], triple(tones[site.kind] + 0.02 * p[3]))
        for site, p in zip(SITES, play, strict=True)
    )
    mask_tone = triple(_tone(rng, 0.012, 0.02))
    return Board(placed, mask_tone, window(texture("haze", 24.0, 24.0), rng))


def _tone(rng: np.random.Generator, hue: float, light: float) -> AnyArray:
    """Channel gains of a batch; what strays over two spreads never left its maker."""
    strays = np.clip(rng.standard_normal(4), -2, 2)
    return np.asarray(1 + hue * strays[:3] + light * strays[3])


def build(board: Board) -> Surface:
    """The bare board in its tone, every component on top, then whatever was done to this board."""
    surface = bare_board().copy()
    surface.colour *= np.array(board.mask_tone, np.float32)
    surface.dim(1 + 0.012 * board.haze)
    for placed in board.placed:
        if placed.strength > 0:
            _set_down(surface, placed)
    for edit in board.edits:
        edit(surface)
    return surface


def _set_down(surface: Surface, placed: Placed) -> None:
    """Composite one component's sprite, and its soft contact shadow, at sub-pixel position."""
    site = placed.site
    piece = sprite(site.kind, site.length, site.width, site.label)
    reach = round(0.5 * float(np.hypot(*piece.alpha.shape))) + 6
    x0, y0 = round(site.x) - reach, round(site.y) - reach
    patch = np.s_[max(0, y0) : min(SIDE, y0 + 2 * reach), max(0, x0) : min(SIDE, x0 + 2 * reach)]
    origin = (patch[1].start, patch[0].start)
    size = (patch[1].stop - origin[0], patch[0].stop - origin[1])
    colour, relief = _warped(piece, placed, origin, size)
    alpha = relief[..., 2:] * placed.strength
    shadow = cv2.warpAffine(relief[..., 2], _SHADOW, size)
    under = surface.colour[patch]
    under *= 1 - 0.5 * placed.strength * cv2.GaussianBlur(shadow, (0, 0), 1.8)[..., None]
    under += alpha * (colour * np.array(placed.tone, np.float32) - under)
    for layer, channel in ((surface.height, 0), (surface.gloss, 1)):
        here = layer[patch]
        rest = 6.0 if channel == 0 else 0.0
        here += alpha[..., 0] * (relief[..., channel] + rest - here)


def _warped(
    piece: Sprite, placed: Placed, origin: tuple[int, int], size: tuple[int, int]
) -> tuple[Float32, Float32]:
    h, w = piece.alpha.shape
    angle = placed.site.angle_deg + placed.turn_deg
    squeeze = np.array([[placed.squash, 0], [0, 1.0]])
    linear = drawing.turned(np.eye(2, dtype=np.float32), angle).T @ squeeze
    goal = (placed.site.x + placed.dx - origin[0], placed.site.y + placed.dy - origin[1])
    shift = np.array(goal) - linear @ np.array([(w - 1) / 2, (h - 1) / 2])
    matrix = np.hstack([linear, shift[:, None]])
    relief = np.dstack([piece.height, piece.gloss, piece.alpha])
    return (
        np.asarray(cv2.warpAffine(piece.colour, matrix, size), np.float32),
        np.asarray(cv2.warpAffine(relief, matrix, size), np.float32),
    )


def triple(values: AnyArray) -> tuple[float, float, float]:
    """Three numbers as a colour."""
    r, g, b = (float(v) for v in values)
    return r, g, b

"""Electronic components as small pieces of matter, each size and print painted once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from engines.contracts import Float32, UInt8
from pipeline.simulator import drawing
from pipeline.simulator.surface import texture

TIN = (0.60, 0.61, 0.62)
_EPOXY = (0.060, 0.062, 0.068)
_CERAMIC = {
    "C": (0.52, 0.40, 0.27),
    "N": (0.40, 0.33, 0.27),
    "D": (0.36, 0.20, 0.11),  # never on this board: a browner ceramic,
    "T": (0.80, 0.52, 0.07),  # a tantalum capacitor,
    "F": (0.12, 0.26, 0.50),  # a film capacitor
}


@dataclass(frozen=True, slots=True, eq=False)
class Sprite:
    """A component seen from above; arrays [h, w, 3] and [h, w], the body centred."""

    colour: Float32
    height: Float32
    gloss: Float32
    alpha: Float32


@lru_cache(maxsize=64)
def sprite(kind: str, length: float, width: float, label: str) -> Sprite:
    """Paint a component lying along x.

    ``kind`` is R (resistor), a key of the ceramics, Q (transistor), U (IC), X (crystal) or
    E (electrolytic can).
    """
    paint = {
        "R": _chip,
        **dict.fromkeys(_CERAMIC, _chip),
        "Q": _leaded,
        "U": _leaded,
        "X": _can,
        "E": _drum,
    }
    return paint[kind](kind, length, width, label)


class _Bench:
    """A small canvas on which one component is painted, layer upon layer."""

    def __init__(self, length: float, width: float) -> None:
        self.shape = (round(width) + 17, round(length) + 17)
        self.centre = ((self.shape[1] - 1) / 2, (self.shape[0] - 1) / 2)
        self.colour = np.zeros((*self.shape, 3), np.float32)
        self.height, self.gloss, self.alpha = np.zeros((3, *self.shape), np.float32)

    def box(
        self, dx: float, dy: float, half_x: float, half_y: float, soften: float = 0.4
    ) -> Float32:
        mask = np.zeros(self.shape, np.uint8)
        place = (self.centre[0] + dx, self.centre[1] + dy)
        drawing.box(mask, place, (half_x - 0.5, half_y - 0.5))
        return drawing.coverage(mask, soften)

    def lay(
        self, area: Float32, colour: tuple[float, ...], height: Float32 | float, gloss: float
    ) -> None:
        self.colour += area[..., None] * (np.array(colour, np.float32) - self.colour)
        self.height += area * (height - self.height)
        self.gloss += area * (gloss - self.gloss)
        self.alpha = np.maximum(self.alpha, area)

    def print(self, text: str, size: int, tone: float, dy: float = 0.0, angle: float = 0.0) -> None:
        patch = drawing.letters(text, size, max(1.0, size / 9))
        h, w = patch.shape
        matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), angle, 1.0)
        matrix[:, 2] += (self.centre[0] - (w - 1) / 2, self.centre[1] + dy - (h - 1) / 2)
        ink = cv2.warpAffine(patch, matrix, self.shape[::-1], flags=cv2.INTER_LINEAR) / 255.0
        self.colour += (ink * 0.9)[..., None].astype(np.float32) * (tone - self.colour)

    def sprite(self, rough: float = 0.006) -> Sprite:
        h, w = self.shape
        grain = texture("grain", 0.7, 0.7)[:h, :w]
        colour = np.clip(self.colour + rough * grain[..., None], 0, 1).astype(np.float32)
        return Sprite(colour, self.height + 0.04 * grain * self.alpha, self.gloss, self.alpha)


def _chip(kind: str, length: float, width: float, label: str) -> Sprite:
    """Thick-film resistor or multilayer capacitor: a block between two tinned ends with fillets."""
    bench = _Bench(length, width)
    half_l, half_w = length / 2, width / 2
    cap = 0.15 * length
    for side in (-1, 1):
        fillet = bench.box(side * (half_l + 1.0), 0, 4.0, half_w + 0.8, 1.2)
        bench.lay(fillet, TIN, 2.0 * fillet, 0.55)
    body = bench.box(0, 0, half_l, half_w, 0.7)
    tall = 4.5 if kind == "R" else 7.0
    bench.lay(body, (0.75, 0.75, 0.72) if kind == "R" else _CERAMIC[kind], tall * body, 0.05)
    if kind == "R":
        bench.lay(
            bench.box(0, 0, half_l - cap * 0.9, half_w - 0.7), (0.045, 0.045, 0.05), tall, 0.10
        )
        bench.print(label, max(6, round(width * 0.52)), 0.80)
    for side in (-1, 1):
        end = bench.box(side * (half_l - cap / 2), 0, cap / 2, half_w)
        bench.lay(end, TIN, tall * 1.03 * body, 0.50)
    return bench.sprite()


def _leaded(kind: str, length: float, width: float, label: str) -> Sprite:
    """Moulded body with gull-wing legs on both long sides, bevelled edges, dimple, print."""
    bench = _Bench(length, width)
    half_l, body_w = length / 2, width / 2 - 9.0
    for side, count in ((-1, 8), (1, 8)) if kind == "U" else ((-1, 2), (1, 1)):
        for dx in (np.arange(count) - (count - 1) / 2) * (length / (count + 0.35)):
            foot = bench.box(dx, side * (body_w + 7.0), 2.6, 3.2, 0.8)
            bench.lay(foot, TIN, 1.6 * foot, 0.6)
            knee = bench.box(dx, side * (body_w + 2.2), 2.1, 3.4, 0.7)
            bench.lay(knee, TIN, 5.0 * knee, 0.45)
    body = bench.box(0, 0, half_l, body_w, 0.6)
    bevel = bench.box(0, 0, half_l - 2.5, body_w - 2.5, 1.8)
    bench.lay(body, _EPOXY, 5.0 + 5.0 * bevel, 0.07)
    if kind == "U":
        dimple = np.zeros(bench.shape, np.uint8)
        drawing.dot(dimple, (bench.centre[0] - half_l + 9, bench.centre[1] + body_w - 9), 3.6)
        bench.height -= 2.0 * drawing.coverage(dimple, 0.7)
        first, _, second = label.partition(" ")
        bench.print(first, 11, 0.52, -8)
        bench.print(second, 9, 0.46, 8)
    else:
        bench.print(label, 8, 0.55)
    return bench.sprite(0.010)


def _can(kind: str, length: float, width: float, label: str) -> Sprite:
    """Crystal in a drawn metal can: rounded ends, a flange, stamped frequency."""
    del kind
    bench = _Bench(length, width)
    for grow, tall, tone in ((0.0, 2.0, 0.48), (-2.6, 8.0, 0.62)):
        area = _stadium(bench, length / 2 + grow, width / 2 + grow)
        dome = drawing.coverage(area, 1.6)
        bench.lay(drawing.coverage(area, 0.4), (tone, tone, tone * 1.01), tall * dome, 0.30)
    brushed = texture("brushed", 9.0, 0.8)[: bench.shape[0], : bench.shape[1]]
    bench.colour *= 1 + 0.05 * brushed[..., None]
    bench.print(label, 10, 0.25)
    return bench.sprite()


def _drum(kind: str, length: float, width: float, label: str) -> Sprite:
    """Aluminium electrolytic capacitor: square plastic foot, round can, black polarity segment."""
    del kind
    bench = _Bench(length, width)
    bench.lay(bench.box(0, 0, length / 2, width / 2, 0.6), (0.05, 0.05, 0.055), 2.5, 0.06)
    can = np.zeros(bench.shape, np.uint8)
    drawing.dot(can, bench.centre, min(length, width) / 2 - 1.5)
    lid = np.zeros(bench.shape, np.uint8)
    drawing.dot(lid, bench.centre, min(length, width) / 2 - 5.0)
    area = drawing.coverage(can, 0.5)
    bench.lay(area, (0.66, 0.66, 0.67), 4.0 * area + 7.0 * drawing.coverage(lid, 1.5), 0.18)
    x = np.arange(bench.shape[1], dtype=np.float32)[None] - bench.centre[0]
    segment = drawing.coverage(lid, 0.4) * np.clip(-x - length * 0.16, 0, 1)
    bench.colour *= 1 - 0.88 * segment[..., None]
    bench.print(label, 9, 0.12, -5, 0)
    bench.print("16V", 9, 0.12, 7, 0)
    return bench.sprite()


def _stadium(bench: _Bench, half_l: float, half_w: float) -> UInt8:
    mask = np.zeros(bench.shape, np.uint8)
    drawing.box(mask, bench.centre, (half_l - half_w, half_w - 0.5))
    for side in (-1, 1):
        drawing.dot(mask, (bench.centre[0] + side * (half_l - half_w), bench.centre[1]), half_w)
    return mask

"""The bare board: where everything sits, and its copper, solder mask, pads, vias and silkscreen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from engines.contracts import Float32, UInt8
from pipeline.simulator import drawing
from pipeline.simulator.components import TIN
from pipeline.simulator.surface import SIDE, Surface, texture

EDGE = (26, 44, 486, 468)  # left, top, right, bottom on the canvas


@dataclass(frozen=True, slots=True)
class Site:
    """One place of the bill of materials."""

    name: str
    kind: str
    x: float
    y: float
    angle_deg: float
    length: float
    width: float
    label: str


def _row(
    names: str, kind: str, first: tuple[float, float], step: tuple[float, float], labels: str
) -> list[Site]:
    """Chips of one kind side by side, each lying across the row."""
    size = {"R": (31.0, 16.0), "C": (28.0, 16.0), "N": (23.0, 13.0)}[kind]
    (x, y), turn = first, 90.0 if step[0] else 0.0
    return [
        Site(name, kind, x + i * step[0], y + i * step[1], turn, *size, label)
        for i, (name, label) in enumerate(zip(names.split(), labels.split(), strict=True))
    ]


SITES: tuple[Site, ...] = (
    Site("U1", "U", 214, 236, 0, 128, 76, "LM3914 K27V"),
    Site("X1", "X", 392, 132, 0, 72, 30, "16.000"),
    Site("C1", "E", 412, 374, 0, 64, 64, "100"),
    Site("C2", "E", 330, 374, 0, 64, 64, "100"),
    Site("Q1", "Q", 382, 250, 90, 34, 40, "1AM"),
    Site("Q2", "Q", 440, 250, 90, 34, 40, "1AM"),
    *_row("R1 R2 R3 R4", "R", (84, 168), (0, 36), "103 472 103 221"),
    *_row("R5 R6 R7 R8", "R", (150, 122), (44, 0), "100 331 102 102"),
    *_row("C3 C4 C5", "C", (92, 342), (0, 36), "- - -"),
    *_row("C6 C7 C8", "N", (172, 342), (42, 0), "- - -"),
    *_row("R9", "R", (182, 404), (0, 36), "473"),
    *_row("C9 C10", "N", (318, 196), (40, 0), "- -"),
)
VIAS = tuple(
    (float(x), float(y))
    for x, y in (
        (128, 212), (128, 262), (300, 140), (310, 300), (280, 318), (150, 310), (250, 160),
        (346, 290), (440, 184), (340, 236), (118, 392), (236, 386), (272, 424), (468, 282),
        (60, 318), (228, 440),
    )
)  # fmt: skip
TRACES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((102, 168), (120, 168), (132, 180), (154, 196)),
    ((102, 204), (128, 204), (128, 212)),
    ((102, 240), (116, 240), (128, 252), (128, 262)),
    ((66, 168), (52, 182), (52, 300), (60, 318), (60, 342), (76, 342)),
    ((102, 276), (140, 316), (172, 316), (172, 330)),
    ((150, 108), (150, 84), (170, 72), (330, 72), (356, 98), (356, 118)),
    ((194, 108), (194, 92), (206, 84), (318, 84), (340, 106), (340, 132), (356, 132)),
    ((238, 138), (238, 148), (250, 160), (250, 196)),
    ((282, 138), (282, 150), (268, 164), (268, 196)),
    ((300, 140), (300, 190), (310, 190)),
    ((108, 342), (130, 342), (150, 322), (150, 310), (168, 292), (168, 276)),
    ((108, 378), (118, 392), (118, 424), (140, 440), (228, 440)),
    ((214, 330), (214, 300), (200, 286), (200, 276)),
    (
        (256, 330),
        (256, 318),
        (280, 318),
        (310, 300),
        (346, 300),
        (346, 290),
        (340, 236),
        (366, 236),
    ),
    ((194, 410), (222, 410), (236, 396), (236, 386), (256, 366), (256, 354)),
    ((272, 424), (300, 424), (318, 406), (318, 400)),
    ((428, 132), (452, 132), (464, 144), (464, 210), (458, 220)),
    ((440, 184), (414, 184), (402, 196), (402, 220)),
    ((468, 282), (468, 268), (452, 264)),
    ((386, 254), (386, 310), (400, 324), (412, 340)),
    ((232, 196), (232, 176), (216, 160), (216, 96)),
    ((108, 204), (140, 226), (149, 226)),
    ((166, 404), (150, 404), (130, 392), (118, 392)),
    ((158, 356), (158, 372), (170, 386), (228, 386), (236, 386)),
    ((300, 356), (284, 340), (284, 330), (250, 300), (244, 276)),
    ((280, 318), (268, 306), (258, 290), (258, 276)),
    ((272, 276), (286, 290), (310, 290), (340, 260), (340, 236)),
    ((66, 204), (58, 212), (58, 300), (60, 318)),
    ((238, 108), (238, 98), (246, 92), (312, 92), (334, 114), (334, 150), (318, 166), (318, 184)),
    ((282, 108), (282, 102), (306, 102), (326, 120), (326, 140), (300, 140)),
    ((358, 208), (358, 222), (350, 230), (340, 236)),
    ((366, 268), (366, 300), (346, 290)),
    ((186, 196), (186, 176), (150, 150), (150, 138)),
    ((76, 378), (64, 366), (64, 330), (60, 318)),
)


@lru_cache(maxsize=1)
def bare_board() -> Surface:
    """Belt, laminate with its glass weave, copper under the mask, tinned pads, vias, silkscreen."""
    surface = _belt()
    outline = drawing.blank()
    left, top, right, bottom = EDGE
    drawing.box(
        outline, ((left + right) / 2, (top + bottom) / 2), ((right - left) / 2, (bottom - top) / 2)
    )
    shadow = drawing.soft(np.roll(drawing.coverage(outline), (7, 6), (0, 1)), 6.0)
    surface.dim(1 - 0.6 * shadow)
    board = drawing.coverage(outline, 0.5)
    weave = texture("glass", 9.0, 0.9)[:SIDE, :SIDE] + texture("glass", 9.0, 0.9).T[:SIDE, :SIDE]
    surface.blend((0.022, 0.215, 0.105), board)
    surface.height += board * (6.0 + 0.018 * weave)
    surface.gloss += board * 0.055
    surface.dim(1 + board * 0.022 * weave)
    _copper(surface)
    _plating(surface)
    surface.blend((0.78, 0.80, 0.77), 0.92 * silkscreen())
    surface.height += 0.3 * silkscreen()
    surface.gloss *= 1 - 0.5 * silkscreen()
    return surface


def _belt() -> Surface:
    rubber = 0.075 + 0.010 * texture("belt", 1.6, 1.6)[:SIDE, :SIDE]
    height = 0.25 * texture("belt", 1.6, 1.6)[:SIDE, :SIDE]
    return Surface(
        np.dstack([rubber, rubber, rubber * 1.03]), height, np.zeros((SIDE, SIDE), np.float32)
    )


def _copper(surface: Surface) -> None:
    """Traces, and a poured plane at the lower right, glow through the mask and stand out."""
    mask = drawing.blank()
    for trace in TRACES:
        drawing.stroke(mask, np.array(trace, np.float32), 5.4)
    pour = np.array(
        [(286, 322), (478, 322), (478, 460), (250, 460), (250, 446), (286, 432)], np.float32
    )
    drawing.fill(mask, pour)
    copper = drawing.coverage(mask, 0.6)
    surface.blend((0.075, 0.380, 0.165), 0.85 * copper)
    surface.height += 0.9 * copper


def _plating(surface: Surface) -> None:
    """Tinned pads under every component, ringed vias, plated mounting holes."""
    pads, holes = drawing.blank(), drawing.blank()
    for site in SITES:
        for dx, dy, half_x, half_y in _pads(site):
            offset = drawing.turned(np.array([[dx, dy]], np.float32), site.angle_deg)[0]
            drawing.box(
                pads, (site.x + offset[0], site.y + offset[1]), (half_x, half_y), site.angle_deg
            )
    for x, y in VIAS:
        drawing.dot(pads, (x, y), 5.6)
        drawing.dot(holes, (x, y), 2.4)
    for x, y in ((48, 66), (464, 66), (48, 446), (464, 446)):
        drawing.dot(pads, (x, y), 15)
        drawing.dot(holes, (x, y), 8.5)
    for x, y in ((96, 72), (424, 66)):
        drawing.dot(pads, (x, y), 5.0)  # fiducials
    tin = drawing.coverage(pads, 0.5)
    rough = texture("solder", 1.8, 1.8)[:SIDE, :SIDE]
    surface.blend(TIN, tin * 0.95)
    surface.dim(1 + 0.05 * tin * rough)
    surface.height += tin * (0.8 + 0.22 * rough)
    surface.gloss += tin * 0.30
    hole = drawing.coverage(holes, 0.4)
    surface.blend((0.02, 0.022, 0.02), hole)
    surface.height -= 3.0 * hole
    surface.gloss *= 1 - hole


def _pads(site: Site) -> list[tuple[float, float, float, float]]:
    if site.kind in "RCN":
        return [(s * site.length / 2, 0, 6.5, site.width / 2 + 2.2) for s in (-1, 1)]
    if site.kind in "UQ":
        counts = ((-1, 8), (1, 8)) if site.kind == "U" else ((-1, 2), (1, 1))
        return [
            ((i - (n - 1) / 2) * site.length / (n + 0.35), side * (site.width / 2 - 1.5), 3.6, 6.5)
            for side, n in counts
            for i in range(n)
        ]
    return [(s * (site.length / 2 - 3), 0, 9.0, 8.0) for s in (-1, 1)]


@lru_cache(maxsize=1)
def silkscreen() -> Float32:
    """White print: component outlines, names beside them, the board's name."""
    mask = drawing.blank()
    for site in SITES:
        if site.kind in "UXE":
            reach = (site.length / 2 + 8, site.width / 2 + 5)
            corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]) * np.array(reach)
            outline = drawing.turned(corners.astype(np.float32), site.angle_deg)
            drawing.stroke(mask, outline + np.array([site.x, site.y], np.float32), 1.6)
        _name(mask, site)
    drawing.write(mask, drawing.letters("TX-9 REV C", 15, 1.7), (128, 452))
    drawing.write(mask, drawing.letters("24V", 13, 1.6), (448, 306))
    return drawing.coverage(mask, 0.4)


def _name(mask: UInt8, site: Site) -> None:
    text = drawing.letters(site.name, 10, 1.3)
    tall = site.width / 2 if site.angle_deg == 0 else site.length / 2
    if site.kind in "RCN" and site.angle_deg == 0:
        drawing.write(mask, text, (site.x + (38 if site.x < 150 else -36), site.y - 1))
    else:
        drawing.write(mask, text, (site.x, site.y - tall - 14))

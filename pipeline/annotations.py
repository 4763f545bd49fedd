"""A verdict for people who look at a recording: drawn on its frame, and as a line of a log."""

from __future__ import annotations

from typing import Any

from engines.contracts import BadFrame, Decision, Verdict
from engines.images import decode_image
from engines.masks import outlines
from pipeline.foxglove import stamp

LINE_LOOP = 2  # of foxglove.PointsAnnotation
LEVELS = {Decision.PASS: 2, Decision.FAIL: 3, Decision.UNDECIDED: 4}  # INFO, WARNING, ERROR
FONT_PX = 12
THICKNESS_PX = 2
BLACK = {"r": 0.0, "g": 0.0, "b": 0.0, "a": 0.7}
CLEAR = {"r": 0.0, "g": 0.0, "b": 0.0, "a": 0.0}
COLOURS = {
    Decision.PASS: {"r": 0.2, "g": 0.8, "b": 0.3, "a": 1.0},
    Decision.FAIL: {"r": 1.0, "g": 0.2, "b": 0.2, "a": 1.0},
    Decision.UNDECIDED: {"r": 1.0, "g": 0.7, "b": 0.0, "a": 1.0},
}


def drawing(verdict: Verdict, mask_png: bytes) -> dict[str, Any]:
    """A foxglove.ImageAnnotations: the mask's outline and the decision, in pixels of the frame.

    Every verdict has one, so that the outline of a reject does not stay on the next part.
    """
    return {
        "timestamp": stamp(verdict.captured_ns),
        "circles": [],
        "points": [_line(verdict, points) for points in _outlines(mask_png)],
        "texts": [_label(verdict)],
    }


def log_line(verdict: Verdict) -> dict[str, Any]:
    """A foxglove.Log of the moment of the decision."""
    return {
        "timestamp": stamp(verdict.decided_ns),
        "level": LEVELS[verdict.decision],
        "message": f"{verdict.frame_id} {sentence(verdict)}",
        "name": verdict.camera,
        "file": "",
        "line": 0,
    }


def sentence(verdict: Verdict) -> str:
    """The decision, why, how deep and how long."""
    words = [str(verdict.decision)]
    if verdict.reason is not None:
        words.append(f"({verdict.reason})")
    if verdict.surprise is not None and verdict.threshold is not None:
        words.append(f"surprise {verdict.surprise:.2f} of {verdict.threshold:.2f}")
    words.append(f"{verdict.steps} steps")
    words.append(f"{max(0, verdict.decided_ns - verdict.captured_ns) / 1e6:.0f} ms")
    return " ".join(words)


def _outlines(mask_png: bytes) -> list[list[tuple[int, int]]]:
    if not mask_png:
        return []
    try:
        return outlines(decode_image(mask_png, "a mask")[..., 0] > 127)
    except BadFrame:  # it is kept as it came; only the drawing lacks it
        return []


def _line(verdict: Verdict, points: list[tuple[int, int]]) -> dict[str, Any]:
    return {
        "timestamp": stamp(verdict.captured_ns),
        "type": LINE_LOOP,
        # Foxglove's origin is the corner of the first pixel, an outline runs through the middles.
        "points": [{"x": x + 0.5, "y": y + 0.5} for x, y in points],
        "outline_color": COLOURS[verdict.decision],
        "outline_colors": [],
        "fill_color": CLEAR,
        "thickness": THICKNESS_PX,
    }


def _label(verdict: Verdict) -> dict[str, Any]:
    return {
        "timestamp": stamp(verdict.captured_ns),
        "position": {"x": 2, "y": FONT_PX + 2},
        "text": sentence(verdict),
        "font_size": FONT_PX,
        "text_color": COLOURS[verdict.decision],
        "background_color": BLACK,
    }

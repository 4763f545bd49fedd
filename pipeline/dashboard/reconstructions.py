"""Reconstructions of rejected parts, drawn when somebody asks for one.

A line keeps none: its graphs score without a decoder, and a picture for every reject would cost
what verdicts need. What it keeps is the model input, byte for byte, so the walk can be done again
by the bundle that judged the part. That takes torch, which a line does without; where it is
missing, the page says so.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.contracts import InspectionError
from pipeline.dashboard.easel import receive, send

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engines.bundle import Bundle
    from pipeline.dashboard.parts import Part

KEPT = 64  # pictures; one is about 100 kB
IDLE_S = 120.0  # an easel that nobody uses gives its memory back
LIMIT_S = 300.0  # for one picture, with torch to be loaded on a busy machine; else it hangs


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """A reconstruction (PNG), or why there is none: a key of the catalogue and its blanks."""

    png: bytes = b""
    steps: int = 0
    refusal: str = ""
    why: str = ""


class Reconstructions:
    """Draws one picture at a time, in a process that ends when it has nothing to do."""

    def __init__(self, bundle: Callable[[], Bundle]) -> None:
        self._bundle = bundle
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Drawing] = OrderedDict()  # stem -> drawing, oldest first
        self._easel: _Easel | None = None

    def made(self, stem: str) -> bytes:
        """A picture that was drawn before; empty where there is none."""
        drawing = self._kept.get(stem)
        return drawing.png if drawing else b""

    def of(self, part: Part) -> Drawing:
        """Draw a part's reconstruction; this may take seconds."""
        with self._lock:
            if part.stem in self._kept:
                return self._kept[part.stem]
            try:
                bundle = self._bundle()
            except InspectionError as error:
                return Drawing(refusal="not_drawn", why=str(error))
            refusal = refused(part, bundle)
            drawing = Drawing(refusal=refusal) if refusal else self._drawn(part, bundle)
            if drawing.png:
                self._keep(part.stem, drawing)
            return drawing

    def close(self) -> None:
        """End the process that draws."""
        with self._lock:
            self._put_away()

    def _drawn(self, part: Part, bundle: Bundle) -> Drawing:
        if self._easel is None or not self._easel.serves(bundle.folder):
            self._put_away()
            self._easel = _Easel(bundle.folder)
        verdict = part.verdict
        order = {"category": bundle.category_id(verdict.category), "plan": verdict.plan}
        answer = self._easel.draw(order, part.picture_png)
        if answer is None:
            self._put_away()
            return Drawing(refusal="drawing_ended")
        told, png = answer
        return Drawing(png, told.get("steps", 0), "" if png else "not_drawn", told["problem"])

    def _keep(self, stem: str, drawing: Drawing) -> None:
        self._kept[stem] = drawing
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def _put_away(self) -> None:
        if self._easel is not None:
            self._easel.close()
        self._easel = None


def refused(part: Part, bundle: Bundle) -> str:
    """Why no reconstruction of this part can be drawn here, as a key; "" where it can."""
    if part.verdict.bundle_id not in {"", bundle.bundle_id}:
        return "other_bundle"
    if bundle.tiling.frame_size != tuple(bundle.manifest.image_size):
        return "tiles_not_drawn"
    if importlib.util.find_spec("torch") is None:
        return "no_torch"
    return ""


class _Easel:
    """The process and its two pipes; it is killed when it is late, and closed when it is idle."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.dashboard.easel", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._rest = threading.Timer(IDLE_S, self._process.kill)

    def serves(self, folder: Path) -> bool:
        """Whether it draws with this bundle, and lives."""
        return folder == self._folder and self._process.poll() is None

    def draw(self, order: dict[str, Any], png: bytes) -> tuple[dict[str, Any], bytes] | None:
        """The answer to one order; None where the process ended over it."""
        assert self._process.stdin  # noqa: S101 - both are pipes
        assert self._process.stdout  # noqa: S101
        self._rest.cancel()
        late = threading.Timer(LIMIT_S, self._process.kill)
        late.daemon = True
        late.start()
        try:
            send(self._process.stdin, order, png)
            return receive(self._process.stdout)
        except OSError:  # it could not even start
            return receive(self._process.stdout)
        finally:
            late.cancel()
            self._rest = threading.Timer(IDLE_S, self._process.kill)
            self._rest.daemon = True
            self._rest.start()

    def close(self) -> None:
        """End the process and wait for it."""
        self._rest.cancel()
        self._process.kill()
        self._process.communicate()

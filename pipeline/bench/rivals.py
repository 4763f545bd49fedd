"""Detectors that the engine is timed against: same runtime, same size, same precision."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engines.openvino_graphs import Spread
from pipeline.bench.efficientad import SMALLEST, efficientad_s
from pipeline.bench.operations import model_operations

if TYPE_CHECKING:
    from collections.abc import Iterable

    from engines.contracts import UInt8
    from pipeline.bench.turns import Seconds

PADDED = {"efficientad_s": True, "efficientad_s.unpadded": False}
SETTINGS = {"ENABLE_CPU_PINNING": False}  # as our backend has them


class Rival:
    """One compiled detector, its rows spread as ours are: images in, maps and scores out.

    For calls of up to ``most`` rows.
    """

    def __init__(self, name: str, size: tuple[int, int], precision: str, most: int) -> None:
        self.name = name
        padded = PADDED[name]
        self.operations = model_operations(efficientad_s(size, padded=padded), 1)
        settings = SETTINGS | {"INFERENCE_PRECISION_HINT": precision}
        self._spread = Spread(efficientad_s(size, padded=padded), settings, most)

    def timed_pass(self, images: UInt8) -> Seconds:
        """Seconds of one call over images [B, H, W, 3]."""
        began = time.perf_counter()
        self._spread.given[0][: len(images)] = images
        self._spread.run(len(images))
        return {"pass": [time.perf_counter() - began]}


def rivals_at(
    size: tuple[int, int], precision: str, most: int, names: Iterable[str] = PADDED
) -> list[Rival]:
    """Some or all of them at an image size; none where their encoder needs a larger image."""
    chosen = names if min(size) >= SMALLEST else ()
    return [Rival(name, size, precision, most) for name in chosen]

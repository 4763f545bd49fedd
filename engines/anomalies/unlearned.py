"""Anomalies drawn by rules that no scorer learns from: to weigh evidence, to fit early exit on.

A scorer that were weighed on its own anomalies would always seem the best evidence. These are its
distant kin all the same: pieces of other parts and shuffled cells are among what it learns from,
here with other outlines, tones and strengths. So a scorer has to win by a wide margin
(``engines.methods.shares``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engines.anomalies.pasting import cut_paste
from engines.anomalies.synthesis import synthesize_as_glad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.contracts import UInt8

OPACITY = (0.1, 0.7)  # gross ones would be plain to all evidence
TRIES = 8


def unlearned(images: Sequence[UInt8], seed: int) -> list[UInt8]:
    """Every image [H, W, 3] with an anomaly, pasted or shuffled in turn."""
    rng = np.random.default_rng(seed)
    return [
        _pasted(image, images[int(rng.integers(len(images)))], rng)
        if row % 2
        else _shuffled(image, rng)
        for row, image in enumerate(images)
    ]


def _pasted(image: UInt8, donor: UInt8, rng: np.random.Generator) -> UInt8:
    """A faint patch of another part."""
    odd = cut_paste(image, donor, rng).astype(np.float32)
    mixed = image + rng.uniform(*OPACITY) * (odd - image)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _shuffled(image: UInt8, rng: np.random.Generator) -> UInt8:
    """GLAD's anomaly; its mask may be empty, so it is drawn until it is not."""
    for _ in range(TRIES):
        made = synthesize_as_glad(image, rng)
        if made.mask.any():
            break
    return made.image

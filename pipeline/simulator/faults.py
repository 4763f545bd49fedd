"""What goes wrong with the camera rather than the part."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from engines.contracts import BadConfig, UInt8

Exposure = Callable[[int], UInt8]  # frame number -> what a sound camera would have seen


@dataclass(frozen=True, slots=True)
class Fault:
    """A camera fault over frames ``first`` to ``last`` inclusive, ``strength`` in 0..1."""

    kind: str
    first: int
    last: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in FAULTS:
            raise BadConfig(f"no camera fault {self.kind!r}; choose from {', '.join(FAULTS)}")
        if not 0 <= self.first <= self.last:
            raise BadConfig(
                f"fault {self.kind} must start at 0 or later and end no earlier than it starts"
            )
        if not 0 <= self.strength <= 1:
            raise BadConfig(f"fault {self.kind} needs a strength in 0..1, not {self.strength}")


def exposed(index: int, faults: Iterable[Fault], sound: Exposure) -> UInt8:
    """Frame ``index`` as a camera with these faults delivers it; several faults add up in order."""
    image = sound(index)
    for fault in faults:
        if fault.first <= index <= fault.last:
            image = FAULTS[fault.kind](image, index, fault, sound)
    return image


def _lamp(image: UInt8, index: int, fault: Fault, sound: Exposure) -> UInt8:
    """The lamp dims towards 1 - 0.7 strength by the last frame, blue first as it cools."""
    del sound
    share = (index - fault.first + 1) / (fault.last - fault.first + 1)
    loss = 0.7 * fault.strength * share
    ramp = np.arange(256)[:, None] * (1 - loss * np.array([0.85, 1.0, 1.15]))
    return np.asarray(cv2.LUT(image, np.round(ramp[None]).astype(np.uint8)), np.uint8)


def _blur(image: UInt8, index: int, fault: Fault, sound: Exposure) -> UInt8:
    """The lens lost its focus: a Gaussian of up to 1.5 % of the frame's width."""
    del index, sound
    sigma = max(0.2, 0.015 * image.shape[1] * fault.strength)
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)


def _frozen(image: UInt8, index: int, fault: Fault, sound: Exposure) -> UInt8:
    """The driver delivers the last frame before the fault again and again."""
    del image, index
    return sound(max(0, fault.first - 1))


def _torn(image: UInt8, index: int, fault: Fault, sound: Exposure) -> UInt8:
    """A buffer overwritten while read: lower rows, more with strength, are of the frame before."""
    row = round(image.shape[0] * (1 - 0.9 * fault.strength))
    torn = image.copy()
    torn[row:] = np.roll(sound(max(0, index - 1)), image.shape[1] // 9, axis=1)[row:]
    return torn


def _black(image: UInt8, index: int, fault: Fault, sound: Exposure) -> UInt8:
    """The lamp or the shutter failed: what is left of the light is 1 - strength."""
    del index, sound
    return np.asarray(cv2.convertScaleAbs(image, alpha=1 - fault.strength), np.uint8)


FAULTS: dict[str, Callable[[UInt8, int, Fault, Exposure], UInt8]] = {
    "lamp": _lamp,
    "blur": _blur,
    "frozen": _frozen,
    "torn": _torn,
    "black": _black,
}

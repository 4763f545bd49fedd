"""What a part is made of, on a canvas finer than the camera: colour, height, gloss, shading.

Painting happens in the part's own coordinates at about 1.5 canvas pixels per frame pixel, so that
the camera's sampling smooths every edge. Static art is painted once; a part copies and varies it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from engines.contracts import Float32

SIDE = 512  # canvas pixels, of which VIEW are seen by a camera without pose jitter
VIEW = 480
_TOWARDS_LIGHT = (-0.42, -0.50, 0.76)  # lamp at the upper left, as a unit vector
_MIRROR_SLOPE = (0.24, 0.28)  # slope of a facet that mirrors the lamp into the lens
_GLINT_SHARPNESS = 9.0
_BANK = 1024  # side of a cached noise texture; parts look at windows of it


@dataclass(slots=True, eq=False)
class Surface:
    """One part as matter, before any camera."""

    colour: Float32  # [SIDE, SIDE, 3] RGB in 0..1
    height: Float32  # [SIDE, SIDE] canvas pixels, towards the camera
    gloss: Float32  # [SIDE, SIDE] strength of the mirror reflection, 0..1

    def copy(self) -> Surface:
        """Independent arrays, so that a part may be varied or damaged."""
        return Surface(self.colour.copy(), self.height.copy(), self.gloss.copy())

    def blend(self, colour: tuple[float, float, float], amount: Float32) -> None:
        """Lay paint of one ``colour`` over the surface, ``amount`` [SIDE, SIDE] in 0..1."""
        for channel, value in enumerate(colour):
            plane = self.colour[..., channel]
            plane += amount * (value - plane)

    def dim(self, amount: Float32) -> None:
        """Multiply the colour by ``amount`` [SIDE, SIDE]."""
        self.colour *= amount[..., None]


def shade(surface: Surface) -> Float32:
    """Lambert and a Gaussian mirror lobe from the height's slopes: RGB [SIDE, SIDE, 3]."""
    slope_x: Float32 = _slope(surface.height, 1, 0)
    slope_y: Float32 = _slope(surface.height, 0, 1)
    x, y, z = _TOWARDS_LIGHT
    squared = slope_x * slope_x + slope_y * slope_y + 1.0
    lit = np.maximum(cv2.addWeighted(slope_x, -x / z, slope_y, -y / z, 1.0), 0.12)
    lit /= cv2.sqrt(squared)
    slope_x -= _MIRROR_SLOPE[0]
    slope_y -= _MIRROR_SLOPE[1]
    away = (slope_x * slope_x + slope_y * slope_y) * -_GLINT_SHARPNESS
    glint = cv2.exp(away) * surface.gloss
    image = cv2.multiply(surface.colour, cv2.merge([lit, lit, lit]))
    return np.asarray(cv2.add(image, cv2.merge([glint, glint, glint])), np.float32)


def _slope(height: Float32, dx: int, dy: int) -> Float32:
    return np.asarray(cv2.Sobel(height, cv2.CV_32F, dx, dy, ksize=3, scale=0.125), np.float32)


def generator(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """The random stream of one purpose of one part; equal on every machine and in every process."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), index])


@lru_cache(maxsize=32)
def texture(name: str, sigma_x: float, sigma_y: float) -> Float32:
    """Gaussian noise [1024, 1024] of unit spread, smooth over the given canvas pixels, tileable."""
    noise = generator(7, name).standard_normal((_BANK, _BANK), np.float32)
    pad = int(3 * max(sigma_x, sigma_y)) + 1
    padded = np.pad(noise, pad, mode="wrap")
    smooth = cv2.GaussianBlur(padded, (0, 0), sigmaX=sigma_x, sigmaY=sigma_y)[pad:-pad, pad:-pad]
    return np.ascontiguousarray((smooth - smooth.mean()) / smooth.std(), np.float32)


def window(noise: Float32, rng: np.random.Generator) -> Float32:
    """A random [SIDE, SIDE] look at a texture: fresh noise for the price of a view."""
    y, x = rng.integers(0, _BANK - SIDE, 2)
    return noise[y : y + SIDE, x : x + SIDE]


def grow(severity: float, low: float, high: float) -> float:
    """A size or contrast that rises from ``low`` to ``high`` with the severity in 0..1."""
    return low + (high - low) * float(severity**0.75)

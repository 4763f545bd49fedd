"""The camera: where the part lies under it, its lamp, its shutter, its sensor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from engines.contracts import AnyArray, Float32, UInt8
from pipeline.simulator.surface import SIDE, VIEW

_SHOT = 0.00016  # variance per unit of signal: about 6,000 electrons full well
_READ = 0.0045  # standard deviation in the dark, in units of full scale


@dataclass(frozen=True, slots=True)
class Pose:
    """How the part lies in the frame; a fixture on a belt leaves a little play."""

    angle_deg: float
    dx: float  # frame widths
    dy: float
    scale: float

    def matrix(self, size: tuple[int, int]) -> AnyArray:
        """Canvas to frame pixels, [2, 3], for a frame of ``size`` (height, width)."""
        h, w = size
        zoom = self.scale * max(h, w) / VIEW
        matrix: AnyArray = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), self.angle_deg, zoom)
        matrix[:, 2] += (w / 2 - SIDE / 2 + self.dx * w, h / 2 - SIDE / 2 + self.dy * w)
        return matrix


def draw_pose(rng: np.random.Generator) -> Pose:
    """Play of the fixture: about a degree, a few pixels, half a percent of working distance."""
    turn, dx, dy, zoom = np.clip(rng.standard_normal(4), -2, 2)
    return Pose(1.0 * turn, 0.006 * dx, 0.006 * dy, 1 + 0.005 * zoom)


def expose(canvas: Float32, pose: Pose, size: tuple[int, int], rng: np.random.Generator) -> UInt8:
    """Canvas RGB [SIDE, SIDE, 3] to a frame [H, W, 3]: sampling, lens, belt motion, lamp, noise."""
    frame = _place(canvas, pose, size)
    belt, lens = _motion(rng.uniform(0.2, 1.4)), _lens(0.55)
    frame = np.asarray(cv2.sepFilter2D(frame, -1, belt, lens), np.float32)
    frame *= _illumination(size, rng)[..., None]
    spread = cv2.sqrt(np.maximum(frame, 0) * _SHOT + _READ**2)
    frame += spread * rng.standard_normal(frame.shape, np.float32)
    return np.asarray(cv2.convertScaleAbs(np.maximum(frame, 0), alpha=255.0), np.uint8)


def place_mask(altered: Float32, pose: Pose, size: tuple[int, int]) -> AnyArray:
    """A canvas mask (0..1) as frame pixels: True where altered, one pixel wider."""
    seen = _place(altered, pose, size) > 0.34
    return cv2.dilate(seen.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def _place(canvas: Float32, pose: Pose, size: tuple[int, int]) -> Float32:
    placed = cv2.warpAffine(
        canvas,
        pose.matrix(size),
        (size[1], size[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(placed, np.float32)


def _motion(length_px: float) -> Float32:
    """The belt moves along x while the shutter is open: a box of ``length_px``, with the lens."""
    reach = np.arange(-3, 4)
    box = np.clip((length_px + 1) / 2 - np.abs(reach), 0, 1)
    kernel = np.convolve(box, _lens(0.45), "same")
    return np.asarray(kernel / kernel.sum(), np.float32)


def _lens(sigma: float) -> Float32:
    return np.asarray(cv2.getGaussianKernel(5, sigma, cv2.CV_32F).ravel(), np.float32)


@lru_cache(maxsize=4)
def _axes(size: tuple[int, int]) -> tuple[Float32, Float32, Float32]:
    y, x = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j].astype(np.float32)
    return x, y, x * x + y * y


def _illumination(size: tuple[int, int], rng: np.random.Generator) -> Float32:
    """Lamp at the upper left, fall-off at the corners; the lamp wanders from frame to frame."""
    x, y, radius = _axes(size)
    strays = np.clip(rng.standard_normal(3), -2, 2)
    level, tilt_x, tilt_y = (1.0, -0.06, -0.05) + strays * (0.012, 0.010, 0.010)
    gain = cv2.addWeighted(x, tilt_x, y, tilt_y, level)
    return np.asarray(cv2.addWeighted(gain, 1.0, radius, -0.055, 0.0), np.float32)

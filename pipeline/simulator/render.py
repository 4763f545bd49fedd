"""One frame of one part: natural variation, a defect or none, the camera, and honest truth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.contracts import BadConfig, Float32, UInt8
from pipeline.simulator.optics import draw_pose, expose, place_mask
from pipeline.simulator.product import Defect, Product
from pipeline.simulator.surface import generator, shade

PARTS = ("disc", "board", "fabric")
DEFAULT_SIZE = (320, 320)
_ALTERED = 0.03  # change of any channel, of full scale, from which a canvas pixel counts as altered


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """One picture with the truth about it."""

    image: UInt8  # [H, W, 3] RGB
    truth_mask: NDArray[np.bool_]  # [H, W]; all False for a good part
    part: str
    defect: str | None
    severity: float  # 0 for a good part


def defects(part: str) -> tuple[str, ...]:
    """Names of the defects this part can have."""
    return tuple(_product(part).defects)


def render(
    part: str,
    seed: int,
    index: int,
    size: tuple[int, int] = DEFAULT_SIZE,
    *,
    defect: str | None = None,
    severity: float = 0.5,
) -> Rendered:
    """Picture number ``index`` of a part, ``size`` = (height, width); same arguments, same bytes.

    With a ``defect`` the very same part is built twice, sound and damaged (``severity`` in 0..1);
    where their shaded surfaces differ, before any camera, is the truth mask.
    """
    product = _product(part)
    individual = product.draw(generator(seed, f"{part}/part", index))
    canvas = shade(product.build(individual))
    pose = draw_pose(generator(seed, f"{part}/pose", index))
    mask = np.zeros(size, np.bool_)
    if defect is not None:
        damage = _defect(product, part, defect)
        rng = generator(seed, f"{part}/{defect}", index)
        sound = canvas
        canvas = shade(product.build(damage(individual, rng, severity)))
        mask = place_mask(_altered(sound, canvas), pose, size)
    image = expose(canvas, pose, size, generator(seed, f"{part}/camera", index))
    return Rendered(image, mask, part, defect, severity if defect is not None else 0.0)


def _altered(sound: Float32, damaged: Float32) -> Float32:
    """Canvas pixels changed visibly; the faintest damage still counts where it is strongest."""
    change = np.abs(np.clip(damaged, 0, 1) - np.clip(sound, 0, 1)).max(2)
    return np.asarray(change > min(_ALTERED, 0.5 * float(change.max())), np.float32)


@lru_cache(maxsize=len(PARTS))
def _product(part: str) -> Product[Any]:
    if part not in PARTS:
        raise BadConfig(f"the simulator makes no part {part!r}; choose from {', '.join(PARTS)}")
    found: Product[Any] = getattr(import_module(f"pipeline.simulator.{part}_defects"), part.upper())
    return found


def _defect(product: Product[Any], part: str, defect: str) -> Defect:
    if defect not in product.defects:
        known = ", ".join(product.defects)
        raise BadConfig(f"a {part} has no defect {defect!r}; choose from {known}")
    return product.defects[defect]

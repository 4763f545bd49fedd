"""Fit what a trained DeCo-Diff still needs, on held-out good images: clips, scales, edges, weights.

The published constants are tied to the Stable Diffusion latent; with another codec they are fitted
again, never on test images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engines.anomalies import cut_paste

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.contracts import UInt8
    from engines.methods.decodiff import DecoDiff
    from engines.methods.method import State

OPACITY = (0.1, 0.6)  # of the anomalies that the weight is fitted on
# Never 0: a frame that leaves without a step is judged by its base map alone.
BASE_SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
FITTED = (
    "latent_clip",
    "pixel_clip",
    "base_scale",
    "deviation_scale",
    "severity_edges",
    "base_share",
)


@torch.inference_mode()
def fit_scales(method: DecoDiff, images: Sequence[Tensor], categories: Sequence[int]) -> None:
    """Fit clips, scales and severity edges on held-out good images, in place.

    images: one u8 [N, H, W, 3] per entry of ``categories``. Clips are four times the 99.5 % level
    of good deviations, scales the 99 % level of the finished maps, severity edges the 50, 80 and
    95 % levels; the weight of the base map is the one that best tells good parts from the same
    parts with faint synthetic anomalies. "unknown" takes the widest of each.
    """
    deepest = len(method.plans) - 1
    for image, category in zip(images, categories, strict=True):
        good = _walk_all(method, image, category, deepest)
        _fit_category(method, good, category)
        if method.bank is not None:
            anomalous = torch.from_numpy(np.stack(_anomalies(image.numpy(), category)))
            odd = _walk_all(method, anomalous, category, deepest)
            method.base_share[category] = _best_share(method, good, odd, category)
    last = len(method.latent_clip) - 1
    for name in FITTED:
        table = getattr(method, name)
        table[last] = table[list(categories)].amax(0)


def _walk_all(method: DecoDiff, image: Tensor, category: int, plan: int) -> list[State]:
    return [_walk(method, chunk, category, plan) for chunk in torch.split(image, 16)]


def _anomalies(images: UInt8, seed: int) -> list[UInt8]:
    """Every image with a faint anomaly: a gross one would be plain to every weighting."""
    rng = np.random.default_rng(seed)
    return [_faint(image, images[rng.integers(len(images))], rng) for image in images]


def _faint(image: UInt8, donor: UInt8, rng: np.random.Generator) -> UInt8:
    odd = cut_paste(image, donor, rng).astype(np.float32)
    mixed = image + rng.uniform(*OPACITY) * (odd - image)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _best_share(
    method: DecoDiff, good: Sequence[State], odd: Sequence[State], category: int
) -> float:
    """The weight of the base map by which image AUROC against synthetic anomalies is highest."""
    found = []
    for share in BASE_SHARES:
        method.base_share[category] = share
        scores = [torch.cat([method.finish(s)[1] for s in states]) for states in (good, odd)]
        found.append((_auroc(*scores), share))
    return max(found)[1]


def _auroc(good: Tensor, odd: Tensor) -> float:
    """Probability that an anomaly scores above a good part (Mann-Whitney), ties counted half."""
    above = (odd[:, None] > good).double() + 0.5 * (odd[:, None] == good).double()
    return float(above.mean())


def _walk(method: DecoDiff, image: Tensor, category: int, plan: int) -> State:
    ids = torch.full((len(image),), category)
    state = method.start(image, ids, torch.zeros_like(ids), torch.full((len(image),), plan).int())
    for _ in range(method.plans[plan].steps):
        state |= method.step(state)
    return state


def _fit_category(method: DecoDiff, states: Sequence[State], category: int) -> None:
    latent = torch.cat([method.latent_map(s["anchor"], s["estimate"]) for s in states])
    method.latent_clip[category] = 4 * _level(latent, 0.995)
    if method.codec.kind == "vae":
        pixel = [method.pixel_map(s["anchor"], s["estimate"])[:, ::4, ::4] for s in states]
        method.pixel_clip[category] = 4 * _level(torch.cat(pixel), 0.995)
    if method.bank is None:
        return
    base = torch.cat([method.smooth_base_map(s["base_map"]) for s in states])
    maps = [method.deviation_map(s["anchor"], s["estimate"], s["category"]) for s in states]
    method.base_scale[category] = _level(base, 0.99)
    method.deviation_scale[category] = _level(torch.cat(maps), 0.99)
    severity = base.amax((1, 2))
    edges = torch.quantile(severity, torch.tensor([0.5, 0.8, 0.95]))
    method.severity_edges[category] = edges


def _level(values: Tensor, share: float) -> float:
    """Quantile of any number of values (torch.quantile refuses more than 16 million)."""
    flat = values.flatten()
    return max(float(flat.kthvalue(max(1, int(share * len(flat)))).values), 1e-6)

"""Fit what a trained method still needs on held-out good images: scales, edges, shares.

Nothing here sees a test image. Shares say how much each piece of evidence counts; they are chosen
by how well good parts are told from the same parts with synthetic anomalies, by one rule for every
product (``engines.methods.shares``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engines.anomalies import unlearned
from engines.backend import SEED_MASK
from engines.dataset import evenly
from engines.images import image_seed
from engines.maps import LEVEL_MIN
from engines.methods.shares import TABLES, fit_shares, fit_walk_share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.methods.latent import LatentMethod
    from engines.methods.method import State

PIECES = {table: name for name, table in TABLES.items()}  # tables -> evidence
SPREAD_QUANTILE, SPREAD_MIN = 0.9, 0.02
WHITENING_IMAGES = 32  # of each category
BATCH = 16


@torch.inference_mode()
def fit_walks(method: LatentMethod, images: Sequence[Tensor], categories: Sequence[int]) -> None:
    """Fit what changes how a frame walks, in place, before anything is learned or measured there.

    images: good ones that the method has not seen, u8 [N, H, W, 3] per entry of ``categories``.
    """
    if not method.constants_steer:
        return
    for image, category in zip(images, categories, strict=True):
        method.fit_steering(walk_all(method, image, category), category)
    _fit_unknown(method, categories)


@torch.inference_mode()
def fit_whitening(method: LatentMethod, images: Sequence[Tensor]) -> None:
    """Fit how changes of good parts vary, in place, where the method asks for it.

    images: those it was trained on, u8 [N, H, W, 3] per category, a few of them evenly chosen. The
    held-out ones set thresholds, and a distance is shorter for what its covariance was taken from.
    """
    if not method.whitenings:
        return
    chosen = [image[evenly(len(image), WHITENING_IMAGES)] for image in images]
    for category, image in enumerate(chosen):
        fit_whitenings(method, walk_all(method, image, category), category)
    few = torch.cat([image[:: len(images)] for image in chosen])
    fit_whitenings(method, walk_all(method, few, method.categories), method.categories)


def fit_whitenings(method: LatentMethod, states: Sequence[State], category: int) -> None:
    """Fit every whitening of a category on the changes in states of good parts, in place."""
    changes = [method.changes(state) for state in states]
    for name in method.change_names if method.whitenings else ():
        method.whitening(name).fit([change[name] for change in changes], category)


@torch.inference_mode()
def fit_scales(method: LatentMethod, images: Sequence[Tensor], categories: Sequence[int]) -> None:
    """Fit a method's other tables on the same held-out good images, in place.

    Centres and scales are the median and the spread of the peaks of good parts' maps after the
    deepest plan, severity edges quantiles of their severity. "unknown" takes the median of the
    categories' edges and the widest of their other tables.
    """
    good, odd = [], []
    for image, category in zip(images, categories, strict=True):
        walked = walk_all(method, image, category)
        anomalous = torch.from_numpy(np.stack(unlearned(list(image.numpy()), category)))
        good.append(walked)
        odd.append(walk_all(method, anomalous, category))
        method.fit_constants(walked, category)
        fit_walk_share(method, walked, odd[-1], category)
        _fit_category(method, walked, category)
    _fit_unknown(method, categories)
    fit_shares(method, good, odd)
    if method.scorer is not None:
        _fit_outlines(method, good, categories)


def walk_all(
    method: LatentMethod, images: Tensor, category: int, plan: int | None = None
) -> list[State]:
    """States of images u8 [N, H, W, 3] at the end of a plan (the deepest), in batches."""
    chosen = len(method.plans) - 1 if plan is None else plan
    return [_walk(method, chunk, category, chosen) for chunk in torch.split(images, BATCH)]


def _walk(method: LatentMethod, image: Tensor, category: int, plan: int) -> State:
    ids = torch.full((len(image),), category)
    state = method.start(image, ids, seeds_of(image), torch.full((len(image),), plan).int())
    return method.walked(state, plan)


def seeds_of(images: Tensor) -> Tensor:
    """Seed of each image u8 [B, H, W, 3], i64 [B], as every backend takes it."""
    return torch.tensor([image_seed(image) & SEED_MASK for image in images.numpy()])


def _fit_category(method: LatentMethod, states: Sequence[State], category: int) -> None:
    found = [method.evidence(state) for state in states]
    for piece, name in PIECES.items():
        if name in found[0] and hasattr(method, f"{piece}_scale"):
            maps = torch.cat([evidence[name] for evidence in found])
            centre, scale = _peaks(method.score_of(maps))
            method.get_buffer(f"{piece}_centre")[category] = centre
            method.get_buffer(f"{piece}_scale")[category] = scale
            if piece == "base":
                method.severity_edges[category] = method.edges_of(maps.amax((1, 2)))


def _fit_outlines(
    method: LatentMethod, good: Sequence[Sequence[State]], categories: Sequence[int]
) -> None:
    """Bring what is drawn to where the fused map of good parts peaks: they share one limit."""
    for states, category in zip(good, categories, strict=True):
        found = [method.evidence(state) for state in states]
        (wanted, spread), (drawn, wide) = (
            _peaks(torch.cat([method.score_of(evidence[name]) for evidence in found]))
            for name in ("fused", "outlines")
        )
        method.get_buffer("outline_scale")[category] = wide / spread
        method.get_buffer("outline_centre")[category] = drawn - wanted * wide / spread
    for name in ("outline_centre", "outline_scale"):
        table = method.get_buffer(name)
        table[-1] = table[list(categories)].median()


def _peaks(scores: Tensor) -> tuple[float, float]:
    """Where good parts peak and how far that spreads, from their scores [N]: median, and the 90 %
    level above it. A spread far below the median would make evidence of what is but rounding."""
    centre = float(scores.median())
    spread = float(torch.quantile(scores, SPREAD_QUANTILE)) - centre
    return centre, max(spread, SPREAD_MIN * abs(centre), LEVEL_MIN)


def _fit_unknown(method: LatentMethod, categories: Sequence[int]) -> None:
    last, known = method.categories, list(categories)
    for name in method.constants():
        table = method.get_buffer(name)
        table[last] = table[known].amax(0)
    method.severity_edges[last] = method.severity_edges[known].median(0).values

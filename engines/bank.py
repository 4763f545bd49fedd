"""Severity bank: how far each patch of a frame lies from every good patch seen.

The idea is D3AD's (arXiv 2401.04463). Distances by the matrix identity |f|^2 - 2 f.b + |b|^2 lose
their digits in low precision; the identity is used only to *find* the nearest row, and the distance
is measured by subtracting that row. A wrong choice between two nearly equal rows then changes the
distance by no more than their difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from engines.contracts import BadData

CANDIDATES_MAX = 100_000  # patches a coreset is chosen from
HALVED_CANDIDATES = 25_000  # likewise, of a bank that only training needs
PROJECTED = 64
HALVES = 2


class SeverityBank(nn.Module):
    """Coresets of good patch features, one per category and one of all for "unknown".

    ``rows`` [K + 1, n, D] holds values that fp16 represents exactly, so a bundle stores half the
    bytes without loss. Only the rows of a frame's own category are searched.
    """

    rows: Tensor  # [K + 1, n, D]
    centre: Tensor  # [K + 1, D], subtracted before the search

    def __init__(self, categories: int, rows: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(categories + 1, rows, channels))
        self.register_buffer("centre", torch.zeros(categories + 1, channels))

    def forward(self, features: Tensor, category: Tensor) -> Tensor:
        """Distance to the nearest good patch, [B, D, h, w] and i64 [B] -> f32 [B, h, w]."""
        return distance_of(self.residual(features, category))

    def residual(self, features: Tensor, category: Tensor) -> Tensor:
        """Each patch less the nearest good one, [B, D, h, w]."""
        batch, channels, height, width = features.shape
        cells = features.flatten(2).transpose(1, 2)  # [B, h*w, D]
        winners = self.nearest(cells, category)  # [B, h*w]
        count = self.rows.shape[1]
        winner_rows = self.rows.view(-1, channels)[category[:, None] * count + winners]
        return (cells - winner_rows).transpose(1, 2).reshape(batch, channels, height, width)

    def nearest(self, cells: Tensor, category: Tensor) -> Tensor:
        """Row of the category's bank nearest to each cell, [B, P, D] -> i64 [B, P].

        argmin |f - b|^2 = argmax f.b - |b|^2 / 2; memory is B * P * n floats.
        """
        centre = self.centre[category][:, None]  # [B, 1, D]
        rows = (self.rows[category] - centre).transpose(1, 2)  # [B, D, n]
        # The norms are not stored: a bundle would round them to fp16, and the search needs f32.
        closeness = torch.bmm(cells - centre, rows) - (rows**2).sum(1, keepdim=True) / 2
        return first_greatest(closeness)

    @torch.inference_mode()
    def fit(self, features_by_category: Mapping[int, Tensor], seed: int = 0) -> None:
        """Choose the rows: a greedy coreset of each category's patches [N, D], and one of all.

        Raises BadData when a category is missing or has no patch.
        """
        known = len(self.rows) - 1
        for category in range(known):
            patches = features_by_category.get(category)
            if patches is None or len(patches) == 0:
                raise BadData(f"category {category} has no good patches for the severity bank")
            self.keep(category, patches, seed)
        self.keep(known, torch.cat([features_by_category[c] for c in range(known)]), seed)

    def keep(self, category: int, patches: Tensor, seed: int = 0) -> None:
        """A greedy coreset of patches [N, D] as the rows of a category, in place."""
        count = self.rows.shape[1]
        chosen = patches[coreset(patches, count, seed)].half().float()
        # Fewer patches than rows: repeat them, which changes no nearest distance.
        chosen = chosen.repeat(-(-count // len(chosen)), 1)[:count]
        self.rows[category] = chosen
        self.centre[category] = chosen.mean(0).half().float()


class HalvedBank:
    """For each half of the good images a bank of the other half, so that none meets itself."""

    def __init__(
        self, patches: Sequence[Tensor], halves: Sequence[Tensor], rows: int, seed: int = 0
    ) -> None:
        """patches [N, P, D] of each category's N images, and the half of each, i64 [N]."""
        self.known = len(patches)
        tables = HALVES * (self.known + 1)
        self.bank = SeverityBank(tables - 1, rows, int(patches[0].shape[2]))
        for half in range(HALVES):
            others = [p[h != half].flatten(0, 1) for p, h in zip(patches, halves, strict=True)]
            for category, rest in enumerate((*others, torch.cat(others))):
                self.bank.keep(half * (self.known + 1) + category, _some(rest, seed), seed)

    def residual(self, features: Tensor, category: Tensor, half: Tensor) -> Tensor:
        """As ``SeverityBank.residual``, for images of the given halves i64 [B]."""
        return self.bank.residual(features, half * (self.known + 1) + category)


def _some(patches: Tensor, seed: int) -> Tensor:
    """A random share of patches [N, D]: a coreset of all would take minutes for every half."""
    generator = torch.Generator().manual_seed(seed)
    return patches[torch.randperm(len(patches), generator=generator)[:HALVED_CANDIDATES]]


def half_of(rows: Tensor, tiles: int = 1) -> Tensor:
    """To which half of the good images those of these rows i64 [N] belong, i64 [N].

    ``tiles`` rows after one another are of one image.
    """
    return rows // tiles % HALVES


def first_greatest(values: Tensor) -> Tensor:
    """Index of the greatest along the last axis, the first of equals: [B, P, n] -> i64 [B, P].

    First which block of rows holds it, then which row of the block: the same answer as ``argmax``.
    OpenVINO's TopK over thousands took longer than the product before it; over two short axes it
    takes a tenth of that.
    """
    batch, cells, count = values.shape
    width = _near_root(count)
    blocks = values.reshape(batch, cells, count // width, width)
    block = blocks.amax(3).argmax(2, keepdim=True)  # [B, P, 1]
    inside = blocks.gather(2, block[..., None].expand(-1, -1, -1, width))[:, :, 0]
    winners: Tensor = block[..., 0] * width + inside.argmax(2)
    return winners


def _near_root(count: int) -> int:
    """The largest divisor up to the square root: 50 of 4000; 1 of a prime."""
    return max(d for d in range(1, math.isqrt(count) + 1) if count % d == 0)


def distance_of(residual: Tensor) -> Tensor:
    """Euclidean length of residuals, [B, D, h, w] -> [B, h, w]."""
    return (residual**2).sum(1).sqrt()


def coreset(patches: Tensor, count: int, seed: int = 0) -> Tensor:
    """Indices of at most ``count`` patches [N, D] that cover the rest, i64.

    Farthest point first (PatchCore, arXiv 2106.08265, algorithm 1) in a random projection to 64
    dimensions; of more than 100 000 patches a random share takes part.
    """
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randperm(len(patches), generator=generator)[:CANDIDATES_MAX]
    points = _projected(patches[candidates], generator)
    squared = (points**2).sum(1)
    distance = torch.full_like(squared, torch.inf)
    chosen = [0]
    for _ in range(min(count, len(points)) - 1):
        point = points[chosen[-1]]
        # |p - q|^2 by the identity: one pass over the points, in f32 on centred values.
        fresh = torch.addmv(squared, points, point, alpha=-2).add_(squared[chosen[-1]])
        torch.minimum(distance, fresh, out=distance)
        chosen.append(int(distance.argmax()))
    return candidates[torch.tensor(chosen)]


def _projected(patches: Tensor, generator: torch.Generator) -> Tensor:
    """Random projection to 64 dimensions of centred patches [N, D]; narrow ones stay."""
    centred: Tensor = patches.float() - patches.float().mean(0)
    channels = centred.shape[1]
    if channels <= PROJECTED:
        return centred
    axes: Tensor = torch.randn(channels, PROJECTED, generator=generator) / PROJECTED**0.5
    return torch.mm(centred, axes)

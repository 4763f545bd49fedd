"""How unlike the changes of good parts a change is: its Mahalanobis distance (an extension).

A denoiser moves good parts too: much along what varies between good parts, hardly at all across it.
The published maps take the mean over channels and so see the first alone. Here every change is
measured in the covariance of the changes that the same walk makes to good parts of the category, as
PaDiM (arXiv 2011.08785) measures features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from engines.codecs import Moments

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOOR = 0.01  # of the mean variance: what counts as no variance at all


class Whitening(nn.Module):
    """A change of a latent -> its length in units of good parts' changes, by category."""

    mean: Tensor  # [categories + 1, C]
    axes: Tensor  # [categories + 1, C, C], the largest entry of each category 1
    unit: Tensor  # [categories + 1], what the axes are to be multiplied by

    def __init__(self, categories: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(categories + 1, channels))
        self.register_buffer("axes", torch.eye(channels).repeat(categories + 1, 1, 1))
        self.register_buffer("unit", torch.ones(categories + 1))

    def forward(self, change: Tensor, category: Tensor) -> Tensor:
        """Change [B, C, h, w], category i64 [B] -> [B, h, w], 1 in the mean of good parts."""
        batch, _, height, width = change.shape
        centred = change.flatten(2) - self.mean[category][:, :, None]
        told = torch.bmm(self.axes[category], centred)  # [B, C, h*w]
        length = (told**2).mean(1).sqrt() * self.unit[category][:, None]
        return length.view(batch, height, width)

    @torch.no_grad()
    def fit(self, changes: Sequence[Tensor], category: int) -> None:
        """Take mean and covariance of changes [B, C, h, w] of good parts of a category, in place.

        Variances below ``FLOOR`` of their mean are raised by it, so that a direction in which no
        good part ever moved does not decide alone.
        """
        moments = Moments()
        for change in changes:
            moments.add(change.permute(0, 2, 3, 1).flatten(0, 2))
        mean, covariance = moments.of()
        floor = FLOOR * covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
        variance, vectors = torch.linalg.eigh(covariance)
        axes = vectors.T / (variance.clamp(min=0) + floor).sqrt()[:, None]
        # A bundle keeps large tables in half precision, which holds no number above 65 504.
        largest = axes.abs().max()
        self.mean[category] = mean.float()
        self.axes[category] = (axes / largest).float()
        self.unit[category] = largest.float()

"""How unlike the changes of good parts a change is: its Mahalanobis distance (an extension).

A denoiser moves good parts too: much along what varies between good parts, hardly at all across it.
A mean over channels (DeCo-Diff, D3AD) sees the first alone. Here a change is measured in the
covariance of the changes that the same walk makes to good parts of the category, as PaDiM
(arXiv 2011.08785) measures features; about zero, so that no change at all has no length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOOR = 0.01  # of the mean square, added to that of every direction


class Whitening(nn.Module):
    """A change of a latent -> its length in units of good parts' changes, by category."""

    axes: Tensor  # [categories + 1, C, C], of changes in units of ``unit``; no entry above 10
    unit: Tensor  # [categories + 1], root mean square of good parts' changes

    def __init__(self, categories: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("axes", torch.eye(channels).repeat(categories + 1, 1, 1))
        self.register_buffer("unit", torch.ones(categories + 1))

    def forward(self, change: Tensor, category: Tensor) -> Tensor:
        """Change [B, C, h, w], category i64 [B] -> [B, h, w], 1 in the mean of good parts."""
        batch, _, height, width = change.shape
        scaled = change.flatten(2) / self.unit[category][:, None, None]
        along = torch.bmm(self.axes[category], scaled)  # [B, C, h*w]
        return (along**2).mean(1).sqrt().view(batch, height, width)

    @torch.no_grad()
    def fit(self, changes: Sequence[Tensor], category: int) -> None:
        """Take the second moments of changes [B, C, h, w] of good parts of a category, in place.

        ``FLOOR`` is added in every direction, so that one in which no good part ever moved does not
        decide alone, and no entry leaves the range that half precision holds well.
        """
        cells = torch.cat([change.transpose(0, 1).flatten(1) for change in changes], 1).double()
        unit = cells.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        cells /= unit
        square, vectors = torch.linalg.eigh(cells @ cells.T / cells.shape[1])
        self.axes[category] = (vectors.T / (square.clamp(min=0) + FLOOR).sqrt()[:, None]).float()
        self.unit[category] = unit.float()

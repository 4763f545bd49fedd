"""The networks of DRDC: a transformer that rebuilds every feature, and a U-Net that inpaints.

The transformer, the base branch, is shaped after UniAD (arXiv 2206.03687): an encoder, then a
decoder whose queries are learned and know nothing of the image, attention that leaves out a token's
neighbourhood, and features that are jittered in training. Each of the three keeps it from copying
what it should rebuild, so the error of a token is evidence by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.networks import build_denoiser

GRID_MAX = 16  # tokens a side; a finer latent is averaged
NEIGHBOURHOOD = 4  # the hidden window reaches a quarter of the grid each way; UniAD: 7 of 14
JITTER = 1.2  # of a token's own size; UniAD's scale of 20 over its 272 channels comes to this


@dataclass(frozen=True, slots=True)
class RebuilderShape:
    """One row of the size table, under the names of the denoisers'."""

    width: int
    layers: int  # of the encoder, and again of the decoder
    heads: int


REBUILDERS = {
    "nano": RebuilderShape(64, 1, 4),
    "tiny": RebuilderShape(128, 2, 4),
    "base": RebuilderShape(256, 3, 8),
    "full": RebuilderShape(256, 4, 8),  # UniAD's own
}


class DrdcNetwork(nn.Module):
    """Both branches, fitted together."""

    def __init__(
        self, size: str, latent: tuple[int, int, int], categories: int, dropout: float
    ) -> None:
        super().__init__()
        shape = REBUILDERS.get(size, REBUILDERS["base"])
        self.base = FeatureRebuilder(shape, latent, categories, dropout)
        self.inpainter: nn.Module = build_denoiser(
            size, latent[0], categories, dropout, inputs=2 * latent[0] + 1
        )

    def forward(self, shown: Tensor, timestep: Tensor, category: Tensor) -> Tensor:
        """Noise in the hidden region of ``shown`` [B, 2C + 1, h, w], [B, C, h, w]."""
        noise: Tensor = self.inpainter(shown, timestep, category)
        return noise


class FeatureRebuilder(nn.Module):
    """Latent [B, C, h, w] and category i64 [B] -> its tokens, rebuilt, [B, T, C].

    A token is the mean of a few cells; ``grid`` is their arrangement, at most 16 x 16. The last row
    of the category table is "unknown".
    """

    within: Tensor
    around: Tensor

    def __init__(
        self, shape: RebuilderShape, latent: tuple[int, int, int], categories: int, dropout: float
    ) -> None:
        super().__init__()
        channels, *sides = latent
        self.cells = (cells_per_token(sides[0]), cells_per_token(sides[1]))
        self.grid = (sides[0] // self.cells[0], sides[1] // self.cells[1])
        tokens = self.grid[0] * self.grid[1]
        self.embed = nn.Linear(channels, shape.width)
        self.places = nn.Parameter(0.02 * torch.randn(tokens, shape.width))
        self.class_table = nn.Embedding(categories + 1, shape.width)
        self.encoder = nn.ModuleList(_Encoding(shape, dropout) for _ in range(shape.layers))
        self.decoder = nn.ModuleList(_Decoding(shape, tokens, dropout) for _ in range(shape.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(shape.width) for _ in range(2))
        self.project = nn.Linear(shape.width, channels)
        within = neighbour_mask(self.grid)
        self.register_buffer("within", within, persistent=False)
        self.register_buffer("around", _with_category(within), persistent=False)

    def forward(self, tokens: Tensor, category: Tensor) -> Tensor:
        """Rebuild tokens [B, T, C] of categories i64 [B], each from those outside its window."""
        hidden = self.embed(tokens) + self.places
        memory = torch.cat([hidden, self.class_table(category)[:, None]], 1)
        for layer in self.encoder:
            memory = layer(memory, self.around)
        memory = self.norms[0](memory)
        rebuilt = memory[:, :-1]
        for layer in self.decoder:
            rebuilt = layer(rebuilt, memory, self.within, self.around[:-1])
        projected: Tensor = self.project(self.norms[1](rebuilt))
        return projected

    def tokens_of(self, latent: Tensor) -> Tensor:
        """Means of the cells under each token, [B, C, h, w] -> [B, T, C]."""
        return functional.avg_pool2d(latent, self.cells).flatten(2).transpose(1, 2)

    def missed(self, latent: Tensor, category: Tensor) -> Tensor:
        """Each token less what the others make of it, [B, C, h', w']."""
        tokens = self.tokens_of(latent)
        missed = tokens - self(tokens, category)
        return torch.unflatten(missed.transpose(1, 2), 2, self.grid)

    def training_loss(self, latent: Tensor, category: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of clean tokens rebuilt from jittered ones, scalar."""
        tokens = self.tokens_of(latent)
        rebuilt = self(jittered(tokens, generator), category)
        return functional.mse_loss(rebuilt.float(), tokens)


def cells_per_token(cells: int) -> int:
    """The smallest whole share of a side that leaves at most ``GRID_MAX`` tokens on it."""
    return next(d for d in range(1, cells + 1) if cells % d == 0 and cells // d <= GRID_MAX)


def jittered(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Tokens [B, T, C] with Gaussian noise in proportion to each one's own size (UniAD, 3.4)."""
    size = tokens.square().mean(2, keepdim=True).sqrt()
    noise = torch.randn(tokens.shape, generator=generator).to(tokens)
    return tokens + JITTER * size * noise


def neighbour_mask(grid: tuple[int, int]) -> Tensor:
    """Which tokens a token may attend to: those outside the window around it, bool [T, T]."""
    radius = max(1, min(grid) // NEIGHBOURHOOD)
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    row, column = row.flatten(), column.flatten()
    reach = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())
    return reach > radius


def _with_category(within: Tensor) -> Tensor:
    """The same with the category token last: all see it, it sees itself alone, [T + 1, T + 1].

    Were it to look at the tokens, it would carry each one's content back to itself.
    """
    tokens = len(within)
    mask = torch.ones(tokens + 1, tokens + 1, dtype=torch.bool)
    mask[:tokens, :tokens] = within
    mask[tokens, :tokens] = False
    return mask


class _Encoding(nn.Module):
    """Attention among tokens, then a small network on each; both added to what was there."""

    def __init__(self, shape: RebuilderShape, dropout: float) -> None:
        super().__init__()
        self.attention = _Attention(shape)
        self.thought = _thought(shape.width)
        self.norms = nn.ModuleList(nn.LayerNorm(shape.width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, memory: Tensor, mask: Tensor) -> Tensor:
        seen = self.norms[0](memory)
        memory = memory + self.dropout(self.attention(seen, seen, mask))
        thought: Tensor = self.dropout(self.thought(self.norms[1](memory)))
        return memory + thought


class _Decoding(nn.Module):
    """Learned queries look at the encoder's tokens, then at the layer before."""

    def __init__(self, shape: RebuilderShape, tokens: int, dropout: float) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(tokens, shape.width))
        self.remembering, self.refining = _Attention(shape), _Attention(shape)
        self.thought = _thought(shape.width)
        self.norms = nn.ModuleList(nn.LayerNorm(shape.width) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, before: Tensor, memory: Tensor, within: Tensor, around: Tensor) -> Tensor:
        hidden = self.queries.expand_as(before)
        hidden = hidden + self.dropout(self.remembering(self.norms[0](hidden), memory, around))
        earlier = self.norms[1](before)
        hidden = hidden + self.dropout(self.refining(self.norms[2](hidden), earlier, within))
        decoded: Tensor = hidden + self.dropout(self.thought(self.norms[3](hidden)))
        return decoded


class _Attention(nn.Module):
    """Multi-head attention under a constant mask."""

    def __init__(self, shape: RebuilderShape) -> None:
        super().__init__()
        self.heads = (shape.heads, shape.width // shape.heads)
        self.query = nn.Linear(shape.width, shape.width)
        self.key_value = nn.Linear(shape.width, 2 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        parts = (self.query(query), *self.key_value(memory).chunk(2, -1))
        q, k, v = (torch.unflatten(part, 2, self.heads).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        answer: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return answer


def _thought(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

"""DeCo-Diff: correct the deviations of a latent from normality (arXiv 2503.19357).

A network is trained to predict, from a partly corrupted latent, only the correction, and zero where
nothing is wrong. At test time the clean latent itself is fed in; a defect plays the role of the
corruption. The levels are the ten-level cosine schedule thinned to five: 8, 6, 4, 2, 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from engines.maps import gaussian_blur, level_of, resize_map
from engines.methods.fused import MAP_STRIDE, latent_map, per_row
from engines.methods.latent import Batch, LatentMethod
from engines.methods.method import Plan, State
from engines.networks import build_denoiser
from engines.noise import (
    cosine_alpha_bar,
    move_to_level,
    predict_x0,
    thinned_levels,
    with_clean_level,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.noise import Float64

LEVELS = 10
PATCH_SIDES = (1, 2, 4, 8, 16)
PATCH_SHARES = (0.30, 0.25, 0.20, 0.15, 0.10)
CORRUPTION_MAX = 0.7  # r ~ U(0, 0.7): share of patches corrupted
SHUFFLE_MAX = 0.3  # r' ~ U(0, 0.3): share of those that take other latents instead of noise
PIXEL_CLIP = 0.4  # both official, tied to the Stable Diffusion latent; refitted on good parts
LATENT_CLIP = 0.2
GATE_START = -2.0  # logit of "this cell is corrupted" before anything is learned
CLIP_QUANTILE, CLIP_FACTOR = 0.995, 4.0  # a clip is so many times that level of good deviations


def signal_levels() -> tuple[Tensor, Tensor]:
    """a_t and b_t of the ten levels, with the clean level -1 appended, [11] each."""
    alpha_bar = torch.from_numpy(with_clean_level(cosine_alpha_bar(LEVELS))).float()
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def patch_mask(
    batch: int, grid: tuple[int, int], side: int, share: Tensor, generator: torch.Generator
) -> Tensor:
    """Random mask that is 1 on exactly floor(share * patches) patches of each row, [B, 1, h, w].

    share: [B] in [0, 1].
    """
    rows, columns = grid[0] // side, grid[1] // side
    patches = rows * columns
    rank = torch.rand(batch, patches, generator=generator).argsort(1).argsort(1)
    mask = (rank < (share * patches).floor()[:, None]).float().view(batch, 1, rows, columns)
    return mask.repeat_interleave(side, 2).repeat_interleave(side, 3)


def shuffled_patches(latent: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """The batch cut into patches and permuted across positions and across images, [B, C, h, w]."""
    batch, channels, height, width = latent.shape
    tiles = nn.functional.unfold(latent, side, stride=side)  # [B, C*side*side, patches]
    flat = tiles.permute(0, 2, 1).reshape(-1, tiles.shape[1])
    mixed = flat[torch.randperm(len(flat), generator=generator)]
    mixed = mixed.view(batch, -1, tiles.shape[1]).permute(0, 2, 1)
    return nn.functional.fold(mixed, (height, width), side, stride=side).view(
        batch, channels, height, width
    )


def corrupt(
    latent: Tensor, level: Tensor, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Corrupted latent z_t, its target deviation, and the keep-mask (1 = kept).

    z_t = M z_0 + (1-M)(a_t z_0 + b_t eta); target = (1-M)(eta - (1-a_t)/b_t z_0), so that
    z_t - b_t target = z_0 exactly. latent [B, C, h, w], level i64 [B]; ``side`` divides h and w.
    """
    batch, grid = len(latent), (latent.shape[2], latent.shape[3])
    a, b = (table.to(latent)[level].view(-1, 1, 1, 1) for table in signal_levels())
    corrupted = torch.rand(batch, generator=generator) * CORRUPTION_MAX
    keep = patch_mask(batch, grid, side, 1 - corrupted, generator).to(latent)
    borrowed = torch.rand(batch, generator=generator) * SHUFFLE_MAX
    borrow = patch_mask(batch, grid, side, borrowed, generator).to(latent)
    gaussian = torch.randn(latent.shape, generator=generator).to(latent)
    eta = borrow * shuffled_patches(latent, side, generator) + (1 - borrow) * gaussian
    noisy = keep * latent + (1 - keep) * (a * latent + b * eta)
    return noisy, (1 - keep) * (eta - (1 - a) / b * latent), keep


def patch_side(grid: tuple[int, int], generator: torch.Generator) -> int:
    """One patch size for the whole batch, by the official shares, among those that tile the grid.

    A grid of 28 or 40 cells (224 or 320 px) holds no whole number of the larger patches.
    """
    fitting = [i for i, side in enumerate(PATCH_SIDES) if _tiles(grid, side)]
    shares = torch.tensor([PATCH_SHARES[i] for i in fitting])
    return PATCH_SIDES[fitting[int(torch.multinomial(shares, 1, generator=generator))]]


def _tiles(grid: tuple[int, int], side: int) -> bool:
    """Whether patches of ``side`` cells cover the grid exactly, at least two each way."""
    return all(cells % side == 0 and cells >= 2 * side for cells in grid)


class DecoDiff(LatentMethod):
    """DeCo-Diff: the clean latent walks along the deviation that its network predicts."""

    name: ClassVar[str] = "DeCo-Diff"
    exact_in_bf16: ClassVar[tuple[str, ...]] = ("denoiser",)

    latent_clip: Tensor
    pixel_clip: Tensor

    @staticmethod
    def alpha_bar() -> Float64:
        """Ten cosine levels."""
        return cosine_alpha_bar(LEVELS)

    def walks(self) -> Sequence[Plan]:
        """The schedule thinned to 2, 3 and 5 levels; the last is the published one."""
        return [Plan(t[0], t) for t in (thinned_levels(k, LEVELS) for k in (2, 3, 5))]

    def constants(self) -> dict[str, float]:
        """The shared tables and the clips of both maps."""
        return {"latent_clip": LATENT_CLIP, "pixel_clip": PIXEL_CLIP, **super().constants()}

    def training_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted deviation over all cells, kept ones too."""
        latent = batch.latent
        level = torch.randint(LEVELS, (len(latent),), generator=generator)
        grid = (latent.shape[2], latent.shape[3])
        noisy, target, _ = corrupt(latent, level, patch_side(grid, generator), generator)
        predicted = self.predicted_deviation(noisy, level.to(latent.device), batch.category)
        return nn.functional.mse_loss(predicted.float(), target)

    def build_network(self, configuration: Mapping[str, Any]) -> nn.Module:
        """The shared network; preconditioned, it has one more output, the gate."""
        channels = self.codec.latent_shape[0]
        return build_denoiser(
            configuration["denoiser"],
            channels + self.is_preconditioned,
            self.categories,
            dropout=configuration.get("dropout", 0.1),
            inputs=channels,
        )

    def predicted_deviation(self, latent: Tensor, level: Tensor, category: Tensor) -> Tensor:
        """delta of latent [B, C, h, w] at level i64 [B].

        Preconditioned: where a cell is corrupted, E[delta | z_t] of a whitened latent is
        (1 - a_t)/b_t z_t; the network says where (a gate per cell) and what that leaves over.
        """
        predicted: Tensor = self.denoiser(latent, level, category)
        if not self.is_preconditioned:
            return predicted
        a_t, b_t = self.signal(level)
        gate = (predicted[:, -1:] + GATE_START).sigmoid()
        return gate * (1 - a_t) / b_t * latent + predicted[:, :-1]

    def move(self, state: Mapping[str, Tensor], level: Tensor, following: Tensor) -> State:
        """z_hat_0 = z - b_t d; z <- z_hat_0 + b_s d; the estimate is z_hat_0."""
        (_, b_t), (_, b_s) = self.signal(level), self.signal(following)
        deviation = self.predicted_deviation(state["latent"], level.clamp(min=0), state["category"])
        estimate = predict_x0(state["latent"], deviation, 1.0, b_t)
        return {
            "latent": move_to_level(estimate, deviation, 1.0, b_s),
            "estimate": estimate,
        }

    def deviation_map(self, state: Mapping[str, Tensor]) -> Tensor:
        """sqrt(pixel map * latent map) with a VAE; the latent map alone with features, [B, h', w'].

        Each is clipped at its level on good parts and smoothed first; a VAE's fused map is averaged
        over ``MAP_STRIDE`` pixels, which the published one is not.
        """
        category = state["category"]
        clip = per_row(self.latent_clip, category)
        latent = latent_map(state, state["estimate"]).clamp(max=clip) / clip
        latent = gaussian_blur(latent, 1.0)
        if self.codec.kind != "vae":
            return resize_map(latent, self.map_size)
        clip = per_row(self.pixel_clip, category)
        pixel = gaussian_blur(self.pixel_map(state).clamp(max=clip) / clip, 3.0)
        fused = (pixel * resize_map(latent, self.image_size)).sqrt()
        return nn.functional.avg_pool2d(fused[:, None], MAP_STRIDE)[:, 0]

    def pixel_map(self, state: Mapping[str, Tensor]) -> Tensor:
        """Maximum over RGB of |D(z_hat) - D(z_0)|: the codec's own error cancels, [B, H, W]."""
        # The published images lie in [-1, 1], ours in [0, 1].
        change = self.codec.decode(state["estimate"]) - self.codec.decode(state["anchor"])
        return 2 * change.abs().amax(1)

    def fit_constants(self, states: Sequence[State], category: int) -> None:
        """Clips: four times the 99.5 % level of good deviations.

        The published ones are tied to the Stable Diffusion latent.
        """
        latent = torch.cat([latent_map(s, s["estimate"]) for s in states])
        self.latent_clip[category] = CLIP_FACTOR * level_of(latent, CLIP_QUANTILE)
        if self.codec.kind == "vae":
            pixel = torch.cat([self.pixel_map(s)[:, ::4, ::4] for s in states])
            self.pixel_clip[category] = CLIP_FACTOR * level_of(pixel, CLIP_QUANTILE)

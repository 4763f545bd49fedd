"""DeCo-Diff: correct the deviations of a latent from normality (arXiv 2503.19357).

A network is trained to predict, from a partly corrupted latent, only the correction, and zero where
nothing is wrong. At test time the clean latent itself is fed in; a defect plays the role of the
corruption. The levels are the ten-level cosine schedule thinned to five: 8, 6, 4, 2, 0.

Extensions, named in a bundle's substitutions: an "unknown" category by label dropout; a feature
codec in place of the Stable Diffusion autoencoder; a severity bank in ``start`` (D3AD's idea) that
gives a base map, chooses the plan, and lets plainly normal frames leave without any step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from engines.bank import SeverityBank
from engines.codecs import build_codec
from engines.maps import gaussian_blur, resize_map
from engines.methods.method import Method, Plan, State
from engines.networks import build_denoiser
from engines.noise import (
    cosine_alpha_bar,
    move_to_level,
    predict_x0,
    thinned_levels,
    with_clean_level,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

LEVELS = 10
PATCH_SIDES = (1, 2, 4, 8, 16)
PATCH_SHARES = (0.30, 0.25, 0.20, 0.15, 0.10)
CORRUPTION_MAX = 0.7  # r ~ U(0, 0.7): share of patches corrupted
SHUFFLE_MAX = 0.3  # r' ~ U(0, 0.3): share of those that take other latents instead of noise
PIXEL_CLIP = 0.4  # both official, tied to the Stable Diffusion latent; refitted on good parts
LATENT_CLIP = 0.2
BASE_SHARE = 0.7  # weight of the base map where nothing has been fitted
MAP_STRIDE = 4  # the emitted map is the image's grid divided by this


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


class DecoDiff(Method):
    """DeCo-Diff over a codec, with or without a severity bank.

    ``configuration``: codec (dict), denoiser (size name), categories (count), image_size, dropout,
    bank (None or dict with ``rows``).
    """

    name: ClassVar[str] = "DeCo-Diff"

    levels: Tensor
    steps_of_plan: Tensor
    start_of_plan: Tensor
    a: Tensor
    b: Tensor
    latent_clip: Tensor
    pixel_clip: Tensor
    base_scale: Tensor
    deviation_scale: Tensor
    severity_edges: Tensor
    base_share: Tensor

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        super().__init__()
        height, width = configuration["image_size"]
        self.image_size = (int(height), int(width))
        self.codec = build_codec(dict(configuration["codec"]))
        self.pretrained_prefixes = tuple(f"codec.{p}" for p in self.codec.pretrained_prefixes)
        channels = self.codec.latent_shape[0]
        categories = int(configuration["categories"])
        self.denoiser: nn.Module = build_denoiser(
            configuration["denoiser"],
            channels,
            categories,
            dropout=configuration.get("dropout", 0.1),
        )
        bank = configuration.get("bank")
        self.bank = (
            SeverityBank(categories, bank["rows"], self.codec.feature_channels) if bank else None
        )
        self.plans = self._plan_table(with_bank=bank is not None)
        self.steps_min, self.steps_unit = (0 if bank else 1), 1
        self._register_tables(categories)

    @staticmethod
    def _plan_table(*, with_bank: bool) -> tuple[Plan, ...]:
        """Shallow to deep, the official one last. Without a step only a bank has evidence."""
        plans = tuple(Plan(t[0], t) for t in (thinned_levels(k, LEVELS) for k in (2, 3, 5)))
        return (Plan(-1, ()), *plans) if with_bank else plans

    def _register_tables(self, categories: int) -> None:
        deepest = max(plan.steps for plan in self.plans)
        padded = [plan.levels + (-1,) * (deepest + 1 - plan.steps) for plan in self.plans]
        self.register_buffer("levels", torch.tensor(padded), persistent=False)
        steps = [plan.steps for plan in self.plans]
        self.register_buffer(
            "steps_of_plan", torch.tensor(steps, dtype=torch.int32), persistent=False
        )
        starts = [plan.start_level for plan in self.plans]
        self.register_buffer(
            "start_of_plan", torch.tensor(starts, dtype=torch.int32), persistent=False
        )
        a, b = signal_levels()
        self.register_buffer("a", a, persistent=False)
        self.register_buffer("b", b, persistent=False)
        per_category = torch.ones(categories + 1)
        self.register_buffer("latent_clip", LATENT_CLIP * per_category)
        self.register_buffer("pixel_clip", PIXEL_CLIP * per_category)
        self.register_buffer("base_scale", per_category.clone())
        self.register_buffer("deviation_scale", per_category.clone())
        self.register_buffer("base_share", torch.full((categories + 1,), BASE_SHARE))
        edges = torch.full((categories + 1, len(self.plans) - 1), float("inf"))
        self.register_buffer("severity_edges", edges)

    # ---- training

    def training_loss(self, latent: Tensor, category: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted deviation over all cells, kept ones too.

        latent f32 [B, C, h, w], category i64 [B]; scalar.
        """
        level = torch.randint(LEVELS, (len(latent),), generator=generator)
        grid = (latent.shape[2], latent.shape[3])
        noisy, target, _ = corrupt(latent, level, patch_side(grid, generator), generator)
        predicted = self.denoiser(noisy, level, category)
        return nn.functional.mse_loss(predicted.float(), target)

    # ---- the three graphs

    def start(self, image: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """Encode, look the frame up in the bank, take the forced plan or the severity's."""
        del seed  # DeCo-Diff is deterministic: nothing is noised at test time
        latent, base_map = self._encode(image, category)
        chosen = torch.where(plan >= 0, plan.long(), self._plan_for(base_map, category))
        return {
            "steps_left": self.steps_of_plan[chosen],
            "plan": chosen.int(),
            "level": self.start_of_plan[chosen],
            "category": category,
            "latent": latent,
            "estimate": latent.clone(),
            "anchor": latent.clone(),
            "base_map": base_map,
        }

    def step(self, state: State) -> State:
        """z_hat_0 = z - b_t d; z <- z_hat_0 + b_s d; the estimate is z_hat_0."""
        plan = state["plan"].long()
        done = (self.steps_of_plan[plan] - state["steps_left"]).long()
        deepest = self.levels.shape[1] - 1
        level = self.levels[plan, done.clamp(0, deepest)]
        following = self.levels[plan, (done + 1).clamp(0, deepest)]
        b_t, b_s = (self.b[index].view(-1, 1, 1, 1) for index in (level, following))
        deviation = self.denoiser(state["latent"], level.clamp(min=0), state["category"])
        estimate = predict_x0(state["latent"], deviation, 1.0, b_t)
        return {
            "latent": move_to_level(estimate, deviation, 1.0, b_s),
            "estimate": estimate,
            "steps_left": state["steps_left"] - 1,
        }

    def finish(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Fused map on a quarter of the image's grid, and its maximum.

        Without a bank it is the paper's map. With one, base and deviation are each divided by
        their level on good parts and added, so a frame that made no step is judged by the base.
        """
        category = state["category"]
        deviation = self.deviation_map(state["anchor"], state["estimate"], category)
        if self.bank is None:
            # Without a step there is no evidence, and no evidence is not a score of zero.
            made = self.steps_of_plan[state["plan"].long()] - state["steps_left"]
            score = deviation.amax((1, 2))
            return deviation, torch.where(made >= self.steps_min, score, torch.nan)
        base = self.smooth_base_map(state["base_map"]) / _per_row(self.base_scale, category)
        deviation = deviation / _per_row(self.deviation_scale, category)
        share = _per_row(self.base_share, category)
        fused = share * base + (1 - share) * deviation
        return fused, fused.amax((1, 2))

    # ---- pieces

    @property
    def map_size(self) -> tuple[int, int]:
        """h', w' of the emitted map."""
        return self.image_size[0] // MAP_STRIDE, self.image_size[1] // MAP_STRIDE

    def _encode(self, image: Tensor, category: Tensor) -> tuple[Tensor, Tensor]:
        """Latent [B, C, h, w] and base map [B, h, w] (zero without a bank)."""
        if self.bank is None:
            latent = self.codec.encode(image)
            return latent, torch.zeros_like(latent[:, 0])
        latent, features = self.codec.encode_with_features(image)
        return latent, self.bank(features, category)

    def _plan_for(self, base_map: Tensor, category: Tensor) -> Tensor:
        """The number of severity edges that the frame's severity exceeds, i64 [B]."""
        if self.bank is None:
            return torch.full_like(category, len(self.plans) - 1)
        severity = self.severity(base_map)
        return (severity[:, None] > self.severity_edges[category]).long().sum(1)

    def severity(self, base_map: Tensor) -> Tensor:
        """How far the worst place of a frame lies from all good parts, [B]."""
        return self.smooth_base_map(base_map).amax((1, 2))

    def smooth_base_map(self, base_map: Tensor) -> Tensor:
        """Distances on the emitted grid, smoothed by sigma = 4 image pixels, [B, h', w']."""
        return gaussian_blur(resize_map(base_map, self.map_size), 4 / MAP_STRIDE)

    def deviation_map(self, anchor: Tensor, estimate: Tensor, category: Tensor) -> Tensor:
        """sqrt(pixel map * latent map) with a VAE; the latent map alone with features, [B, h', w'].

        Each is clipped at its level on good parts and smoothed first; a VAE's fused map is averaged
        over ``MAP_STRIDE`` pixels, which the published one is not.
        """
        latent = self.latent_map(anchor, estimate)
        clip = _per_row(self.latent_clip, category)
        latent = gaussian_blur(latent.clamp(max=clip) / clip, 1.0)
        if self.codec.kind != "vae":
            return resize_map(latent, self.map_size)
        clip = _per_row(self.pixel_clip, category)
        pixel = gaussian_blur(self.pixel_map(anchor, estimate).clamp(max=clip) / clip, 3.0)
        fused = (pixel * resize_map(latent, self.image_size)).sqrt()
        return nn.functional.avg_pool2d(fused[:, None], MAP_STRIDE)[:, 0]

    @staticmethod
    def latent_map(anchor: Tensor, estimate: Tensor) -> Tensor:
        """Mean over channels of |z_hat - z_0|, [B, h, w]."""
        return (estimate - anchor).abs().mean(1)

    def pixel_map(self, anchor: Tensor, estimate: Tensor) -> Tensor:
        """Maximum over RGB of |D(z_hat) - D(z_0)|: the codec's own error cancels, [B, H, W]."""
        # The published images lie in [-1, 1], ours in [0, 1].
        return 2 * (self.codec.decode(estimate) - self.codec.decode(anchor)).abs().amax(1)

    def reconstruct(self, state: Mapping[str, Tensor]) -> Tensor:
        """The normal-looking image, rgb f32 [B, 3, H, W] in [0, 1], for people."""
        return self.codec.decode(state["estimate"])


def _per_row(table: Tensor, category: Tensor) -> Tensor:
    return table[category].view(-1, 1, 1)

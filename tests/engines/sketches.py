"""The four published methods as sketches: faithful in shape, tiny and random in weights.

They prove that one contract holds all four. Networks are stand-ins of a few thousand parameters;
schedules, bookkeeping, constant tables, cut points and evidence are those of the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from engines.maps import gaussian_blur, resize_map
from engines.methods.method import Plan, State
from engines.noise import (
    cosine_alpha_bar,
    linear_alpha_bar,
    move_to_level,
    predict_x0,
    scaled_linear_alpha_bar,
    thinned_levels,
)
from tests.engines.sketch_parts import (
    CATEGORIES,
    CHANNELS,
    GRID,
    MAP,
    SIDE,
    Decoder,
    Denoiser,
    Encoder,
    Sketch,
    to_rgb,
)


class DecoDiffSketch(Sketch):
    """DeCo-Diff: one constant level list; the clean latent walks along the predicted deviation."""

    name: ClassVar[str] = "DeCo-Diff"

    def __init__(self) -> None:
        plans = [Plan(t[0], t) for t in (thinned_levels(k, 10) for k in (2, 3, 5))]
        super().__init__(plans, cosine_alpha_bar())
        self.encoder, self.decoder, self.denoiser = Encoder(), Decoder(), Denoiser()

    def start(self, image: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """z_0, neither noised nor scaled."""
        del seed  # nothing is noised
        official = torch.full_like(category, len(self.plans) - 1)
        return self.begin(plan, official, category, self.encoder(image))

    def step(self, state: State) -> State:
        """z <- z - (b_t - b_s) delta."""
        level, following = self.places(state)
        (_, b_t), (_, b_s) = self.scales(level), self.scales(following)
        deviation = self.denoiser(state["latent"], level.clamp(min=0), state["category"])
        estimate = predict_x0(state["latent"], deviation, 1.0, b_t)
        moved = move_to_level(estimate, deviation, 1.0, b_s)
        return {"latent": moved, "estimate": estimate, "steps_left": state["steps_left"] - 1}

    def finish(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """sqrt(pixel map * latent map)."""
        latent = (state["estimate"] - state["anchor"]).abs().mean(1)
        decoded = self.decoder(state["estimate"]) - self.decoder(state["anchor"])
        pixel = resize_map(decoded.abs().amax(1), MAP)
        return self.judged((gaussian_blur(pixel, 1.0) * resize_map(latent, MAP)).sqrt(), state)


class D3adSketch(Sketch):
    """D3AD: a nearest-neighbour bank picks one of seven start levels; ten calls; eta pull."""

    name: ClassVar[str] = "D3AD"
    neighbours, eta, share = 3, 4.0, 0.85
    bank: Tensor
    edges: Tensor

    def __init__(self) -> None:
        plans = [Plan(t, tuple(range(9 * t // 10, -1, -t // 10))) for t in range(20, 90, 10)]
        # A deadline's plan: shortened before its first step, so a row of the table like any other.
        super().__init__([*plans, Plan(40, (32, 24, 16, 8, 0))], linear_alpha_bar())
        self.encoder, self.decoder, self.denoiser = Encoder(), Decoder(), Denoiser()
        self.table("bank", torch.randn(CATEGORIES, 40, CHANNELS * GRID))
        self.table("edges", torch.linspace(4.5, 7.0, len(plans) - 1))

    def start(self, image: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """z = a_T z_0, only scaled; T by the distance to the bank."""
        del seed  # nothing is noised
        anchor = self.encoder(image)
        severity = self.distance(anchor.mean(2).flatten(1), category)
        chosen = (severity[:, None] > self.edges).long().sum(1)
        state = self.begin(plan, chosen, category, anchor)
        return state | {"latent": self.scales(state["level"].long())[0] * anchor}

    def distance(self, feature: Tensor, category: Tensor) -> Tensor:
        """Mean distance to the nearest: search by matmul, measure by subtraction."""
        bank = self.bank[category]  # [B, n, D]
        product = torch.matmul(bank, feature[:, :, None])[:, :, 0]
        search = (bank * bank).sum(2) - 2 * product
        nearest = search.topk(self.neighbours, dim=1, largest=False).indices
        index = nearest[:, :, None].expand(-1, -1, bank.shape[2])
        return (bank.gather(1, index) - feature[:, None]).pow(2).sum(2).sqrt().mean(1)

    def step(self, state: State) -> State:
        """z~ = a_t z_0 + b_t e; e^ = e - eta b_t (z~ - z); DDIM with e^."""
        level, following = self.places(state)
        (a_t, b_t), (a_s, b_s) = self.scales(level), self.scales(following)
        noise = self.denoiser(state["latent"], level.clamp(min=0), torch.zeros_like(level))
        target = a_t * state["anchor"] + b_t * noise
        noise = noise - self.eta * b_t * (target - state["latent"])
        estimate = predict_x0(state["latent"], noise, a_t, b_t)
        moved = move_to_level(estimate, noise, a_s, b_s)
        return {"latent": moved, "estimate": estimate, "steps_left": state["steps_left"] - 1}

    def finish(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """lambda * latent L1 + (1 - lambda) * (1 - cosine) of features."""
        latent = resize_map((state["estimate"] - state["anchor"]).abs().mean(1), MAP)
        one, other = self.decoder(state["estimate"]), self.decoder(state["anchor"])
        cosine = 1 - nn.functional.cosine_similarity(one, other, dim=1)
        fused = self.share * latent + (1 - self.share) * resize_map(cosine, MAP)
        return self.judged(gaussian_blur(fused, 1.0), state)


class GladSketch(Sketch):
    """GLAD: noise by seed, a reference trajectory beside the walk, and a level at which it closes.

    The open row carries ``copy``, the estimate that the input itself would give; ``finish`` closes
    what is still open with it, so evidence never depends on where the walk stands.
    """

    name: ClassVar[str] = "GLAD"
    theta, worst = 1.2, 10
    noise_table: Tensor
    floor: Tensor

    def __init__(self) -> None:
        plans = [Plan(t, tuple(1 + 50 * i for i in range(t // 50 - 1, -1, -1))) for t in (300, 500)]
        super().__init__(plans, scaled_linear_alpha_bar())
        self.encoder, self.decoder, self.denoiser = Encoder(), Decoder(), Denoiser()
        self.table("noise_table", torch.randn(64, CHANNELS, GRID, GRID).half().float())
        self.table("floor", torch.tensor(150))

    def start(self, image: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """z_T = a_T z_0 + b_T eps, the same eps for the whole walk."""
        official = torch.full_like(category, len(self.plans) - 1)
        state = self.begin(plan, official, category, self.encoder(image))
        a, b = self.scales(state["level"].long())
        noise = self.noise_table[seed.remainder(len(self.noise_table))]
        walk = a * state["anchor"] + b * noise
        kept = {"latent": walk, "reference": walk.clone(), "noise": noise}
        return state | kept | {"copy": state["anchor"].clone(), "open": torch.ones_like(plan)}

    def step(self, state: State) -> State:
        """Estimate; test it against the input's own walk; blend and close, or go on; DDIM."""
        level, following = self.places(state)
        (a_t, b_t), (a_s, b_s) = self.scales(level), self.scales(following)
        noise = self.denoiser(state["latent"], level.clamp(min=0), state["category"])
        reference = a_t * state["anchor"] + b_t * state["noise"]
        estimate = predict_x0(state["latent"], noise, a_t, b_t)
        copy = predict_x0(reference, noise, a_t, b_t)
        moved = (estimate - copy).abs().mean(1)  # latent test; = |z_t - z~_t| / a_t
        severe = moved.flatten(1).topk(self.worst, dim=1).values.mean(1) > self.theta
        is_open = state["open"] > 0
        closes = is_open & (severe | (level < self.floor))
        share = torch.where(severe[:, None, None], moved.sigmoid(), 0.0)[:, None]
        blend = share * estimate + (1 - share) * copy
        estimate = torch.where(closes[:, None, None, None], blend, estimate)
        return {
            "steps_left": state["steps_left"] - 1,
            "level": torch.where(is_open, level.int(), state["level"]),
            "latent": move_to_level(estimate, noise, a_s, b_s),
            "reference": move_to_level(state["anchor"], state["noise"], a_s, b_s),
            "estimate": estimate,
            "copy": torch.where(is_open[:, None, None, None], copy, state["copy"]),
            "open": (is_open & ~closes).int(),
        }

    def finish(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Global nearest-token cosine map; a row still open is closed by its copy first."""
        is_open = (state["open"] > 0)[:, None, None, None]
        estimate = torch.where(is_open, state["copy"], state["estimate"])
        one, other = (
            nn.functional.normalize(x.flatten(2), dim=1) for x in (state["anchor"], estimate)
        )
        nearest = (1 - torch.matmul(one.transpose(1, 2), other)).amin(2)
        maps = resize_map(torch.unflatten(nearest, 1, (GRID, GRID)), MAP)
        pixel = (self.decoder(estimate) - self.decoder(state["anchor"])).abs().mean(1)
        maps = gaussian_blur(maps + resize_map(pixel, MAP), 1.0)
        _, score = self.judged(maps, state)
        top = maps.flatten(1).topk(self.worst, dim=1).values.mean(1)
        return maps, torch.where(score.isnan(), score, top)


class DrdcSketch(Sketch):
    """DRDC-style: masked inpainting in pixels, refining a base heatmap that needs no step.

    Masks are the innermost loop, one unit is one full cover of the image, and only complete covers
    reach the accumulators: a row cut in the middle of a cover loses that cover, not its evidence.
    """

    name: ClassVar[str] = "DRDC-style"
    steps_min, steps_unit = 0, 2
    scales_px = (8, 16)
    share = 0.5
    masks: Tensor
    noise_table: Tensor
    edges: Tensor

    def __init__(self) -> None:
        covers = [(50, 50), (150, 150), (50, 50, 150, 150), (50, 50, 150, 150, 300, 300)]
        plans = [Plan(c[0], tuple(t for t in c for _ in range(self.steps_unit))) for c in covers]
        super().__init__([Plan(-1, ()), *plans], linear_alpha_bar())
        self.encoder, self.denoiser = Encoder(), Denoiser(7, 3)
        self.rebuild = nn.Linear(CHANNELS, CHANNELS)
        self.table("masks", torch.stack([self.checkerboards(side) for side in self.scales_px]))
        self.table("noise_table", torch.randn(16, 3, SIDE, SIDE).half().float())
        self.table("edges", torch.linspace(1.5, 2.5, len(plans)))

    @staticmethod
    def checkerboards(side: int) -> Tensor:
        """A mask and its complement, [2, 1, H, W]; together they hide every pixel once."""
        cell = torch.arange(SIDE) // side
        mask = ((cell[:, None] + cell) % 2).float()
        return torch.stack([mask, 1 - mask])[:, None]

    def start(self, image: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """Base heatmap by feature reconstruction; how far it rises picks the number of covers."""
        base = self.base(image)
        chosen = (base.amax((1, 2))[:, None] > self.edges).long().sum(1)
        pixels = to_rgb(image)
        noise = self.noise_table[seed.remainder(len(self.noise_table))]
        blank = torch.zeros_like(pixels[:, 0])
        kept = {"noise": noise, "base_map": base, "heat": blank, "covers": torch.zeros_like(plan)}
        return self.begin(plan, chosen, category, pixels) | kept

    def base(self, image: Tensor) -> Tensor:
        """Error of features rebuilt from all others by attention, [B, h, w]."""
        feature = self.encoder(image)
        tokens = feature.flatten(2).transpose(1, 2)[:, None]
        rebuilt = nn.functional.scaled_dot_product_attention(tokens, tokens, self.rebuild(tokens))
        error = (rebuilt - tokens)[:, 0].abs().mean(2)
        return torch.unflatten(error, 1, (GRID, GRID))

    def step(self, state: State) -> State:
        """Rebuild what one mask hides; after the last mask of a cover, add its residual."""
        level, _ = self.places(state)
        a_t, b_t = self.scales(level)
        made = self.made(state)
        part, scale = made % self.steps_unit, made // self.steps_unit % len(self.scales_px)
        hidden = self.masks[scale, part]  # [B, 1, H, W]
        image = state["anchor"]
        noisy = hidden * (a_t * image + b_t * state["noise"])
        seen = torch.cat([noisy, (1 - hidden) * image, hidden], 1)
        noise = self.denoiser(seen, level.clamp(min=0), state["category"])
        rebuilt = predict_x0(noisy, noise, a_t, b_t)
        stitched = hidden * rebuilt + (1 - hidden) * state["latent"]
        whole = part == self.steps_unit - 1
        residual = (high_pass(image) - high_pass(stitched)).abs().mean(1)
        return {
            "steps_left": state["steps_left"] - 1,
            "latent": stitched,
            "estimate": torch.where(whole[:, None, None, None], stitched, state["estimate"]),
            "heat": state["heat"] + torch.where(whole[:, None, None], residual, 0.0),
            "covers": state["covers"] + whole.int(),
        }

    def finish(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Base + lambda * mean over complete covers; without any, the base alone."""
        covers = state["covers"].clamp(min=1).float()[:, None, None]
        refined = resize_map(state["heat"] / covers, MAP)
        maps = gaussian_blur(resize_map(state["base_map"], MAP) + self.share * refined, 1.0)
        return self.judged(maps, state)


def high_pass(image: Tensor) -> Tensor:
    """The image less its local mean, [B, 3, H, W]."""
    return image - nn.functional.avg_pool2d(image, 5, 1, 2)


SKETCHES: dict[str, Callable[[], Sketch]] = {
    sketch.name: sketch for sketch in (DecoDiffSketch, D3adSketch, GladSketch, DrdcSketch)
}

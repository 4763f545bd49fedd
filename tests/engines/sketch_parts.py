"""What the sketches are made of: tiny networks, and the bookkeeping that all four share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from engines.methods.method import Method, Plan, State, plan_taken
from engines.noise import Float64, with_clean_level

CATEGORIES = 3  # the last one is "unknown"
SIDE, CHANNELS, GRID = 64, 4, 8  # image, latent channels, latent grid
MAP = (SIDE // 4, SIDE // 4)


class Encoder(nn.Module):
    """Image u8 [B, H, W, 3] to a latent [B, 4, H/8, W/8] of about unit size."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 16, CHANNELS)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in pairwise(widths))

    def forward(self, image: Tensor) -> Tensor:
        """Three strided convolutions."""
        x = to_rgb(image)
        for layer in self.layers:
            x = 2 * nn.functional.silu(layer(x))
        return 4 * x


class Decoder(nn.Module):
    """Latent [B, 4, h, w] to rgb [B, 3, 8h, 8w]."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(CHANNELS, 16, 3, 1, 1), nn.Conv2d(16, 3, 3, 1, 1)

    def forward(self, latent: Tensor) -> Tensor:
        """Two convolutions around an enlargement."""
        x = nn.functional.interpolate(self.inner(latent), scale_factor=8.0, mode="nearest")
        return torch.tanh(self.outer(nn.functional.silu(x)))


class Denoiser(nn.Module):
    """A residual block with attention, told its level and category; one row never sees another."""

    rates: Tensor

    def __init__(self, inputs: int = CHANNELS, outputs: int = CHANNELS, width: int = 32) -> None:
        super().__init__()
        self.first, self.last = (
            nn.Conv2d(inputs, width, 3, 1, 1),
            nn.Conv2d(width, outputs, 3, 1, 1),
        )
        self.norm, self.attention = nn.GroupNorm(4, width), nn.Linear(width, 3 * width)
        self.level, self.category = nn.Linear(16, width), nn.Embedding(CATEGORIES, width)
        self.register_buffer("rates", torch.logspace(0, -3, 8), persistent=False)

    def forward(self, x: Tensor, level: Tensor, category: Tensor) -> Tensor:
        """Noise or deviation of x [B, C, h, w] at each row's own level."""
        angle = level.float()[:, None] * self.rates
        time = self.level(torch.cat([angle.sin(), angle.cos()], 1)) + self.category(category)
        hidden = nn.functional.silu(self.norm(self.first(x) + time[:, :, None, None]))
        tokens = nn.functional.avg_pool2d(hidden, x.shape[-1] // GRID).flatten(2).transpose(1, 2)
        q, k, v = self.attention(tokens)[:, None].chunk(3, -1)  # one head, [B, 1, h*w, width]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)
        mixed = torch.unflatten(mixed, 2, (GRID, GRID))
        mixed = nn.functional.interpolate(mixed, scale_factor=x.shape[-1] / GRID, mode="nearest")
        output: Tensor = self.last(hidden + mixed)
        return output


class Sketch(Method):
    """What the four share: plan tables as constants, levels by row, and no evidence as NaN."""

    alpha: Tensor
    levels: Tensor
    steps_of_plan: Tensor
    start_of_plan: Tensor
    image_size = (SIDE, SIDE)
    steps_min, steps_unit = 1, 1

    def __init__(self, plans: Sequence[Plan], alpha_bar: Float64) -> None:
        super().__init__()
        self.plans = tuple(plans)
        deepest = max(plan.steps for plan in self.plans)
        rows = [plan.levels + (-1,) * (deepest + 1 - plan.steps) for plan in self.plans]
        self.table("alpha", torch.as_tensor(with_clean_level(alpha_bar)).float())
        self.table("levels", torch.tensor(rows))
        self.table("steps_of_plan", torch.tensor([p.steps for p in self.plans], dtype=torch.int32))
        starts = [p.start_level for p in self.plans]
        self.table("start_of_plan", torch.tensor(starts, dtype=torch.int32))

    def table(self, name: str, values: Tensor) -> None:
        """A constant of the graphs."""
        self.register_buffer(name, values, persistent=False)

    def begin(self, plan: Tensor, chosen: Tensor, category: Tensor, latent: Tensor) -> State:
        """The tensors that every state has; a forced plan wins over the chosen one (i64 [B])."""
        taken = plan_taken(plan, chosen)
        return {
            "steps_left": self.steps_of_plan[taken],
            "plan": taken.int(),
            "level": self.start_of_plan[taken],
            "category": category,
            "latent": latent,
            "estimate": latent.clone(),
            "anchor": latent.clone(),
        }

    def made(self, state: Mapping[str, Tensor]) -> Tensor:
        """Denoiser calls made so far, i64 [B]."""
        return (self.steps_of_plan[state["plan"].long()] - state["steps_left"]).long()

    def places(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """This call's level and the next one's (-1 = clean), i64 [B]."""
        plan, made = state["plan"].long(), self.made(state)
        last = self.levels.shape[1] - 1
        return self.levels[plan, made.clamp(0, last)], self.levels[plan, (made + 1).clamp(0, last)]

    def scales(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and b_t of each row, [B, 1, 1, 1]."""
        alpha = self.alpha[level].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def judged(self, maps: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Map and score; NaN where fewer than ``steps_min`` calls were made."""
        enough = self.made(state) >= self.steps_min
        score = torch.where(enough, maps.amax((1, 2)), torch.nan)
        return torch.where(enough[:, None, None], maps, torch.nan), score


def to_rgb(image: Tensor) -> Tensor:
    """u8 [B, H, W, 3] to f32 [B, 3, H, W] in [-1, 1]."""
    return image.permute(0, 3, 1, 2).float() / 127.5 - 1

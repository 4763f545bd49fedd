"""Laws that all four methods share: what their losses ask for, and the shape of their evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from engines.methods import METHODS
from engines.methods.decodiff import PATCH_SHARES, PATCH_SIDES, patch_side
from engines.methods.drdc import Drdc
from engines.methods.latent import Batch, LatentMethod

if TYPE_CHECKING:
    from collections.abc import Callable

HEIGHT, WIDTH = 64, 96


def build(name: str) -> LatentMethod:
    """A tiny method with random weights on images that are no square."""
    torch.manual_seed(0)
    method = METHODS[name](
        {
            "codec": {"kind": "vae", "network": "tiny", "image_size": (HEIGHT, WIDTH)},
            "denoiser": "nano",
            "dropout": 0.0,
            "categories": 2,
            "image_size": (HEIGHT, WIDTH),
        }
    )
    assert isinstance(method, LatentMethod)
    return method.eval().requires_grad_(False)


class Oracle(nn.Module):
    """Answers d = (z_t - A_t z_0) / b_t, the one that makes the estimate the clean latent."""

    def __init__(self, method: LatentMethod, clean: Tensor) -> None:
        super().__init__()
        self.signal: Callable[[Tensor], tuple[Tensor, Tensor]] = method.signal
        self.keeps_signal, self.clean = method.name == "DeCo-Diff", clean  # there A_t is 1

    def forward(self, noisy: Tensor, level: Tensor, _category: Tensor) -> Tensor:
        """Of an inpainter, whose input holds more, only the noisy channels are read."""
        a, b = self.signal(level)
        noisy = noisy[:, : self.clean.shape[1]]
        return (noisy - (1.0 if self.keeps_signal else a) * self.clean) / b


def loss_with(method: LatentMethod, batch: Batch, answered: Tensor) -> Tensor:
    """The denoiser's loss where every answer leads to ``answered``."""
    generator = torch.Generator().manual_seed(4)
    if isinstance(method, Drdc):  # the base branch learns something else
        method.denoiser.inpainter = Oracle(method, answered)
        return method.inpainting_loss(batch.latent, batch.category, generator)
    method.denoiser = Oracle(method, answered)
    return method.training_loss(batch, generator)


@pytest.mark.parametrize("name", METHODS)
def test_only_the_clean_latent_costs_nothing(name: str) -> None:
    """A network whose estimate is the good latent has no loss; one that keeps the anomaly has."""
    method = build(name)
    good, odd = torch.randn(2, 16, *method.codec.latent_shape)
    batch = Batch(good, odd, torch.zeros(16, dtype=torch.int64))
    assert float(loss_with(method, batch, good)) < 1e-6
    assert float(loss_with(method, batch, odd)) > 0.1


@pytest.mark.parametrize("name", METHODS)
def test_a_map_has_the_shape_of_its_image(name: str) -> None:
    """Every method emits one finite map per row on a quarter of the image's grid, and one score."""
    method = build(name)
    image = (255 * torch.rand(3, HEIGHT, WIDTH, 3)).byte()
    ids, deepest = torch.arange(3), len(method.plans) - 1
    state = method.start(image, ids, ids, torch.full((3,), deepest).int())
    anomaly_map, score = method.finish(method.walked(state, deepest))
    assert anomaly_map.shape == (3, HEIGHT // 4, WIDTH // 4)
    assert score.shape == (3,)
    assert bool(anomaly_map.isfinite().all())
    assert bool(score.isfinite().all())


def test_patch_sizes_are_drawn_by_the_published_shares() -> None:
    """On the published grid of 32 cells sizes 1, 2, 4, 8, 16 come in 30, 25, 20, 15, 10 %."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([patch_side((32, 32), generator) for _ in range(4000)])
    shares = [float((drawn == side).float().mean()) for side in PATCH_SIDES]
    assert shares == pytest.approx(PATCH_SHARES, abs=0.025)

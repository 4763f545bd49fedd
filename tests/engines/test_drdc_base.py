"""Laws of DRDC's base branch: nothing lets a token copy itself (after UniAD, arXiv 2206.03687)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engines.methods.drdc_base import (
    JITTER,
    REBUILDERS,
    FeatureRebuilder,
    cells_per_token,
    jittered,
    neighbour_mask,
)


@pytest.fixture(scope="module")
def rebuilder() -> FeatureRebuilder:
    """A transformer over 8 x 8 tokens of 5 channels, random weights."""
    torch.manual_seed(0)
    network = FeatureRebuilder(REBUILDERS["nano"], (5, 8, 8), 2, dropout=0.1)
    return network.eval().requires_grad_(False)


def error_map(network: FeatureRebuilder, latent: Tensor, category: Tensor) -> Tensor:
    """Root mean square of what is missed of each token, [B, h', w']."""
    return network.missed(latent, category).square().mean(1).sqrt()


def categories(count: int) -> Tensor:
    """Every row of the first category."""
    return torch.zeros(count, dtype=torch.int64)


@pytest.mark.parametrize(
    ("cells", "tokens"), [(4, 4), (8, 8), (16, 16), (24, 12), (28, 14), (32, 16), (64, 16)]
)
def test_tokens_are_few_and_tile_the_grid(cells: int, tokens: int) -> None:
    """At most sixteen a side, each the mean of a whole number of cells."""
    assert cells // cells_per_token(cells) == tokens
    network = FeatureRebuilder(REBUILDERS["nano"], (3, cells, 8), 1, dropout=0.0)
    latent = torch.randn(2, 3, cells, 8)
    assert network.tokens_of(latent).shape == (2, tokens * 8, 3)
    torch.testing.assert_close(network.tokens_of(latent).mean(1), latent.mean((2, 3)))
    assert error_map(network, latent, categories(2)).shape == (2, tokens, 8)


@pytest.mark.parametrize("grid", [(4, 4), (12, 12), (14, 14), (8, 16)])
def test_a_token_sees_neither_itself_nor_its_neighbours(grid: tuple[int, int]) -> None:
    """The window is hidden both ways, and every token still sees some others."""
    mask = neighbour_mask(grid)
    assert not bool(mask.diagonal().any())
    assert torch.equal(mask, mask.T)
    assert bool(mask.any(1).all())
    centre = (grid[0] // 2) * grid[1] + grid[1] // 2
    assert not bool(
        mask[centre, [centre - 1, centre + 1, centre - grid[1], centre + grid[1]]].any()
    )


def test_the_published_window_is_kept_on_the_published_grid() -> None:
    """Of 14 x 14 tokens one in the middle misses 7 x 7."""
    assert int((~neighbour_mask((14, 14)))[7 * 14 + 7].sum()) == 49


def test_the_decoder_looks_only_outside_the_window(rebuilder: FeatureRebuilder) -> None:
    """What the encoder says of a token's window does not reach that token's answer."""
    generator = torch.Generator().manual_seed(1)
    memory = torch.randn(1, 65, 64, generator=generator)
    token = 3 * 8 + 4
    changed = memory.clone()
    changed[:, :64][:, ~rebuilder.within[token]] += 5
    layer, around = rebuilder.decoder[0], rebuilder.around[:-1]
    before, after = (layer(m[:, :64], m, rebuilder.within, around) for m in (memory, changed))
    torch.testing.assert_close(before[:, token], after[:, token], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(before, after)


def test_the_category_is_told_and_tells_nothing_of_the_tokens(rebuilder: FeatureRebuilder) -> None:
    """The category changes what is rebuilt; its token attends to itself alone."""
    latent = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(2))
    tokens = rebuilder.tokens_of(latent)
    rebuilt = rebuilder(tokens, torch.tensor([0, 0])), rebuilder(tokens, torch.tensor([0, 2]))
    assert torch.equal(rebuilt[0][0], rebuilt[1][0])
    assert not torch.allclose(rebuilt[0][1], rebuilt[1][1])
    assert rebuilder.around[-1].tolist() == [False] * 64 + [True]
    assert bool(rebuilder.around[:, -1].all())


def test_jitter_is_in_proportion_to_a_token() -> None:
    """Noise grows with the token it is added to, and a token of zero stays."""
    tokens = torch.ones(1, 3, 4000) * torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1)
    noise = jittered(tokens, torch.Generator().manual_seed(3)) - tokens
    assert noise.std(2)[0].tolist() == pytest.approx([0.0, JITTER, 3 * JITTER], rel=0.05)


def test_the_error_map_is_the_distance_to_what_is_rebuilt(rebuilder: FeatureRebuilder) -> None:
    """Root mean square over channels, the same every time: jitter is for training."""
    latent = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(4))
    found = error_map(rebuilder, latent, categories(2))
    assert torch.equal(found, error_map(rebuilder, latent, categories(2)))
    tokens = rebuilder.tokens_of(latent)
    rebuilt = rebuilder(tokens, categories(2))
    expected = (rebuilt - tokens).pow(2).mean(2).sqrt().view(2, 8, 8)
    torch.testing.assert_close(found, expected)


def test_it_learns_to_rebuild_what_is_common() -> None:
    """After a little descent good parts are rebuilt better than a part with a strange patch."""
    torch.manual_seed(0)
    network = FeatureRebuilder(REBUILDERS["nano"], (5, 8, 8), 1, dropout=0.0).train()
    good = torch.randn(1, 5, 8, 8).expand(8, -1, -1, -1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(60):
        loss = network.training_loss(good, categories(8), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.eval().requires_grad_(False)
    odd = good[:1].clone()
    odd[:, :, 2:4, 2:4] += 3
    calm, found = (error_map(network, x, categories(1))[0] for x in (good[:1], odd))
    assert float(calm.mean()) < 0.5
    assert float(found[2:4, 2:4].mean()) > 3 * float(calm.mean())

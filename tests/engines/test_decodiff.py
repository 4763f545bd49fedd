"""Faithfulness of DeCo-Diff to its equations (arXiv 2503.19357)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from engines.methods.decodiff import (
    LEVELS,
    DecoDiff,
    corrupt,
    patch_mask,
    patch_side,
    shuffled_patches,
    signal_levels,
)

CONFIGURATION = {
    "method": "DeCo-Diff",
    "codec": {"kind": "vae", "network": "lean"},
    "denoiser": "tiny",
    "categories": 2,
    "image_size": (64, 64),
}


@pytest.fixture(scope="module")
def method() -> DecoDiff:
    """A tiny method whose denoiser still answers zero everywhere (its last conv is zero)."""
    torch.manual_seed(0)
    return DecoDiff(CONFIGURATION).eval().requires_grad_(False)


@pytest.mark.parametrize("level", range(LEVELS))
@pytest.mark.parametrize("side", [1, 2, 4])
def test_target_leads_back_to_the_clean_latent(level: int, side: int) -> None:
    """z_t - b_t target = z_0 at every level, everywhere."""
    generator = torch.Generator().manual_seed(level)
    latent = torch.randn(6, 4, 8, 8, generator=generator)
    levels = torch.full((6,), level)
    noisy, target, _ = corrupt(latent, levels, side, generator)
    b = signal_levels()[1][level]
    torch.testing.assert_close(noisy - b * target, latent, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cells", [12, 20, 28, 32, 40])
def test_patches_tile_every_grid(cells: int) -> None:
    """Images of 96, 160, 224, 256 and 320 px can be corrupted with whatever patch size is drawn."""
    generator = torch.Generator().manual_seed(cells)
    latent = torch.randn(2, 4, cells, cells, generator=generator)
    sides = {patch_side((cells, cells), generator) for _ in range(60)}
    assert len(sides) >= 3
    for side in sides:
        noisy, _, keep = corrupt(latent, torch.tensor([1, 8]), side, generator)
        assert noisy.shape == latent.shape
        assert keep.shape[2:] == (cells, cells)


def test_kept_cells_have_no_deviation() -> None:
    """The target is exactly zero and the latent untouched where the mask keeps it."""
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(8, 4, 8, 8, generator=generator)
    noisy, target, keep = corrupt(
        latent, torch.randint(10, (8,), generator=generator), 2, generator
    )
    kept = keep.bool().expand_as(latent)
    assert bool((target[kept] == 0).all())
    torch.testing.assert_close(noisy[kept], latent[kept], atol=0, rtol=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_mask_covers_exactly_the_floor_of_its_share(share: float) -> None:
    """floor(share * N) of N patches are set, and patches are whole."""
    generator = torch.Generator().manual_seed(2)
    mask = patch_mask(5, (8, 8), 2, torch.full((5,), share), generator)
    assert mask.sum((1, 2, 3)).tolist() == [4 * int(share * 16)] * 5
    patches = mask.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).mean(-1)
    assert set(patches.flatten().tolist()) <= {0.0, 1.0}


def test_shuffled_patches_are_a_permutation() -> None:
    """Every patch of the batch appears exactly once after shuffling."""
    latent = torch.arange(4 * 3 * 8 * 8, dtype=torch.float32).view(4, 3, 8, 8)
    mixed = shuffled_patches(latent, 2, torch.Generator().manual_seed(3))
    assert not torch.equal(mixed, latent)
    first = [p.flatten(4)[:, :, :, :, 0] for p in (_patches(latent), _patches(mixed))]
    assert torch.equal(first[0].flatten().sort().values, first[1].flatten().sort().values)


def _patches(latent: torch.Tensor) -> torch.Tensor:
    return latent.unfold(2, 2, 2).unfold(3, 2, 2)


def test_a_silent_network_changes_nothing(method: DecoDiff) -> None:
    """delta = 0 gives z_hat = z_0, an all-zero map and a zero score."""
    state = _run(method, plan=len(method.plans) - 1)
    torch.testing.assert_close(state["estimate"], state["anchor"], atol=0, rtol=0)
    anomaly_map, score = method.finish(state)
    assert float(anomaly_map.abs().max()) == 0.0
    assert score.tolist() == [0.0, 0.0]


def test_an_oracle_recovers_the_clean_latent_in_one_step(method: DecoDiff) -> None:
    """With the true deviation the first step's estimate is z_0, from any start level."""
    generator = torch.Generator().manual_seed(4)
    clean = torch.randn(2, 4, 8, 8, generator=generator)
    for plan_id, plan in enumerate(method.plans):
        level = torch.full((2,), plan.levels[0])
        noisy, target, _ = corrupt(clean, level, 1, generator)
        state = _state(method, noisy, plan_id)
        with _Replaced(method, target):
            state |= method.step(state)
        torch.testing.assert_close(state["estimate"], clean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [1, 4])
def test_steps_move_along_the_deviation(method: DecoDiff, side: int) -> None:
    """z_s = z_t - (b_t - b_s) delta for consecutive levels, and the last step ends clean."""
    generator = torch.Generator().manual_seed(side)
    latent = torch.randn(2, 4, 8, 8, generator=generator)
    deviation = torch.randn(2, 4, 8, 8, generator=generator)
    plan_id = len(method.plans) - 1
    levels = (*method.plans[plan_id].levels, -1)
    b = signal_levels()[1]
    state = _state(method, latent, plan_id)
    with _Replaced(method, deviation):
        for t, s in pairwise(levels):
            expected = state["latent"] - (b[t] - b[s]) * deviation
            state |= method.step(state)
            torch.testing.assert_close(state["latent"], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state["latent"], state["estimate"], atol=1e-6, rtol=1e-6)


def test_the_official_plan_visits_8_6_4_2_0(method: DecoDiff) -> None:
    """The deepest plan is the published one."""
    assert method.plans[-1].levels == (8, 6, 4, 2, 0)


def test_a_score_does_not_depend_on_batch_mates(method: DecoDiff) -> None:
    """The map of a frame is the same alone and beside others."""
    generator = torch.Generator().manual_seed(5)
    anchor = torch.randn(4, 4, 8, 8, generator=generator)
    estimate = anchor + torch.randn(4, 4, 8, 8, generator=generator) / 10
    category = torch.tensor([0, 1, 2, 0])
    rows = {"anchor": anchor, "estimate": estimate, "category": category}
    rows["base_map"] = torch.zeros(4, 8, 8)
    rows |= {"plan": torch.zeros(4).int(), "steps_left": torch.zeros(4).int()}
    together, _ = method.finish(rows)
    alone, _ = method.finish({name: value[1:2] for name, value in rows.items()})
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=1e-5)


def test_no_step_is_no_evidence(method: DecoDiff) -> None:
    """Without a bank a frame that made no step has the score NaN, never zero."""
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    ids = torch.zeros(1, dtype=torch.int64)
    _, score = method.finish(method.start(image, ids, ids, torch.zeros(1, dtype=torch.int32)))
    assert bool(score.isnan().all())


def _run(method: DecoDiff, plan: int) -> dict[str, torch.Tensor]:
    image = torch.randint(0, 255, (2, 64, 64, 3), dtype=torch.uint8)
    ids = torch.zeros(2, dtype=torch.int64)
    state = method.start(image, ids, ids, torch.full((2,), plan, dtype=torch.int32))
    for _ in range(method.plans[plan].steps):
        state |= method.step(state)
    return state


def _state(method: DecoDiff, latent: torch.Tensor, plan: int) -> dict[str, torch.Tensor]:
    steps = method.plans[plan].steps
    return {
        "latent": latent,
        "plan": torch.full((2,), plan, dtype=torch.int32),
        "steps_left": torch.full((2,), steps, dtype=torch.int32),
        "category": torch.zeros(2, dtype=torch.int64),
    }


class _Replaced:
    """The method's denoiser answers a given deviation inside the block."""

    def __init__(self, method: DecoDiff, deviation: torch.Tensor) -> None:
        self._method, self._deviation = method, deviation

    def __enter__(self) -> None:
        self._denoiser = self._method.denoiser
        self._method.denoiser = _Oracle(self._deviation)

    def __exit__(self, *_: object) -> None:
        self._method.denoiser = self._denoiser


class _Oracle(torch.nn.Module):
    def __init__(self, deviation: torch.Tensor) -> None:
        super().__init__()
        self._deviation = deviation

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        return self._deviation

"""Laws of the severity bank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engines.bank import HalvedBank, SeverityBank, coreset, distance_of, first_greatest
from engines.contracts import BadData


def patches(count: int, channels: int = 24, seed: int = 0, offset: float = 0.0) -> Tensor:
    """Gaussian patches [count, channels] about an offset."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, generator=generator) + offset


@pytest.fixture
def bank() -> SeverityBank:
    """Two categories far apart, 50 rows each."""
    bank = SeverityBank(categories=2, rows=50, channels=24)
    bank.fit({0: patches(400, seed=1), 1: patches(400, seed=2, offset=6.0)})
    return bank


@torch.inference_mode()
def test_distances_equal_brute_force(bank: SeverityBank) -> None:
    """Each cell's distance is the smallest to any row of its own frame's category."""
    features = patches(2 * 15, seed=3).view(2, 3, 5, 24).permute(0, 3, 1, 2)
    category = torch.tensor([1, 0])
    found = bank(features, category)
    for row in range(2):
        cells = features[row].flatten(1).T
        nearest = (cells[:, None] - bank.rows[category[row]][None]).norm(dim=2).amin(1)
        torch.testing.assert_close(found[row].flatten(), nearest)


@torch.inference_mode()
def test_a_residual_leads_back_to_a_good_patch(bank: SeverityBank) -> None:
    """A patch less its residual is a row of its category; the residual's length is the distance."""
    features, category = torch.randn(2, 24, 3, 5) + 3, torch.tensor([1, 2])
    residual = bank.residual(features, category)
    assert torch.equal(distance_of(residual), bank(features, category))
    led = (features - residual).flatten(2).transpose(1, 2)
    for row in range(2):
        off = (led[row][:, None] - bank.rows[category[row]][None]).norm(dim=2).amin(1)
        torch.testing.assert_close(off, torch.zeros(15), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_category_sees_its_own_rows_only(bank: SeverityBank) -> None:
    """A good patch of one category is far in the other, and near for "unknown", which holds all."""
    features = patches(64, seed=2, offset=6.0)[:16].T.view(1, 24, 4, 4)
    own, other, unknown = (bank(features, torch.tensor([c])).mean() for c in (1, 0, 2))
    assert own < other / 3
    assert unknown < other / 3


@torch.inference_mode()
def test_a_frame_is_measured_alone_as_in_a_batch(bank: SeverityBank) -> None:
    """Batch mates of other categories change no distance."""
    features, category = torch.randn(6, 24, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    together = bank(features, category)
    alone = torch.cat([bank(features[i : i + 1], category[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone)


@torch.inference_mode()
def test_a_low_precision_search_keeps_the_distances() -> None:
    """Where rows nearly tie, a bf16 search picks another row, yet measures the same distance."""
    prototypes = patches(8, channels=152, seed=4, offset=4.0)
    twins = (prototypes.repeat(50, 1) + 1e-4 * patches(400, 152, seed=5)).float()
    bank = SeverityBank(1, 400, 152)
    bank.fit({0: twins})
    cells = (prototypes.repeat(8, 1) + patches(64, 152, seed=6))[None]
    features = cells.transpose(1, 2).reshape(1, 152, 8, 8)
    exact = bank(features, torch.tensor([0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        winners = bank.nearest(cells, torch.tensor([0]))
    measured = (cells - bank.rows[0][winners]).norm(dim=2).view(1, 8, 8)
    assert not torch.equal(winners, bank.nearest(cells, torch.tensor([0])))
    torch.testing.assert_close(measured, exact, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("count", [1, 7, 50, 64, 997])
def test_the_search_in_two_looks_is_argmax(count: int) -> None:
    """Whatever the number of rows, also a prime one; of equal rows the first wins."""
    values = torch.randint(-3, 3, (2, 40, count), generator=torch.Generator().manual_seed(count))
    assert torch.equal(first_greatest(values.float()), values.float().argmax(2))


def test_rows_are_stored_without_loss_in_half_precision(bank: SeverityBank) -> None:
    """Every row survives a round trip through fp16."""
    assert torch.equal(bank.rows.half().float(), bank.rows)
    assert torch.equal(bank.centre.half().float(), bank.centre)


def test_the_coreset_covers_better_than_chance() -> None:
    """The farthest patch from a greedy coreset is nearer than from a random choice; no repeats."""
    points = patches(2000, channels=8, seed=7)
    chosen = coreset(points, 100, seed=0)
    assert len(set(chosen.tolist())) == 100
    reach = torch.cdist(points, points[chosen]).amin(1).max()
    by_chance = torch.cdist(points, points[:100]).amin(1).max()
    assert reach < by_chance
    assert torch.equal(chosen, coreset(points, 100, seed=0))


def test_few_patches_fill_the_bank_by_repetition() -> None:
    """With fewer patches than rows every patch is its own nearest row."""
    bank = SeverityBank(1, 64, 24)
    few = patches(10).half().float()
    bank.fit({0: few})
    with torch.inference_mode():
        distance = bank(few.T.reshape(1, 24, 2, 5), torch.tensor([0]))
    assert not distance.any()


def test_a_category_without_patches_is_refused() -> None:
    """A bank cannot vouch for a category it has not seen."""
    with pytest.raises(BadData, match="category 1 has no good patches"):
        SeverityBank(2, 8, 24).fit({0: patches(10)})


@torch.inference_mode()
def test_no_image_meets_itself() -> None:
    """Each half is looked up in the other: an image finds its patches in its own half's bank only.

    Twice as many rows as patches, so that a bank holds all that it was fitted on.
    """
    images = [patches(8 * 6, seed=s, offset=9.0 * s).view(8, 6, 24) for s in range(2)]
    half = torch.arange(8) % 2
    bank = HalvedBank(images, [half, half], 400)
    for category, own in enumerate(images):
        features = own.transpose(1, 2).reshape(8, 24, 2, 3)
        told = torch.full((8,), category)
        distance = distance_of(bank.residual(features, told, half))
        assert distance.min() > 0.5
        itself = distance_of(bank.residual(features, told, 1 - half))
        assert itself.max() < 0.05  # rows are stored in half precision
        unknown = distance_of(bank.residual(features, torch.full((8,), 2), half))
        torch.testing.assert_close(unknown, distance)

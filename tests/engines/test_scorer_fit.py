"""Laws of fitting the learned scorer: its pool of images, its loss, and both of its parts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.bank import HalvedBank, half_of
from engines.contracts import BadConfig
from engines.descent import Schedule, Training
from engines.methods.decodiff import DecoDiff
from engines.scorer_fit import (
    Pool,
    draw_pool,
    fit_context,
    fit_difference,
    scorer_loss,
    scorer_of,
)

torch.set_num_threads(1)
CATEGORIES, SIDE = 2, 64
CONFIGURATION = {
    "method": "DeCo-Diff",
    "codec": {"kind": "features", "channels": 8, "image_size": (SIDE, SIDE)},
    "denoiser": "nano",
    "categories": CATEGORIES,
    "image_size": (SIDE, SIDE),
    "bank": {"rows": 40},
    "scorer": True,
}


def good_parts(category: int, count: int) -> Tensor:
    """A bar on a dim ground, u8 [count, 64, 64, 3]; across in the second category."""
    generator = torch.Generator().manual_seed(category)
    drawn = torch.full((count, SIDE, SIDE, 3), 80.0)
    drawn[:, 20:44, 10:54] += 90
    drawn = drawn.transpose(1, 2) if category else drawn
    noise = torch.randn(drawn.shape, generator=generator)
    return (drawn + 3 * noise).clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """Twelve good parts of one category, four of the other, and the category of each."""
    parts = [good_parts(0, 12), good_parts(1, 4)]
    return torch.cat(parts), torch.tensor([0] * 12 + [1] * 4)


@pytest.fixture(scope="module")
def pool(images: tuple[Tensor, Tensor]) -> Pool:
    """Forty images to learn from."""
    return draw_pool(*images, 40, seed=3, unknown=CATEGORIES, dropout=0.1)


@pytest.fixture
def method(images: tuple[Tensor, Tensor]) -> DecoDiff:
    """A fitted codec and bank, and a denoiser that answers something."""
    torch.manual_seed(0)
    method = DecoDiff(CONFIGURATION).eval()
    with torch.no_grad():
        method.denoiser.get_parameter("unet.conv_out.weight").normal_(std=0.05)
    good, category = images
    method.codec.fit([good])
    cells = method.codec.encode_all(good).patches.permute(0, 2, 3, 1)
    assert method.bank is not None
    method.bank.fit({c: cells[category == c].flatten(0, 2) for c in range(CATEGORIES)})
    return method


@pytest.fixture
def halves(method: DecoDiff, images: tuple[Tensor, Tensor]) -> Callable[[], HalvedBank]:
    """Banks of both halves of the good parts."""
    good, category = images
    patches = method.codec.encode_all(good).patches.flatten(2).transpose(1, 2)
    half = half_of(torch.arange(len(good)))
    own = [category == c for c in range(CATEGORIES)]
    found = HalvedBank([patches[o] for o in own], [half[o] for o in own], 40)
    return lambda: found


def test_every_category_has_its_share(images: tuple[Tensor, Tensor]) -> None:
    """A category of few images is drawn as often as one of many; some labels are hidden."""
    drawn = draw_pool(*images, 40, seed=3, unknown=CATEGORIES, dropout=0.0)
    assert torch.bincount(drawn.category).tolist() == [20, 20]
    hidden = draw_pool(*images, 40, seed=3, unknown=CATEGORIES, dropout=0.5).category
    assert 10 <= (hidden == CATEGORIES).sum() <= 30


def test_what_is_pasted_may_be_known_to_the_bank(images: tuple[Tensor, Tensor]) -> None:
    """Parts are mostly their own half's; some carry a piece of the half that their bank knows."""
    good, category = images
    marked = good.clone()
    marked[half_of(torch.arange(len(good))) == 1] = 255  # one half is white
    drawn = draw_pool(marked, category, 60, seed=3, unknown=CATEGORIES, dropout=0.0)
    own = torch.stack([image.flatten().median() > 200 for image in drawn.images])
    assert torch.equal(own, drawn.half == 1)
    dark = drawn.images[own]
    assert bool((dark < 150).any())


def test_tiles_of_an_image_are_of_one_half(images: tuple[Tensor, Tensor]) -> None:
    """What overlaps must not meet itself in the bank of the other half."""
    assert half_of(torch.arange(12), 3).tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1]
    good, category = images
    marked = good.clone()
    marked[half_of(torch.arange(len(good)), 4) == 1] = 255
    drawn = draw_pool(marked, category, 60, seed=3, unknown=CATEGORIES, dropout=0.0, tiles=4)
    plain = drawn.images.flatten(1).float().mean(1)
    assert torch.equal(plain > 200, drawn.half == 1)


def test_an_equal_seed_draws_an_equal_pool(images: tuple[Tensor, Tensor], pool: Pool) -> None:
    """What is learned from can be made again, after a kill for one."""
    again = draw_pool(*images, 40, seed=3, unknown=CATEGORIES, dropout=0.1)
    assert torch.equal(again.images, pool.images)
    assert torch.equal(again.target, pool.target)
    assert torch.equal(again.category, pool.category)
    other = draw_pool(*images, 40, seed=4, unknown=CATEGORIES, dropout=0.1)
    assert not torch.equal(other.images, pool.images)


def test_targets_are_where_an_image_is_unlike_good_parts() -> None:
    """A flat image without a target is flat; with one it is unlike its ground just there."""
    flat = torch.full((4, SIDE, SIDE, 3), 120, dtype=torch.uint8)
    pool = draw_pool(flat, torch.zeros(4, dtype=torch.int64), 40, 5, unknown=1, dropout=0.0)
    assert pool.target.shape == (40, SIDE // 4, SIDE // 4)
    anomalous = pool.target.flatten(1).any(1)
    assert 0.4 < anomalous.double().mean() < 0.8
    for image, target in zip(pool.images.numpy(), pool.target.numpy(), strict=True):
        inside = np.kron(target > 0, np.ones((4, 4), np.bool_))
        ground = np.median(image[~inside], axis=0)  # re-toned, but flat
        unlike = np.abs(image - ground).max(2)
        assert inside.any() or not unlike.any()
        assert not inside.any() or unlike[inside].mean() > 5 * unlike[~inside].mean()


def test_the_loss_is_least_where_the_target_is_met() -> None:
    """Saying it all and saying nothing cost more; what no cell holds costs nothing when unsaid."""
    target = torch.zeros(2, 16, 16, dtype=torch.uint8)
    target[0, 4:8, 4:8] = 255
    met = torch.where(target > 0, 9.0, -9.0)
    costs = [float(scorer_loss(logits, target)) for logits in (met, met.abs(), -met.abs(), -met)]
    assert costs[0] < 0.02
    assert costs[0] == min(costs)
    assert costs[3] == max(costs)


def test_a_thin_scratch_counts_by_its_root() -> None:
    """A cell a ninth full asks for a third; on a coarser grid a target is averaged first."""
    target = torch.full((1, 8, 8), 28, dtype=torch.uint8)  # 0.11 of 255
    logits = [torch.full((1, 8, 8), p).logit().requires_grad_() for p in (0.2, 0.33, 0.5)]
    slopes = [
        float(torch.autograd.grad(scorer_loss(each, target), each)[0].sum()) for each in logits
    ]
    assert slopes[0] < slopes[1] < slopes[2]
    coarse = torch.full((1, 4, 4), 0.33).logit()
    torch.testing.assert_close(scorer_loss(coarse, target), scorer_loss(coarse, target[:, :4, :4]))


def test_the_first_part_learns_from_the_frame_alone(
    method: DecoDiff, pool: Pool, halves: Callable[[], HalvedBank], tmp_path: Path
) -> None:
    """A few steps lower the loss; codec, bank and denoiser stay as they are."""
    frozen = {n: t.clone() for n, t in method.state_dict().items() if not n.startswith("scorer.")}
    reports: list[Training] = []
    told: list[float] = []
    schedule = Schedule(steps=24, batch=8, learning_rate=3e-3, log_every=8)
    watched = {"progress": reports.append, "prepared": told.append}
    fit_context(method, pool, schedule, tmp_path, halves=halves, **watched)
    assert reports[-1].loss < 0.8 * reports[0].loss
    assert told[-1] == 1
    assert not scorer_of(method).training
    after = method.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())


def test_what_the_first_part_reads_leaves_no_file(
    method: DecoDiff, pool: Pool, halves: Callable[[], HalvedBank], tmp_path: Path
) -> None:
    """While it learns the pool lies on the disk; afterwards only its checkpoint and losses do."""
    held: list[set[str]] = []

    def look(_: Training) -> None:
        held.append({file.name for file in (tmp_path / "pool").iterdir()})

    schedule = Schedule(steps=1, batch=4)
    fit_context(method, pool, schedule, tmp_path, halves=halves, progress=look)
    assert held == [{"4.npy", "8.npy", "16.npy", "residual.npy"}]
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint.safetensors", "losses.csv"}


def test_a_disk_without_room_is_said_before_learning(
    method: DecoDiff,
    pool: Pool,
    halves: Callable[[], HalvedBank],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A pool that does not fit is one sentence, no process killed by a missing page."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BadConfig, match=r"No space left on device.*scorer_pool"):
        fit_context(method, pool, Schedule(steps=1, batch=4), tmp_path, halves=halves)
    assert not (tmp_path / "pool").exists()


def test_the_first_part_standardises_what_it_reads(
    method: DecoDiff, pool: Pool, halves: Callable[[], HalvedBank], tmp_path: Path
) -> None:
    """Activations and residuals of the pool have about unit size before they are read."""
    fit_context(method, pool, Schedule(steps=1, batch=4), tmp_path, halves=halves)
    scorer = scorer_of(method)
    with torch.no_grad():
        seen = method.codec.encode_all(pool.images)
        residual = halves().residual(seen.patches, pool.category, pool.half)
    for stride, maps in seen.activations.items():
        mean, std = scorer.get_buffer(f"mean_{stride}"), scorer.get_buffer(f"std_{stride}")
        scaled = (maps - mean) / std
        assert scaled.mean().abs() < 0.05
        assert scaled.std() == pytest.approx(1, abs=0.1)
    length = residual.pow(2).sum(1).sqrt().mean() / scorer.residual_scale
    assert length == pytest.approx(1, abs=0.5)


def test_the_second_part_leaves_the_first_as_it_is(
    method: DecoDiff, pool: Pool, halves: Callable[[], HalvedBank], tmp_path: Path
) -> None:
    """It fits how changes are read, over plans drawn at random, and nothing else."""
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    reports: list[Training] = []
    schedule = Schedule(steps=24, batch=8, learning_rate=3e-3, log_every=8)
    fit_difference(method, pool, schedule, tmp_path, halves=halves, progress=reports.append)
    assert reports[-1].loss < 0.8 * reports[0].loss
    after = method.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed
    assert all(name.startswith(("scorer.difference.", "scorer.judge.")) for name in changed)


def test_a_resumed_fit_equals_an_uninterrupted_one(
    method: DecoDiff, pool: Pool, halves: Callable[[], HalvedBank], tmp_path: Path
) -> None:
    """A finished first part is taken up as it was, its scales too."""
    fit_context(method, pool, Schedule(steps=2, batch=4), tmp_path, halves=halves)
    fitted = {name: tensor.clone() for name, tensor in scorer_of(method).state_dict().items()}
    torch.nn.init.normal_(scorer_of(method).kept.weight)
    fit_context(method, pool, Schedule(steps=2, batch=4), tmp_path, halves=halves, resume=True)
    after = scorer_of(method).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in fitted.items())


def test_a_method_without_a_scorer_is_refused() -> None:
    """The sentence names the setting that adds one."""
    with pytest.raises(BadConfig, match="scorer: true"):
        scorer_of(DecoDiff(CONFIGURATION | {"scorer": False}))

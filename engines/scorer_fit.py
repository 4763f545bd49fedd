"""Fit the learned scorer on synthetic anomalies, in two parts.

The first part needs no denoiser: what the frame itself and the bank say. The second part fits, on
top of it, how much the denoiser's changes tell, over plans drawn at random, so that every depth is
served. Both learn from a pool of images made once: the frozen network is the dear part.

A bank holds what it was fitted on: its own images show it nothing new, and a scorer that learned
from them would call whatever is new an anomaly. ``halves`` is therefore a bank for each half of the
good images, fitted on the other half. What is pasted comes from either half: a piece that the bank
knows, in a place where it does not belong, has only its surroundings to tell of it.

What the first part learns from lies in files and is mapped, not read: a pool of any size needs no
more memory than a small one, only room on the disk while the training runs.
"""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.anomalies import synthesize
from engines.bank import half_of
from engines.codecs import Moments
from engines.contracts import BadConfig
from engines.descent import Training, silent, train
from engines.training import shifted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engines.bank import HalvedBank
    from engines.codecs import Seen
    from engines.descent import Progress, Schedule
    from engines.methods.latent import LatentMethod
    from engines.scorer import Scorer

ANOMALOUS_SHARE = 0.6
FOREIGN_SHARE = 0.3  # of the anomalies: made with an image of any category
SHIFT_PX = 8
TONE_SHARE, CONTRAST, BRIGHTNESS = 0.5, 0.1, 8.0
FOCUS = 1.5  # exponent of the focal weight (Lin et al., arXiv 1708.02002)
LIKELIHOOD_WEIGHT, OVERLAP_WEIGHT = 10.0, 0.3
ENCODE_BATCH = 8
HALVED_MAX = 6e4  # fp16 holds no more
RESIDUAL = "residual"


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Images to learn from and where they are anomalous."""

    images: Tensor  # u8 [N, H, W, 3]
    target: Tensor  # u8 [N, H/4, W/4], share of each cell that is anomalous, of 255
    category: Tensor  # i64 [N], "unknown" now and then
    half: Tensor  # i64 [N], of the good images: which one each was made from


def draw_pool(
    images: Tensor,
    categories: Tensor,
    count: int,
    seed: int,
    *,
    unknown: int,
    dropout: float,
    tiles: int = 1,
) -> Pool:
    """``count`` images, as many of each category, about 60 % with a synthetic anomaly.

    images u8 [N, H, W, 3], categories i64 [N]; each is shifted and re-toned a little first. Of
    images in ``tiles`` those of one lie together.
    """
    rng = np.random.default_rng(seed)
    rows = [torch.nonzero(categories == c)[:, 0].numpy() for c in torch.unique(categories)]
    half = half_of(torch.arange(len(images)), tiles).numpy()
    moved = shifted(images, SHIFT_PX, torch.Generator().manual_seed(seed)).numpy()
    drawn, targets, kinds, halves = [], [], [], []
    for number in range(count):
        own = rows[number % len(rows)]
        donors = rows[rng.integers(len(rows))] if rng.random() < FOREIGN_SHARE else own
        row = int(rng.choice(own))
        image, target = _made(moved[row], moved[rng.choice(donors)], rng)
        drawn.append(image)
        targets.append(target)
        kinds.append(unknown if rng.random() < dropout else int(categories[row]))
        halves.append(half[row])
    made = torch.from_numpy(np.stack(drawn)), torch.stack(targets)
    return Pool(*made, torch.tensor(kinds), torch.tensor(np.array(halves)))


def _made(
    image: np.ndarray, donor: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, Tensor]:
    """A re-toned image, anomalous or not, and its target."""
    if rng.random() < TONE_SHARE:
        gain, offset = rng.uniform(1 - CONTRAST, 1 + CONTRAST), rng.uniform(-BRIGHTNESS, BRIGHTNESS)
        image = np.clip(image * gain + offset, 0, 255).astype(np.uint8)
    mask = np.zeros(image.shape[:2], np.bool_)
    if rng.random() < ANOMALOUS_SHARE:
        made = synthesize(image, donor, rng)
        image, mask = made.image, made.mask
    share = functional.avg_pool2d(torch.from_numpy(mask).float()[None], 4)[0]
    return image, (share * 255).round().to(torch.uint8)


def fit_context(
    method: LatentMethod,
    pool: Pool,
    schedule: Schedule,
    folder: Path,
    *,
    halves: Callable[[], HalvedBank | None],
    resume: bool = False,
    progress: Progress = silent,
    prepared: Callable[[float], None] = lambda _: None,
) -> Training:
    """Fit the scorer on what the frame and the bank say, the denoiser silent, in place.

    ``halves`` makes the bank of each half's other half; None where the method has no bank.
    """
    scorer = scorer_of(method)
    place = folder / "pool"

    @functools.cache
    def looked() -> _Seen:
        found = _seen(method, pool, halves(), place, prepared)
        _standardise(scorer, found)
        return found

    def loss_of(generator: torch.Generator) -> Tensor:
        seen = looked()
        rows = torch.randint(len(pool.images), (schedule.batch,), generator=generator)
        activations = {stride: held[rows].float() for stride, held in seen.activations.items()}
        residual = None if seen.residual is None else seen.residual[rows].float()
        context = scorer.context(activations, residual, pool.category[rows])
        still = context.new_zeros(len(rows), *method.codec.latent_shape)
        return scorer_loss(scorer(context, still, still), pool.target[rows])

    scorer.train()
    try:
        return train(
            scorer, loss_of, schedule, folder, prepare=looked, resume=resume, progress=progress
        )
    finally:
        shutil.rmtree(place, ignore_errors=True)


def fit_difference(
    method: LatentMethod,
    pool: Pool,
    schedule: Schedule,
    folder: Path,
    *,
    halves: Callable[[], HalvedBank | None],
    resume: bool = False,
    progress: Progress = silent,
    prepared: Callable[[float], None] = lambda _: None,
) -> Training:
    """Fit how the scorer reads the denoiser's changes, its first part held still, in place."""
    scorer = scorer_of(method).eval()
    walked = functools.cache(lambda: _walked(method, pool, halves(), schedule.seed, prepared))
    judging = nn.ModuleDict({"difference": scorer.difference, "judge": scorer.judge})

    def loss_of(generator: torch.Generator) -> Tensor:
        context, anchor, estimate = walked()
        rows = torch.randint(len(pool.images), (schedule.batch,), generator=generator)
        logits = scorer(context[rows].float(), anchor[rows].float(), estimate[rows].float())
        return scorer_loss(logits, pool.target[rows])

    return train(
        judging, loss_of, schedule, folder, prepare=walked, resume=resume, progress=progress
    )


def scorer_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Focal cross-entropy and overlap of logits f32 [B, h, w] with targets u8, scalar.

    Targets are averaged down to the logits' grid. The root of a cell's anomalous share is what is
    asked of it: a scratch fills little of a cell.
    """
    grid = (logits.shape[1], logits.shape[2])
    wanted = functional.adaptive_avg_pool2d(target.float() / 255, grid).sqrt()
    found = logits.sigmoid()
    likelihood = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    focused = ((wanted - found).abs() ** FOCUS * likelihood).mean()
    together, either = (found * wanted).sum((1, 2)), (found + wanted).sum((1, 2))
    overlap = 1 - (2 * together + 1) / (either + 1)
    return LIKELIHOOD_WEIGHT * focused + OVERLAP_WEIGHT * overlap.mean()


def scorer_of(method: LatentMethod) -> Scorer:
    """The method's scorer; raises BadConfig where it has none."""
    if method.scorer is None:
        raise BadConfig("this method has no learned scorer; train with scorer: true")
    return method.scorer


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    activations: dict[int, Tensor]  # f16 [N, C, H/stride, W/stride]
    residual: Tensor | None  # f16 [N, D, h, w]


@torch.no_grad()
def _seen(
    method: LatentMethod,
    pool: Pool,
    halves: HalvedBank | None,
    place: Path,
    prepared: Callable[[float], None],
) -> _Seen:
    """What the frozen network and the banks see in the pool, kept in files under ``place``."""
    place.mkdir(parents=True, exist_ok=True)
    count = len(pool.images)
    kept: dict[str, Tensor] = {}
    for first in range(0, count, ENCODE_BATCH):
        part = slice(first, first + ENCODE_BATCH)
        seen = method.codec.encode_all(pool.images[part])
        told = {str(stride): found for stride, found in seen.activations.items()}
        residual = _residual(halves, seen, pool, part)
        if residual is not None:
            told[RESIDUAL] = residual
        for name, found in told.items():
            if name not in kept:
                kept[name] = _mapped(place / f"{name}.npy", (count, *found.shape[1:]))
            kept[name][part] = found.clamp(-HALVED_MAX, HALVED_MAX).half()
        prepared(min(1.0, (first + ENCODE_BATCH) / count))
    residuals = kept.pop(RESIDUAL, None)
    return _Seen({int(stride): rows for stride, rows in kept.items()}, residuals)


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A new file as a tensor f16 [...], whose room is taken now: a full disk later would kill.

    Raises BadConfig where there is not so much room.
    """
    rows = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, rows.nbytes)
    except OSError as error:
        size = f"{rows.nbytes / 1e9:.1f} GB at {path}"
        raise BadConfig(f"no room for {size} ({error.strerror}); lower scorer_pool") from error
    return torch.from_numpy(rows)


def _residual(halves: HalvedBank | None, seen: Seen, pool: Pool, part: slice) -> Tensor | None:
    if halves is None:
        return None
    return halves.residual(seen.patches, pool.category[part], pool.half[part])


def _standardise(scorer: Scorer, seen: _Seen) -> None:
    for stride, held in seen.activations.items():
        moments = Moments()
        for part in held[:: max(1, len(held) // 64)]:
            moments.add(part.flatten(1).T)
        mean, covariance = moments.of()
        scorer.standardise(stride, mean.float(), covariance.diagonal().sqrt().float())
    if seen.residual is not None:
        scorer.residual_scale.copy_(seen.residual[::8].float().pow(2).sum(1).sqrt().mean())


@torch.no_grad()
def _walked(
    method: LatentMethod,
    pool: Pool,
    halves: HalvedBank | None,
    seed: int,
    prepared: Callable[[float], None],
) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts, latents and reconstructions of the pool, each batch at a plan drawn at random."""
    rng = np.random.default_rng(seed)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for first in range(0, len(pool.images), ENCODE_BATCH):
        part = slice(first, first + ENCODE_BATCH)
        seen = method.codec.encode_all(pool.images[part])
        plan = int(rng.integers(len(method.plans)))
        count = len(seen.latent)
        state = method.opened(
            seen,
            _residual(halves, seen, pool, part),
            pool.category[part],
            torch.from_numpy(rng.integers(0, 2**24, count)),
            torch.full((count,), plan, dtype=torch.int32),
        )
        state = method.walked(state, plan)
        kept.append((state["context"].half(), state["anchor"].half(), method.closed(state).half()))
        prepared(min(1.0, (first + ENCODE_BATCH) / len(pool.images)))
    context, anchor, estimate = (torch.cat(found) for found in zip(*kept, strict=True))
    return context, anchor, estimate

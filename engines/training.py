"""Two plain fits: a codec on images, a denoiser on cached latents.

Latents are cached once, several shifted copies of each image, so no codec runs inside the loop of
the denoiser. An "unknown" category is learned by hiding the label now and then (an extension: the
published DeCo-Diff has no such row).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engines.anomalies import synthesize
from engines.codecs import Codec
from engines.descent import Progress, Schedule, Training, silent, train
from engines.images import encode_png
from engines.methods.latent import Batch, LatentMethod

PICTURES = "reconstructions.png"
SAMPLES = 6  # rows of that picture
SHIFTED_SHARE = 0.5  # of the copies; the others stay where they are
ENCODE_BATCH = 16
ANOMALOUS_SHARE = 0.5


def fit_codec(
    codec: Codec,
    images: Tensor,
    schedule: Schedule,
    folder: Path,
    *,
    shift_px: int = 4,
    crop_px: int = 128,
    resume: bool = False,
    progress: Progress = silent,
) -> Training:
    """Fit a codec on good images u8 [N, H, W, 3]; leaves it standardised and in eval mode.

    The projection of a feature codec comes first, since its picture decoder learns from it; the
    standardisation of a VAE comes last, since it is of the trained latent. A VAE learns on random
    crops of ``crop_px`` (a multiple of 32): it is convolutional (only "kl" has attention), so what
    it learns there holds for whole images, at a quarter of the cost per step. A pretrained one is
    standardised and nothing else.
    """
    if codec.is_pretrained:
        codec.fit(_batches(images))
        codec.eval()
        return Training(step=0, share=1.0, loss=math.nan, learning_rate=0.0, elapsed_s=0.0)
    has_learned_latent = codec.kind == "vae"

    def loss_of(generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(images), (schedule.batch,), generator=generator)
        batch = shifted(images[chosen], shift_px, generator)
        batch = cropped(batch, crop_px, generator) if has_learned_latent else batch
        return codec.training_loss(batch, generator)

    if not has_learned_latent:
        codec.fit(_batches(images))
    reached = train(codec.trainable(), loss_of, schedule, folder, resume=resume, progress=progress)
    if has_learned_latent:
        codec.fit(_batches(images))
    codec.eval()
    samples = images[:SAMPLES]
    with torch.no_grad():
        write_pictures(folder / PICTURES, samples, codec.decode(codec.encode(samples)))
    return reached


def fit_denoiser(
    method: LatentMethod,
    latents: Callable[[], Latents],
    categories: Tensor,
    schedule: Schedule,
    folder: Path,
    *,
    unknown: int,
    label_dropout: float = 0.1,
    samples: tuple[Tensor, Tensor] | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> Training:
    """Fit a method's denoiser on cached latents of images of categories i64 [N].

    ``latents`` makes the cache, once, unless a finished run is resumed.
    Rarer categories are drawn more often, by the root of their share, so that none is forgotten.
    A row's category becomes ``unknown`` with probability ``label_dropout``. ``samples`` (images u8
    [n, H, W, 3], categories i64 [n]) are reconstructed at the end into ``reconstructions.png``.
    """

    cached = functools.cache(latents)
    weights = torch.bincount(categories).float().rsqrt()[categories]

    def loss_of(generator: torch.Generator) -> Tensor:
        held = cached()
        chosen = torch.multinomial(weights, schedule.batch, True, generator=generator)
        variant = torch.randint(held.good.shape[1], (schedule.batch,), generator=generator)
        hidden = torch.rand(schedule.batch, generator=generator) < label_dropout
        category = categories[chosen].masked_fill(hidden, unknown)
        good, odd = (_batch(side, chosen, variant) for side in (held.good, held.odd))
        return method.training_loss(Batch(good, odd, category), generator)

    reached = train(
        method.denoiser,
        loss_of,
        schedule,
        folder,
        prepare=cached,
        resume=resume,
        progress=progress,
    )
    if samples is not None:
        write_pictures(folder / PICTURES, samples[0], reconstructions(method, *samples))
    return reached


def _batch(held: Tensor, chosen: Tensor, variant: Tensor) -> Tensor:
    return held[chosen, variant].float().contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """Cached latents, f16 [N, V, C, h, w] each; ``odd`` is ``good`` where nobody needs it."""

    good: Tensor
    odd: Tensor  # the same images, about half with a synthetic anomaly


@torch.no_grad()
def latent_cache(
    codec: Codec,
    images: Tensor,
    variants: int = 4,
    *,
    shift_px: int = 4,
    seed: int = 0,
    with_anomalies: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> Latents:
    """Latents of images u8 [N, H, W, 3]: each as it is and V - 1 times shifted.

    Half precision stores 256 images of 64 x 32 x 32 in 32 MB per variant; its rounding is far below
    the noise that training adds. ``progress`` is told the share done.
    """
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    good = torch.empty(len(images), variants, *codec.latent_shape, dtype=torch.float16)
    odd = torch.empty_like(good) if with_anomalies else good
    for first in range(0, len(images), ENCODE_BATCH):
        batch = images[first : first + ENCODE_BATCH]
        part = slice(first, first + len(batch))
        for variant in range(variants):
            copies = shifted(batch, shift_px, generator) if variant else batch
            good[part, variant] = codec.encode(copies).half()
            if with_anomalies:
                odd[part, variant] = codec.encode(_half_anomalous(copies, rng)).half()
        progress((first + len(batch)) / len(images))
    return Latents(good, odd)


def _half_anomalous(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Images u8 [B, H, W, 3], each with a synthetic anomaly by even chance (GLAD, section 3b)."""
    made = images.numpy().copy()
    for row in range(len(made)):
        if rng.random() < ANOMALOUS_SHARE:
            made[row] = synthesize(made[row], images[rng.integers(len(made))].numpy(), rng).image
    return torch.from_numpy(made)


def shifted(images: Tensor, shift_px: int, generator: torch.Generator) -> Tensor:
    """Half of the images u8 [B, H, W, 3] moved by at most ``shift_px``, borders repeated."""
    batch, height, width, _ = images.shape
    if shift_px == 0:
        return images
    offset = torch.randint(-shift_px, shift_px + 1, (2, batch, 1), generator=generator)
    offset = offset * (torch.rand(batch, 1, generator=generator) < SHIFTED_SHARE)
    rows = (torch.arange(height) + offset[0]).clamp(0, height - 1)  # [B, H]
    columns = (torch.arange(width) + offset[1]).clamp(0, width - 1)  # [B, W]
    return images[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None]]


def cropped(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A random window of each image u8 [B, H, W, 3], at most ``side`` high and wide."""
    batch, height, width, _ = images.shape
    high, wide = min(side, height), min(side, width)
    top = torch.randint(height - high + 1, (batch, 1), generator=generator)
    left = torch.randint(width - wide + 1, (batch, 1), generator=generator)
    rows = torch.arange(high) + top  # [B, high]
    columns = torch.arange(wide) + left  # [B, wide]
    return images[torch.arange(batch)[:, None, None], rows[:, :, None], columns[:, None]]


@torch.no_grad()
def reconstructions(method: LatentMethod, images: Tensor, categories: Tensor) -> Tensor:
    """What the deepest plan makes of images u8 [n, H, W, 3]: rgb f32 [n, 3, H, W] in [0, 1]."""
    deepest = len(method.plans) - 1
    seed = torch.zeros_like(categories)
    state = method.start(images, categories, seed, torch.full_like(categories, deepest).int())
    return method.reconstruct(method.walked(state, deepest))


def write_pictures(path: Path, images: Tensor, pictures: Tensor) -> None:
    """A PNG with one row per image: input u8 [n, H, W, 3] | picture f32 [n, 3, H, W]."""
    drawn = (pictures.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8)
    rows = torch.cat([images, drawn], 2).flatten(0, 1)  # [n * H, 2 W, 3]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(rows.contiguous().numpy()))


def _batches(images: Tensor) -> Sequence[Tensor]:
    return torch.split(images, ENCODE_BATCH)

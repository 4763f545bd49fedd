"""From a folder of good images to a calibrated bundle: the whole of ``assayline train``."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from engines.bank import HalvedBank, half_of
from engines.bundle import WEIGHTS, open_bundle
from engines.contracts import BadData
from engines.descent import Schedule, Training
from engines.export import check_place, write_bundle
from engines.images import fingerprint
from engines.methods import build_method
from engines.methods.fit import fit_scales, fit_walks, fit_whitening
from engines.methods.latent import LatentMethod
from engines.recipe import configuration_of, load_good
from engines.run_record import open_run
from engines.scorer_fit import Pool, draw_pool, fit_context, fit_difference
from engines.substitutions import substitutions_of
from engines.thresholds import calibrate_everywhere
from engines.training import ENCODE_BATCH, Latents, fit_codec, fit_denoiser, latent_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from engines.bundle import Bundle
    from engines.recipe import GoodParts, Progress, TrainSettings

# What a bundle must agree in that is built upon.
SHARED = ("codec", "bank", "scorer", "image_size", "tiles", "categories")
TAKEN = ("codec.", "bank.", "scorer.")  # weights that --from takes over
DIFFERENCE_SHARE = 0.25  # of the scorer's pool and minutes, for its second part


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished bundle and what people should know of it."""

    bundle: Bundle
    sentences: tuple[str, ...]


def train_bundle(
    data: Path,
    out: Path,
    settings: TrainSettings,
    categories: Sequence[str] | None = None,
    *,
    based_on: Path | None = None,
    resume: bool = False,
    date: str = "",
    progress: Progress = lambda *_: None,
) -> Trained:
    """Fit codec, bank, denoiser and scales on good images; export, calibrate, choose parity frames.

    ``based_on``: a bundle trained on the same images, whose codec, bank and scorer are taken over,
    so that only the denoiser is trained. The run's checkpoints, losses and sample pictures lie in
    ``<out>.training`` and stay there. ``date`` is written down beside the promise. Raises BadData
    where the images cannot serve; nothing is written to ``out`` before the end.
    """
    out = out.absolute()
    check_place(out)
    parts = load_good(data, categories, settings, progress)
    configuration = configuration_of(settings, len(parts))
    torch.manual_seed(settings.seed)
    method = build_method(configuration)
    if not isinstance(method, LatentMethod):
        raise BadData(f"there is no training for {method.name}")
    source = None if based_on is None else open_bundle(based_on)
    if source is not None:
        take_over(method, source, parts, configuration)
    folder = out.with_name(f"{out.name}.training")
    open_run(folder, settings, parts, source.bundle_id if source else "", resume=resume)
    rows = [part.cut(settings.tiling) for part in parts]
    run = _Run(method, rows, settings, folder, resume=resume, progress=progress)
    if source is None:
        run.fit_eyes()
    reached = run.fit_denoiser()
    progress("export", 0.0, "")
    bundle = write_bundle(
        method,
        out,
        [part.category for part in parts],
        configuration=configuration,
        substitutions=substitutions_of(settings, len(parts)),
        training=_provenance(parts, settings, reached, source),
    )
    progress("export", 1.0, bundle.bundle_id)
    held_out = {part.category: list(part.held_out) for part in parts}
    bundle, sentences = calibrate_everywhere(bundle, held_out, settings, progress, date=date)
    return Trained(bundle, (_said(reached), *sentences))


def _said(reached: Training) -> str:
    """How far the denoiser came; where a finished run was resumed there is no loss."""
    loss = "" if math.isnan(reached.loss) else f", loss {reached.loss:.4f}"
    return f"{reached.step} steps{loss}"


def _provenance(
    parts: Sequence[GoodParts], settings: TrainSettings, reached: Training, source: Bundle | None
) -> dict[str, Any]:
    """What the manifest says of a training; no other image may be called unseen."""
    return {
        "based_on": source.bundle_id if source else None,
        "settings": settings.model_dump(mode="json"),
        "steps": reached.step,
        "loss": None if math.isnan(reached.loss) else reached.loss,
        "good": {part.category: len(part.train) for part in parts},
        "held_out": {part.category: len(part.held_out) for part in parts},
        "trained_on": trained_on(parts),
    }


def trained_on(parts: Sequence[GoodParts]) -> list[str]:
    """Fingerprints of all training images, sorted."""
    return sorted(fingerprint(image) for part in parts for image in part.train)


class _Run:
    """One training run: what its stages share, and the stages in their order.

    ``parts`` hold model inputs: tiles, where frames are cut.
    """

    def __init__(
        self,
        method: LatentMethod,
        parts: Sequence[GoodParts],
        settings: TrainSettings,
        folder: Path,
        *,
        resume: bool,
        progress: Progress,
    ) -> None:
        self.method, self.parts, self.settings, self.folder = method, parts, settings, folder
        self.resume, self.progress = resume, progress
        self.images = torch.cat([torch.from_numpy(part.train) for part in parts])
        sizes = torch.tensor([len(part.train) for part in parts])
        self.ids = torch.repeat_interleave(torch.arange(len(parts)), sizes)

    def fit_eyes(self) -> None:
        """What sees but does not denoise: codec, bank, and the scorer's first part."""
        fit_codec(
            self.method.codec,
            self.images,
            _schedule(self.settings, minutes=self.settings.codec_minutes, snapshots=0),
            self.folder / "codec",
            shift_px=self.settings.shift_px,
            resume=self.resume,
            progress=_shown(self.progress, "codec"),
        )
        if self.method.bank is not None:
            patches = dict(enumerate(part.flatten(0, 1) for part in self._patches))
            self.method.bank.fit(patches, self.settings.seed)
        if self.method.scorer is not None:
            fit_context(
                self.method,
                self._pool(self.settings.scorer_pool, seed=self.settings.seed),
                _schedule(self.settings, minutes=self.settings.scorer_minutes, snapshots=0),
                self.folder / "scorer",
                halves=lambda: self._halves,
                resume=self.resume,
                progress=_shown(self.progress, "scorer"),
                prepared=lambda share: self.progress("scorer", share, "features"),
            )

    def fit_denoiser(self) -> Training:
        """The denoiser, what the scorer makes of it, and the tables fitted on held-out parts."""
        settings = self.settings
        reached = fit_denoiser(
            self.method,
            self._latents,
            self.ids,
            _schedule(settings, minutes=settings.minutes, snapshots=settings.snapshots),
            self.folder / "denoiser",
            unknown=len(self.parts),
            label_dropout=settings.label_dropout,
            samples=_samples(self.images, self.ids),
            resume=self.resume,
            progress=_shown(self.progress, "denoiser"),
        )
        held_out = [torch.from_numpy(part.held_out) for part in self.parts]
        fit_walks(self.method.eval(), held_out, range(len(held_out)))
        fit_whitening(self.method, [torch.from_numpy(part.train) for part in self.parts])
        self._fit_difference()
        fit_scales(self.method, held_out, range(len(held_out)))
        return reached

    def _latents(self) -> Latents:
        return latent_cache(
            self.method.codec,
            self.images,
            self.settings.variants,
            shift_px=self.settings.shift_px,
            seed=self.settings.seed,
            with_anomalies=self.method.learns_from_anomalies,
            progress=lambda share: self.progress("latents", share, f"{len(self.images)} images"),
        )

    def _fit_difference(self) -> None:
        if self.method.scorer is None:
            return
        minutes = DIFFERENCE_SHARE * self.settings.scorer_minutes
        fit_difference(
            self.method,
            self._pool(
                max(1, int(DIFFERENCE_SHARE * self.settings.scorer_pool)),
                seed=self.settings.seed + 1,
            ),
            _schedule(self.settings, minutes=minutes, snapshots=0),
            self.folder / "difference",
            halves=lambda: self._halves,
            resume=self.resume,
            progress=_shown(self.progress, "difference"),
            prepared=lambda share: self.progress("difference", share, "reconstructions"),
        )

    @functools.cached_property
    def _halves(self) -> HalvedBank | None:
        if self.method.bank is None:
            return None
        half = half_of(torch.arange(len(self.images)), self.settings.tiling.count)
        own = [half[self.ids == category] for category in range(len(self.parts))]
        return HalvedBank(self._patches, own, self.settings.bank_rows, self.settings.seed)

    @functools.cached_property
    def _patches(self) -> list[torch.Tensor]:
        """What the bank compares, of every training image: f16 [N, P, D] per category."""
        found = []
        for category, part in enumerate(self.parts):
            self.progress("patches", category / len(self.parts), part.category)
            batches = torch.split(torch.from_numpy(part.train), ENCODE_BATCH)
            with torch.no_grad():
                maps = [self.method.codec.encode_all(batch).patches.half() for batch in batches]
            found.append(torch.cat(maps).flatten(2).transpose(1, 2))
        return found

    def _pool(self, count: int, seed: int) -> Pool:
        return draw_pool(
            self.images,
            self.ids,
            count,
            seed,
            unknown=len(self.parts),
            dropout=self.settings.label_dropout,
            tiles=self.settings.tiling.count,
        )


def take_over(
    method: LatentMethod,
    bundle: Bundle,
    parts: Sequence[GoodParts],
    configuration: Mapping[str, Any],
) -> None:
    """Fill a method's codec, bank and scorer from a bundle, in place.

    Raises BadData where the bundle was trained on other images or is built otherwise.
    """
    held = bundle.manifest
    differing = [k for k in SHARED if held.configuration.get(k) != configuration.get(k)]
    if differing:
        raise BadData(
            f"{bundle.folder} differs in {', '.join(differing)}; use the settings it was trained by"
        )
    names = tuple(part.category for part in parts)  # tables have their rows in this order
    if held.categories != names or held.training.get("trained_on") != trained_on(parts):
        raise BadData(
            f"{bundle.folder} was trained on other images or categories; train without --from"
        )
    weights = load_file(bundle.path(WEIGHTS))
    taken = {name: w.float() for name, w in weights.items() if name.startswith(TAKEN)}
    method.load_state_dict(taken, strict=False)


def _samples(images: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of each category, to be looked at beside their reconstruction."""
    rows = torch.cat([torch.nonzero(ids == category)[:2, 0] for category in torch.unique(ids)])
    return images[rows], ids[rows]


def _schedule(settings: TrainSettings, *, minutes: float, snapshots: int) -> Schedule:
    return Schedule(
        steps=settings.steps,
        minutes=minutes,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
        snapshots=snapshots,
    )


def _shown(progress: Progress, stage: str) -> Callable[[Training], None]:
    def show(reached: Training) -> None:
        progress(stage, reached.share, f"step {reached.step}  loss {reached.loss:.4f}")

    return show

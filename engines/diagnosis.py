"""What limits a trained bundle: codec, denoiser, bank, or the time it was trained.

Three measurements on test images: what each piece of evidence is worth; the codec's error inside
and outside defects, which needs truth masks; and image AUROC of the denoiser's own map (the bank
left out) against steps, which needs the snapshots of a training run and takes at most
``CURVE_IMAGES`` good and as many defective images per category, evenly chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from engines.checkpoint import read_tensors
from engines.contracts import BadBundle
from engines.dataset import (
    evenly,
    good_items,
    load_model_input,
    load_truth,
    split_holdout,
    test_items,
)
from engines.evidence import Piece, weigh_evidence
from engines.export import load_method
from engines.maps import gaussian_blur
from engines.methods.fit import WHITENING_IMAGES, fit_whitenings, seeds_of
from engines.methods.latent import LatentMethod
from engines.metrics import auroc
from engines.substitutions import told_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from engines.bundle import Bundle
    from engines.dataset import Item
    from engines.methods.method import State

BATCH = 16
CURVE_IMAGES = 50
SURROUNDINGS_PX = 12.0  # sigma of the blur that a defect is compared with


class CodecError(BaseModel):
    """Mean error of the codec's picture of test images, in grey levels of 255."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    category: str
    inside: float  # defect pixels
    outside: float  # the rest of the same images
    contrast: float  # how far defect pixels lie from their surroundings in the image itself
    kept: float  # share of that contrast that the picture still shows


class CurvePoint(BaseModel):
    """One snapshot of a training run."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    category: str
    step: int
    image_auroc: float | None


class Diagnosis(BaseModel):
    """All three measurements, and what they are of."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    origin: str  # method, bundle and substitutions, in one sentence
    evidence: tuple[Piece, ...]
    codec: tuple[CodecError, ...]
    curve: tuple[CurvePoint, ...]


@torch.inference_mode()
def diagnose(
    bundle: Bundle,
    training: Path,
    data: Path,
    categories: Sequence[str] | None = None,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> Diagnosis:
    """Measure evidence, codec and learning curve; ``training`` is the run's folder.

    A run without snapshots gives no curve.
    """
    method = load_method(bundle)
    if not isinstance(method, LatentMethod):
        raise BadBundle(f"there is no diagnosis for {method.name}")
    if bundle.tiling.count > 1:
        raise BadBundle(
            "there is no diagnosis for tiles, only for whole images; train without --tiles"
        )
    names = list(categories or bundle.manifest.categories)
    rows = {name: bundle.category_id(name) for name in names}
    pieces = weigh_evidence(method, data, rows, progress)
    snapshots = sorted((training / "denoiser" / "snapshots").glob("step_*.safetensors"))
    errors: list[CodecError] = []
    shown: list[_CurveImages] = []
    for name in names:
        items = test_items(data, name)
        images = _images(items, bundle.manifest.image_size)
        errors += _codec_errors(method, name, items, images)
        if snapshots:
            kept = _spread(items)
            shown.append(
                _CurveImages(name, rows[name], images[kept], [items[k].is_good for k in kept])
            )
    good = _good_images(bundle, data, names) if snapshots else {}
    points = _curve(method, snapshots, shown, good, progress)
    curve = sorted(points, key=lambda point: names.index(point.category))
    held = bundle.manifest
    return Diagnosis(
        origin=told_of(held.method, bundle.bundle_id, "torch:f32", held.substitutions),
        evidence=tuple(pieces),
        codec=tuple(errors),
        curve=tuple(curve),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _CurveImages:
    """Test images of a category that the curve is drawn from."""

    category: str
    row: int  # of the method's tables
    images: Tensor
    is_good: list[bool]


def _curve(
    method: LatentMethod,
    snapshots: Sequence[Path],
    shown: Sequence[_CurveImages],
    good: Mapping[int, Tensor],
    progress: Callable[[float, str], None],
) -> Iterator[CurvePoint]:
    """Image AUROC of the denoiser's own map at every snapshot.

    Where changes are whitened, each snapshot is measured in its own changes of good parts; all
    other fitted tables stay those of the final weights.
    """
    started = {part.category: _started(method, part.images, part.row) for part in shown}
    calm = {row: _started(method, images, row) for row, images in good.items()}
    for number, path in enumerate(snapshots):
        tensors, facts = read_tensors(path)
        method.denoiser.load_state_dict(tensors)
        for row, states in calm.items():
            fit_whitenings(method, [_walked(method, state) for state in states], row)
        for part in shown:
            progress(number / len(snapshots), f"{part.category} {path.stem}")
            walked = [_walked(method, state) for state in started[part.category]]
            scores = torch.cat([method.score_of(method.change_map(s)) for s in walked]).numpy()
            is_good = np.array(part.is_good)
            found = auroc(scores[is_good], scores[~is_good])
            yield CurvePoint(category=part.category, step=int(facts["step"]), image_auroc=found)


def _spread(items: Sequence[Item]) -> list[int]:
    """At most ``CURVE_IMAGES`` good and as many defective items, evenly over their order."""
    sides = ([k for k, item in enumerate(items) if item.is_good is side] for side in (True, False))
    return [k for side in sides for k in side[evenly(len(side), CURVE_IMAGES)]]


def _good_images(bundle: Bundle, data: Path, names: Sequence[str]) -> dict[int, Tensor]:
    """Training images of each category, by its row; none where nothing is measured in them."""
    if not bundle.manifest.configuration.get("whitened"):
        return {}
    stated = bundle.manifest.training["settings"]
    found = {}
    for name in names:
        kept, _ = split_holdout(good_items(data, name), stated["holdout"], stated["seed"])
        kept = kept[evenly(len(kept), WHITENING_IMAGES)]
        found[bundle.category_id(name)] = _images(kept, bundle.manifest.image_size)
    return found


def _walked(method: LatentMethod, state: State) -> State:
    """A state placed anew and walked along the deepest plan by the denoiser of now."""
    plan = state["plan"].long()
    placed = method.place(state["anchor"], state["category"], state["seed"], plan)
    return method.walked(state | placed, -1)


def _started(method: LatentMethod, images: Tensor, category: int) -> list[State]:
    """States of images on the deepest plan, and the seed of each besides."""
    deepest = len(method.plans) - 1
    states = []
    for batch in torch.split(images, BATCH):
        ids, seed = torch.full((len(batch),), category), seeds_of(batch)
        plan = torch.full((len(batch),), deepest, dtype=torch.int32)
        states.append(method.start(batch, ids, seed, plan) | {"seed": seed})
    return states


def _codec_errors(
    method: LatentMethod, category: str, items: Sequence[Item], images: Tensor
) -> list[CodecError]:
    """One row per category; none where it has no truth masks."""
    rows = [row for row, item in enumerate(items) if not item.is_good and item.mask_path]
    if not rows:
        return []
    measured = []
    for batch in torch.split(torch.tensor(rows), BATCH):
        shown = images[batch].permute(0, 3, 1, 2).float()  # [B, 3, H, W]
        drawn = method.codec.decode(method.codec.encode(images[batch])) * 255
        size = (shown.shape[2], shown.shape[3])
        masks = [load_truth(items[row], size) for row in batch.tolist()]
        inside = torch.from_numpy(np.stack([m for m in masks if m is not None]))
        measured.append(_sums_of(shown.mean(1), drawn.mean(1), inside))
    return [_codec_error(category, torch.stack(measured).sum(0))]


def _sums_of(shown: Tensor, drawn: Tensor, inside: Tensor) -> Tensor:
    """Sums over the pixels of grey images [B, H, W] with defect masks, f64 [7].

    Error and number of pixels inside, the same outside; then, inside: the contrast, its product
    with the picture's contrast, and its square. Sums, so that batches of any size can be added.
    """
    error = (drawn - shown).abs()
    contrast = (shown - gaussian_blur(shown, SURROUNDINGS_PX))[inside]
    still = (drawn - gaussian_blur(drawn, SURROUNDINGS_PX))[inside]
    errors = (error[inside], inside, error[~inside], ~inside)
    contrasts = (contrast.abs(), contrast * still, contrast**2)
    return torch.stack([term.double().sum() for term in (*errors, *contrasts)])


def _codec_error(category: str, sums: Tensor) -> CodecError:
    error_in, pixels_in, error_out, pixels_out, contrast, product, square = sums.tolist()
    return CodecError(
        category=category,
        inside=round(error_in / max(pixels_in, 1), 3),
        outside=round(error_out / max(pixels_out, 1), 3),
        contrast=round(contrast / max(pixels_in, 1), 3),
        kept=round(product / max(square, 1e-9), 3),
    )


def _images(items: Sequence[Item], size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.stack([load_model_input(item, size) for item in items]))

"""How many denoiser calls frames take that choose by themselves, and how well they rank so.

Speed without accuracy is no figure: the depth that a speed rests on is measured on frames, and the
image AUROC of the same frames at the same depth stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engines.contracts import ADAPTIVE, Backend, BadData, Finding, Rows, UInt8
from engines.dataset import evenly, load_model_input, named_categories, test_items
from engines.images import image_seed, to_model_input
from engines.metrics import ranking_metrics
from engines.parity_set import has_frames, load_frames
from pipeline.bench.turns import deepest_plan
from pipeline.simulator.line import LEAST_SEVERITY
from pipeline.simulator.render import PARTS, defects, render

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from engines.bundle import Bundle
    from engines.dataset import Item

GOOD_SHARE = 0.9  # of the frames of a line, nine to one
FRAMES = 60  # at most, of each kind and category
DRAWN, SEED = 20, 4242  # of each kind and simulated part, where no folder is given
BATCH = 8
Kinds = tuple[str, list[UInt8], list[UInt8]]  # a category, its good and its defective model inputs


@dataclass(frozen=True, slots=True)
class Depth:
    """Mean denoiser calls of a frame, on what it was measured, and the accuracy there."""

    calls: float
    told: str
    image_auroc: float | None = None  # None without truth, or without thresholds on this backend


def measured_depth(bundle: Bundle, backend: Backend, data: Path | None) -> Depth:
    """On test frames of a folder; else on frames drawn for a bundle of simulated parts; else on the
    bundle's parity frames; else the deepest plan's.
    """
    if data is not None:
        return _weighed(bundle, backend, _test_frames(bundle, data), "test frames")
    if bundle.manifest.categories and set(bundle.manifest.categories) <= set(PARTS):
        return _weighed(bundle, backend, _drawn_frames(bundle), "simulated frames")
    if has_frames(bundle):
        return _on_parity_frames(bundle, backend)
    calls = len(bundle.manifest.plans[deepest_plan(bundle)].levels)
    return Depth(calls, "deepest plan: there are no frames to measure on; give --data")


def _weighed(bundle: Bundle, backend: Backend, kinds: Iterable[Kinds], told: str) -> Depth:
    """Good and defective frames nine to one: each kind's mean by its share, then over categories.

    Weighing the means instead of thinning out the frames uses every frame there is.
    """
    calls, ranks, counts = [], [], np.zeros(2, np.int64)
    for category, *images in kinds:
        good, defective = (_findings(bundle, backend, category, kind) for kind in images)
        calls.append(GOOD_SHARE * _calls(good) + (1 - GOOD_SHARE) * _calls(defective))
        ranks.append(_image_auroc(bundle, backend, good, defective))
        counts += [len(good), len(defective)]
    known = [rank for rank in ranks if rank is not None]
    return Depth(
        calls=float(np.mean(calls)),
        told=f"{counts[0]} good and {counts[1]} defective {told}, weighed 9:1",
        image_auroc=float(np.mean(known)) if len(known) == len(ranks) else None,
    )


def _drawn_frames(bundle: Bundle) -> Iterator[Kinds]:
    """Simulated parts that no training drew; severities as on the simulated line."""
    rng, size = np.random.default_rng(SEED), bundle.manifest.image_size
    for part in bundle.manifest.categories:
        seen = [render(part, SEED, index) for index in range(DRAWN)]
        seen += [
            render(
                part,
                SEED,
                DRAWN + index,
                defect=defects(part)[index % len(defects(part))],
                severity=float(rng.uniform(LEAST_SEVERITY, 1)),
            )
            for index in range(DRAWN)
        ]
        inputs = [to_model_input(one.image, size) for one in seen]
        yield part, inputs[:DRAWN], inputs[DRAWN:]


def _on_parity_frames(bundle: Bundle, backend: Backend) -> Depth:
    frames = load_frames(bundle)
    found = [
        finding
        for name in sorted(set(frames.categories))
        for finding in _findings(
            bundle,
            backend,
            name,
            [image for image, c in zip(frames.images, frames.categories, strict=True) if c == name],
        )
    ]
    told = (
        f"{len(found)} parity frames of the bundle, half of them made anomalous; --data is fairer"
    )
    return Depth(_calls(found), told)


def _test_frames(bundle: Bundle, data: Path) -> Iterator[Kinds]:
    """Categories that the bundle knows; BadData where there is none, or one kind is missing."""
    known = [name for name in named_categories(data) if name in bundle.manifest.categories]
    if not known:
        raise BadData(f"{data} has no category that bundle {bundle.folder} was trained on")
    for name in known:
        items = test_items(data, name)
        good, defective = (
            [item for item in items if item.is_good is kind] for kind in (True, False)
        )
        if not good or not defective:
            raise BadData(f"{data}/{name}/test needs good and defective frames to bench on")
        yield name, _loaded(good, bundle), _loaded(defective, bundle)


def _loaded(items: Sequence[Item], bundle: Bundle) -> list[UInt8]:
    size = bundle.manifest.image_size
    return [load_model_input(item, size) for item in items[evenly(len(items), FRAMES)]]


def _findings(
    bundle: Bundle, backend: Backend, category: str, images: Sequence[UInt8]
) -> list[Finding]:
    """Every image walked as far as it asks for, in batches."""
    name, row = bundle.category_name(category), bundle.category_id(category)
    found: list[Finding] = []
    width = min(BATCH, backend.capacity)
    for first in range(0, len(images), width):
        batch = np.stack(images[first : first + width])
        rows = Rows(
            image=batch,
            category=np.full(len(batch), row, np.int64),
            seed=np.array([image_seed(image) for image in batch], np.int64),
            plan=np.full(len(batch), ADAPTIVE, np.int32),
        )
        found += _walked(backend, rows, name)
    return found


def _walked(backend: Backend, rows: Rows, category: str) -> Iterator[Finding]:
    slots = np.arange(len(rows))
    progress = backend.start(rows, slots.tolist())
    left, plans, levels = (
        values.copy() for values in (progress.steps_left, progress.plan, progress.level)
    )
    planned, calls = left.copy(), np.zeros(len(rows), np.int64)
    while (going := left > 0).any():
        progress = backend.step(slots[going].tolist())
        left[going], levels[going] = progress.steps_left, progress.level
        calls[going] += 1
    evidence = backend.finish(slots.tolist())
    for row in slots.tolist():
        yield Finding(
            frame_id=str(row),
            category=category,
            anomaly_map=evidence.anomaly_map[row].copy(),
            anomaly_score=float(evidence.anomaly_score[row]),
            plan=int(plans[row]),
            level=int(levels[row]),
            steps=int(calls[row]),
            steps_planned=int(planned[row]),
        )


def _calls(findings: Sequence[Finding]) -> float:
    return float(np.mean([finding.steps for finding in findings]))


def _image_auroc(
    bundle: Bundle, backend: Backend, good: Sequence[Finding], defective: Sequence[Finding]
) -> float | None:
    """Ranked by surprise, since raw scores of different depths do not compare."""
    calibration = bundle.calibration()
    if calibration is None or calibration.bundle_id != bundle.bundle_id:
        return None
    found = [calibration.judge(one, backend.key).surprise for one in (*good, *defective)]
    ranks = [surprise for surprise in found if surprise is not None]
    if len(ranks) < len(found):
        return None
    truth = [False] * len(good) + [True] * len(defective)
    return ranking_metrics(truth, ranks, "image")["image_auroc"]

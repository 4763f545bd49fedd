"""How many denoiser calls frames take that choose by themselves, and how well they rank so.

Speed without accuracy is no figure: the depth that a speed rests on is measured on frames, and the
image AUROC of the same frames at the same depth stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engines.contracts import Backend, BadBundle, BadData, Finding, UInt8
from engines.costs import CostTable
from engines.dataset import evenly, load_model_input, named_categories, test_items
from engines.images import to_model_input
from engines.inspector import Inspector, Part, inspect_all
from engines.metrics import ranking_metrics
from engines.parity_set import has_frames, load_frames
from engines.scheduler import Policy, Scheduler
from pipeline.bench.turns import deepest_plan
from pipeline.config import WorkerSettings
from pipeline.loading import scheduler_of
from pipeline.simulator.line import LEAST_SEVERITY
from pipeline.simulator.render import PARTS, defects, render

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from engines.bundle import Bundle
    from engines.calibration import Calibration
    from engines.contracts import Evidence, Progress, Rows
    from engines.dataset import Item

GOOD_SHARE = 0.9  # of the frames of a line, nine to one
FRAMES = 60  # at most, of each kind and category
DRAWN, SEED = 20, 4242  # of each kind and simulated part, where no folder is given
PERCENT = 100
Kinds = tuple[str, list[UInt8], list[UInt8]]  # a category, its good and its defective model inputs


def refuse_tiles(bundle: Bundle) -> Bundle:
    """The bundle itself; BadBundle where it cuts frames: one row is then no frame."""
    if bundle.tiling.count > 1:
        raise BadBundle(
            f"bundle {bundle.folder} cuts frames into {bundle.tiling.count} tiles, and these "
            "figures are those of single rows; use bench line, which counts frames"
        )
    return bundle


@dataclass(frozen=True, slots=True)
class Depth:
    """Mean denoiser calls of a frame, on what it was measured, and the accuracy there."""

    calls: float
    told: str
    spread: tuple[int, ...]  # calls of every hundredth of the frames, ascending
    finishes: float = 1.0  # calls of a frame: each look that it did not leave at is one more
    image_auroc: float | None = None  # None without truth, or without thresholds on this backend

    @classmethod
    def deepest(cls, bundle: Bundle, told: str) -> Depth:
        """Of frames that all take the deepest plan."""
        calls = len(bundle.manifest.plans[deepest_plan(bundle)].levels)
        return cls(calls, told, (calls,) * PERCENT)


class _Found(NamedTuple):
    """Findings, and how many rows went through the finish graph for them."""

    findings: list[Finding]
    finished: int

    @property
    def calls(self) -> float:
        return float(np.mean([finding.steps for finding in self.findings]))

    @property
    def finishes(self) -> float:
        return self.finished / len(self.findings)


def measured_depth(
    bundle: Bundle, backend: Backend, data: Path | None, *, early_exit: bool = True
) -> Depth:
    """As a worker's scheduler has it, which lets frames leave early unless told otherwise.

    On test frames of a folder; else on frames drawn for a bundle of simulated parts; else on the
    bundle's parity frames; else the deepest plan's.
    """
    if data is not None:
        kinds, told = _test_frames(bundle, data), "test frames"
    elif bundle.manifest.categories and set(bundle.manifest.categories) <= set(PARTS):
        kinds, told = _drawn_frames(bundle), "simulated frames"
    elif has_frames(bundle):
        return _on_parity_frames(bundle, backend, early_exit)
    else:
        return Depth.deepest(bundle, "deepest plan: there are no frames to measure on; give --data")
    return _weighed(bundle, backend, kinds, told, early_exit)


def _weighed(
    bundle: Bundle, backend: Backend, kinds: Iterable[Kinds], told: str, early_exit: bool
) -> Depth:
    """Good and defective frames nine to one: each kind's mean by its share, then over categories.

    Weighing the means instead of thinning out the frames uses every frame there is.
    """
    shares = np.array([GOOD_SHARE, 1 - GOOD_SHARE])
    calls, finishes, ranks, counts = [], [], [], np.zeros(2, np.int64)
    steps: list[int] = []
    weights: list[float] = []
    for category, *images in kinds:
        both = [_findings(bundle, backend, category, kind, early_exit) for kind in images]
        calls.append(shares @ [found.calls for found in both])
        finishes.append(shares @ [found.finishes for found in both])
        ranks.append(_image_auroc(bundle, backend, *(found.findings for found in both)))
        counts += [len(found.findings) for found in both]
        for share, found in zip(shares, both, strict=True):
            steps += [finding.steps for finding in found.findings]
            weights += [share / len(found.findings)] * len(found.findings)
    known = [rank for rank in ranks if rank is not None]
    return Depth(
        calls=float(np.mean(calls)),
        told=f"{counts[0]} good and {counts[1]} defective {told}, weighed 9:1",
        spread=_spread(steps, weights),
        finishes=float(np.mean(finishes)),
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


def _on_parity_frames(bundle: Bundle, backend: Backend, early_exit: bool) -> Depth:
    frames = load_frames(bundle)
    by_category: dict[str, list[UInt8]] = {}
    for name, image in zip(frames.categories, frames.images, strict=True):
        by_category.setdefault(name, []).append(image)
    each = [
        _findings(bundle, backend, name, images, early_exit) for name, images in by_category.items()
    ]
    found = _Found(
        [finding for one in each for finding in one.findings], sum(one.finished for one in each)
    )
    steps = [finding.steps for finding in found.findings]
    told = (
        f"{len(steps)} parity frames of the bundle, half of them made anomalous; --data is fairer"
    )
    return Depth(found.calls, told, _spread(steps, np.ones(len(steps)).tolist()), found.finishes)


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
    bundle: Bundle, backend: Backend, category: str, images: Sequence[UInt8], early_exit: bool
) -> _Found:
    """Every image walked as far as a worker's scheduler lets it."""
    name, row = bundle.category_name(category), bundle.category_id(category)
    parts = [Part(str(number), row, name, image) for number, image in enumerate(images)]
    counted = _Counted(backend)
    inspector = Inspector(counted, scheduler=_scheduler(bundle, backend.key, early_exit))
    return _Found(list(inspect_all(inspector, parts)), counted.finished)


def _scheduler(bundle: Bundle, backend_key: str, early_exit: bool) -> Scheduler:
    """The worker's; without thresholds one by which every frame takes the plan it asks for."""
    settings = WorkerSettings(early_exit=early_exit)
    calibration = _calibration(bundle)
    if calibration is None:
        return Scheduler(Policy(settings.batch_max))
    return scheduler_of(settings, bundle, calibration, backend_key, CostTable())


class _Counted:
    """A backend, and how many rows its finish graph was given."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.capacity, self.key = backend.capacity, backend.key
        self.finished = 0

    def start(self, rows: Rows, slots: list[int]) -> Progress:
        return self._backend.start(rows, slots)

    def step(self, slots: list[int]) -> Progress:
        return self._backend.step(slots)

    def finish(self, slots: list[int]) -> Evidence:
        self.finished += len(slots)
        return self._backend.finish(slots)

    def close(self) -> None:
        """Whoever opened the backend closes it."""


def _spread(steps: Sequence[int], weights: Sequence[float]) -> tuple[int, ...]:
    """Calls of every hundredth of the frames, ascending."""
    order = np.argsort(steps)
    below = np.cumsum(np.asarray(weights)[order])
    middles = (np.arange(PERCENT) + 0.5) / PERCENT * below[-1]
    return tuple(np.asarray(steps)[order][np.searchsorted(below, middles)].tolist())


def _calibration(bundle: Bundle) -> Calibration | None:
    """Its thresholds; those of another bundle are none."""
    found = bundle.calibration()
    return found if found is not None and found.bundle_id == bundle.bundle_id else None


def _image_auroc(
    bundle: Bundle, backend: Backend, good: Sequence[Finding], defective: Sequence[Finding]
) -> float | None:
    """Ranked by surprise, since raw scores of different depths do not compare."""
    calibration = _calibration(bundle)
    if calibration is None:
        return None
    found = [calibration.judge(one, backend.key).surprise for one in (*good, *defective)]
    ranks = [surprise for surprise in found if surprise is not None]
    if len(ranks) < len(found):
        return None
    truth = [False] * len(good) + [True] * len(defective)
    return ranking_metrics(truth, ranks, "image")["image_auroc"]

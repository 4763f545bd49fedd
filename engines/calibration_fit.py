"""Fit thresholds on held-out good parts, at a false-reject rate that is promised.

The promise is distribution-free: the exceedance probability of the (x + 1)-th largest of n good
scores is Beta(x + 1, n - x), whatever the scores are.

Where a bundle cuts frames, tails are those of tiles, and the promise is one of whole frames: the
threshold lies on the greatest surprise among the tiles of each.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.anomalies import unlearned
from engines.bounds import error_bound
from engines.calibration import Calibration, Entry, Promise
from engines.contracts import BadData, UInt8
from engines.exits import Fitted, Walks, fit_exits, leaves_at
from engines.tail import GOOD_MIN, Tail
from engines.trajectories import Walked, plans_chosen, scores_along

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from engines.bundle import Bundle
    from engines.contracts import Backend
    from engines.tiles import Tiling

SPENT_MAX = 0.5  # of the false rejects that are promised at the most, early exit may spend so many
EXIT_SEED = 1000  # other anomalies than those that shares of evidence were fitted on
UNKNOWN = "unknown"  # the category of parts that no recipe names


def good_images_needed(max_false_reject: float, confidence: float) -> int:
    """How many held-out good images the promise needs when none exceeds: (1 - p)^n <= 1 - c."""
    return max(GOOD_MIN, math.ceil(math.log(1 - confidence) / math.log(1 - max_false_reject)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is promised of good parts, and of those that leave early."""

    max_false_reject: float = 0.05
    confidence: float = 0.95
    max_changed: float | None = None  # verdicts that early exit may change; None = no early exit
    date: str = ""


def fit_entry(walks: Mapping[int, Walked], taken: Sequence[int], wanted: Wanted) -> Entry:
    """The lowest threshold that keeps the promise on held-out good images with exits below it.

    Where no exits keep it, at that of full depth there are none.

    ``walks``: scores of the same rows along each plan; ``taken``: the plan that each of them
    takes where the graph chooses. Raises BadData where the good frames are too few.
    """
    good = Good(walks, taken, wanted)
    at_full_depth = good.entry(good.allowed)
    if wanted.max_changed is None:
        return at_full_depth
    for exceeding in range(good.allowed, math.ceil(SPENT_MAX * good.allowed) - 1, -1):
        entry = good.entry(exceeding)
        fitted = _exits(good.seen, entry.threshold, wanted.max_changed, wanted.confidence)
        failing = good.failing(entry, fitted)
        if fitted and failing <= good.allowed:
            return entry.model_copy(
                update={
                    "evidence": entry.evidence.model_copy(update={"exceeding": failing}),
                    "exits": {plan: found.exits for plan, found in fitted.items()},
                    "exit_evidence": {plan: found.promise for plan, found in fitted.items()},
                }
            )
    return at_full_depth  # with exits the promise would not hold


class Good:
    """What held-out good images of a category showed, each by the plan that it takes."""

    def __init__(self, walks: Mapping[int, Walked], taken: Sequence[int], wanted: Wanted) -> None:
        self._walks, self._taken, self._wanted = walks, taken, wanted
        first = next(iter(walks.values()))
        self._is_good, self._tiles = first.is_good, first.tiles
        self._tails = {plan: self._tail(walk.final) for plan, walk in walks.items()}
        self._cut_tails = {
            plan: {made: self._tail(walk.at(made)) for made in walk.cut_points}
            for plan, walk in walks.items()
        }
        chosen = [
            self._tails[plan].surprise(float(walks[plan].final[row]))
            for row, plan in enumerate(taken)
            if first.is_good[row]
        ]
        self._surprises = np.sort(_greatest(np.array(chosen), self._tiles))[::-1]
        self.allowed = _exceeding_allowed(
            len(self._surprises), wanted.max_false_reject, wanted.confidence
        )

    def _tail(self, scores: NDArray[np.floating]) -> Tail:
        return Tail.fit(scores[self._is_good].tolist())

    def entry(self, exceeding: int) -> Entry:
        """The entry whose threshold so many good frames exceed at full depth; without exits."""
        wanted, threshold = self._wanted, float(self._surprises[exceeding])
        above = {
            plan: float(np.mean(_greatest(self._forced(plan), self._tiles) > threshold))
            for plan in self._walks
        }
        evidence = Promise(
            good=len(self._surprises),
            exceeding=int(np.sum(self._surprises > threshold)),
            bound=error_bound(self.allowed, len(self._surprises), wanted.confidence),
            max_false_reject=wanted.max_false_reject,
            confidence=wanted.confidence,
            date=wanted.date,
        )
        return Entry(
            threshold=threshold,
            evidence=evidence,
            exceeding_by_plan=above,
            tails=self._tails,
            cut_tails=self._cut_tails,
        )

    def _forced(self, plan: int) -> NDArray[np.float64]:
        return self._tails[plan].surprise_of(self._walks[plan].final[self._is_good])

    @cached_property
    def seen(self) -> dict[int, Walks]:
        """All rows along each plan, in surprise among good parts that stopped there."""
        return {plan: self._along(plan, walk) for plan, walk in self._walks.items()}

    def _along(self, plan: int, walk: Walked) -> Walks:
        columns = [tail.surprise_of(walk.at(n)) for n, tail in self._cut_tails[plan].items()]
        surprise = np.stack([*columns, self._tails[plan].surprise_of(walk.final)], axis=1)
        return Walks((*walk.cut_points, walk.steps), surprise, walk.is_good, walk.tiles)

    def failing(self, entry: Entry, fitted: Mapping[int, Fitted]) -> int:
        """How many good frames fail at this threshold where they may leave early, as estimated.

        Limits were learned from every other frame, none of which they can fail: what they fail of
        the rest counts twice.
        """
        fails = [
            _fails(self.seen[plan], row, fitted.get(plan), entry.threshold)
            for row, plan in enumerate(self._taken)
            if self._is_good[row]
        ]
        early = int(_greatest(np.array(fails), self._tiles).sum()) - entry.evidence.exceeding
        return entry.evidence.exceeding + 2 * max(0, early)


def _greatest(values: NDArray[Any], tiles: int) -> NDArray[Any]:
    """Of each frame the greatest value among its tiles, [N * tiles] -> [N]."""
    greatest: NDArray[Any] = values.reshape(-1, tiles).max(1)
    return greatest


def _exits(
    seen: Mapping[int, Walks], threshold: float, changed_max: float, confidence: float
) -> dict[int, Fitted]:
    """Exits of every plan that has some."""
    found = {
        plan: fit_exits(walk, threshold, changed_max=changed_max, confidence=confidence)
        for plan, walk in seen.items()
    }
    return {plan: fitted for plan, fitted in found.items() if fitted is not None}


def _fails(walk: Walks, row: int, fitted: Fitted | None, threshold: float) -> bool:
    """Whether a frame fails where it leaves its plan."""
    at = walk.surprise[row]
    return bool(at[leaves_at(walk.steps, at, fitted.exits if fitted else {})] > threshold)


def fit_calibration(
    bundle: Bundle,
    backend: Backend,
    images_by_category: Mapping[str, Sequence[UInt8]],
    wanted: Wanted = Wanted(),
    *,
    partly: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Run held-out good images, at the size of the bundle's frames, along every plan, and fit.

    With good images of every category of the bundle, "unknown" is calibrated on an even share of
    each, as many in all as the largest category has. For early exit every image is walked once more
    with a synthetic anomaly.
    Raises BadData, before any image is run, where the data cannot carry the promise; with
    ``partly`` only where those of no category can, and the others stay without a threshold.
    """
    jobs = dict(images_by_category)
    if partly:
        needed = good_images_needed(wanted.max_false_reject, wanted.confidence)
        jobs = {name: held for name, held in jobs.items() if len(held) >= needed} or jobs
    _check_promise(bundle, jobs, wanted.max_false_reject, wanted.confidence)
    if set(images_by_category) == set(bundle.manifest.categories):
        jobs[UNKNOWN] = _of_each(images_by_category)
    plans = range(len(bundle.manifest.plans))
    total, done, entries = sum(map(len, jobs.values())) * len(plans), 0, {}
    for category, good in jobs.items():
        row = bundle.category_id(category)
        made = [] if wanted.max_changed is None else _made_odd(good, bundle.tiling, EXIT_SEED + row)
        calm, odd = _tiles(good, bundle.tiling), _tiles(made, bundle.tiling)
        walks = {}
        for plan in plans:
            walks[plan] = _walked(bundle, backend, category, (calm, odd), plan)
            done += len(good)
            if progress:
                progress(done, total)
        taken = plans_chosen(backend, row, [*calm, *odd]).tolist()
        entries[category] = fit_entry(walks, taken, wanted)
    return Calibration(bundle_id=bundle.bundle_id, entries={backend.key: entries})


def _made_odd(images: Sequence[UInt8], tiling: Tiling, seed: int) -> list[UInt8]:
    """Every image with a synthetic anomaly, of the size that a tile might show, at some place."""
    if tiling.count == 1:
        return unlearned(images, seed)
    rng = np.random.default_rng(seed)
    (high, wide), (height, width) = tiling.frame_size, tiling.size
    corners = rng.integers((high - height + 1, wide - width + 1), size=(len(images), 2)).tolist()
    made = [image.copy() for image in images]
    windows = [
        image[top : top + height, left : left + width]
        for image, (top, left) in zip(made, corners, strict=True)
    ]
    for window, odd in zip(windows, unlearned(windows, seed), strict=True):
        window[:] = odd
    return made


def _tiles(images: Sequence[UInt8], tiling: Tiling) -> list[UInt8]:
    return [tile for image in images for tile in tiling.cut(image)]


def _of_each(images: Mapping[str, Sequence[UInt8]]) -> list[UInt8]:
    """Images of every category in turn, as many in all as the largest has."""
    turns = itertools.zip_longest(*images.values())
    mixed = (image for turn in turns for image in turn if image is not None)
    return list(itertools.islice(mixed, max(map(len, images.values()))))


def _exceeding_allowed(good: int, max_false_reject: float, confidence: float) -> int:
    """How many of the good images may lie above the threshold: the most that the bound allows."""
    needed = good_images_needed(max_false_reject, confidence)
    if good < needed:
        raise BadData(_refusal("the data", good, max_false_reject, confidence))
    allowed = 0
    while error_bound(allowed + 1, good, confidence) <= max_false_reject:
        allowed += 1
    return allowed


def _check_promise(
    bundle: Bundle,
    images: Mapping[str, Sequence[UInt8]],
    max_false_reject: float,
    confidence: float,
) -> None:
    if not (0 < max_false_reject < 1 and 0 < confidence < 1):
        raise BadData(
            "max false reject and confidence are rates between 0 and 1, such as 0.05 and 0.95"
        )
    known = bundle.manifest.categories
    for category, held_out in images.items():
        if category not in known:
            raise BadData(f"the bundle knows no {category!r}, only {', '.join(known)}")
        if len(held_out) < good_images_needed(max_false_reject, confidence):
            raise BadData(_refusal(repr(category), len(held_out), max_false_reject, confidence))


def _refusal(what: str, good: int, max_false_reject: float, confidence: float) -> str:
    needed = good_images_needed(max_false_reject, confidence)
    return (
        f"{what} has {good} held-out good images, but a false-reject rate of at most "
        f"{max_false_reject:.3g} with confidence {confidence:.3g} needs {needed}; "
        "add good images or promise a higher rate"
    )


def _walked(
    bundle: Bundle,
    backend: Backend,
    category: str,
    images: tuple[Sequence[UInt8], Sequence[UInt8]],
    plan: int,
) -> Walked:
    """Good rows and odd ones along one plan; BadData where one gives no evidence."""
    good, odd = images
    scores = scores_along(backend, bundle.category_id(category), [*good, *odd], plan)
    silent = int((~np.isfinite(scores[:, -1])).sum())
    if silent:
        odd_too = " and of their anomalous copies" if odd else ""
        rows = "good images" if bundle.tiling.count == 1 else "tiles of good images"
        raise BadData(
            f"{silent} of {len(scores)} {rows} of {category!r}{odd_too} "
            f"gave no evidence at plan {plan}; train the bundle again or remove those images"
        )
    held, is_good = bundle.manifest, np.arange(len(scores)) < len(good)
    return Walked(scores, is_good, held.steps_min, held.steps_unit, bundle.tiling.count)

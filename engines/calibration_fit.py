"""Fit thresholds on held-out good parts, at a false-reject rate that is promised.

The promise is distribution-free: the exceedance probability of the (x + 1)-th largest of n good
scores is Beta(x + 1, n - x), whatever the scores are.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from engines.bounds import error_bound
from engines.calibration import Calibration, Entry, Promise
from engines.contracts import ADAPTIVE, BadData, Finding, UInt8
from engines.tail import GOOD_MIN, Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engines.bundle import Bundle
    from engines.contracts import Backend

UNKNOWN = "unknown"  # the category of parts that no recipe names


def good_images_needed(max_false_reject: float, confidence: float) -> int:
    """How many held-out good images the promise needs when none exceeds: (1 - p)^n <= 1 - c."""
    return max(GOOD_MIN, math.ceil(math.log(1 - confidence) / math.log(1 - max_false_reject)))


def fit_entry(
    scores_by_plan: Mapping[int, Sequence[float]],
    adaptive: Sequence[tuple[int, float]],
    max_false_reject: float,
    confidence: float,
    date: str = "",
) -> Entry:
    """The lowest threshold that keeps the promise on held-out good images.

    ``scores_by_plan``: raw scores of all good images with each plan forced; ``adaptive``: (plan
    taken, raw score) of the same images when the graph chooses. Raises BadData where they are too
    few.
    """
    tails = {plan: Tail.fit(scores) for plan, scores in scores_by_plan.items()}
    surprises = np.sort([tails[plan].surprise(score) for plan, score in adaptive])[::-1]
    allowed = _exceeding_allowed(len(surprises), max_false_reject, confidence)
    threshold = float(surprises[allowed])
    above = {
        p: float(np.mean(t.surprise_of(np.asarray(scores_by_plan[p])) > threshold))
        for p, t in tails.items()
    }
    evidence = Promise(
        good=len(surprises),
        exceeding=int(np.sum(surprises > threshold)),
        bound=error_bound(allowed, len(surprises), confidence),
        max_false_reject=max_false_reject,
        confidence=confidence,
        date=date,
    )
    return Entry(threshold=threshold, evidence=evidence, exceeding_by_plan=above, tails=tails)


def fit_calibration(
    bundle: Bundle,
    backend: Backend,
    images_by_category: Mapping[str, Sequence[UInt8]],
    *,
    max_false_reject: float = 0.05,
    confidence: float = 0.95,
    date: str = "",
    partly: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Run held-out good model inputs through every plan and the adaptive policy, and fit.

    With good images of every category of the bundle, "unknown" is calibrated on an even share of
    each, as many in all as the largest category has.
    Raises BadData, before any image is run, where the data cannot carry the promise; with
    ``partly`` only where those of no category can, and the others stay without a threshold.
    """
    jobs = dict(images_by_category)
    if partly:
        needed = good_images_needed(max_false_reject, confidence)
        jobs = {name: held for name, held in jobs.items() if len(held) >= needed} or jobs
    _check_promise(bundle, jobs, max_false_reject, confidence)
    if set(images_by_category) == set(bundle.manifest.categories):
        jobs[UNKNOWN] = _of_each(images_by_category)
    plans = [ADAPTIVE, *range(len(bundle.manifest.plans))]
    total, done, entries = sum(map(len, jobs.values())) * len(plans), 0, {}
    for category, images in jobs.items():
        findings = {}
        for plan in plans:
            findings[plan] = _findings(bundle, backend, category, images, plan)
            done += len(images)
            if progress:
                progress(done, total)
        adaptive = [(f.plan, f.anomaly_score) for f in findings.pop(ADAPTIVE)]
        scores = {plan: [f.anomaly_score for f in found] for plan, found in findings.items()}
        entries[category] = fit_entry(scores, adaptive, max_false_reject, confidence, date)
    return Calibration(bundle_id=bundle.bundle_id, entries={backend.key: entries})


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


def _findings(
    bundle: Bundle, backend: Backend, category: str, images: Sequence[UInt8], plan: int
) -> list[Finding]:
    from engines.inspector import Inspector, Part, inspect_all

    row = bundle.category_id(category)
    parts = [Part(str(i), row, category, image, plan) for i, image in enumerate(images)]
    found = list(inspect_all(Inspector(backend), parts))
    silent = [f for f in found if f.reason is not None or not math.isfinite(f.anomaly_score)]
    if silent or len(found) != len(parts):
        raise BadData(
            f"{len(silent) or len(parts) - len(found)} of {len(parts)} good images of {category!r} "
            f"gave no evidence at plan {plan}; train the bundle again or remove those images"
        )
    return found

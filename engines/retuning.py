"""Another threshold for one category of a calibration, with what may still be promised of it.

The tails stay: they say how unusual a part is, whatever the threshold. What was fitted to the old
threshold goes: early exits, which are limits on either side of it. A higher threshold keeps the
old promise; below it the promise is the exact bound on what the tails say lies above, rounded up.
"""

from __future__ import annotations

import math

from engines.bounds import error_bound
from engines.calibration import Calibration, Entry, Promise
from engines.contracts import BadConfig


def with_threshold(
    calibration: Calibration, backend_key: str, category: str, threshold: float
) -> Calibration:
    """The calibration with one threshold changed; BadConfig where there is no such entry."""
    entry = calibration.entry(backend_key, category)
    if entry is None:
        raise BadConfig(f"there is no threshold for {category} on {backend_key}")
    if not (math.isfinite(threshold) and threshold > 0):
        raise BadConfig(f"{threshold} is no threshold: give a number above 0")
    of_backend = calibration.entries[backend_key] | {category: _retuned(entry, threshold)}
    return calibration.model_copy(
        update={"entries": calibration.entries | {backend_key: of_backend}}
    )


def expected_above(entry: Entry, threshold: float) -> float:
    """Share of good parts that the tails expect above a threshold, [0, 1]."""
    rows = max((tail.good for tail in entry.tails.values()), default=0)
    tiles = max(1, round(rows / max(entry.evidence.good, 1)))  # any of a frame's may be above
    return float(min(1.0, tiles * 10.0**-threshold))


def promise_at(entry: Entry, threshold: float) -> Promise:
    """What may be promised of good parts at another threshold."""
    known = entry.evidence
    share = expected_above(entry, threshold)
    exceeding = min(known.good, math.ceil(known.good * share))
    if threshold >= entry.threshold:
        return known.model_copy(update={"exceeding": min(exceeding, known.exceeding)})
    bound = error_bound(exceeding, known.good, known.confidence)
    worst = max(bound, known.bound)
    return known.model_copy(
        update={
            "exceeding": max(exceeding, known.exceeding),
            "bound": worst,
            "max_false_reject": max(worst, known.max_false_reject),
        }
    )


def _retuned(entry: Entry, threshold: float) -> Entry:
    return entry.model_copy(
        update={
            "threshold": threshold,
            "evidence": promise_at(entry, threshold),
            "exceeding_by_plan": dict.fromkeys(
                entry.exceeding_by_plan, expected_above(entry, threshold)
            ),
            "exits": {},
            "exit_evidence": {},
        }
    )

"""Two runs over the same parts, compared part by part."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from engines.contracts import Verdict

COMPARED = ("decision", "reason", "anomaly_score", "plan", "steps")


@dataclass(frozen=True, slots=True)
class Difference:
    """How one part's verdict differs between two runs."""

    frame_id: str  # in the original run
    kind: Literal["changed", "missing", "extra"]
    changes: dict[str, tuple[Any, Any]]  # field -> (original, again); empty unless changed

    def __str__(self) -> str:
        told = (f"{field} {before} -> {after}" for field, (before, after) in self.changes.items())
        return f"{self.frame_id} {self.kind} {', '.join(told)}".rstrip()


def compare_verdicts(
    original: Iterable[Verdict], again: Iterable[Verdict], tolerance: float = 0.0
) -> list[Difference]:
    """Part by part, where the second run disagrees with the first.

    Parts are matched by the second run's ``source_frame_id``, or by ``frame_id`` where it has none.
    Scores may differ by ``tolerance``. Missing parts come in their order, extra ones last.
    """
    first = {verdict.frame_id: verdict for verdict in original}
    sources = {v.source_frame_id: v.frame_id for v in first.values() if v.source_frame_id}
    second: dict[str, Verdict] = {}
    for verdict in again:
        key = verdict.source_frame_id or verdict.frame_id
        second[key if key in first else sources.get(key, key)] = verdict
    differences = [_difference(key, first[key], second.get(key), tolerance) for key in first]
    extra = [Difference(key, "extra", {}) for key in second if key not in first]
    return [difference for difference in differences if difference] + extra


def _difference(
    frame_id: str, before: Verdict, after: Verdict | None, tolerance: float
) -> Difference | None:
    if after is None:
        return Difference(frame_id, "missing", {})
    changes = {
        field: (getattr(before, field), getattr(after, field))
        for field in COMPARED
        if not _agree(getattr(before, field), getattr(after, field), tolerance)
    }
    return Difference(frame_id, "changed", changes) if changes else None


def _agree(before: object, after: object, tolerance: float) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        both_nan = math.isnan(before) and math.isnan(after)
        return before == after or both_nan or abs(before - after) <= tolerance
    return before == after

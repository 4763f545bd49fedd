"""Rows of a real backend, walked to the end of their plans."""

from __future__ import annotations

from typing import Any

from engines.backend import BatchedBackend
from engines.contracts import Rows


def findings(backend: BatchedBackend, rows: Rows, slots: list[int]) -> tuple[Any, Any, Any]:
    """Maps, scores and plans of rows that walk together, each as far as its plan goes."""
    progress = backend.start(rows, slots)
    left, plans = progress.steps_left.copy(), progress.plan.copy()
    while left.max() > 0:
        going = [slot for slot, more in zip(slots, left > 0, strict=True) if more]
        left[left > 0] = backend.step(going).steps_left
    evidence = backend.finish(slots)
    return evidence.anomaly_map, evidence.anomaly_score, plans

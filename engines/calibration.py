"""Thresholds with the evidence for them; findings become judgements.

Scores of different depths are never compared raw. Every plan has its own tail of held-out good
scores; a finding's surprise is read from the tail of the plan that it took. One threshold per
category and backend, on the surprise of the adaptive policy, serves all plans.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.bundle import record_of
from engines.contracts import BadBundle, Decision, Finding, Float32, Reason
from engines.exits import Exit, ExitPromise
from engines.tail import Tail

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MEDIAN = math.log10(2)  # surprise of the median good part


class Promise(BaseModel):
    """What the threshold promises of good parts, and the evidence for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    good: int  # held-out good images
    exceeding: int  # of them above the threshold
    bound: float  # upper confidence bound of the false-reject rate
    max_false_reject: float
    confidence: float
    date: str = ""  # of the calibration, as its caller says it


class Entry(BaseModel):
    """The calibration of one backend for one category."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    threshold: float = Field(gt=0, allow_inf_nan=False)  # of the surprise; more is FAIL
    evidence: Promise
    exceeding_by_plan: dict[int, float]  # fraction of good images above the threshold, plan forced
    tails: dict[int, Tail]  # by plan
    cut_tails: dict[int, dict[int, Tail]] = {}  # by plan and calls made, at its cut points
    exits: dict[int, dict[int, Exit]] = {}  # likewise
    exit_evidence: dict[int, ExitPromise] = {}  # by plan

    def tail(self, plan: int, steps: int, steps_planned: int) -> Tail | None:
        """The tail of good parts that took a plan and left it after so many calls."""
        if steps >= steps_planned:
            return self.tails.get(plan)
        return self.cut_tails.get(plan, {}).get(steps)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A finding weighed against its calibration."""

    decision: Decision
    reason: Reason | None = None  # set exactly when UNDECIDED
    surprise: float | None = None
    threshold: float | None = None  # of the surprise
    pixel_limit: float | None = None  # raw map value whose surprise equals the threshold
    median_good: float = 0.0  # raw score of the median good part at the same plan

    def relative(self, values: Float32) -> Float32 | None:
        """Raw map values such that the median good part peaks at 0 and a part fails above 1.

        That makes maps of different plans comparable, wherever the raw scale has its zero. None
        without a limit, and where most good parts would fail.
        """
        if self.pixel_limit is None or self.pixel_limit <= self.median_good:
            return None
        span = self.pixel_limit - self.median_good
        return ((values - self.median_good) / span).astype(np.float32)

    @property
    def scale(self) -> tuple[float, float | None]:
        """What ``relative`` measures by: maps of the same scale compare as they are."""
        return self.median_good, self.pixel_limit

    def raw(self, relative: Float32) -> Float32:
        """Raw values at this plan of what ``relative`` gave, at this or any other."""
        if self.pixel_limit is None:
            return relative
        span = self.pixel_limit - self.median_good
        return (self.median_good + relative * span).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ExitRule:
    """Where rows may leave before the end of their plan, by category."""

    entries: Mapping[str, Entry]
    looks: bool = True  # rows are looked at on their way, and leave where nothing can change

    def has_threshold(self, category: str, plan: int, steps: int) -> bool:
        """Whether a row that stops after so many calls can be judged."""
        entry = self.entries.get(category)
        return entry is not None and steps in entry.cut_tails.get(plan, {})

    def asks(self, category: str, plan: int, steps: int) -> bool:
        """Whether a row is to be looked at after so many calls."""
        entry = self.entries.get(category)
        return self.looks and entry is not None and steps in entry.exits.get(plan, {})

    def decides(self, category: str, plan: int, steps: int, score: float) -> bool:
        """Whether a row with this raw score may leave there; a score that is none never."""
        if not math.isfinite(score):
            return False
        entry = self.entries[category]
        surprise = entry.cut_tails[plan][steps].surprise(score)
        return entry.exits[plan][steps].decides(surprise)


class Calibration(BaseModel):
    """All thresholds of a bundle: backend key -> category -> entry."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bundle_id: str
    entries: dict[str, dict[str, Entry]]

    @property
    def calibration_id(self) -> str:
        """Hash of the content, the same wherever the file lies and however it is indented."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def entry(self, backend_key: str, category: str) -> Entry | None:
        """The entry of a category; None for one that was never calibrated."""
        return self.entries.get(backend_key, {}).get(category)

    def require(self, backend_key: str, categories: Iterable[str], bundle_id: str = "") -> None:
        """Refuse, at load, what was never calibrated: raises BadBundle naming the mend."""
        if bundle_id and bundle_id != self.bundle_id:
            raise BadBundle(
                f"calibration.json belongs to bundle {self.bundle_id}, not {bundle_id}; "
                "run `assayline calibrate` on this bundle"
            )
        if backend_key not in self.entries:
            raise BadBundle(
                f"the bundle is not calibrated for {backend_key}, only for "
                f"{', '.join(self.entries) or 'nothing'}; run `assayline calibrate` with it"
            )
        missing = [name for name in categories if name not in self.entries[backend_key]]
        if missing:
            raise BadBundle(
                f"the bundle has no threshold for {', '.join(missing)} on {backend_key}; "
                "run `assayline calibrate` with good images of it"
            )

    def judge(self, finding: Finding, backend_key: str) -> Judgement:
        """Only a finite score within the limit passes; no evidence is UNDECIDED.

        A part that was not wholly seen may fail by what was, and cannot pass.
        """
        if not math.isfinite(finding.anomaly_score):
            return Judgement(Decision.UNDECIDED, finding.reason or Reason.NO_EVIDENCE)
        entry = self.entry(backend_key, finding.category)
        if entry is None:
            return Judgement(Decision.UNDECIDED, Reason.NO_EVIDENCE)
        tail = entry.tail(finding.plan, finding.steps, finding.steps_planned)
        if tail is None:
            return Judgement(Decision.UNDECIDED, Reason.NO_EVIDENCE)
        surprise = tail.surprise(finding.anomaly_score)
        fails = surprise > entry.threshold
        if finding.reason is not None and not fails:
            return Judgement(Decision.UNDECIDED, finding.reason)
        return Judgement(
            Decision.FAIL if fails else Decision.PASS,
            surprise=surprise,
            threshold=entry.threshold,
            pixel_limit=tail.score_at(entry.threshold),
            median_good=tail.score_at(MEDIAN),
        )

    def exit_rule(self, backend_key: str, *, looks: bool = True) -> ExitRule:
        """Early exit on one backend; without ``looks`` only rows in need leave early."""
        return ExitRule(self.entries.get(backend_key, {}), looks)

    def joined(self, newer: Calibration) -> Calibration:
        """Both sets of entries; where both have one, ``newer``'s."""
        if newer.bundle_id != self.bundle_id:
            return newer
        entries = {
            key: self.entries.get(key, {}) | newer.entries.get(key, {})
            for key in self.entries | newer.entries
        }
        return Calibration(bundle_id=self.bundle_id, entries=entries)

    def save(self, path: Path) -> None:
        """Write it as JSON for people and programs."""
        path.write_text(self.model_dump_json(indent=1) + "\n", "utf-8")


def load_calibration(path: Path) -> Calibration:
    """Read a saved calibration; raises BadBundle where it is damaged."""
    try:
        return Calibration.model_validate_json(record_of(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadBundle(
            f"{path}: {where}: {first['msg']}; run `assayline calibrate` again"
        ) from error

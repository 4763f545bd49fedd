"""One gate before a compiled engine judges parts: does it agree with the reference?

Both run the same frames, adaptively and with every plan forced. With a threshold the allowed score
error epsilon is 1 % of the distance from the median good score to the threshold, so no verdict can
move but those that lie on the threshold itself; without one it is 1 % of the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict

from engines.backend import build_engine, engine_cache, open_backend
from engines.calibration import MEDIAN
from engines.contracts import ADAPTIVE, Finding, ParityError, UInt8
from engines.inspector import Inspector, Part, inspect_all

if TYPE_CHECKING:
    from pathlib import Path

    from engines.backend import BatchedBackend
    from engines.bundle import Bundle
    from engines.calibration import Calibration
    from engines.contracts import Backend

EPSILON = 0.01  # of threshold - median good, or of the score where there is no threshold


class PlanParity(BaseModel):
    """Agreement over all frames with one plan forced, or with the graph choosing (-1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    plan: int
    frames: int
    max_score_error: float  # raw, over frames that took the same plan
    max_relative_error: float  # of the reference's score
    max_epsilons: float  # the error as a multiple of what is allowed; above 1 fails
    max_map_error: float
    changed_plans: int  # frames that the two walked differently
    flips: int  # verdicts that differ
    flips_outside: int  # of them farther than epsilon from the threshold, or without evidence


class ParityReport(BaseModel):
    """What the gate found; ``passed`` is its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    backend: str
    reference: str
    frames: int
    thresholds: bool  # whether verdicts could be compared, not only scores
    plans: tuple[PlanParity, ...]

    @property
    def max_score_error(self) -> float:
        """The largest raw score error of any plan."""
        return max(plan.max_score_error for plan in self.plans)

    @property
    def max_map_error(self) -> float:
        """The largest raw map error of any plan."""
        return max(plan.max_map_error for plan in self.plans)

    @property
    def flips(self) -> int:
        """Verdicts that differ, over all plans."""
        return sum(plan.flips for plan in self.plans)

    @property
    def passed(self) -> bool:
        """Every score within epsilon, and no verdict flipped outside it."""
        return all(plan.max_epsilons <= 1 and not plan.flips_outside for plan in self.plans)

    def sentence(self) -> str:
        """The finding for people."""
        worst = max(self.plans, key=lambda plan: plan.max_epsilons)
        agree = "agrees" if self.passed else "DISAGREES"
        return (
            f"{self.backend} {agree} with {self.reference} on {self.frames} frames at "
            f"{len(self.plans)} plans: score error {self.max_score_error:.2e} "
            f"({worst.max_epsilons:.2f} of what is allowed), map error {self.max_map_error:.2e}, "
            f"{self.flips} flipped verdicts ({sum(p.flips_outside for p in self.plans)} outside "
            f"epsilon), {sum(p.changed_plans for p in self.plans)} changed plans"
        )

    def require(self) -> ParityReport:
        """The report itself, or ParityError where the engine must not be used."""
        if not self.passed:
            raise ParityError(f"{self.sentence()}; use precision f32")
        return self


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a verdict turns, in raw scores of one category and plan."""

    threshold: float
    median_good: float

    @property
    def epsilon(self) -> float:
        """The score error that may not be exceeded."""
        return EPSILON * abs(self.threshold - self.median_good)


LimitOf = Callable[[str, int], Limit | None]  # category, plan -> limit


def compare(
    bundle: Bundle,
    backend: Backend,
    reference: Backend,
    images: UInt8,
    categories: Sequence[str],
    *,
    limit_of: LimitOf | None = None,
) -> ParityReport:
    """Run the frames on both at every plan; images [N, H, W, 3] with the category of each.

    Thresholds come from the bundle's calibration of the reference, else of the backend, else of
    whatever is calibrated, unless ``limit_of`` gives them.
    """
    limits = limit_of or calibrated_limits(bundle.calibration(), (reference.key, backend.key))
    plans = (ADAPTIVE, *range(len(bundle.manifest.plans)))
    found = []
    for plan in plans:
        parts = [
            Part(f"{i}", bundle.category_id(name), bundle.category_name(name), image, plan)
            for i, (image, name) in enumerate(zip(images, categories, strict=True))
        ]
        pairs = list(zip(_run(backend, parts), _run(reference, parts), strict=True))
        found.append(_agreement(plan, pairs, limits))
    known = any(limits(bundle.category_name(name), p) for name in set(categories) for p in plans)
    return ParityReport(
        backend=backend.key,
        reference=reference.key,
        frames=len(images),
        thresholds=known,
        plans=tuple(found),
    )


def build_and_compare(
    bundle: Bundle,
    backend: str = "openvino",
    precision: str = "auto",
    progress: Callable[[float], None] = lambda _: None,
) -> ParityReport:
    """Compile a bundle's engines into its cache and let them pass the gate, else remove them.

    Raises ParityError where they disagree with the reference on the bundle's parity set; what was
    built before, in other precisions and for other backends, stays.
    """
    from engines.parity_set import load_frames

    frames, cache = load_frames(bundle), engine_cache(bundle)
    held = _entries(cache)
    build_engine(bundle, backend, precision)
    progress(0.2)
    with (
        open_backend(bundle, backend, precision) as compiled,
        open_reference(bundle) as reference,
    ):
        report = compare(bundle, compiled, reference, frames.images, frames.categories)
    progress(1.0)
    if not report.passed:
        refused = {cache / "int8"} if precision == "int8" else set()  # made for this build
        _discard((_entries(cache) - held) | (_entries(cache) & refused))
    return report.require()


def open_reference(bundle: Bundle, capacity: int = 32) -> BatchedBackend:
    """What engines are held against: torch in f32.

    A machine at a line has no torch; there it is OpenVINO in f32, which torch was compared with
    when the bundle was made.
    """
    name = "torch" if find_spec("torch") else "openvino"
    return open_backend(bundle, name, "f32", capacity)


def _entries(folder: Path) -> set[Path]:
    return set(folder.iterdir()) if folder.is_dir() else set()


def _discard(paths: set[Path]) -> None:
    import shutil

    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def calibrated_limits(calibration: Calibration | None, keys: Sequence[str]) -> LimitOf:
    """Raw thresholds by category and plan, from the first backend key that is calibrated."""
    everything = [*keys, *calibration.entries] if calibration else []

    def limit(category: str, plan: int) -> Limit | None:
        entries = [calibration.entry(key, category) for key in everything] if calibration else []
        entry = next((entry for entry in entries if entry is not None), None)
        if entry is None or plan not in entry.tails:
            return None
        tail = entry.tails[plan]
        return Limit(tail.score_at(entry.threshold), tail.score_at(MEDIAN))

    return limit


def _run(backend: Backend, parts: Sequence[Part]) -> list[Finding]:
    """Findings in the order of the parts."""
    found = inspect_all(Inspector(backend), parts)
    return sorted(found, key=lambda finding: int(finding.frame_id))


def _agreement(plan: int, pairs: Sequence[tuple[Finding, Finding]], limits: LimitOf) -> PlanParity:
    same = [(ours, theirs) for ours, theirs in pairs if ours.plan == theirs.plan]
    flips = [pair for pair in pairs if _flipped(*pair, limits)]
    return PlanParity(
        plan=plan,
        frames=len(pairs),
        max_score_error=max((_error(*pair) for pair in same), default=0.0),
        max_relative_error=max((_relative(*pair) for pair in same), default=0.0),
        max_epsilons=max((_epsilons(*pair, limits) for pair in same), default=0.0),
        max_map_error=max((_map_error(*pair) for pair in same), default=0.0),
        changed_plans=len(pairs) - len(same),
        flips=len(flips),
        flips_outside=sum(_outside(*pair, limits) for pair in flips),
    )


def _error(ours: Finding, theirs: Finding) -> float:
    """Score error; none where both have no evidence, infinite where one has."""
    if math.isnan(ours.anomaly_score) and math.isnan(theirs.anomaly_score):
        return 0.0
    error = abs(ours.anomaly_score - theirs.anomaly_score)
    return error if math.isfinite(error) else math.inf


def _relative(ours: Finding, theirs: Finding) -> float:
    error = _error(ours, theirs)
    return error / max(abs(theirs.anomaly_score), 1e-12) if error else 0.0


def _epsilons(ours: Finding, theirs: Finding, limits: LimitOf) -> float:
    limit = limits(theirs.category, theirs.plan)
    if limit is None:
        return _relative(ours, theirs) / EPSILON
    return _error(ours, theirs) / max(limit.epsilon, 1e-12)


def _map_error(ours: Finding, theirs: Finding) -> float:
    error = np.abs(ours.anomaly_map - theirs.anomaly_map)
    return float(np.max(error[np.isfinite(error)], initial=0.0))


def _fails(finding: Finding, limits: LimitOf) -> bool | None:
    """FAIL, PASS, or None where nothing can be said."""
    limit = limits(finding.category, finding.plan)
    if limit is None or not math.isfinite(finding.anomaly_score):
        return None
    return finding.anomaly_score > limit.threshold


def _flipped(ours: Finding, theirs: Finding, limits: LimitOf) -> bool:
    return _fails(ours, limits) != _fails(theirs, limits)


def _outside(ours: Finding, theirs: Finding, limits: LimitOf) -> bool:
    """Whether a flipped verdict lies farther from its threshold than epsilon, on either side."""
    for finding in (ours, theirs):
        limit = limits(finding.category, finding.plan)
        if limit is None or not math.isfinite(finding.anomaly_score):
            return True
        if abs(finding.anomaly_score - limit.threshold) > limit.epsilon:
            return True
    return False

"""A finding becomes a verdict: the decision, its mask in frame geometry, a picture for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engines.bundle import Bundle
from engines.calibration import Calibration, Judgement
from engines.contracts import Decision, Finding, Region, Verdict
from engines.images import FAST_PNG, STORED_PNG, encode_map, encode_png
from engines.masks import Mask, mask_of, regions
from pipeline.wire import FrameEntry

SMALL_BYTES = 500_000  # of a picture that travels as it is


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """A verdict with its pictures (PNG; empty where there is none)."""

    verdict: Verdict
    mask_png: bytes = b""
    picture_png: bytes = b""
    map_png: bytes = b""

    def told_at(self, decided_ns: int) -> Answer:
        """The same answer, sent now: what waited for company is not said to have been quicker."""
        known = self.verdict
        told = _stamp(known.captured_ns, decided_ns, known.latency_ms)
        return replace(self, verdict=known.model_copy(update=told))


def _stamp(captured_ns: int, decided_ns: int, stages_ms: Mapping[str, float]) -> dict[str, Any]:
    """When a verdict was given, and how long that took in all."""
    total_ms = max(0.0, (decided_ns - captured_ns) / 1e6)
    return {"decided_ns": decided_ns, "latency_ms": {**stages_ms, "total": total_ms}}


def categories_needed(bundle: Bundle, cameras: Sequence[str]) -> list[str]:
    """What must have thresholds before a line starts, from the category that each camera names.

    All that the bundle knows where a camera names none (""): its frames say what they are. A
    category that no camera sees may stay uncalibrated; a stray frame of it is UNDECIDED.
    """
    if not all(cameras):
        return list(bundle.manifest.categories)
    return sorted({bundle.category_name(name) for name in cameras})


@dataclass(frozen=True, slots=True)
class Judge:
    """Weighs findings of one bundle on one backend."""

    calibration: Calibration
    bundle_id: str
    backend_key: str
    calibration_id: str

    def answer(
        self, entry: FrameEntry, finding: Finding, decided_ns: int, stages_ms: dict[str, float]
    ) -> Answer:
        """The verdict on a frame: a mask when it failed, the picture when it did not pass."""
        judgement = self.calibration.judge(finding, self.backend_key)
        mask, found = located(finding, judgement, entry)
        verdict = self._verdict(
            entry, finding, judgement, found, decided_ns=decided_ns, stages_ms=stages_ms
        )
        return Answer(
            verdict,
            mask_png=b"" if mask is None else encode_png(mask),
            picture_png=b"" if verdict.decision is Decision.PASS else picture_of(entry),
            map_png=relative_map(finding, judgement),
        )

    def _verdict(
        self,
        entry: FrameEntry,
        finding: Finding,
        judgement: Judgement,
        found: tuple[Region, ...],
        *,
        decided_ns: int,
        stages_ms: dict[str, float],
    ) -> Verdict:
        return Verdict(
            frame_id=entry.frame_id,
            source_frame_id=entry.source_frame_id,
            camera=entry.camera,
            part_id=entry.part_id,
            lot=entry.lot,
            recipe=entry.recipe,
            category=entry.category,
            decision=judgement.decision,
            reason=judgement.reason,
            anomaly_score=finding.anomaly_score if np.isfinite(finding.anomaly_score) else None,
            surprise=judgement.surprise,
            threshold=judgement.threshold,
            regions=found,
            level=finding.level,
            plan=finding.plan,
            steps=finding.steps,
            steps_planned=finding.steps_planned,
            captured_ns=entry.captured_ns,
            **_stamp(entry.captured_ns, decided_ns, stages_ms),
            bundle_id=self.bundle_id,
            backend=self.backend_key,
            calibration_id=self.calibration_id,
            replayed=entry.replayed,
        )


def located(
    finding: Finding, judgement: Judgement, entry: FrameEntry
) -> tuple[Mask | None, tuple[Region, ...]]:
    """Mask [H, W] and regions of a failed part in pixels of its frame; None for any other."""
    if judgement.decision is not Decision.FAIL:
        return None, ()
    height, width = frame_size_of(entry)
    x, y, crop_width, crop_height = entry.crop if any(entry.crop) else (0, 0, width, height)
    inside = mask_of(finding, judgement, (crop_height, crop_width))
    mask = np.zeros((height, width), np.bool_)
    mask[y : y + crop_height, x : x + crop_width] = inside
    shifted = (
        region.model_copy(update={"x": region.x + x, "y": region.y + y})
        for region in regions(inside, finding.anomaly_map)
    )
    return mask, tuple(shifted)


def picture_of(entry: FrameEntry) -> bytes:
    """The model input for people; to pack a small one would cost more than it saves."""
    return encode_png(entry.image, STORED_PNG if entry.image.nbytes <= SMALL_BYTES else FAST_PNG)


def relative_map(finding: Finding, judgement: Judgement) -> bytes:
    """The anomaly map relative to its limit, so that maps of different depths compare; or empty."""
    relative = judgement.relative(finding.anomaly_map)
    return b"" if relative is None else encode_map(relative)


def frame_size_of(entry: FrameEntry) -> tuple[int, int]:
    """(H, W) of the frame that an entry was made from; the model input's where it is not told."""
    height, width = entry.image.shape[:2]
    return entry.frame_size if all(entry.frame_size) else (height, width)

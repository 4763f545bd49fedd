"""Findings of tiles become the finding of their frame.

The most surprising tile decides: score, plan, level and steps of the frame are that tile's, so that
its surprise can be computed again from the record. Tiles may have taken different plans, whose raw
scores do not compare; the maps of all are therefore brought to the scale of the one that decides,
where the median good part and the limit of each plan meet.

A frame of which a tile has no evidence is not wholly seen: FAIL of another tile stands, but PASS
becomes UNDECIDED (``Finding.reason``; ``Calibration.judge``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engines.contracts import Finding, Float32, Reason
from engines.tiles import Tiling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engines.bundle import Bundle
    from engines.calibration import Calibration, Judgement


@dataclass(frozen=True, slots=True)
class Mosaic:
    """How frames are cut, and what makes one of several findings.

    Without ``judge`` raw scores are compared, which is right where all tiles have the same depth.
    """

    tiling: Tiling
    judge: Callable[[Finding], Judgement] | None = None

    @classmethod
    def of(cls, bundle: Bundle, calibration: Calibration | None, backend_key: str) -> Mosaic:
        """That of a bundle on one backend; ``calibration`` None = it has no thresholds there."""
        if calibration is None:
            return cls(bundle.tiling)
        known = calibration
        return cls(bundle.tiling, lambda finding: known.judge(finding, backend_key))

    def whole(self, tiles: Sequence[Finding]) -> Finding:
        """The finding of a frame from those of its tiles, in their order."""
        if len(tiles) == 1:
            return tiles[0]
        weighed = [self._weigh(tile) for tile in tiles]
        deciding = max(weighed, key=lambda one: one.rank)
        maps = [one.map_as_of(deciding) if one.reason is None else None for one in weighed]
        return replace(
            deciding.tile,
            anomaly_map=self.tiling.merge(maps),
            anomaly_score=math.nan if deciding.reason else deciding.tile.anomaly_score,
            other_calls=sum(tile.calls for tile in tiles) - deciding.tile.steps,
            reason=next((one.reason for one in weighed if one.reason), None),
        )

    def _weigh(self, tile: Finding) -> _Weighed:
        if tile.reason is not None or not math.isfinite(tile.anomaly_score):
            return _Weighed(tile, reason=tile.reason or Reason.NO_EVIDENCE)
        if self.judge is None:
            return _Weighed(tile, tile.anomaly_score)
        judgement = self.judge(tile)
        if judgement.surprise is None:
            return _Weighed(tile, reason=judgement.reason or Reason.NO_EVIDENCE)
        return _Weighed(tile, judgement.surprise, judgement)


@dataclass(frozen=True, slots=True, eq=False)
class _Weighed:
    """A tile, and what orders it among the others of its frame."""

    tile: Finding
    rank: float = -math.inf
    judgement: Judgement | None = None
    reason: Reason | None = None  # why it has no evidence

    def map_as_of(self, other: _Weighed) -> Float32:
        """The tile's map on the raw scale of another; as it is where both have one scale."""
        own, its = self.judgement, other.judgement
        if own is None or its is None or own.scale == its.scale:
            return self.tile.anomaly_map
        relative = own.relative(self.tile.anomaly_map)
        return self.tile.anomaly_map if relative is None else its.raw(relative)

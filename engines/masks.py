"""Masks and regions: what people and archives see of a judged anomaly map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.contracts import Decision, Finding, Float32, Region

if TYPE_CHECKING:
    from engines.calibration import Judgement

Mask = NDArray[np.bool_]

REGIONS_MAX = 32


def mask_of(finding: Finding, judgement: Judgement, size_hw: tuple[int, int]) -> Mask:
    """Boolean mask [H, W] of what made the part fail; empty exactly when it did not fail."""
    if judgement.decision is not Decision.FAIL or judgement.pixel_limit is None:
        return np.zeros(size_hw, np.bool_)
    anomaly_map = stretched(finding.anomaly_map, size_hw)
    # Interpolation may flatten a lone peak below the limit; the peak itself is always shown.
    return anomaly_map > min(judgement.pixel_limit, float(np.nextafter(anomaly_map.max(), -np.inf)))


def stretched(anomaly_map: Float32, size_hw: tuple[int, int]) -> Float32:
    """An anomaly map [h', w'] at another size, by bilinear interpolation."""
    height, width = size_hw
    scaled = cv2.resize(anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)
    return scaled.astype(np.float32, copy=False)


def regions(mask: Mask, anomaly_map: Float32) -> tuple[Region, ...]:
    """Connected patches of a mask, strongest first, at most 32."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    box = np.s_[top : top + height, left : left + width]  # a defect is small beside its frame
    inside, values = mask[box], stretched(anomaly_map, (mask.shape[0], mask.shape[1]))[box]
    if not inside.size:
        return ()
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        inside.astype(np.uint8), connectivity=8
    )
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, labels[inside].astype(np.intp), values[inside])
    strongest = sorted(range(1, count), key=lambda i: -peaks[i])[:REGIONS_MAX]
    return tuple(
        Region(
            x=left + int(stats[i, cv2.CC_STAT_LEFT]),
            y=top + int(stats[i, cv2.CC_STAT_TOP]),
            w=int(stats[i, cv2.CC_STAT_WIDTH]),
            h=int(stats[i, cv2.CC_STAT_HEIGHT]),
            area_px=int(stats[i, cv2.CC_STAT_AREA]),
            peak=float(peaks[i]),
        )
        for i in strongest
    )


def outlines(mask: Mask, most: int = 4096) -> list[list[tuple[int, int]]]:
    """Closed lines (x, y) round the patches of a mask, the largest first; ``most`` points in all.

    What no longer fits is left out: the mask itself is the evidence, the lines are for the eye.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    kept: list[list[tuple[int, int]]] = []
    for line in sorted(found, key=cv2.contourArea, reverse=True):
        most -= len(line)
        if most < 0:
            break
        kept.append([(int(x), int(y)) for x, y in line[:, 0]])
    return kept

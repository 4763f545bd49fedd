"""What grows: slopes that a few odd looks cannot bend, after the line has warmed up."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import theilslopes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.soak.running import Look, Soaked

BYTES_PER_FRAME = 5.0
WARM = 0.25  # of the frames, which fill caches, buffers and the archive
FILLING = 30_000  # frames until all is full that is bounded: a sink remembers 20,000 of them
POINTS = 800  # all pairs of these are weighed
END = 0.2  # of what follows: where descriptors are compared
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Growth:
    """One quantity over the frames after warm-up."""

    per_frame: float  # slope: the median over all pairs of looks
    lowest: float  # of 95 % of such slopes
    highest: float
    between_ends: float  # per frame, from the medians of the first and the last fifth
    first: float  # median of the first fifth
    last: float  # and of the last


def growth(frames: Sequence[float], values: Sequence[float]) -> Growth:
    """The slope of values over frames by Theil and Sen, of looks after warm-up."""
    x, y = _thinned(np.asarray(frames, float), np.asarray(values, float))
    if len(x) < 3 or x[0] == x[-1]:
        return Growth(*(float("nan"),) * 6)
    found = theilslopes(y, x, CONFIDENCE)
    count = max(1, round(END * len(x)))
    first, last = median(y[:count]), median(y[-count:])
    passed = median(x[-count:]) - median(x[:count])
    slopes = (found.slope, found.low_slope, found.high_slope, (last - first) / passed)
    return Growth(*(round(float(one), 4) for one in (*slopes, first, last)))


def after_warm_up(looks: Sequence[Look]) -> list[Look]:
    """The looks that count; of a run too short to fill everything, its second half."""
    total = looks[-1].frames if looks else 0
    warm = max(WARM * total, min(FILLING, total / 2))
    return [look for look in looks if look.frames >= warm]


def summary(soaked: Soaked) -> dict[str, Any]:
    """Everything in one document; ``wrongs`` is empty where the line is flat."""
    looks = after_warm_up(soaked.looks)
    frames = [look.frames for look in looks]
    roles = sorted({role for look in looks for role in look.rss_bytes})
    rss = {role: growth(frames, [look.rss_bytes.get(role, 0) for look in looks]) for role in roles}
    opened = {
        role: growth(frames, [look.descriptors.get(role, 0) for look in looks]) for role in roles
    }
    latencies = [look.latency_ms for look in looks if look.latency_ms]
    document = {
        "frames": soaked.frames,
        "frames_after_warm_up": frames[-1] - frames[0] if frames else 0,
        "seconds": looks[-1].at_s if looks else 0.0,
        "residual": soaked.residual,
        "undecided": soaked.undecided,
        "restarts": soaked.processes - len(roles),
        "rss_bytes": {role: asdict(one) for role, one in rss.items()},
        "redis_bytes": asdict(growth(frames, [look.redis_bytes for look in looks])),
        "descriptors": {role: asdict(one) for role, one in opened.items()},
        "latency_ms": _ends(latencies),
        "bytes_per_frame_max": BYTES_PER_FRAME,
    }
    return {**document, "wrongs": _wrongs(soaked, rss, opened, document["restarts"])}


def _wrongs(
    soaked: Soaked, rss: dict[str, Growth], opened: dict[str, Growth], restarts: int
) -> list[str]:
    """What does not hold, in words."""
    wrongs = [
        f"{role} grows by {one.per_frame:.1f} bytes per frame"
        for role, one in rss.items()
        if not one.per_frame <= BYTES_PER_FRAME
    ]
    wrongs += [
        f"{role} has {one.last:.0f} descriptors after {one.first:.0f}"
        for role, one in opened.items()
        if not (one.per_frame <= 0 and one.last <= one.first)
    ]
    if soaked.residual:
        wrongs.append(f"{soaked.residual} frames have no verdict")
    if restarts:
        wrongs.append(f"{restarts} processes were started again")
    return wrongs


def _ends(latencies: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Medians of the looks' p50 and p99, of the first fifth and of the last."""
    if not latencies:
        return {}
    count = max(1, round(END * len(latencies)))
    ends = {"first": latencies[:count], "last": latencies[-count:]}
    return {
        f"{name}_{end}": round(median(one[at] for one in some), 3)
        for end, some in ends.items()
        for at, name in enumerate(("p50", "p99"))
    }


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``POINTS`` looks, evenly."""
    if len(x) <= POINTS:
        return x, y
    kept = np.linspace(0, len(x) - 1, POINTS).round().astype(int)
    return x[kept], y[kept]

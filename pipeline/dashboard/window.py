"""The rolling minute behind the page *Line*: verdicts and ledgers in, a LineView out.

Counts and rates come from the ledgers, so a verdict this page never saw changes no number. Latency,
depth and pictures come from the verdicts of the last minute, which is what they claim to describe.
Time is an argument: the server's clock, in epoch nanoseconds.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from engines.contracts import Decision
from pipeline.dashboard.view import (
    CameraRow,
    LineState,
    LineView,
    RatePoint,
    Reject,
    camera_state,
    state_of,
)
from pipeline.sight import CameraState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.contracts import Verdict
    from pipeline.dashboard.view import Totals

SECOND_NS = 1_000_000_000
WINDOW_S = 60.0  # latency, depth and parts per minute describe this long
CHART_S = 180.0  # how far back the throughput chart reaches
SMOOTH_S = 5.0  # one chart point is the rate over this long
VERDICTS_KEPT = 20_000  # bounds memory at any rate
REJECTS_SHOWN = 7
SILENCE = CameraState.DOWN  # what it means that no process speaks of a camera
REJECTS_KEPT = 32  # more than shown: a page that is a second behind still finds its pictures


@dataclass(frozen=True, slots=True)
class _Reading:
    """Sums over all ledgers at one moment."""

    at_ns: int
    passed: int
    failed: int
    undecided: int

    @property
    def answered(self) -> int:
        return self.passed + self.failed + self.undecided


class LineWindow:
    """The rolling minute behind the page: feed it verdicts and ledgers, ask it for a view."""

    def __init__(self, line: str, gates_ms: Mapping[str, float], run_key: str = "r") -> None:
        self._line, self._gates_ms, self._run_key = line, dict(gates_ms), run_key
        self._verdicts: deque[tuple[int, float, int]] = deque(maxlen=VERDICTS_KEPT)
        self._rejects: deque[Reject] = deque(maxlen=REJECTS_KEPT)
        self._rejects_seen = 0
        self._readings: deque[_Reading] = deque()
        self._ledgers: dict[str, Totals] = {}
        self._backlogs: dict[str, int] = {}
        self._last_frame_ns: dict[str, int] = {}
        self._told: dict[str, CameraState] | None = None

    def see(
        self,
        verdict: Verdict,
        mask_png: bytes = b"",
        picture_png: bytes = b"",
        map_png: bytes = b"",
    ) -> None:
        """Take one verdict in; an answer given without looking has neither depth nor latency."""
        if verdict.decision is not Decision.UNDECIDED:
            latency_ms = max(0.0, (verdict.decided_ns - verdict.captured_ns) / 1e6)
            self._verdicts.append((verdict.decided_ns, latency_ms, verdict.steps))
        newest = max(self._last_frame_ns.get(verdict.camera, 0), verdict.captured_ns)
        self._last_frame_ns[verdict.camera] = newest
        # UNDECIDED answers without a picture are counted, not shown: a flood of them would
        # push the last real reject off the page.
        is_shown = verdict.decision is Decision.FAIL or (
            verdict.decision is Decision.UNDECIDED and picture_png
        )
        # After a lost connection the same verdict may be read again.
        if not is_shown or verdict.frame_id in {one.verdict.frame_id for one in self._rejects}:
            return
        self._rejects_seen += 1
        key = f"{self._run_key}-{self._rejects_seen}"
        self._rejects.appendleft(Reject(key, verdict, picture_png, mask_png, map_png))

    def count(
        self, now_ns: int, ledgers: Mapping[str, Totals], backlogs: Mapping[str, int]
    ) -> None:
        """Take one reading of every camera's ledger and backlog in."""
        for camera, ledger in ledgers.items():
            before = self._ledgers.get(camera)
            if before is not None and ledger.captured > before.captured:
                self._last_frame_ns[camera] = max(self._last_frame_ns.get(camera, 0), now_ns)
        self._ledgers, self._backlogs = dict(ledgers), dict(backlogs)
        # The last reading of a second stands for it: every visitor is sent each point of the chart.
        if self._readings and self._readings[-1].at_ns // SECOND_NS == now_ns // SECOND_NS:
            self._readings.pop()
        self._readings.append(_sum(now_ns, list(ledgers.values())))
        while self._readings[0].at_ns < now_ns - CHART_S * SECOND_NS:
            self._readings.popleft()

    def hear(self, told: Mapping[str, CameraState] | None) -> None:
        """What the cameras' processes say of them; None where nobody may listen."""
        self._told = None if told is None else dict(told)

    def reject(self, key: str) -> Reject | None:
        """The kept reject of that key, if it is still kept."""
        return next((one for one in list(self._rejects) if one.key == key), None)

    def reject_of(self, stem: str) -> Reject | None:
        """The kept reject that the archive has under this name, if it is still kept."""
        return next((one for one in list(self._rejects) if one.stem == stem), None)

    def view(self, now_ns: int) -> LineView:
        """The page at ``now_ns`` (epoch nanoseconds, the server's clock)."""
        recent = [one for one in list(self._verdicts) if one[0] > now_ns - WINDOW_S * SECOND_NS]
        p50, p99 = _percentiles([latency for _, latency, _ in recent])
        ledgers = self._ledgers.values()
        gate_ms = min(self._gates_ms.values(), default=None)
        view = LineView(
            line=self._line,
            at_ns=now_ns,
            state=LineState.WAITING,
            captured=sum(ledger.captured for ledger in ledgers),
            passed=sum(ledger.passed for ledger in ledgers),
            failed=sum(ledger.failed for ledger in ledgers),
            undecided=_merge([ledger.undecided for ledger in ledgers]),
            open=sum(ledger.open for ledger in ledgers),
            residual=sum(_unaccounted(ledger) for ledger in ledgers),
            backlog=sum(self._backlogs.values()),
            parts_per_minute=_parts_per_minute(self._readings, now_ns),
            latency_p50_ms=p50,
            latency_p99_ms=p99,
            gate_ms=gate_ms,
            depth=_depth([steps for _, _, steps in recent]),
            rates=_rates(self._readings),
            cameras=tuple(self._row(camera, now_ns) for camera in self._gates_ms),
            rejects=tuple(self._rejects)[:REJECTS_SHOWN],
        )
        return replace(view, state=state_of(view))

    def _row(self, camera: str, now_ns: int) -> CameraRow:
        ledger, last_ns = self._ledgers.get(camera), self._last_frame_ns.get(camera)
        age_s = None if last_ns is None else max(0.0, (now_ns - last_ns) / SECOND_NS)
        backlog = self._backlogs.get(camera, 0)
        told = CameraState.RUNNING if self._told is None else self._told.get(camera, SILENCE)
        state = camera_state(told, age_s)
        if ledger is None:
            return CameraRow(camera, 0, 0, 0, 0, 0, backlog, age_s, state)
        undecided = sum(ledger.undecided.values())
        return CameraRow(
            camera,
            ledger.captured,
            ledger.passed,
            ledger.failed,
            undecided,
            ledger.open,
            backlog,
            age_s,
            state,
        )


def _sum(now_ns: int, ledgers: Sequence[Totals]) -> _Reading:
    return _Reading(
        now_ns,
        sum(ledger.passed for ledger in ledgers),
        sum(ledger.failed for ledger in ledgers),
        sum(sum(ledger.undecided.values()) for ledger in ledgers),
    )


def _unaccounted(ledger: Totals) -> int:
    answered = ledger.passed + ledger.failed + sum(ledger.undecided.values())
    return ledger.captured - answered - ledger.open


def _merge(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return {reason: number for reason, number in total.most_common() if number}


def _percentiles(latencies_ms: Sequence[float]) -> tuple[float | None, float | None]:
    if not latencies_ms:
        return None, None
    p50, p99 = np.percentile(np.asarray(latencies_ms), [50, 99])
    return float(p50), float(p99)


def _depth(steps: Sequence[int]) -> tuple[tuple[int, int], ...]:
    if not steps:
        return ()
    counts = np.bincount(np.asarray(steps, np.int64))
    return tuple((depth, int(number)) for depth, number in enumerate(counts))


def _parts_per_minute(readings: Sequence[_Reading], now_ns: int) -> float:
    """Answers per minute over the window; a ledger that went back to 0 counts as nothing."""
    recent = [one for one in readings if one.at_ns >= now_ns - WINDOW_S * SECOND_NS]
    if len(recent) < 2:
        return 0.0
    minutes = (recent[-1].at_ns - recent[0].at_ns) / (60 * SECOND_NS)
    return max(0, recent[-1].answered - recent[0].answered) / minutes if minutes > 0 else 0.0


def _rates(readings: Sequence[_Reading]) -> tuple[RatePoint, ...]:
    """The chart: at each reading, the rate since the newest reading at least SMOOTH_S older.

    A reading without one that old has no point: a few parts in a fraction of a second are no rate.
    """
    points: list[RatePoint] = []
    kept, start = list(readings), 0
    for index, now in enumerate(kept):
        while start + 1 < index and kept[start + 1].at_ns <= now.at_ns - SMOOTH_S * SECOND_NS:
            start += 1
        span_s = (now.at_ns - kept[start].at_ns) / SECOND_NS
        if span_s >= SMOOTH_S:
            points.append(_rate(kept[start], now, span_s / 60))
    return tuple(points)


def _rate(before: _Reading, now: _Reading, minutes: float) -> RatePoint:
    return RatePoint(
        now.at_ns,
        max(0, now.passed - before.passed) / minutes,
        max(0, now.failed - before.failed) / minutes,
        max(0, now.undecided - before.undecided) / minutes,
    )

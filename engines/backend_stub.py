"""A timed stub: graphs that only take time, so that scheduling is measured without a model.

A row's depth follows from its seed, its findings from the watermark in its first pixels, so a bench
can tell whether any two frames were ever mixed up. Two watermarks are poison: one has no score, one
kills the process as a driver that crashes does. Time passes on whatever clock it is given: a real
one by sleeping, a virtual one by being told.

A line runs on it where its bundle is one of the method "stub", calibrated for it as any other: no
bundle of a real method can be judged by a watermark.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engines.backend import BatchedBackend, bucket_of
from engines.contracts import ADAPTIVE, BadConfig, EngineFault, Evidence, Progress, Rows, UInt8

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engines.bundle import Bundle, GraphName

METHOD = "stub"  # of bundles that are made for it
WATERMARKS = 1 << 24  # numbers that single precision holds exactly
MARK_BYTES = 4
SCORELESS = WATERMARKS  # a row with this mark has the score NaN
DEADLY = WATERMARKS + 1  # a batch with this mark ends the process


@dataclass(frozen=True, slots=True)
class CallCost:
    """One call takes so long, and so much more for every row of its bucket."""

    call_ns: float
    row_ns: float

    def of(self, rows: int) -> float:
        """Nanoseconds of a call with so many rows."""
        return self.call_ns + self.row_ns * bucket_of(rows)


# What a small graphics processor is like: a step costs about as much for sixteen rows as for one.
COSTS: Mapping[GraphName, CallCost] = {
    "start": CallCost(1_000_000, 150_000),
    "step": CallCost(2_000_000, 100_000),
    "finish": CallCost(300_000, 50_000),
}


class VirtualClock:
    """Nanoseconds that pass only when told; starts late enough for deadlines to lie behind it."""

    def __init__(self, now_ns: int = 1_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        """What time it is."""
        return self.now_ns

    def spend(self, spent_ns: float) -> None:
        """Let time pass."""
        self.now_ns += round(spent_ns)


class TimedStub(BatchedBackend):
    """Rows of known depth and known findings whose calls take ``costs``.

    ``steps``: denoiser calls of each plan; a row asks for plan ``seed % len(steps)``. ``spend`` is
    told how many nanoseconds a call takes.
    """

    key = "stub:f32"

    def __init__(
        self,
        capacity: int,
        spend: Callable[[float], None],
        *,
        costs: Mapping[GraphName, CallCost] = COSTS,
        steps: Sequence[int] = (1, 2, 4, 8),
    ) -> None:
        super().__init__(capacity)
        self._spend, self._costs = spend, costs
        self.calls: Counter[GraphName] = Counter()
        self.delay_ns = 0.0  # the next call takes so much longer
        self.others: Sequence[TimedStub] = ()
        self._steps = np.array(steps, np.int32)
        self._mark = np.zeros(capacity, np.int64)
        self._plan = np.zeros(capacity, np.int32)
        self._left = np.zeros(capacity, np.int32)

    def cost_ns(self, graph: GraphName, rows: int) -> float:
        """What one call takes."""
        return self._costs[graph].of(rows)

    @property
    def beside(self) -> Sequence[TimedStub]:
        """Other stubs, with rows of their own."""
        return self.others

    def rehearse(self, graph: GraphName, size: int) -> bool:
        """Take the time of one call."""
        self._spend(self.cost_ns(graph, size))
        return True

    def _call(self, graph: GraphName, rows: int) -> None:
        self.calls[graph] += 1
        self._spend(self.cost_ns(graph, rows) + self.delay_ns)
        self.delay_ns = 0.0

    def _start(self, rows: Rows, slots: list[int]) -> Progress:
        self._call("start", len(slots))
        own = rows.seed % len(self._steps)
        limited = np.where(rows.plan < ADAPTIVE, np.minimum(own, -2 - rows.plan), own)
        self._plan[slots] = np.where(rows.plan >= 0, rows.plan, limited)
        self._left[slots] = self._steps[self._plan[slots]]
        self._mark[slots] = [read_watermark(image) for image in rows.image]
        if (self._mark[slots] == DEADLY).any():
            os.abort()
        return self._progress(slots)

    def _step(self, slots: list[int]) -> Progress:
        self._call("step", len(slots))
        if (self._left[slots] < 1).any():
            raise EngineFault("a row without a step left was stepped")
        self._left[slots] -= 1
        return self._progress(slots)

    def _finish(self, slots: list[int]) -> Evidence:
        self._call("finish", len(slots))
        mark = self._mark[slots]
        score = np.where(mark == SCORELESS, np.nan, mark).astype(np.float32)
        return Evidence(np.repeat(score, 4).reshape(-1, 2, 2), score)

    def _progress(self, slots: list[int]) -> Progress:
        level = self._left[slots].copy()
        return Progress(level.copy(), self._plan[slots].copy(), level)


def open_stub(bundle: Bundle, capacity: int, engines: int = 1) -> TimedStub:
    """The stub in real time, with the depths of the bundle's plans; BadConfig for other bundles.

    The bundle's configuration may say ``costs``: by graph, nanoseconds of a call and of a row. Of
    several ``engines`` each takes that time, whatever the others do.
    """
    manifest = bundle.manifest
    if manifest.method != METHOD:
        raise BadConfig(
            f"the backend stub inspects nothing: bundle {bundle.folder} is of the method "
            f"{manifest.method}; choose the backend openvino"
        )
    told = manifest.configuration.get("costs", {})
    stub, *others = (
        TimedStub(
            capacity // engines,
            lambda spent_ns: time.sleep(spent_ns / 1e9),
            costs={**COSTS, **{graph: CallCost(*cost) for graph, cost in told.items()}},
            steps=[len(plan.levels) for plan in manifest.plans],
        )
        for _ in range(engines)
    )
    stub.others = others
    return stub


def watermarked(number: int, size: tuple[int, int] = (2, 2)) -> UInt8:
    """An image [h, w, 3] that carries a number below ``WATERMARKS``, or one of the poisons."""
    image = np.zeros((*size, 3), np.uint8)
    image.reshape(-1)[:MARK_BYTES] = np.frombuffer(number.to_bytes(MARK_BYTES, "little"), np.uint8)
    return image


def read_watermark(image: UInt8) -> int:
    """The number that an image carries."""
    return int.from_bytes(image.reshape(-1)[:MARK_BYTES].tobytes(), "little")

"""Frames in tiles against the clock: cut in depth like any other, and begun only to be finished."""

from __future__ import annotations

import numpy as np
import pytest

from engines.backend_stub import COSTS, TimedStub, VirtualClock, watermarked
from engines.contracts import Finding, Progress, Reason, Rows
from engines.costs import measure_costs
from engines.depths import Depths
from engines.inspector import Inspector, Part
from engines.mosaic import Mosaic
from engines.scheduler import Policy, Scheduler
from engines.tiles import Tiling

MS = 1_000_000
STEPS = (1, 2, 4, 8)
BATCH, MARGIN_NS, GATE_NS = 16, 20 * MS, 100 * MS
PLACES = 100  # numbers of tiles: PLACES * frame + place


class Counted(TimedStub):
    """A stub that knows how many rows were begun."""

    begun = 0

    def _start(self, rows: Rows, slots: list[int]) -> Progress:
        self.begun += len(slots)
        return super()._start(rows, slots)


def frame(number: int, grid: tuple[int, int], deadline_ns: int, camera: str = "left") -> Part:
    """A frame each of whose tiles carries a number of its own, and so a depth."""
    first = PLACES * number
    rows = [
        np.hstack([watermarked(first + row * grid[1] + column) for column in range(grid[1])])
        for row in range(grid[0])
    ]
    return Part(str(number), 0, "stub", np.vstack(rows), deadline_ns=deadline_ns, camera=camera)


def inspector_of(stub: TimedStub, clock: VirtualClock, grid: tuple[int, int]) -> Inspector:
    """A worker's policy."""
    costs = measure_costs(stub, clock)
    scheduler = Scheduler(Policy(BATCH, MARGIN_NS), costs, Depths(STEPS, 1, 1))
    return Inspector(stub, scheduler=scheduler, clock=clock, mosaic=Mosaic(Tiling((2, 2), *grid)))


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (4, 5)])
def test_a_deadline_cuts_the_depth_of_tiles(grid: tuple[int, int]) -> None:
    """Unhurried a frame's tiles take what they ask for; in a hurry fewer, and all are seen."""
    calls = {}
    for gate_ms in (1000, 50 if grid == (4, 5) else 32):
        clock = VirtualClock()
        inspector = inspector_of(TimedStub(32, clock.spend, steps=STEPS), clock, grid)
        number = 3 if grid == (1, 1) else 1
        inspector.admit([frame(number, grid, clock.now_ns + gate_ms * MS)])
        (found,) = inspector.drain()
        assert found.reason is None
        calls[gate_ms] = found.calls
    unhurried, hurried = calls.values()
    assert grid[0] * grid[1] <= hurried < unhurried


@pytest.mark.parametrize("grid", [(2, 2), (3, 3), (4, 5)])
@pytest.mark.parametrize("load", [0.9, 4.0, 8.0])
def test_what_is_begun_is_finished(grid: tuple[int, int], load: float) -> None:
    """At any load each frame is answered once and before its margin, and little work is in vain.

    Frames of three cameras wait outside for a slot. Beyond what the stub can do at its least depth
    some are given up; of the rows begun, six in seven belong to frames with evidence.
    """
    clock, count, frames = VirtualClock(), grid[0] * grid[1], 200
    stub = Counted(2 * BATCH + count, clock.spend, steps=STEPS)
    inspector = inspector_of(stub, clock, grid)
    row_ns = {graph: cost.of(BATCH) / BATCH for graph, cost in COSTS.items()}
    full_ns = count * (row_ns["start"] + np.mean(STEPS) * row_ns["step"] + row_ns["finish"])
    due_ns = {n: clock.now_ns + int(n * full_ns / load) + GATE_NS for n in range(frames)}
    coming, outside = list(due_ns), []
    answered: dict[str, Finding] = {}
    while len(answered) < frames:
        while coming and due_ns[coming[0]] - GATE_NS <= clock.now_ns:
            outside.append(coming.pop(0))
        while outside and inspector.free_slots:
            number = outside.pop(0)
            inspector.admit([frame(number, grid, due_ns[number], "abc"[number % 3])])
        began_ns = clock.now_ns
        for finding in inspector.step(expects_more=bool(coming or outside)):
            assert finding.frame_id not in answered
            assert finding.reason in (None, Reason.DEADLINE)
            if finding.reason is None:
                assert began_ns <= due_ns[int(finding.frame_id)] - MARGIN_NS
                assert finding.anomaly_score == PLACES * int(finding.frame_id) + count - 1
            answered[finding.frame_id] = finding
        if clock.now_ns == began_ns:
            clock.spend(MS / 10)
    seen = sum(finding.reason is None for finding in answered.values())
    assert seen == frames if load < 1 else seen >= frames / load
    assert count * seen >= 0.85 * stub.begun
    assert inspector.in_flight == 0

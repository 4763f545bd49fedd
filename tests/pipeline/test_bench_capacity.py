"""Laws of the capacity bench: arithmetic and scheduling over costs that were measured elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.backend_stub import VirtualClock
from pipeline.bench import capacity
from pipeline.bench.arrivals import NS, TableStub, exposures, feed, line_over, stub_line
from pipeline.bench.cameras import Costs, is_carried, slowest_ms
from pipeline.bench.capacity import bench_capacity, capacity_of, results_of
from pipeline.bench.report import Report, Result
from pipeline.bench.scheduler import POLICY
from pipeline.config import WorkerSettings

DEMO = Path(__file__).parents[2] / "configs" / "bundles" / "demo"
MARGIN_MS = WorkerSettings().margin_ms
# A frame alone: 10 + 2 x 5 + 1 = 21 ms in the engine; in a batch of four 30 + 2 x 9 + 2 = 50 ms.
COSTS = Costs(
    calls_s={
        1: {"start": 0.010, "step": 0.005, "finish": 0.001},
        4: {"start": 0.030, "step": 0.009, "finish": 0.002},
    },
    depth=2.0,
    spread=(1, 1, 2, 4),
    finishes=1.0,
    host_s=0.005,
    cores=2,
    transport_hz=1000.0,
)
# Every frame takes 10 + 5 + 2 = 17 ms, one after the other, and nothing else.
SINGLE = replace(
    COSTS,
    calls_s={1: {"start": 0.010, "step": 0.005, "finish": 0.002}},
    depth=1.0,
    spread=(1,),
    host_s=0.0,
)


@pytest.fixture(autouse=True)
def few_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every period is like the next: fewer of them show the same."""
    monkeypatch.setattr("pipeline.bench.cameras.FRAMES", 200)


def test_cameras_share_what_the_machine_gets_done() -> None:
    """1 / (50 ms / 4 + 5 ms / 2) = 66.7 frames/s, of which 80 % are planned for."""
    found = capacity_of(COSTS, rate_hz=5, gate_ms=500)
    assert (found.cameras, found.bottleneck) == (10, "engine")
    assert found.frames_hz == pytest.approx(66.67, abs=0.01)
    told = "10 cameras at 5 Hz with a gate of 500 ms; the bottleneck is the engine"
    assert found.sentence(5, 500) == told


def test_looks_on_the_way_cost_a_finish_each() -> None:
    """With two finishes instead of one a batch of four takes 2 ms more."""
    assert replace(COSTS, finishes=2.0).engine_s(4) == pytest.approx(0.052 / 4)


@pytest.mark.parametrize("cameras", [1, 2, 4])
def test_cameras_in_phase_wait_for_each_other(cameras: int) -> None:
    """The last of n frames that come at once takes n times 17 ms, and the margin must be left."""
    gate_ms = 17 * cameras + MARGIN_MS
    found = capacity_of(SINGLE, rate_hz=1, gate_ms=gate_ms + 0.1)
    assert (found.cameras, found.bottleneck, found.phases) == (cameras, "gate", "in phase")
    assert found.by_phases["at random phases"] >= cameras
    assert "one more, in phase, frames would miss" in found.sentence(1, gate_ms)
    assert not is_carried(SINGLE, cameras, 1, gate_ms - 0.1, "in phase")
    assert slowest_ms(SINGLE, cameras, 1, gate_ms + 0.1, "in phase") == pytest.approx(17 * cameras)


def test_a_gate_below_one_frame_carries_no_camera() -> None:
    """However fast the machine is on average."""
    found = capacity_of(COSTS, rate_hz=5, gate_ms=50)
    assert (found.cameras, found.bottleneck) == (0, "gate")
    assert "too short for any" in found.sentence(5, 50)
    slowest = results_of(found, COSTS, 5, 50)[-1]
    assert slowest.value > 50 - MARGIN_MS


def test_a_machine_that_is_too_slow_for_one_camera_does_not_blame_the_gate() -> None:
    """At 100 Hz no gate would help."""
    found = capacity_of(COSTS, rate_hz=100, gate_ms=500)
    assert (found.cameras, found.bottleneck) == (0, "engine")


@pytest.mark.parametrize(
    ("changed", "bottleneck"),
    [({"host_s": 0.1}, "host CPU"), ({"transport_hz": 20.0}, "transport")],
)
def test_the_narrowest_resource_is_named(changed: dict[str, float], bottleneck: str) -> None:
    """Processor time around the engine, or the way through the server."""
    assert capacity_of(replace(COSTS, **changed), 2, 2000).bottleneck == bottleneck  # type: ignore[arg-type]


def test_more_room_never_means_fewer_cameras() -> None:
    """A longer gate or a slower belt carries at least as many."""
    by_gate = [capacity_of(COSTS, 5, gate_ms).cameras for gate_ms in (50, 80, 150, 200, 500)]
    by_rate = [capacity_of(COSTS, rate_hz, 200).cameras for rate_hz in (40, 20, 10, 5)]
    assert by_gate == sorted(by_gate)
    assert by_rate == sorted(by_rate)


def test_results_say_what_each_resource_would_carry_alone() -> None:
    """A ratio of 16 beside the engine: sixteen cameras at full load, were there nothing else."""
    results = results_of(capacity_of(COSTS, 5, 500), COSTS, 5, 500)
    assert [one.name for one in results] == [
        f"capacity.{name}" for name in ("cameras", "engine", "host_cpu", "transport", "slowest")
    ]
    assert [one.ratio for one in results[:-1]] == pytest.approx(
        [13.33, 16.0, 80.0, 200.0], abs=0.01
    )
    assert 1 < results[-1].ratio == pytest.approx(500 / results[-1].value)
    assert results[-1].against == "the gate, 10 in phase"


def test_a_way_through_the_server_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of the bundle's size, sent as a line sends them by itself."""
    asked: list[int] = []

    def measured(frames: int, rounds: int, *, side: int) -> Report:  # noqa: ARG001 - the bench's
        asked.append(side)
        names = ("transport.shared_49kB", "transport.inline_49kB")
        rows = [Result(name, len(name), "frames/s", "x", 1.0) for name in names]
        return Report({}, (*rows, Result("transport.inline_49kB.lean", 7.0, "frames/s", "x", 1.0)))

    monkeypatch.setattr(capacity, "bench_transport", measured)
    assert capacity._transport_hz((64, 256)) == len("transport.inline_49kB")
    assert asked == [128]


def test_the_transport_bench_has_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else it measures."""
    monkeypatch.setattr(capacity, "TRANSPORT_FRAMES", 12)
    monkeypatch.setattr(capacity, "TRANSPORT_ROUNDS", 1)
    assert capacity._transport_hz((16, 16)) > 0


@pytest.mark.skipif(not DEMO.exists(), reason="the demo bundle is not here")
def test_costs_are_measured_and_the_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch size of the worker; line and transport have tests of their own."""
    monkeypatch.setattr("pipeline.bench.capacity.around_engine_s", lambda *_: 0.005)
    monkeypatch.setattr("pipeline.bench.capacity._transport_hz", lambda _: 1000.0)
    monkeypatch.setattr("pipeline.bench.depth.DRAWN", 1)
    report = bench_capacity(DEMO, 1.0, 60_000.0, frames=20)
    assert report.results[0].name == "capacity.cameras"
    assert "at 1 Hz with a gate of 60000 ms" in report.machine["answer"]
    assert "at random phases" in report.machine["cameras"]
    assert len(report.machine["call_ms"]) == 15


# -- frames that arrive -----------------------------------------------------------------------


def test_cameras_in_phase_expose_at_once_and_others_when_it_is_their_turn() -> None:
    """Two periods of 100 ms of three cameras, in the order of time."""
    assert exposures(np.zeros(3), 10.0, 2, 7) == [7] * 3 + [7 + NS // 10] * 3
    assert exposures(np.array([0.5, 0.0]), 10.0, 2, 0) == [0, NS // 20, NS // 10, NS * 3 // 20]


def test_a_table_has_the_cost_of_the_batch_that_holds_the_rows() -> None:
    """Three rows go in a batch of four, as no smaller one was measured; each pays its share."""
    table = {("start", 1): 10.0, ("start", 4): 30.0}
    stub = TableStub(8, lambda _: None, table, rows_ns={"start": 2.0}, steps=(1,))  # type: ignore[arg-type]
    assert [stub.cost_ns("start", rows) for rows in (1, 3, 4, 8)] == [12, 36, 38, 46]


def test_a_frame_that_comes_alone_is_inspected_at_once() -> None:
    """A line that rests begins with whoever comes, and not with the next one after."""
    line = stub_line(VirtualClock(), POLICY, steps=(1,))
    first_ns = line.clock() + NS
    answers = list(feed(line, [first_ns, first_ns + NS], 500.0))
    assert [answer.latency_ms < 10 for answer in answers] == [True, True]


def test_without_depths_no_frame_is_limited() -> None:
    """Every frame takes the steps that it asks for, although the gate is near."""
    clock = VirtualClock()
    table = {(graph, 1): 1e6 for graph in ("start", "step", "finish")}
    stub = TableStub(4, clock.spend, table, rows_ns={}, steps=(5,))  # type: ignore[arg-type]
    line = line_over(stub, clock, POLICY)
    answers = list(feed(line, exposures(np.zeros(3), 1.0, 1, clock()), 40.0))
    assert {answer.steps for answer in answers if answer.reason is None} == {5}

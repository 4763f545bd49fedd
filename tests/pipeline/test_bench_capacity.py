"""Laws of the capacity bench: arithmetic over costs that were measured elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bench.capacity import Costs, bench_capacity, capacity_of, results_of

DEMO = Path(__file__).parents[2] / "configs" / "bundles" / "demo"
# A frame alone: 10 + 2 x 5 + 1 = 21 ms in the engine; in a batch of four 30 + 2 x 9 + 2 = 50 ms.
COSTS = Costs(
    calls_s={
        1: {"start": 0.010, "step": 0.005, "finish": 0.001},
        4: {"start": 0.030, "step": 0.009, "finish": 0.002},
    },
    depth=2.0,
    deepest=4,
    host_s=0.005,
    cores=2,
    transport_hz=1000.0,
)


def test_cameras_share_what_the_machine_gets_done() -> None:
    """1 / (50 ms / 4 + 5 ms / 2) = 66.7 frames/s, of which 80 % are planned for."""
    found = capacity_of(COSTS, rate_hz=5, gate_ms=500)
    assert (found.cameras, found.bottleneck, found.batch) == (10, "engine", 4)
    assert found.frames_hz == pytest.approx(66.67, abs=0.01)
    told = "10 cameras at 5 Hz with a gate of 500 ms; the bottleneck is the engine"
    assert found.sentence(5, 500) == told


def test_a_gate_that_forbids_batches_is_the_bottleneck() -> None:
    """A batch of four needs 30 + 30 + 4 x 9 + 2 + 5 + 5 = 108 ms; one frame alone 51 ms."""
    found = capacity_of(COSTS, rate_hz=5, gate_ms=107)
    assert (found.cameras, found.bottleneck, found.batch) == (6, "gate", 1)
    assert "too short for more" in found.sentence(5, 107)
    assert capacity_of(COSTS, rate_hz=5, gate_ms=109).bottleneck == "engine"


def test_a_gate_below_one_frame_carries_no_camera() -> None:
    """However fast the machine is on average."""
    found = capacity_of(COSTS, rate_hz=5, gate_ms=50)
    assert (found.cameras, found.bottleneck) == (0, "gate")
    assert "too short for any" in found.sentence(5, 50)


@pytest.mark.parametrize(
    ("changed", "bottleneck"),
    [({"host_s": 0.1}, "host CPU"), ({"transport_hz": 20.0}, "transport")],
)
def test_the_narrowest_resource_is_named(changed: dict[str, float], bottleneck: str) -> None:
    """Processor time around the engine, or the way through the server."""
    assert capacity_of(replace(COSTS, **changed), 5, 500).bottleneck == bottleneck  # type: ignore[arg-type]


@given(
    rate_hz=st.floats(0.1, 100),
    gate_ms=st.floats(1, 1000),
    more=st.floats(1, 10),
)
def test_more_room_never_means_fewer_cameras(rate_hz: float, gate_ms: float, more: float) -> None:
    """A longer gate or a slower belt carries at least as many."""
    cameras = capacity_of(COSTS, rate_hz, gate_ms).cameras
    assert capacity_of(COSTS, rate_hz, gate_ms * more).cameras >= cameras
    assert capacity_of(COSTS, rate_hz / more, gate_ms).cameras >= cameras


def test_results_say_what_each_resource_would_carry_alone() -> None:
    """A ratio of 16 beside the engine: sixteen cameras at full load, were there nothing else."""
    results = results_of(capacity_of(COSTS, 5, 500), COSTS, 5, 500)
    assert [one.name for one in results] == [
        f"capacity.{name}" for name in ("cameras", "engine", "host_cpu", "transport", "slowest")
    ]
    assert [one.ratio for one in results] == pytest.approx(
        [13.33, 16.0, 80.0, 200.0, 500 / 103], abs=0.01
    )


@pytest.mark.skipif(not DEMO.exists(), reason="the demo bundle is not here")
def test_costs_are_measured_and_the_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch size of the worker; line and transport have tests of their own."""
    monkeypatch.setattr("pipeline.bench.capacity.around_engine_s", lambda *_: 0.005)
    monkeypatch.setattr("pipeline.bench.capacity._transport_hz", lambda: 1000.0)
    monkeypatch.setattr("pipeline.bench.depth.DRAWN", 1)
    report = bench_capacity(DEMO, 1.0, 60_000.0, frames=20)
    assert report.results[0].name == "capacity.cameras"
    assert "at 1 Hz with a gate of 60000 ms" in report.machine["answer"]
    assert len(report.machine["call_ms"]) == 15

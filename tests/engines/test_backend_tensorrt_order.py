"""When the GPU worker's host waits, and what becomes one launch."""

from __future__ import annotations

import numpy as np
import pytest

from engines.backend import DEVICE_BUCKETS
from engines.bundle import GRAPHS
from engines.contracts import EngineFault
from engines.costs import measure_costs
from engines.gpu.checked_parts import CheckedEvent
from engines.gpu.device_checked import CheckedDevice
from engines.gpu.graph_run import STAGES
from tests.engines.exported import Exported
from tests.engines.gpu.comparing import agree, drawn
from tests.engines.gpu.host_engines import on_host


def test_the_host_waits_once_in_a_call(glad: Exported, device: CheckedDevice) -> None:
    """A step waits for its integers, a finish for its evidence; a start for a free entry beside."""
    rows, slots = drawn(glad, 8, 2), list(range(8))
    with on_host(glad, 8, device)[0] as backend:
        for call, waits in (
            (lambda: backend.start(rows, slots), 2),
            (lambda: backend.step(slots), 1),
        ):
            before = device.calls["synchronise"]
            call()
            assert device.calls["synchronise"] - before == waits
        before = device.calls["synchronise"]
        backend.finish(slots)
        assert device.calls["synchronise"] - before == 1


@pytest.mark.parametrize("call", GRAPHS)
def test_a_worker_that_does_not_wait_is_found(
    glad: Exported, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the one wait of a call the host would read what is still on its way."""
    device = CheckedDevice()
    backend, _ = on_host(glad, 2, device)
    rows = drawn(glad, 2, 3)
    backend.start(rows, [0, 1])
    calls = {
        "start": lambda: backend.start(rows, [0, 1]),
        "step": lambda: backend.step([0, 1]),
        "finish": lambda: backend.finish([0, 1]),
    }
    monkeypatch.setattr(CheckedEvent, "synchronise", lambda _: None)
    with pytest.raises(EngineFault, match="the host reads page-locked memory while download"):
        calls[call]()
    assert device.hazards


def test_stages_of_a_call_are_timed_on_no_row(glad: Exported, device: CheckedDevice) -> None:
    """Copies, moves and the engine add up to the call, and rows in flight are as before."""
    rows, slots = drawn(glad, 5, 4), [4, 0, 3, 1, 2]
    with on_host(glad, 8, device)[0] as backend:
        backend.start(rows, slots)
        before = backend.finish(slots)
        for graph in GRAPHS:
            for _ in range(2):
                began_ms = device.now_ms
                found = backend.stages_ms(graph, 4)
                assert tuple(found) == STAGES
                assert 0 < found["compute"] < sum(found.values()) <= device.now_ms - began_ms
        after = backend.finish(slots)
        assert np.array_equal(before.anomaly_map, after.anomaly_map)


def test_warming_up_captures_every_bucket_and_leaves_rows_alone(
    glad: Exported, device: CheckedDevice
) -> None:
    """After the costs are measured every call is one launch, and rows in flight are as before."""
    clock = iter(range(0, 10**9, 1000))
    rows, slots = drawn(glad, 5, 4), [4, 0, 3, 1, 2]
    with on_host(glad, 64, device)[0] as backend:
        backend.start(rows, slots)
        backend.step(slots)
        before = backend.finish(slots)
        costs = measure_costs(backend, lambda: next(clock))
        assert costs.widest == 64
        assert set(backend.captured) == {(g, size) for g in GRAPHS for size in DEVICE_BUCKETS}
        assert not backend.not_captured
        after = backend.finish(slots)
        assert np.array_equal(before.anomaly_map, after.anomaly_map)
        launched = device.calls["graph"]
        backend.step(slots)
        assert device.calls["graph"] == launched + 1


def test_an_engine_that_cannot_be_captured_keeps_running(
    glad: Exported, device: CheckedDevice
) -> None:
    """The reason is kept and every later call goes kernel by kernel."""
    rows, slots = drawn(glad, 2, 8), [0, 1]
    with on_host(glad, 2, device)[0] as backend:
        expected = backend.start(rows, slots)
        device.fail("capture", 1, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        for _ in range(3):
            assert agree(backend.start(rows, slots), expected)
        assert list(backend.not_captured) == [("start", 2)]
        assert "STREAM_CAPTURE" in backend.not_captured["start", 2]

"""Laws of the bench of a GPU's engine: what it says crosses the bus is what the device copies."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import Mock

import numpy as np
import pytest

from pipeline.bench import Asked, Report, run_bench
from pipeline.bench.device import bench_device, state_bytes
from pipeline.bench.turns import drawn_rows
from tests.engines.exported import Exported, exported, sealed
from tests.engines.gpu.host_engines import on_host
from tests.engines.sketches import GladSketch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engines.backend import BatchedBackend
    from engines.bundle import Bundle, GraphName

BATCH = 8
SLOT_BYTES, FEW_BYTES = 4, 3 * 4  # which row; its steps_left, plan and level


@pytest.fixture(scope="module")
def sketch(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One method is enough: a backend knows none."""
    return exported(GladSketch.name, tmp_path_factory)


@pytest.fixture(scope="module")
def bundle(sketch: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sketch as it is shipped."""
    return sealed(sketch, tmp_path_factory.mktemp("bundle") / "sketch")


def test_a_step_moves_exactly_the_few_integers_of_its_rows(
    sketch: Exported, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the device double: the bench's figures are the bytes that the device copied."""

    def opened(*_: object) -> BatchedBackend:
        return on_host(sketch, BATCH)[0]

    monkeypatch.setattr("pipeline.bench.device.open_backend", opened)
    monkeypatch.setattr(
        "pipeline.bench.device.open_reference", lambda *_: sketch.openvino(capacity=BATCH)
    )
    report = bench_device(bundle.folder, "tensorrt", "f32", rounds=1, batches=(BATCH,))
    found = {result.name: result for result in report.results}
    step = found[f"engine.bus.step.tensorrt:f32_b{BATCH}"]
    assert (step.value, step.unit) == (BATCH * (SLOT_BYTES + FEW_BYTES), "bytes/call")
    assert f"({BATCH * SLOT_BYTES} up, {BATCH * FEW_BYTES} down)" in step.against
    assert step.ratio == 1 + state_bytes(bundle, "step", BATCH) / step.value > 10
    assert report.machine["engine"] == "tensorrt:f32"
    backend, device = on_host(sketch, BATCH)
    rows, slots = drawn_rows(bundle, BATCH), list(range(BATCH))
    calls: dict[GraphName, Callable[[], object]] = {
        "start": lambda: backend.start(rows, slots),
        "step": lambda: backend.step(slots),
        "finish": lambda: backend.finish(slots),
    }
    for graph, call in calls.items():
        device.copied.clear()
        call()
        told = found[f"engine.bus.{graph}.tensorrt:f32_b{BATCH}"]
        assert told.value == device.copied["upload"] + device.copied["download"]
        assert f"engine.vs_cpu.{graph}.tensorrt:f32_b{BATCH}" in found
    backend.close()


def test_the_engine_bench_is_of_the_backend_that_is_named(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's engine has a bench of its own; without one it is a sentence."""
    seen = Mock(return_value=Report({}, ()))
    monkeypatch.setattr("pipeline.bench.device.bench_device", seen)
    asked = Asked(bundle.folder, folder=tmp_path, backend="torch-cuda", precision="bf16")
    assert run_bench("engine", asked) == seen.return_value
    seen.assert_called_once_with(bundle.folder, "torch-cuda", "bf16")


def test_what_rows_of_state_weigh_is_read_in_the_manifest(bundle: Bundle) -> None:
    """A start writes them, a step reads and writes them, a finish reads them."""
    spec = bundle.manifest.spec
    weights = {t.name: int(np.prod(t.shape)) * np.dtype(t.dtype).itemsize for t in spec.state}
    for graph, read, written in (
        ("start", (), spec.graphs["start"].outputs),
        ("step", spec.graphs["step"].inputs, spec.graphs["step"].outputs),
        ("finish", spec.graphs["finish"].inputs, ()),
    ):
        expected = sum(weights[name] for name in (*read, *written))
        assert state_bytes(bundle, graph, 3) == 3 * expected > 0

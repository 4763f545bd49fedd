"""The GPU worker without TensorRT: every copy, move, wait and capture, on a GPU if there is one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from engines.backend import start_inputs
from engines.backend_tensorrt import TensorRtBackend
from engines.bundle import GRAPHS, Manifest, open_bundle
from engines.contracts import EngineFault
from engines.gpu.device import Unavailable
from engines.gpu.device_checked import CheckedDevice
from engines.gpu.graph_run import STAGES
from tests.engines.gpu.copying_engines import copying_worker

COUNT, CAPACITY = 66, 70  # two buckets, of 64 and of 2


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """Of the bundle that is shipped."""
    return open_bundle(Path(__file__).parents[3] / "configs" / "bundles" / "demo").manifest


def require_travel(worker: TensorRtBackend, manifest: Manifest, seed: int) -> None:
    """Frames in random slots, some sent ahead, come out as they went in, with their plans."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (COUNT, *manifest.image_size, 3), np.uint8)
    plans = rng.integers(0, len(manifest.plans), COUNT).tolist()
    slots = rng.permutation(CAPACITY)[:COUNT].tolist()
    worker.bring(images[:5], slots[:5])
    told = worker.start(start_inputs(list(images), [0] * COUNT, plans), slots)
    assert told.plan.tolist() == plans
    back = worker.step(slots[::-1])
    assert back.plan.tolist() == plans[::-1]
    maps = worker.finish(slots).anomaly_map.reshape(COUNT, -1).view(np.uint8)
    assert np.array_equal(maps, images.reshape(COUNT, -1)[:, : maps.shape[1]])


def require_worker(worker: TensorRtBackend, manifest: Manifest, *, has_graphs: bool) -> None:
    """Kernel by kernel, while it is captured, and as one launch; then each stage by events."""
    with worker:
        for seed in range(3):
            require_travel(worker, manifest, seed)
        assert not worker.not_captured
        keys = [(graph, size) for graph in GRAPHS for size in (2, 64)] if has_graphs else []
        assert sorted(worker.captured) == sorted(keys)
        assert tuple(worker.stages_ms("step", 8)) == STAGES
        with pytest.raises(EngineFault, match=f"capacity of {CAPACITY}"):
            worker.step([CAPACITY])
        require_travel(worker, manifest, 9)


@pytest.mark.parametrize("has_graphs", [True, False])
def test_what_comes_out_went_in(manifest: Manifest, *, has_graphs: bool) -> None:
    """On the double that checks every order."""
    device = CheckedDevice(has_graphs=has_graphs)
    require_worker(copying_worker(device, manifest, CAPACITY), manifest, has_graphs=has_graphs)
    assert not device.hazards


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("library", ["pycuda", "cuda"])
def test_what_comes_out_of_a_gpu_went_in(manifest: Manifest, library: str) -> None:
    """By each library that is installed, again and again in one process."""
    module = import_module(f"engines.gpu.device_{library}")
    for _ in range(2):
        try:
            device = module.open_device()
        except Unavailable as reason:
            pytest.skip(str(reason))
        worker = copying_worker(device, manifest, CAPACITY)
        require_worker(worker, manifest, has_graphs=device.has_graphs)

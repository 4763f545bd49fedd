"""torch on a real GPU: captured graphs against the reference. Without one these say why."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from engines.backend import DEVICE_BUCKETS
from engines.backend_torch import TorchBackend
from engines.backend_torch_device import STAGES, TorchDeviceBackend
from engines.bundle import GRAPHS
from engines.contracts import Backend, EngineFault, Evidence
from engines.inspector import Part
from engines.methods import METHODS
from engines.specimens import build_specimen
from engines.torch_device import open_device
from tests.engines.exported import build_sketch, draw_parts, rows_of
from tests.engines.sketches import SKETCHES, DecoDiffSketch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="torch sees no CUDA device on this machine"
    ),
]
COUNT = 11  # fills no bucket


def walked(backend: Backend, parts: Sequence[Part]) -> tuple[list[np.ndarray], Evidence]:
    """Plans and levels on the way, and the evidence at its end."""
    slots = list(range(len(parts)))
    seen = [backend.start(rows_of(list(parts)), slots)]
    left = seen[0].steps_left.copy()
    while left.max() > 0:
        going = [slot for slot in slots if left[slot] > 0]
        seen.append(backend.step(going))
        left[going] = seen[-1].steps_left
    return [np.stack([p.plan, p.level, p.steps_left]) for p in seen], backend.finish(slots)


@pytest.mark.parametrize("name", SKETCHES)
@pytest.mark.parametrize("captured", [False, True])
def test_a_gpu_finds_what_the_reference_finds(name: str, *, captured: bool) -> None:
    """Single precision: the same plans, levels and steps, and scores within rounding."""
    method = build_sketch(name)
    parts = draw_parts(method, COUNT, seed=1)
    ours = TorchDeviceBackend(copy.deepcopy(method), captured=captured)
    (found_way, found), (way, wanted) = walked(ours, parts), walked(TorchBackend(method), parts)
    assert all(np.array_equal(a, b) for a, b in zip(found_way, way, strict=True))
    assert np.allclose(found.anomaly_score, wanted.anomaly_score, 1e-3, 1e-4, equal_nan=True)
    assert np.allclose(found.anomaly_map, wanted.anomaly_map, 1e-3, 1e-3, equal_nan=True)


@pytest.mark.parametrize("name", SKETCHES)
def test_a_replay_is_the_run_it_recorded(name: str) -> None:
    """The same rows through captured graphs again and again give the same bits."""
    method = build_sketch(name)
    parts, backend = draw_parts(method, COUNT, seed=2), TorchDeviceBackend(method)
    (first_way, first), (way, again) = walked(backend, parts), walked(backend, parts)
    assert all(np.array_equal(a, b) for a, b in zip(first_way, way, strict=True))
    assert np.array_equal(first.anomaly_map, again.anomaly_map, equal_nan=True)


@pytest.mark.parametrize("name", METHODS)
def test_bf16_changes_no_discrete_choice(name: str) -> None:
    """Plans, levels and closings are those of single precision; scores stay close."""
    ways, scores = [], []
    rng = np.random.default_rng(5)
    for precision in ("f32", "bf16"):
        backend = TorchDeviceBackend(build_specimen(name), precision=precision)
        rng = np.random.default_rng(5)
        parts = [
            Part(str(n), n % 2, "one", rng.integers(0, 256, (64, 64, 3), np.uint8))
            for n in range(32)
        ]
        way, found = walked(backend, parts)
        ways.append(way)
        scores.append(found.anomaly_score)
    assert all(np.array_equal(a, b) for a, b in zip(*ways, strict=True))
    assert np.allclose(*scores, rtol=0.05, atol=0.05)


def test_every_bucket_is_captured_before_frames_come() -> None:
    """Rehearsing captures; timing a stage and moving a few integers need nothing more."""
    backend = TorchDeviceBackend(build_sketch(DecoDiffSketch.name))
    for graph in GRAPHS:
        for size in DEVICE_BUCKETS:
            assert backend.rehearse(graph, size)
    assert len(backend._captured) == len(GRAPHS) * len(DEVICE_BUCKETS)
    assert tuple(backend.stages_ms("step", 8)) == STAGES
    assert backend.bytes_moved("step", 8) == (32, 96)


def test_a_full_gpu_is_a_fault_of_the_engine() -> None:
    """Out of memory is one sentence, and the worker's process ends in order."""
    free, _ = torch.cuda.mem_get_info(open_device("cuda"))
    backend = TorchDeviceBackend(build_sketch(DecoDiffSketch.name), capacity=free // 1000)
    with pytest.raises(EngineFault, match="could not run start: "):
        backend.start(rows_of(draw_parts(build_sketch(DecoDiffSketch.name), 1, seed=3)), [0])

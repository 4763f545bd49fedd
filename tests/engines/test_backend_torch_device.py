"""torch over rows that stay on a device: the same findings as the reference, row by row."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.backend import DEVICE_BUCKETS, bucket_of, columns, open_backend
from engines.backend_torch import TorchBackend
from engines.backend_torch_device import STAGES, TorchDeviceBackend
from engines.bundle import GRAPHS, open_bundle
from engines.contracts import BadConfig, EngineFault, ExitCode
from engines.torch_device import Constants, Lowered, open_device
from tests.engines.exported import build_sketch, draw_parts, rows_of
from tests.engines.sketch_parts import Sketch
from tests.engines.sketches import SKETCHES, DecoDiffSketch, GladSketch

CAPACITY = 70


def on_cpu(method: Sketch, capacity: int = CAPACITY) -> TorchDeviceBackend:
    """The device's code on the CPU, over a copy of the method."""
    return TorchDeviceBackend(copy.deepcopy(method), capacity, "cpu")


@pytest.mark.parametrize("name", SKETCHES)
@pytest.mark.parametrize("count", [1, 3, 16, 33])
def test_rows_are_those_of_the_reference(name: str, count: int) -> None:
    """Start, every step and finish agree row by row, in batches that fill no bucket too."""
    method = build_sketch(name)
    parts = draw_parts(method, count, seed=count)
    ours, theirs = on_cpu(method), TorchBackend(method, CAPACITY)
    slots = [int(slot) for slot in np.random.default_rng(1).permutation(CAPACITY)[:count]]
    progress, expected = (b.start(rows_of(parts), slots) for b in (ours, theirs))
    while True:
        for field in ("steps_left", "plan", "level"):
            assert np.array_equal(getattr(progress, field), getattr(expected, field)), field
        left = dict(zip(slots, expected.steps_left, strict=True))
        slots = [slot for slot in slots if left[slot] > 0]
        found, wanted = (b.finish(list(left)) for b in (ours, theirs))
        assert np.allclose(found.anomaly_map, wanted.anomaly_map, 1e-4, 1e-5, equal_nan=True)
        assert np.allclose(found.anomaly_score, wanted.anomaly_score, 1e-4, 1e-5, equal_nan=True)
        if not slots:
            break
        progress, expected = ours.step(slots), theirs.step(slots)


@settings(max_examples=10, deadline=None)
@given(chosen=st.lists(st.integers(0, 9), unique=True, min_size=1))
def test_padding_touches_no_row(chosen: list[int]) -> None:
    """Rows that a call does not name stay bit by bit what they were."""
    backend = on_cpu(build_sketch(GladSketch.name), 10)
    method = build_sketch(GladSketch.name)
    backend.start(rows_of(draw_parts(method, 10, seed=2)), list(range(10)))
    others = [slot for slot in range(10) if slot not in chosen]
    before = {name: rows[others].clone() for name, rows in backend._rows.items()}
    backend.step(chosen)
    for graph in GRAPHS:
        backend.rehearse(graph, 8)
    for name, rows in backend._rows.items():
        assert torch.equal(rows[others], before[name]), name


def test_only_a_few_integers_move_between_steps() -> None:
    """A step sends one number a row and brings three back; frames go in and maps out once."""
    method = build_sketch(DecoDiffSketch.name)
    backend = on_cpu(method)
    height, width = method.image_size
    for size in DEVICE_BUCKETS:
        assert backend.bytes_moved("step", size) == (4 * size, 12 * size)
        assert backend.bytes_moved("start", size) == ((height * width * 3 + 24) * size, 12 * size)
        sent, back = backend.bytes_moved("finish", size)
        assert (sent, back) == (4 * size, (height * width // 16 + 1) * 4 * size)


def test_up_to_sixty_four_rows_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device takes wider batches than a processor, and more rows than that are split."""
    method = build_sketch(DecoDiffSketch.name)
    backend, sizes = on_cpu(method, 100), []
    run = backend._run
    monkeypatch.setattr(backend, "_run", lambda graph, size: sizes.append(size) or run(graph, size))
    backend.start(rows_of(draw_parts(method, 100, seed=3)), list(range(100)))
    assert sizes == [64, bucket_of(36)] == [64, 64]


def test_rows_that_never_started_are_a_sentence() -> None:
    """Nothing is computed on rows that are not there, and frames of another size are refused."""
    backend = on_cpu(build_sketch(DecoDiffSketch.name))
    for call in (backend.step, backend.finish):
        with pytest.raises(EngineFault, match="start frames first"):
            call([0])
    rows = rows_of(draw_parts(build_sketch(DecoDiffSketch.name), 1, seed=6))
    small = type(rows)(rows.image[:, :32], rows.category, rows.seed, rows.plan)
    with pytest.raises(EngineFault, match=r"uint8 \[64, 64, 3\], not uint8 \[32, 64, 3\]"):
        backend.start(small, [0])
    with pytest.raises(EngineFault, match="1 rows were given for 2 slots"):
        backend.start(rows, [0, 1])


def test_stages_of_a_call_are_timed() -> None:
    """Each stage has its time, and what is in flight is not touched by timing it."""
    backend = on_cpu(build_sketch(DecoDiffSketch.name))
    for graph in GRAPHS:
        found = backend.stages_ms(graph, 2)
        assert tuple(found) == STAGES
        assert min(found.values()) >= 0


@pytest.mark.parametrize("name", SKETCHES)
def test_a_second_run_makes_no_constant(name: str) -> None:
    """What ``torch.tensor`` would copy from the host is made once, so a capture can hold a run."""
    method = build_sketch(name)
    backend, parts = on_cpu(method), draw_parts(method, 2, seed=4)

    def walk() -> None:
        backend.start(rows_of(parts), [0, 1])
        backend.step([0, 1])
        backend.finish([0, 1])

    walk()
    made = dict(backend._constants.made)
    walk()
    assert backend._constants.made.keys() == made.keys()
    assert all(backend._constants.made[key] is tensor for key, tensor in made.items())


class Recorded:
    """Stands for a CUDA graph: it runs again what ran while it was recorded."""

    recording: Recorded | None = None

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, tuple[torch.Tensor, ...]]] = []
        self.slots_seen: list[list[int]] = []
        self.replays = 0

    def replay(self) -> None:
        """Queue the recorded work again."""
        self.replays += 1
        for graph, size, outputs in self.calls:
            for kept, fresh in zip(outputs, self.backend._run(graph, size), strict=True):
                kept.copy_(fresh)

    backend: TorchDeviceBackend


@contextmanager
def record(graph: Recorded, **_: object) -> Iterator[None]:
    """What ``torch.cuda.graph`` is on a GPU."""
    Recorded.recording = graph
    yield
    Recorded.recording = None


def captured_on_cpu(
    method: Sketch, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> TorchDeviceBackend:
    """The backend with captures that stand for a GPU's."""
    backend = on_cpu(method, capacity)
    run = backend._run

    def noted(graph: str, size: int) -> tuple[torch.Tensor, ...]:
        outputs = run(graph, size)
        if (recording := Recorded.recording) is not None:
            recording.backend = backend
            recording.calls.append((graph, size, outputs))
            recording.slots_seen.append(backend._stage.slots[:size].tolist())
        return outputs

    monkeypatch.setattr(backend, "_run", noted)
    monkeypatch.setattr(backend, "_pool", object())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return backend


@pytest.mark.parametrize("name", SKETCHES)
def test_a_captured_graph_is_recorded_once_and_off_the_rows(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recording runs on the spare row alone; replays give what eager calls give."""
    method = build_sketch(name)
    parts = draw_parts(method, 5, seed=7)
    ours, theirs = captured_on_cpu(method, 8, monkeypatch), on_cpu(method, 8)
    for backend in (ours, theirs):
        backend.start(rows_of(parts), [4, 0, 6, 2, 1])
        backend.step([0, 4, 6])
        backend.step([4, 1, 2])
    slots = [0, 1, 2, 4, 6]
    found, wanted = (backend.finish(slots) for backend in (ours, theirs))
    assert np.array_equal(found.anomaly_map, wanted.anomaly_map, equal_nan=True)
    assert np.array_equal(found.anomaly_score, wanted.anomaly_score, equal_nan=True)
    assert set(ours._captured) == {("start", 8), ("step", 4), ("finish", 8)}
    for graph, _ in ours._captured.values():
        assert len(graph.calls) == 1
        assert set(graph.slots_seen[0]) == {8}
    assert ours._captured["step", 4][0].replays == 2


def test_constants_differ_by_all_they_are_made_of() -> None:
    """Values, dtype and device make a constant; equal ones are one tensor."""
    with Constants() as constants:
        one = torch.tensor([1.0, 2.0])
        assert torch.tensor([1.0, 2.0]) is one
        assert torch.tensor([1.0, 2.0], dtype=torch.float64) is not one
        assert torch.tensor([1.0, 3.0]) is not one
    assert len(constants.made) == 3
    assert torch.tensor([1.0, 2.0]) is not one


def test_a_lowered_network_speaks_single_precision() -> None:
    """Inside it is bf16, outside nothing shows but the rounding."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 3)
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        exact = network(image)
        found = Lowered(copy.deepcopy(network))(image)
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    assert torch.allclose(found, exact, rtol=0.02, atol=0.02)


def test_a_machine_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, and the exit code of a configuration that cannot be."""
    bundle = open_bundle(Path(__file__).parents[2] / "configs/bundles/demo")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BadConfig, match=r"is built without CUDA; install .* backend openvino"):
        open_backend(bundle, "torch-cuda")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadConfig, match=r"finds no CUDA device; install .*nvidia-smi") as caught:
        open_backend(bundle, "torch-cuda")
    assert caught.value.exit_code is ExitCode.BAD_CONFIG


@pytest.mark.parametrize("name", SKETCHES)
def test_methods_run_on_whatever_device_they_lie(name: str) -> None:
    """No number is read back and no tensor made elsewhere on the way: a capture could not hold it.

    The meta device has no values at all.
    """
    method = build_sketch(name).to("meta")
    rows = columns(rows_of(draw_parts(build_sketch(name), 2, seed=5)))
    with torch.no_grad():
        state = method.start(**{n: torch.from_numpy(c).to("meta") for n, c in rows.items()})
        state |= method.step(dict(state))
        found = method.finish(state)
    assert all(tensor.device.type == "meta" for tensor in (*state.values(), *found))


def test_the_reference_needs_no_device() -> None:
    """The CPU is a device like any other."""
    assert open_device("cpu").type == "cpu"

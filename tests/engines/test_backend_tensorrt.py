"""The GPU worker's host side: the findings of the CPU, over a device that fails on wrong order."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.backend import DEVICE_BUCKETS, open_backend
from engines.backend_openvino import OpenVinoBackend
from engines.backend_tensorrt import TensorRtBackend
from engines.bundle import GRAPHS
from engines.contracts import BadBundle, BadConfig, EngineFault, Progress, Rows
from engines.costs import measure_costs
from engines.gpu.checked_parts import CheckedEvent
from engines.gpu.device_checked import CheckedDevice
from engines.gpu.faults import DeviceLost
from engines.gpu.graph_run import STAGES
from engines.inspector import Inspector, inspect_all
from tests.engines.exported import Exported, draw_parts, exported, rows_of, sealed
from tests.engines.gpu.host_engines import host_engines, on_host
from tests.engines.sketches import SKETCHES, DecoDiffSketch, GladSketch

IMAGE_BYTES = 64 * 64 * 3
COLUMN_BYTES = 8 + 8 + 4  # category, seed and plan of a row
FEW_BYTES = 3 * 4  # steps_left, plan and level
SLOT_BYTES = 4


@pytest.fixture(scope="module", params=sorted(SKETCHES))
def sketch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Each of the four methods."""
    return exported(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def glad(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The method that reads every input of a start graph."""
    return exported(GladSketch.name, tmp_path_factory)


@pytest.fixture(scope="module")
def theirs(glad: Exported) -> OpenVinoBackend:
    """The CPU's answers."""
    return glad.openvino(capacity=150)


@pytest.fixture
def device() -> Iterator[CheckedDevice]:
    """Nothing may ever touch memory in an order that a GPU would not keep."""
    device = CheckedDevice()
    yield device
    assert not device.hazards


def drawn(sketch: Exported, count: int, seed: int) -> Rows:
    """Frames of every category and plan."""
    return rows_of(draw_parts(sketch.method, count, seed))


def agree(ours: Progress, theirs: Progress) -> bool:
    """Whether two backends chose the same."""
    return all(
        np.array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("steps_left", "plan", "level")
    )


def test_findings_are_those_of_the_cpu(sketch: Exported, device: CheckedDevice) -> None:
    """Every method, depths mixed and rows joining and leaving in flight: the same, row by row."""
    parts = draw_parts(sketch.method, 20, seed=3)
    theirs = {f.frame_id: f for f in inspect_all(Inspector(sketch.openvino()), parts)}
    with on_host(sketch, 12, device)[0] as backend:
        for ours in inspect_all(Inspector(backend), parts):
            expected = theirs.pop(ours.frame_id)
            assert (ours.plan, ours.level, ours.steps) == (
                expected.plan,
                expected.level,
                expected.steps,
            )
            assert ours.anomaly_score == pytest.approx(expected.anomaly_score, rel=1e-5)
            assert np.allclose(ours.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-6)
    assert not theirs


@pytest.mark.parametrize("count", [1, 2, 3, 8, 17, 33, 64])
def test_every_bucket_computes_its_rows(
    glad: Exported, theirs: OpenVinoBackend, device: CheckedDevice, count: int
) -> None:
    """Up to 64 rows of any slots, in full buckets and padded ones; run, captured, launched."""
    rows, slots = drawn(glad, count, count), np.random.default_rng(count).permutation(70)[:count]
    with on_host(glad, 70, device)[0] as ours:
        for _ in range(3):
            assert agree(ours.start(rows, slots.tolist()), theirs.start(rows, slots.tolist()))
            back = slots[::-1].tolist()
            assert agree(ours.step(back), theirs.step(back))
            found, expected = ours.finish(back), theirs.finish(back)
            assert np.allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-5)
            assert np.allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-6)
        size = next(size for size in DEVICE_BUCKETS if size >= count)
        assert sorted(ours.captured) == sorted((graph, size) for graph in GRAPHS)


def test_more_rows_than_the_largest_bucket_are_split(
    glad: Exported, theirs: OpenVinoBackend, device: CheckedDevice
) -> None:
    """150 rows are three batches; frames of the next one go up while one is computed."""
    rows, slots = drawn(glad, 150, 5), list(range(149, -1, -1))
    with on_host(glad, 150, device)[0] as ours:
        assert agree(ours.start(rows, slots), theirs.start(rows, slots))
        assert agree(ours.step(slots), theirs.step(slots))
        found, expected = ours.finish(slots), theirs.finish(slots)
    assert found.anomaly_map.shape == (150, *glad.spec.map_size)
    assert np.allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-5)


def test_a_frame_travels_before_its_start_while_a_step_computes(
    glad: Exported, theirs: OpenVinoBackend, device: CheckedDevice
) -> None:
    """Frames that were brought are not sent again, in whatever order their slots start."""
    rows, slots = drawn(glad, 6, 9), [5, 1, 4, 0, 3, 2]
    with on_host(glad, 6, device)[0] as ours:
        for _ in range(3):
            ours.bring(list(rows.image), slots)
            device.copied.clear()
            turned = Rows(*(getattr(rows, f)[::-1] for f in ("image", "category", "seed", "plan")))
            assert agree(ours.start(turned, slots[::-1]), theirs.start(turned, slots[::-1]))
            assert device.copied["upload"] < IMAGE_BYTES
            ours.step(slots[:2])
            found, expected = ours.finish(slots), theirs.finish(slots)
            assert found.anomaly_map.shape == expected.anomaly_map.shape


def test_an_inspector_lets_frames_travel_as_they_are_admitted(
    glad: Exported, device: CheckedDevice
) -> None:
    """What waits for a batch is on the device when its turn comes: every frame goes up once."""
    parts = draw_parts(glad.method, 9, seed=5)
    with on_host(glad, 9, device)[0] as backend:
        inspector = Inspector(backend, batch_max=2)
        device.copied.clear()
        inspector.admit(parts)
        assert device.copied["upload"] == 9 * IMAGE_BYTES
        assert len(inspector.drain()) == 9
        assert device.copied["upload"] < 10 * IMAGE_BYTES


def test_a_frame_that_was_brought_for_another_start_is_not_used(
    glad: Exported, theirs: OpenVinoBackend, device: CheckedDevice
) -> None:
    """A slot that was given up, or a frame changed since, goes up again; a foreign one waits."""
    rows, others, slots = drawn(glad, 3, 9), drawn(glad, 3, 10), [2, 0, 1]
    with on_host(glad, 3, device)[0] as ours:
        ours.bring(list(others.image), slots)
        ours.bring([rows.image[0][:5]], [2])
        assert agree(ours.start(rows, slots), theirs.start(rows, slots))
        found, expected = ours.finish(slots), theirs.finish(slots)
        assert np.allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-5, equal_nan=True)


def test_a_device_that_is_lost_while_frames_travel_is_said_by_their_start(
    glad: Exported, device: CheckedDevice
) -> None:
    """Nobody has to handle a fault where frames are only let in."""
    rows = drawn(glad, 2, 9)
    backend, _ = on_host(glad, 2, device)
    device.fail("upload")
    backend.bring(list(rows.image), [0, 1])
    with pytest.raises(EngineFault, match="start this process again"):
        backend.start(rows, [0, 1])
    backend.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_sequence_of_calls_agrees_with_the_cpu(
    glad: Exported, theirs: OpenVinoBackend, data: st.DataObject
) -> None:
    """Starts, steps and finishes of any rows in any order leave every row as it has to be."""
    capacity, device = 9, CheckedDevice()
    lots = st.lists(st.integers(0, capacity - 1), min_size=1, unique=True)
    with on_host(glad, capacity, device)[0] as ours:
        first = list(range(capacity))
        rows = drawn(glad, capacity, 1)
        assert agree(ours.start(rows, first), theirs.start(rows, first))
        for call in data.draw(st.lists(st.sampled_from(GRAPHS), max_size=12)):
            slots = data.draw(lots)
            if call == "start":
                rows = drawn(glad, len(slots), data.draw(st.integers(0, 99)))
                assert agree(ours.start(rows, slots), theirs.start(rows, slots))
            elif call == "step":
                assert agree(ours.step(slots), theirs.step(slots))
            else:
                found, expected = ours.finish(slots), theirs.finish(slots)
                assert np.allclose(
                    found.anomaly_score, expected.anomaly_score, rtol=1e-4, equal_nan=True
                )
    assert not device.hazards


def test_a_step_moves_a_few_integers_of_each_row(glad: Exported, device: CheckedDevice) -> None:
    """Per row four bytes go to the device with a step and twelve come back; nothing else moves."""
    rows, slots = drawn(glad, 8, 2), list(range(8))
    with on_host(glad, 8, device)[0] as backend:
        device.copied.clear()
        backend.start(rows, slots)
        started = 8 * (IMAGE_BYTES + COLUMN_BYTES + SLOT_BYTES)
        assert device.copied["upload"] == backend.traffic["start"].bytes_up == started
        assert device.copied["download"] == backend.traffic["start"].bytes_down == 8 * FEW_BYTES
        device.copied.clear()
        for _ in range(3):
            backend.step(slots)
        told = backend.traffic["step"]
        assert (told.calls, told.rows) == (3, 24)
        assert device.copied["upload"] == told.bytes_up == 24 * SLOT_BYTES
        assert device.copied["download"] == told.bytes_down == 24 * FEW_BYTES
        device.copied.clear()
        backend.finish(slots)
        told, area = backend.traffic["finish"], int(np.prod(glad.spec.map_size))
        assert device.copied["upload"] == told.bytes_up == 8 * SLOT_BYTES
        assert device.copied["download"] == told.bytes_down == 8 * 4 * (area + 1)


def test_what_a_call_moves_is_known_beforehand(glad: Exported, device: CheckedDevice) -> None:
    """``bytes_moved`` says of every graph and bucket what the device is then seen to copy."""
    with on_host(glad, 64, device)[0] as backend:
        for size in DEVICE_BUCKETS:
            rows, slots = drawn(glad, size, 2), list(range(size))
            calls = {
                "start": lambda rows=rows, slots=slots: backend.start(rows, slots),
                "step": lambda slots=slots: backend.step(slots),
                "finish": lambda slots=slots: backend.finish(slots),
            }
            for graph, call in calls.items():
                device.copied.clear()
                call()
                seen = device.copied["upload"], device.copied["download"]
                assert backend.bytes_moved(graph, size) == seen
            assert backend.bytes_moved("step", size) == (SLOT_BYTES * size, FEW_BYTES * size)


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


def test_a_device_without_graphs_computes_the_same(glad: Exported, theirs: OpenVinoBackend) -> None:
    """Kernel by kernel, with the same order and the same findings."""
    device, rows, slots = CheckedDevice(has_graphs=False), drawn(glad, 6, 8), [3, 1, 5, 0, 2, 4]
    with on_host(glad, 6, device)[0] as ours:
        for _ in range(3):
            assert agree(ours.start(rows, slots), theirs.start(rows, slots))
        assert not ours.captured
    assert not device.calls["graph"]
    assert not device.hazards


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


def test_no_evidence_passes_through_beside_evidence(
    tmp_path_factory: pytest.TempPathFactory, device: CheckedDevice
) -> None:
    """A NaN row stays NaN, of which the judge makes UNDECIDED, and does not touch its neighbour."""
    deco = exported(DecoDiffSketch.name, tmp_path_factory)
    with on_host(deco, 4, device)[0] as backend:
        backend.start(drawn(deco, 2, 4), [0, 1])
        backend.step([0])
        score = backend.finish([0, 1]).anomaly_score
    assert np.isfinite(score[0])
    assert np.isnan(score[1])


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


# ---- faults


def test_frames_of_another_size_are_refused(glad: Exported, device: CheckedDevice) -> None:
    """The sentence says what the graph wants; the backend still works afterwards."""
    rows = drawn(glad, 1, 6)
    with on_host(glad, 4, device)[0] as backend:
        with pytest.raises(EngineFault, match=r"uint8 \[64, 64, 3\], not uint8 \[32, 64, 3\]"):
            backend.start(replace(rows, image=rows.image[:, :32]), [0])
        with pytest.raises(EngineFault, match="1 rows were given for 2 slots"):
            backend.start(rows, [0, 1])
        with pytest.raises(EngineFault, match="capacity of 4"):
            backend.step([4])
        assert backend.start(rows, [0]).steps_left[0] > 0


def allocations(glad: Exported) -> dict[str, int]:
    """How often opening takes something of a device."""
    device = CheckedDevice()
    on_host(glad, 4, device)[0].close()
    return {call: device.calls[call] for call in ("allocate", "pinned", "stream", "event")}


def test_whatever_is_missing_at_opening_leaks_nothing(glad: Exported) -> None:
    """Each allocation, stream and event fails in turn: one sentence, and all else is given back."""
    for call, times in allocations(glad).items():
        assert times
        for nth in range(1, times + 1):
            device = CheckedDevice()
            engines = host_engines(device, glad.folder, glad.spec)
            device.fail(call, nth, "CUDA_ERROR_OUT_OF_MEMORY")
            with pytest.raises(EngineFault, match="memory") as caught:
                TensorRtBackend(device, engines, glad.spec, precision="f32", capacity=4)
            assert "\n" not in str(caught.value)
            assert not device.hazards  # closing the device counts what is left
            assert not any(engine.is_open for engine in engines.values())


@pytest.mark.parametrize(
    "call", ["gather_rows", "engine", "scatter_rows", "upload", "download", "record", "synchronise"]
)
def test_a_lost_device_is_an_engine_fault_and_leaks_nothing(glad: Exported, call: str) -> None:
    """One sentence, again for every later call without asking the device, and a clean end."""
    device = CheckedDevice()
    backend, _ = on_host(glad, 4, device)
    backend.start(drawn(glad, 2, 3), [0, 1])
    device.fail(call)
    with pytest.raises(DeviceLost, match="start this process again"):
        backend.step([0, 1])
    asked = device.calls.total()
    with pytest.raises(EngineFault, match="start this process again"):
        backend.finish([0, 1])
    assert device.calls.total() == asked
    backend.close()
    assert not device.hazards


def test_a_device_lost_under_a_captured_graph(glad: Exported) -> None:
    """A launch that fails is told like any other call."""
    device = CheckedDevice()
    backend, _ = on_host(glad, 4, device)
    for _ in range(2):
        backend.rehearse("step", 2)
    device.fail("graph")
    with pytest.raises(DeviceLost, match="graph"):
        backend.rehearse("step", 2)
    backend.close()
    assert not device.hazards


def test_an_engine_that_refuses_a_call_leaves_the_device_usable(
    glad: Exported, device: CheckedDevice
) -> None:
    """The call fails in one sentence; the next one works, and nothing is written under a copy."""
    engines = host_engines(device, glad.folder, glad.spec)
    rows = drawn(glad, 2, 3)
    with TensorRtBackend(device, engines, glad.spec, precision="f32", capacity=4) as backend:
        engines["start"].refuses = EngineFault("the engine of start refused 2 rows")
        with pytest.raises(EngineFault, match="refused 2 rows"):
            backend.start(rows, [0, 1])
        engines["start"].refuses = RuntimeError("no\nsuch profile")
        with pytest.raises(EngineFault, match="tensorrt:f32 could not run start: such profile"):
            backend.start(rows, [0, 1])
        engines["start"].refuses = None
        assert backend.start(rows, [0, 1]).steps_left.min() > 0


def test_an_engine_whose_ports_are_foreign_is_refused(glad: Exported) -> None:
    """Other names and other shapes than the manifest's; nothing stays open."""
    for change, sentence in (
        ({"shape": (3,)}, "an engine has latent as float32 .* the manifest"),
        ({"name": "strange"}, "the engine of step has other inputs"),
    ):
        device = CheckedDevice()
        engines = host_engines(device, glad.folder, glad.spec)
        step = engines["step"]
        step.inputs = tuple(
            replace(port, **change) if port.name == "latent" else port for port in step.inputs
        )
        with pytest.raises(BadBundle, match=sentence):
            TensorRtBackend(device, engines, glad.spec, precision="f32")
        assert not device.hazards


def test_a_backend_belongs_to_one_thread(glad: Exported, device: CheckedDevice) -> None:
    """Another thread is refused before it reaches the device."""
    found: list[str] = []
    with on_host(glad, 2, device)[0] as backend:

        def intrude() -> None:
            try:
                backend.step([0])
            except EngineFault as fault:
                found.append(str(fault))

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
    assert found == ["tensorrt:f32 belongs to the thread that opened it"]


def test_it_opens_by_name(
    glad: Exported, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A precision that does not exist, and a machine without the libraries: one sentence each."""
    bundle = sealed(glad, tmp_path_factory.mktemp("bundle") / "glad")
    with pytest.raises(BadConfig, match="no precision 'int4'"):
        open_backend(bundle, "tensorrt", "int4")
    for library in ("pycuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, library, None)
    sentence = "pycuda is not installed; cuda-bindings is not installed"
    with pytest.raises(EngineFault, match=sentence):
        open_backend(bundle, "tensorrt")

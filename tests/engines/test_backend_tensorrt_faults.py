"""The GPU worker where something fails: one sentence, and nothing is kept."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from engines.backend_tensorrt import TensorRtBackend
from engines.contracts import BadBundle, EngineFault
from engines.gpu.device_checked import CheckedDevice
from engines.gpu.faults import DeviceLost
from tests.engines.exported import Exported
from tests.engines.gpu.comparing import drawn
from tests.engines.gpu.host_engines import host_engines, on_host


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

"""Doubles of compiled engines: the real graphs by OpenVINO, in a checked device's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from engines.backend import output_name
from engines.backend_openvino import load_openvino
from engines.backend_tensorrt import TensorRtBackend
from engines.bundle import GRAPHS
from engines.contracts import AnyArray
from engines.gpu.device_checked import CheckedDevice, Touching
from engines.gpu.executable import Port
from engines.gpu.rows import row_bytes
from tests.engines.exported import Exported

if TYPE_CHECKING:
    from engines.bundle import GraphName


class HostEngine:
    """One ONNX graph whose ports are bound to addresses of a checked device."""

    def __init__(self, device: CheckedDevice, sketch: Exported, name: GraphName) -> None:
        self._device, self.name = device, name
        core = load_openvino().Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        self._model = core.compile_model(str(sketch.folder / f"{name}.onnx"), "CPU", settings)
        spec = sketch.spec.graphs[name]
        self.inputs = _ports(spec.inputs, self._model.inputs)
        wanted = [output_name(name, output) for output in spec.outputs]
        self.outputs = _ports(wanted, self._model.outputs)
        self.is_open = True
        self.refuses: Exception | None = None
        self._addresses: dict[str, int] = {}

    def bind(self, name: str, address: int) -> None:
        """Remember where a port lies."""
        self._addresses[name] = address

    def enqueue(self, size: int, stream: int) -> None:
        """Compute ``size`` rows in the order of a stream."""
        if self.refuses is not None:
            raise self.refuses

        def run(touch: Touching) -> None:
            given = {port.name: self._rows(port, size, touch, "reads") for port in self.inputs}
            found = self._model(given)
            for place, port in enumerate(self.outputs):
                self._rows(port, size, touch, "writes")[:] = found[place]

        self._device.queue("engine", self._device.stream_by_handle(stream), run)

    def close(self) -> None:
        """Released once."""
        assert self.is_open
        self.is_open = False

    def _rows(self, port: Port, size: int, touch: Touching, kind: Any) -> AnyArray:  # noqa: ANN401 - a literal
        width = row_bytes(port.dtype, port.shape)
        values = touch(self._addresses[port.name], size * width, kind)
        return values.view(port.dtype).reshape(size, *port.shape)


def _ports(names: Any, found: Any) -> tuple[Port, ...]:  # noqa: ANN401 - openvino ships no types
    return tuple(
        Port(
            name,
            np.dtype(port.element_type.to_dtype()).name,
            tuple(dimension.get_length() for dimension in list(port.partial_shape)[1:]),
        )
        for name, port in zip(names, found, strict=True)
    )


def host_engines(device: CheckedDevice, sketch: Exported) -> dict[GraphName, HostEngine]:
    """The three graphs of a sketch."""
    return {name: HostEngine(device, sketch, name) for name in GRAPHS}


def on_host(
    sketch: Exported, capacity: int = 32, device: CheckedDevice | None = None
) -> tuple[TensorRtBackend, CheckedDevice]:
    """The GPU worker over host memory, and the device that checks it."""
    device = device or CheckedDevice()
    engines = host_engines(device, sketch)
    backend = TensorRtBackend(device, engines, sketch.spec, precision="f32", capacity=capacity)
    return backend, device

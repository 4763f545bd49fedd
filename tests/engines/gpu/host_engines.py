"""Doubles of compiled engines: the real graphs by OpenVINO, in a checked device's memory."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from engines.backend import output_name
from engines.backend_tensorrt import TensorRtBackend
from engines.bundle import GRAPHS
from engines.contracts import AnyArray
from engines.gpu.device_checked import CheckedDevice
from engines.gpu.executable import Port
from engines.gpu.rows import row_bytes
from engines.openvino_graphs import openvino_core

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engines.bundle import GraphName, GraphsSpec
    from engines.gpu.checked_kernels import Touching
    from tests.engines.exported import Exported


class Host(Protocol):
    """A device whose memory this process can compute in."""

    def queue_foreign(self, handle: int, run: Callable[[Touching], None]) -> None:
        """Queue work of a library of its own on a stream."""
        ...


class HostEngine:
    """One ONNX graph whose ports are bound to addresses of a device in host memory."""

    def __init__(self, host: Host, folder: Path, spec: GraphsSpec, name: GraphName) -> None:
        self._host, self.name = host, name
        self._model = compiled(folder / f"{name}.onnx")
        self.inputs = _ports(spec.graphs[name].inputs, self._model.inputs)
        wanted = [output_name(name, output) for output in spec.graphs[name].outputs]
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

        self._host.queue_foreign(stream, run)

    def close(self) -> None:
        """Released once."""
        assert self.is_open
        self.is_open = False

    def _rows(self, port: Port, size: int, touch: Touching, kind: Any) -> AnyArray:  # noqa: ANN401 - a literal
        width = row_bytes(port.dtype, port.shape)
        values = touch(self._addresses[port.name], size * width, kind)
        return values.view(port.dtype).reshape(size, *port.shape)


@cache
def compiled(path: Path) -> Any:  # noqa: ANN401 - openvino ships no types
    """A graph in single precision, compiled once for all engines of a test process."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return openvino_core().compile_model(str(path), "CPU", settings)


def _ports(names: Any, found: Any) -> tuple[Port, ...]:  # noqa: ANN401 - openvino ships no types
    return tuple(
        Port(
            name,
            np.dtype(port.element_type.to_dtype()).name,
            tuple(dimension.get_length() for dimension in list(port.partial_shape)[1:]),
        )
        for name, port in zip(names, found, strict=True)
    )


def host_engines(host: Host, folder: Path, spec: GraphsSpec) -> dict[GraphName, HostEngine]:
    """The three graphs of a folder."""
    return {name: HostEngine(host, folder, spec, name) for name in GRAPHS}


def on_host(
    sketch: Exported, capacity: int = 64, device: CheckedDevice | None = None
) -> tuple[TensorRtBackend, CheckedDevice]:
    """The GPU worker over host memory, and the device that checks it."""
    device = device or CheckedDevice()
    engines = host_engines(device, sketch.folder, sketch.spec)
    backend = TensorRtBackend(device, engines, sketch.spec, precision="f32", capacity=capacity)
    return backend, device

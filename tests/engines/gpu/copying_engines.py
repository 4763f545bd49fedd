"""Doubles of compiled engines that only copy, so that they run on any device, a GPU too.

On the demo bundle a frame has as many bytes as a latent. Start makes the one of the other, a step
hands it on to the estimate, and finish shows its first bytes as the map: what comes out at the end
is what went in at a slot, if every copy, move and wait between is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.backend_tensorrt import TensorRtBackend
from engines.bundle import GRAPHS
from engines.gpu.ports import ports_of
from engines.gpu.rows import row_bytes

if TYPE_CHECKING:
    from engines.bundle import GraphName, Manifest
    from engines.gpu.device import Device, Stream

SOURCES: dict[GraphName, dict[str, str]] = {
    "start": {"next_latent": "image", "next_plan": "plan"},
    "step": {"next_latent": "latent", "next_estimate": "latent"},
    "finish": {"anomaly_map": "estimate"},
}


class CopyingEngine:
    """One graph: some outputs are copies of inputs, row by row as far as they reach; others 0."""

    def __init__(self, device: Device, manifest: Manifest, name: GraphName) -> None:
        self._device, self._sources = device, SOURCES[name]
        self.inputs, self.outputs = ports_of(manifest, name)
        self._width = {p.name: row_bytes(p.dtype, p.shape) for p in (*self.inputs, *self.outputs)}
        self._addresses: dict[str, int] = {}
        self.stream: Stream | None = None  # the one whose handle is given

    def bind(self, name: str, address: int) -> None:
        """Remember where a port lies."""
        self._addresses[name] = address

    def enqueue(self, size: int, stream: int) -> None:
        """Queue the copies of ``size`` rows."""
        assert self.stream is not None
        assert self.stream.handle == stream
        for port in self.outputs:
            source, width = self._sources.get(port.name), self._width[port.name]
            place = self._addresses[port.name]
            if source is None:
                self._device.fill(place, 0, size * width, self.stream)
                continue
            there = self._width[source]
            for row in range(size):
                given = self._addresses[source] + row * there
                self._device.copy(place + row * width, given, min(width, there), self.stream)

    def close(self) -> None:
        """Nothing is held."""


def copying_worker(device: Device, manifest: Manifest, capacity: int) -> TensorRtBackend:
    """The GPU worker over engines that copy."""
    engines = {name: CopyingEngine(device, manifest, name) for name in GRAPHS}
    worker = TensorRtBackend(device, engines, manifest.spec, precision="f32", capacity=capacity)
    for engine in engines.values():
        engine.stream = worker._compute
    return worker

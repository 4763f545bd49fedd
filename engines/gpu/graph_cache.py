"""CUDA graphs by bundle graph and bucket: a call of a few dozen kernels becomes one launch.

The first run of a key goes kernel by kernel, which is also what TensorRT asks for before a capture;
the second is captured; all later ones are launched. Warming up runs every key twice. A key that
cannot be captured keeps running kernel by kernel, and the reason is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.contracts import EngineFault
from engines.gpu.faults import DeviceLost

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.bundle import GraphName
    from engines.gpu.device import Graph, Stream
    from engines.gpu.lease import Lease

Key = tuple["GraphName", int]  # graph, bucket


class GraphCache:
    """Graphs of one stream, released with the lease."""

    def __init__(self, lease: Lease, stream: Stream) -> None:
        self._lease, self._stream = lease, stream
        self._graphs: dict[Key, Graph] = {}
        self._warm: set[Key] = set()
        self.refused: dict[Key, str] = {}  # why a key runs kernel by kernel

    def run(self, key: Key, queue: Callable[[], None]) -> None:
        """Queue a key's work on the stream; ``queue`` does so kernel by kernel."""
        if self._is_due(key):
            self._capture(key, queue)
        if key in self._graphs:
            self._graphs[key].launch(self._stream)
        else:
            queue()
            self._warm.add(key)

    @property
    def captured(self) -> tuple[Key, ...]:
        """Keys that are one launch by now."""
        return tuple(self._graphs)

    def _is_due(self, key: Key) -> bool:
        known = key in self._graphs or key in self.refused
        return key in self._warm and not known and self._lease.device.has_graphs

    def _capture(self, key: Key, queue: Callable[[], None]) -> None:
        try:
            graph = self._lease.device.capture(self._stream, queue)
        except DeviceLost:
            raise
        except EngineFault as refusal:
            self.refused[key] = str(refusal)
        else:
            self._graphs[key] = self._lease.keep(graph)

"""The GPU worker: a bundle's three graphs as TensorRT engines over rows that stay on the device.

One thread opens, uses and closes it. Frames travel by a ring of page-locked memory and a stream of
their own, each to the place of its slot: those that wait for their start (``bring``), and those of
the parts that follow, while other calls compute. All else is queued on one compute stream, whose
order needs no events. The host waits once in a call, for the few integers of its rows or for maps
and scores, because the scheduler decides with them. A bucket that ran before is one launch of a
CUDA graph.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from engines.backend import DEVICE_BUCKETS, PROGRESS, BatchedBackend, bucket_of, columns
from engines.bundle import GRAPHS
from engines.contracts import EngineFault, Evidence, Progress, Rows, UInt8
from engines.gpu.device import open_device
from engines.gpu.faults import DeviceLost
from engines.gpu.graph_cache import GraphCache
from engines.gpu.graph_run import FRAMES, STAGES, TOLD, GraphRun
from engines.gpu.lease import Lease
from engines.gpu.ring import FrameRing
from engines.gpu.rows import StateTable, idle_slots, padded_slots, row_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from engines.backend import Precision
    from engines.bundle import Bundle, GraphName, GraphsSpec
    from engines.contracts import Int32
    from engines.gpu.device import Device, Event
    from engines.gpu.executable import Executable

Anything = TypeVar("Anything")


@dataclass(slots=True)
class Traffic:
    """What went over the bus for one graph since the backend was opened."""

    calls: int = 0
    rows: int = 0  # asked for; a bucket may hold more
    bytes_up: int = 0  # host to device
    bytes_down: int = 0  # device to host


class TensorRtBackend(BatchedBackend):
    """Takes over a device and the executables of the three graphs, and closes both.

    ``precision``: what the engines were built in; it is the second half of the key.
    """

    buckets = DEVICE_BUCKETS

    def __init__(
        self,
        device: Device,
        executables: Mapping[GraphName, Executable],
        spec: GraphsSpec,
        *,
        precision: str,
        capacity: int = DEVICE_BUCKETS[-1],
    ) -> None:
        super().__init__(capacity)
        self.key = f"tensorrt:{precision}"
        self.traffic: dict[GraphName, Traffic] = {graph: Traffic() for graph in GRAPHS}
        self._owner = threading.get_ident()
        self._lost = ""  # what the device said last
        self._coming: deque[tuple[UInt8, list[int]]] = deque()  # frames of the parts that follow
        self._here: dict[int, UInt8] = {}  # slot -> frame that was brought for its start
        self._is_sent = False  # whether the next part's frames are on their way
        self._moments: list[Event] = []  # between stages
        with Lease(device) as lease:
            self._lease = lease
            for executable in executables.values():
                lease.keep(executable)
            self._compute, self._done = lease.stream(), lease.event()
            port = next(p for p in executables["start"].inputs if p.name == FRAMES)
            self._frame = row_bytes(port.dtype, port.shape)
            self._frames = lease.zeroed(capacity * self._frame, self._compute)  # by slot
            self._runs = self._opened(lease, executables, spec)
            self._ring = FrameRing(lease, self._frame, self._compute)
            self._graphs = GraphCache(lease, self._compute)

    def bring(self, images: Sequence[UInt8], slots: Sequence[int]) -> None:
        """Let frames travel while other calls compute, ahead of the start of their slots.

        What cannot travel now does so with its start, which then says why.
        """
        port = self._runs["start"].inputs[FRAMES]
        if all((str(i.dtype), i.shape) == (port.dtype, port.shape) for i in images):
            with suppress(EngineFault):
                self._guarded("start", self._send, images, slots)
                self._here |= dict(zip(slots, images, strict=True))

    def start(self, rows: Rows, slots: list[int]) -> Progress:
        """Frames of a part go up while the part before it is computed."""
        self._check(rows)
        if len(rows) == len(slots):  # anything else is refused below
            parts = self._batches(slots)
            self._coming.extend((rows.image[part], slots[part]) for part in parts)
        try:
            return super().start(rows, slots)
        finally:
            self._coming.clear()
            self._is_sent = False

    def rehearse(self, graph: GraphName, size: int) -> bool:
        """Run one bucket on what its buffers hold; the second time captures it."""
        self._guarded(graph, self._launch, graph, size, idle_slots(size))
        self._guarded(graph, self._done.synchronise)
        return True

    def stages_ms(self, graph: GraphName, size: int) -> dict[str, float]:
        """Milliseconds of each stage of one call on the device, kernel by kernel and on no row.

        Frames are not among what is copied in: they travel while another call computes.
        """
        self.rehearse(graph, size)
        return self._guarded(graph, self._staged, graph, size)

    def bytes_moved(self, graph: GraphName, size: int) -> tuple[int, int]:
        """Bytes that one call of a full bucket sends to the device and brings back."""
        run = self._runs[graph]
        return run.bytes_up(size) + run.frame_bytes * size, run.bytes_down(size)

    def close(self) -> None:
        """Give everything back once nothing uses it; what a lost device says then is known."""
        try:
            self._lease.close()
        except EngineFault:
            if not self._lost:
                raise

    @property
    def captured(self) -> tuple[tuple[GraphName, int], ...]:
        """Graphs and buckets that are one launch by now."""
        return self._graphs.captured

    @property
    def not_captured(self) -> dict[tuple[GraphName, int], str]:
        """Why others are not."""
        return dict(self._graphs.refused)

    def _start(self, rows: Rows, slots: list[int]) -> Progress:
        if not self._is_sent:
            self._send_next()
        self._ring.arrive()
        self._runs["start"].write(columns(rows))
        self._call("start", slots)
        self._is_sent = self._send_next()
        return self._progress("start", len(slots))

    def _step(self, slots: list[int]) -> Progress:
        self._call("step", slots)
        return self._progress("step", len(slots))

    def _finish(self, slots: list[int]) -> Evidence:
        self._call("finish", slots)
        self._done.synchronise()
        run, count = self._runs["finish"], len(slots)
        return Evidence(run.read("anomaly_map", count), run.read("anomaly_score", count))

    def _call(self, graph: GraphName, slots: list[int]) -> None:
        size = bucket_of(len(slots))
        self._launch(graph, size, padded_slots(slots, size))
        run, told = self._runs[graph], self.traffic[graph]
        told.calls, told.rows = told.calls + 1, told.rows + len(slots)
        told.bytes_up += run.bytes_up(size)
        told.bytes_down += run.bytes_down(size)

    def _launch(self, graph: GraphName, size: int, slots: Int32) -> None:
        run = self._runs[graph]
        run.write_slots(slots)
        self._graphs.run((graph, size), partial(run.queue, size))
        self._done.record(self._compute)

    def _staged(self, graph: GraphName, size: int) -> dict[str, float]:
        while len(self._moments) <= len(STAGES):
            self._moments.append(self._lease.event(timed=True))
        moments, run = iter(self._moments), self._runs[graph]
        run.write_slots(idle_slots(size))
        run.queue(size, lambda: next(moments).record(self._compute))
        self._compute.synchronise()
        spans = [after.elapsed_ms(before) for before, after in pairwise(self._moments)]
        return dict(zip(STAGES, spans, strict=True))

    def _progress(self, graph: GraphName, count: int) -> Progress:
        self._done.synchronise()
        told = self._runs[graph].read(TOLD.name, count)  # [count, 3]
        return Progress(*(told[:, place].copy() for place in range(len(PROGRESS))))

    def _send_next(self) -> bool:
        """Whether there were frames to send."""
        if not self._coming:
            return False
        images, slots = self._coming.popleft()
        known = [self._here.pop(slot, None) for slot in slots]
        new = [i for i, image in enumerate(images) if not np.array_equal(known[i], image)]  # type: ignore[arg-type]
        self._send([images[i] for i in new], [slots[i] for i in new])
        return True

    def _send(self, images: Sequence[UInt8], slots: Sequence[int]) -> None:
        """Nothing reads the places of these slots: whoever started them waited for it."""
        if images:
            self._ring.send(np.stack(images), [self._frames + slot * self._frame for slot in slots])
            self.traffic["start"].bytes_up += len(images) * self._frame

    def _check(self, rows: Rows) -> None:
        given = columns(rows)
        for name, port in self._runs["start"].inputs.items():
            values = given[name]
            if (str(values.dtype), values.shape[1:]) != (port.dtype, port.shape):
                raise EngineFault(
                    f"the {name} of a frame must be {port.dtype} {list(port.shape)}, "
                    f"not {values.dtype} {list(values.shape[1:])}"
                )

    def _guarded(self, graph: GraphName, run: Callable[..., Anything], *args: object) -> Anything:
        """After a fault nothing is under way any more; a lost device is not asked again."""
        if threading.get_ident() != self._owner:
            raise EngineFault(f"{self.key} belongs to the thread that opened it")
        if self._lost:
            raise EngineFault(self._lost)
        try:
            return super()._guarded(graph, run, *args)
        except DeviceLost as fault:
            self._lost = str(fault)
            raise
        except EngineFault:
            self._lease.settle()
            raise

    def _opened(
        self, lease: Lease, executables: Mapping[GraphName, Executable], spec: GraphsSpec
    ) -> dict[GraphName, GraphRun]:
        table = StateTable(lease, spec.state, self.capacity, self._compute)
        return {
            graph: GraphRun(
                lease,
                graph,
                executables[graph],
                spec=spec.graphs[graph],
                table=table,
                frames=self._frames,
                stream=self._compute,
                widest=self.buckets[-1],
            )
            for graph in GRAPHS
        }


def open_tensorrt(
    bundle: Bundle,
    precision: Precision | Mapping[str, Precision] = "auto",
    capacity: int = DEVICE_BUCKETS[-1],
    folder: Path | None = None,
) -> TensorRtBackend:
    """A bundle's engines on this machine's GPU, from its cache or ``folder``.

    Raises EngineFault without a GPU or its libraries, BadBundle for engines that do not fit.
    """
    from engines.gpu.opening import open_executables  # brings TensorRT
    from engines.gpu.precision import summary_of

    named, device = summary_of(precision), open_device()
    try:
        executables = open_executables(
            bundle, precision, folder, capability=device.compute_capability
        )
    except BaseException:
        device.close()
        raise
    spec = bundle.manifest.spec
    return TensorRtBackend(device, executables, spec, precision=named, capacity=capacity)

"""torch on a GPU: a method's functions over rows that stay there, in batches of fixed sizes.

The reference for compiled GPU engines, and the engine of machines without TensorRT. A call sends
the slots of its rows (and, to start, the frames) and brings back three integers a row, or maps and
scores. Everything between lies at fixed places, so on CUDA each graph at each bucket is captured
once and replayed as one launch. On the CPU the same code runs uncaptured, which is how it is
tested.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engines.backend import DEVICE_BUCKETS, PROGRESS, BatchedBackend, bucket_of, columns
from engines.bundle import GRAPHS
from engines.contracts import EngineFault, Evidence, Progress, Rows
from engines.torch_device import Constants, open_device, settled

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from engines.bundle import GraphName
    from engines.methods.method import Method, State

    Outputs = tuple[Tensor, ...]

WARM_UPS = 2  # runs before a capture: libraries choose their kernels, constants are made
STAGES = ("copy in", "compute", "copy out")


class TorchDeviceBackend(BatchedBackend):
    """A method, its weights loaded, over ``capacity`` rows on a device.

    ``precision``: "f32" or "bf16"; the method is taken over and changed. ``captured``: replay CUDA
    graphs, where the device is one of CUDA's. Raises BadConfig for a device that is not there.
    """

    buckets = DEVICE_BUCKETS

    def __init__(
        self,
        method: Method,
        capacity: int = 128,
        device: str = "cuda",
        precision: str = "f32",
        *,
        captured: bool = True,
    ) -> None:
        super().__init__(capacity)
        self._device = open_device(device)
        self._is_cuda = self._device.type == "cuda"
        self.key = f"torch-{self._device.type}:{precision}"
        self._method = settled(method, self._device, precision)
        self._rows: State = {}  # [capacity + 1, ...]; padding is written to the last row
        self._constants = Constants()
        self._stage = _Stage(self._method.image_size, self._device)
        self._stream: torch.cuda.Stream | None = None
        if self._is_cuda:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._captured: dict[tuple[GraphName, int], tuple[torch.cuda.CUDAGraph, Outputs]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._is_cuda and captured else None

    def close(self) -> None:
        """Release graphs and rows."""
        self._captured.clear()
        self._rows = {}

    def rehearse(self, graph: GraphName, size: int) -> bool:
        """Run one bucket of a graph on the spare row; what is in flight stays as it is."""
        self._guarded(graph, self._rehearsed, graph, size)
        return True

    def stages_ms(self, graph: GraphName, size: int) -> dict[str, float]:
        """Milliseconds that each stage of one call takes on the device, on the spare row."""
        self._rehearsed(graph, size)
        clock = _Clock(self._stream)
        self._called(graph, [self.capacity] * size, clock.mark)
        return clock.between()

    def bytes_moved(self, graph: GraphName, size: int) -> tuple[int, int]:
        """Bytes that one call sends to the device and brings back from it."""
        found = self._rehearsed(graph, size)
        back = sum(t.numel() * t.element_size() for t in found)
        return self._stage.sent(graph, size), back

    # ---- the three graphs

    def _start(self, rows: Rows, slots: list[int]) -> Progress:
        self._stage.take(rows)
        return self._progress("start", slots)

    def _step(self, slots: list[int]) -> Progress:
        self._require_rows()
        return self._progress("step", slots)

    def _finish(self, slots: list[int]) -> Evidence:
        self._require_rows()
        anomaly_map, score = self._called("finish", slots)
        count = len(slots)
        return Evidence(anomaly_map[:count].numpy(), score[:count].numpy())

    def _require_rows(self) -> None:
        if not self._rows:
            raise EngineFault(f"{self.key} has no row yet; start frames first")

    def _progress(self, graph: GraphName, slots: list[int]) -> Progress:
        (found,) = self._called(graph, slots)
        return Progress(*found[:, : len(slots)].numpy())

    @torch.inference_mode()
    def _rehearsed(self, graph: GraphName, size: int) -> Outputs:
        """One call of a bucket that touches the spare row alone."""
        if graph != "start" and not self._rows:
            self._called("start", [self.capacity])
        return self._called(graph, [self.capacity] * size)

    @torch.inference_mode()
    def _called(
        self, graph: GraphName, slots: list[int], mark: Callable[[], None] = lambda: None
    ) -> Outputs:
        """Outputs on the host of the bucket that holds these rows."""
        size = bucket_of(len(slots))
        self._stage.place(slots + [self.capacity] * (size - len(slots)))
        with self._queue(), self._constants:
            if self._pool is not None and (graph, size) not in self._captured:
                self._capture(graph, size)
            mark()
            self._stage.send(graph, size)
            mark()
            outputs = self._computed(graph, size)
            mark()
            found = tuple(_to_host(output) for output in outputs)
            mark()
        if self._stream is not None:
            self._stream.synchronize()  # the host decides on these numbers
        return found

    def _queue(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _computed(self, graph: GraphName, size: int) -> Outputs:
        if (known := self._captured.get((graph, size))) is None:
            return self._run(graph, size)
        replayed, outputs = known
        replayed.replay()
        return outputs

    def _capture(self, graph: GraphName, size: int) -> None:
        """Record a bucket of a graph; it runs on the spare row until it is recorded."""
        self._stage.slots.fill_(self.capacity)  # whatever the call names is sent afterwards
        for _ in range(WARM_UPS):
            self._run(graph, size)
        torch.cuda.synchronize()
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, pool=self._pool, stream=self._stream):
            outputs = self._run(graph, size)
        self._captured[graph, size] = recorded, outputs

    def _run(self, graph: GraphName, size: int) -> Outputs:
        """Queue the work of one bucket: only device memory at fixed places is touched."""
        slots = self._stage.slots[:size].long()
        if graph == "start":
            return (self._kept(self._method.start(**self._stage.inputs(size)), slots),)
        state = {name: rows.index_select(0, slots) for name, rows in self._rows.items()}
        if graph == "finish":
            return self._method.finish(state)
        return (self._kept(self._method.step(dict(state)), slots, state),)

    def _kept(self, fresh: State, slots: Tensor, state: State | None = None) -> Tensor:
        """Write rows back; steps_left, plan and level of each come out, i32 [3, size]."""
        for name, tensor in fresh.items():
            if name not in self._rows:
                held = (self.capacity + 1, *tensor.shape[1:])
                self._rows[name] = torch.zeros(held, dtype=tensor.dtype, device=self._device)
            self._rows[name].index_copy_(0, slots, tensor)
        known = fresh if state is None else state | fresh
        return torch.stack([known[name] for name in PROGRESS])


class _Stage:
    """Where a call's inputs wait on the host, pinned, and where they lie on the device."""

    def __init__(self, image_size: tuple[int, int], device: torch.device) -> None:
        shapes = {
            "image": ((*image_size, 3), torch.uint8),
            "category": ((), torch.int64),
            "seed": ((), torch.int64),
            "plan": ((), torch.int32),
            "slots": ((), torch.int32),
        }
        widest, pinned = DEVICE_BUCKETS[-1], device.type == "cuda"
        self._host = {
            name: torch.zeros((widest, *shape), dtype=dtype, pin_memory=pinned)
            for name, (shape, dtype) in shapes.items()
        }
        self._there = {name: tensor.to(device, copy=True) for name, tensor in self._host.items()}

    @property
    def slots(self) -> Tensor:
        """Rows of the call on the device, i32 [widest]."""
        return self._there["slots"]

    def inputs(self, size: int) -> State:
        """Inputs of a start graph on the device."""
        return {name: self._there[name][:size] for name in START}

    def take(self, rows: Rows) -> None:
        """Lay out frames to start; the last one fills up its bucket."""
        count = len(rows)
        for name, column in columns(rows).items():
            place = self._host[name].numpy()
            if column.shape[1:] != place.shape[1:] or column.dtype != place.dtype:
                raise EngineFault(
                    f"the {name} of a frame must be {place.dtype} {list(place.shape[1:])}, "
                    f"not {column.dtype} {list(column.shape[1:])}"
                )
            place[:count] = column
            place[count : bucket_of(count)] = column[-1]

    def place(self, slots: list[int]) -> None:
        """Lay out the rows of a call."""
        self._host["slots"].numpy()[: len(slots)] = slots

    def send(self, graph: GraphName, size: int) -> None:
        """Queue the copies of what a graph needs."""
        for name in _needed(graph):
            self._there[name][:size].copy_(self._host[name][:size], non_blocking=True)

    def sent(self, graph: GraphName, size: int) -> int:
        """Bytes of those copies."""
        held = (self._host[name][:size] for name in _needed(graph))
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


class _Clock:
    """Moments on the device, or on the host where that computes."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._stream = stream
        self._events: list[torch.cuda.Event] = []
        self._seconds: list[float] = []

    def mark(self) -> None:
        """Note this moment."""
        if self._stream is None:
            self._seconds.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        self._events.append(event)

    def between(self) -> dict[str, float]:
        """Milliseconds of each stage."""
        if self._stream is None:
            spans = [1e3 * (after - before) for before, after in pairwise(self._seconds)]
        else:
            spans = [before.elapsed_time(after) for before, after in pairwise(self._events)]
        return dict(zip(STAGES, spans, strict=True))


START = ("image", "category", "seed", "plan")


def _needed(graph: GraphName) -> tuple[str, ...]:
    return ("slots", *START) if graph == GRAPHS[0] else ("slots",)


def _to_host(output: Tensor) -> Tensor:
    """A copy on the host, pinned where it comes from a GPU; it is there after a synchronisation."""
    place = torch.empty(output.shape, dtype=output.dtype, pin_memory=output.is_cuda)
    return place.copy_(output, non_blocking=True)

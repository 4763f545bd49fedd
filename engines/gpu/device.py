"""What the GPU worker needs of a device: memory, streams, events, copies, two kernels and graphs.

Addresses are plain integers, so whoever compiled the engines can bind them. Nothing here waits
unless its name says so: copies, fills and kernels are queued on a stream and return at once. A
device belongs to the thread that opened it, which alone uses and closes it.

Page-locked memory has no array to hand out: the host writes and reads it by these methods alone, so
a double of the device can tell whether it did so while a copy was still under way.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from engines.contracts import EngineFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.contracts import AnyArray, UInt8

Kernel = Literal["gather_rows", "scatter_rows"]
KERNELS: tuple[Kernel, ...] = ("gather_rows", "scatter_rows")
Grid = tuple[int, int, int]  # shares of a row, rows of the batch, tensors
THREADS = 128  # of a block
MODULES = ("engines.gpu.device_pycuda", "engines.gpu.device_cuda")  # the first that opens


class Memory(NamedTuple):
    """Device memory in bytes."""

    free: int
    total: int


class Stream(Protocol):
    """A queue of work on the device, done in its order."""

    handle: int  # CUstream, for libraries that queue work of their own

    def wait(self, event: Event) -> None:
        """Let whatever is queued from now on wait for an event; the host does not wait."""
        ...

    def synchronise(self) -> None:
        """Wait until all that was queued is done."""
        ...

    def close(self) -> None:
        """Release the stream."""
        ...


class Event(Protocol):
    """A mark in a stream; one that was never recorded holds nobody up."""

    def record(self, stream: Stream) -> None:
        """Mark what is queued so far."""
        ...

    def synchronise(self) -> None:
        """Wait until what was marked is done."""
        ...

    def elapsed_ms(self, since: Event) -> float:
        """Time between two marks that were passed; both events must have been made timed."""
        ...

    def close(self) -> None:
        """Release the event."""
        ...


class Pinned(Protocol):
    """Page-locked host memory."""

    size: int  # bytes

    def write(self, values: AnyArray, offset: int = 0) -> None:
        """Put the bytes of an array at a byte offset; no copy may be reading them."""
        ...

    def read(self, size: int, offset: int = 0) -> UInt8:
        """The bytes from an offset on, copied; no copy may be writing them."""
        ...

    def close(self) -> None:
        """Release the memory."""
        ...


class Graph(Protocol):
    """Work that was captured once and is launched as a whole."""

    def launch(self, stream: Stream) -> None:
        """Queue it."""
        ...

    def close(self) -> None:
        """Release the graph."""
        ...


class Device(Protocol):
    """One GPU. All sizes and offsets are bytes; whatever goes wrong is an EngineFault."""

    name: str
    compute_capability: tuple[int, int]
    has_graphs: bool  # whether ``capture`` works here

    def memory(self) -> Memory:
        """What is free now."""
        ...

    def allocate(self, size: int) -> int:
        """Address of new device memory, aligned to 256 bytes at least."""
        ...

    def free(self, address: int) -> None:
        """Give memory back."""
        ...

    def pinned(self, size: int) -> Pinned:
        """Page-locked host memory."""
        ...

    def stream(self) -> Stream:
        """A stream that waits for no other."""
        ...

    def event(self, *, timed: bool = False) -> Event:
        """An event; only a timed one knows when it was passed."""
        ...

    def upload(
        self, address: int, source: Pinned, size: int, stream: Stream, *, offset: int = 0
    ) -> None:
        """Copy host to device, from ``offset`` of the page-locked memory on."""
        ...

    def download(
        self, target: Pinned, address: int, size: int, stream: Stream, *, offset: int = 0
    ) -> None:
        """Copy device to host, to ``offset`` of the page-locked memory."""
        ...

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy within the device."""
        ...

    def fill(self, address: int, value: int, size: int, stream: Stream) -> None:
        """Set every byte to a value."""
        ...

    def launch(self, kernel: Kernel, grid: Grid, tensors: int, slots: int, stream: Stream) -> None:
        """Move rows (rows.cu) by the table of tensors and the slots at these addresses."""
        ...

    def capture(self, stream: Stream, queue: Callable[[], None]) -> Graph:
        """What ``queue`` queues on the stream as a graph; nothing of it is done yet."""
        ...

    def close(self) -> None:
        """Let go of the device; raises nothing where the device is lost."""
        ...


class Unavailable(Exception):
    """A library cannot open the device; the text is a clause that says why."""


def open_device(ordinal: int = 0) -> Device:
    """The first device by pycuda, else by cuda-bindings; EngineFault says why neither works."""
    reasons: list[str] = []
    for module in MODULES:
        try:
            device: Device = import_module(module).open_device(ordinal)
        except Unavailable as reason:
            reasons.append(str(reason))
        else:
            return device
    raise EngineFault(f"there is no GPU to compute on: {'; '.join(dict.fromkeys(reasons))}")

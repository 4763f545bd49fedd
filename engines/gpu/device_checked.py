"""A device of host memory that checks order: the double of a GPU, for tests and dry runs.

It computes at once, but believes nothing to be done that nobody waited for: every touch of memory
is checked against the clocks of streams, events and the host (``hazards``). It also knows which
memory was freed, freed twice or never given back, which thread it belongs to, and can be told to
fail at any call as a driver would.
"""

from __future__ import annotations

import threading
from bisect import bisect_right, insort
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from engines.contracts import EngineFault, UInt8
from engines.gpu.checked_kernels import Touching, copied, filled, moved
from engines.gpu.checked_parts import (
    CheckedEvent,
    CheckedGraph,
    CheckedPinned,
    CheckedStream,
    checked_pinned,
)
from engines.gpu.device import Memory
from engines.gpu.faults import DeviceLost, NoMemory, no_memory, refused
from engines.gpu.hazards import HOST, Clock, Hazard, Kind, Region, join

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.gpu.device import Grid, Kernel, Pinned, Stream

ALIGNMENT, POISON = 256, 0xCD
WAITING = ("synchronise", "wait", "record", "allocate", "free")  # not while a stream is captured
CALL_MS = 0.01
Thing = TypeVar("Thing")


class CheckedDevice:
    """``size`` bytes of device memory in host memory."""

    name = "checked host memory"
    compute_capability = (0, 0)

    def __init__(self, size: int = 1 << 30, *, has_graphs: bool = True) -> None:
        self._size, self.has_graphs = size, has_graphs
        self.host: Clock = {HOST: 0}
        self.now_ms = 0.0
        self.calls: Counter[str] = Counter()
        self.copied: Counter[str] = Counter()  # bytes by "upload" and "download"
        self.hazards: list[Hazard] = []
        self._owner = threading.get_ident()
        self._failing: tuple[str, int, str] | None = None
        self._lost: EngineFault | None = None
        self._regions: list[Region] = []  # by address; freed ones too, to be recognised
        self._things: list[object] = []  # streams, events and graphs that are open
        self._is_open = True

    # ---- what a device does

    def memory(self) -> Memory:
        """What is free now."""
        self.enter("memory")
        used = sum(r.memory.nbytes for r in self._regions if r.is_live and not r.is_pinned)
        return Memory(self._size - used, self._size)

    def allocate(self, size: int) -> int:
        """Address of new memory full of poison."""
        try:
            self.enter("allocate")
        except NoMemory as error:
            raise no_memory(size) from error
        if size > self.memory().free:
            raise no_memory(size)
        return self._region("device memory", size, is_pinned=False).address

    def free(self, address: int) -> None:
        """Give memory back."""
        found = [r for r in self._regions if r.address == address and not r.is_pinned]
        if not found:
            raise self.hazard("memory is freed that was never allocated")
        self.release(found[0])

    def pinned(self, size: int) -> CheckedPinned:
        """Page-locked host memory."""
        try:
            self.enter("pinned")
        except NoMemory as error:
            raise no_memory(size, "page-locked") from error
        return CheckedPinned(self, self._region("page-locked memory", size, is_pinned=True))

    def stream(self) -> CheckedStream:
        """A stream that waits for no other."""
        self.enter("stream")
        return self._opened(CheckedStream(self, self.calls["stream"]))

    def event(self, *, timed: bool = False) -> CheckedEvent:
        """An event."""
        self.enter("event")
        return self._opened(CheckedEvent(self, timed=timed))

    def upload(
        self, address: int, source: Pinned, size: int, stream: Stream, *, offset: int = 0
    ) -> None:
        """Copy host to device."""
        host = checked_pinned(self, source).address + offset
        self.queue("upload", stream, partial(copied, address, host, size), size)

    def download(
        self, target: Pinned, address: int, size: int, stream: Stream, *, offset: int = 0
    ) -> None:
        """Copy device to host."""
        host = checked_pinned(self, target).address + offset
        self.queue("download", stream, partial(copied, host, address, size), size)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy within the device."""
        self.queue("copy", stream, partial(copied, target, source, size), size)

    def fill(self, address: int, value: int, size: int, stream: Stream) -> None:
        """Set every byte."""
        self.queue("fill", stream, partial(filled, address, value, size))

    def launch(self, kernel: Kernel, grid: Grid, tensors: int, slots: int, stream: Stream) -> None:
        """Move rows as rows.cu does."""
        self.queue(kernel, stream, partial(moved, kernel, grid, tensors, slots))

    def capture(self, stream: Stream, queue: Callable[[], None]) -> CheckedGraph:
        """What ``queue`` queues as a graph."""
        self.enter("capture")
        own = self.stream_of(stream)
        work: list[Callable[[], None]] = []
        own.captured = work
        try:
            queue()
        finally:
            own.captured = None
        return self._opened(CheckedGraph(self, work))

    def close(self) -> None:
        """Let go; raises Hazard where something was never given back."""
        if not self._is_open:
            raise self.hazard("the device is closed twice")
        self._is_open = False
        kept = [r.name for r in self._regions if r.is_live]
        kept += [type(thing).__name__ for thing in self._things]
        if kept:
            raise self.hazard(f"the device is closed while {', '.join(kept)} were not given back")

    # ---- for tests and for doubles of engines

    def fail(self, call: str, nth: int = 1, answer: str = "CUDA_ERROR_LAUNCH_FAILED") -> None:
        """Let the nth call of a name from now on be answered so."""
        self._failing = (call, self.calls[call] + nth, answer)

    def queue(
        self, call: str, stream: Stream, run: Callable[[Touching], None], size: int = 0
    ) -> None:
        """Queue work that asks for its memory as it goes; ``size`` bytes are counted for copies."""
        own = self.stream_of(stream)
        self.enter(call, own)
        work = partial(self._done, call, own, run, size)
        if own.captured is None:
            work()
        else:
            own.captured.append(work)

    def queue_foreign(self, handle: int, run: Callable[[Touching], None]) -> None:
        """The same for a double of an engine, which is told a stream by its handle."""
        self.queue("engine", self._stream(handle), run)

    # ---- for its parts

    def hazard(self, text: str | Hazard) -> Hazard:
        """What to raise; kept, since whoever calls may turn it into a sentence of its own."""
        found = text if isinstance(text, Hazard) else Hazard(text)
        self.hazards.append(found)
        return found

    def enter(self, call: str, *things: object) -> None:
        """A call of the driver: by the owner, about what is open, and not when it is to fail."""
        if threading.get_ident() != self._owner:
            raise self.hazard(f"{call} comes from a thread that did not open the device")
        if not self._is_open or any(thing not in self._things for thing in things):
            raise self.hazard(f"{call} concerns what was closed")
        streams = [t for t in self._things if isinstance(t, CheckedStream)]
        if call in WAITING and any(stream.captured is not None for stream in streams):
            raise self.hazard(f"{call} while a stream is captured")
        self.calls[call] += 1
        if self._failing is not None and (call, self.calls[call]) == self._failing[:2]:
            fault = refused(call, self._failing[2])
            self._failing = None
            self._lost = fault if isinstance(fault, DeviceLost) else None
            raise fault
        if self._lost is not None:
            raise refused(call, "CUDA_ERROR_LAUNCH_FAILED")

    def stream_of(self, stream: Stream) -> CheckedStream:
        """A stream of this device that is open."""
        return self._stream(stream.handle)

    def touch_by_host(self, region: Region, first: int, size: int, kind: Kind) -> None:
        """An access that no stream knows of yet."""
        self.host[HOST] += 1
        try:
            region.touch((first, first + size), kind, HOST, self.host, "the host")
        except Hazard as found:
            raise self.hazard(found) from None

    def release(self, region: Region) -> None:
        """Free memory; even a lost device is asked only once."""
        if not region.is_live:
            raise self.hazard(f"{region.name} is freed twice")
        region.is_live = False
        self.enter("free")
        if not region.quiet_for(self.host):
            raise self.hazard(f"{region.name} is freed while it may be in use")

    def drop(self, thing: object) -> None:
        """Close a stream, an event or a graph."""
        if thing not in self._things:
            raise self.hazard(f"{type(thing).__name__} is closed twice")
        self._things.remove(thing)
        self.enter("drop")

    def _stream(self, handle: int) -> CheckedStream:
        own = [t for t in self._things if isinstance(t, CheckedStream) and t.handle == handle]
        if not own:
            raise self.hazard(f"there is no stream {handle}")
        return own[0]

    def _opened(self, thing: Thing) -> Thing:
        self._things.append(thing)
        return thing

    def _region(self, name: str, size: int, *, is_pinned: bool) -> Region:
        memory = np.full(size + ALIGNMENT, POISON, np.uint8)
        skipped = -memory.ctypes.data % ALIGNMENT
        region = Region(name, memory[skipped : skipped + size], is_pinned)
        insort(self._regions, region, key=_address)
        return region

    def _done(
        self, call: str, stream: CheckedStream, run: Callable[[Touching], None], size: int
    ) -> None:
        join(stream.clock, self.host)
        stream.clock[stream.handle] = stream.clock.get(stream.handle, 0) + 1
        run(partial(self._touched, call, stream))
        self.now_ms += CALL_MS
        self.copied[call] += size

    def _touched(
        self, call: str, stream: CheckedStream, address: int, size: int, kind: Kind
    ) -> UInt8:
        place = bisect_right(self._regions, address, key=_address) - 1
        region = self._regions[max(place, 0)]
        first = address - region.address
        if place < 0 or first >= region.memory.nbytes:
            raise self.hazard(f"{call} {kind} memory that was never allocated")
        try:
            region.touch((first, first + size), kind, stream.handle, stream.clock, call)
        except Hazard as found:
            raise self.hazard(found) from None
        return region.memory[first : first + size]


def _address(region: Region) -> int:
    return region.address

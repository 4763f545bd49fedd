"""All that was taken of a device, given back in reverse order, whatever fails on the way."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

from engines.contracts import EngineFault

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from engines.gpu.device import Device, Event, Pinned, Stream


class Closes(Protocol):
    """What can be given back."""

    def close(self) -> None:
        """Give it back."""
        ...


Thing = TypeVar("Thing", bound=Closes)


class Lease:
    """Memory, streams and events of one device; it ends with ``close`` or when a ``with`` fails."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self._stack = ExitStack()
        self._streams: list[Stream] = []
        self.keep(device)

    def keep(self, thing: Thing) -> Thing:
        """Close something when the lease ends, before all that was taken earlier."""
        self._stack.callback(thing.close)
        return thing

    def memory(self, size: int) -> int:
        """Address of device memory; a tensor without elements has an address of its own too."""
        address = self.device.allocate(max(size, 1))
        self._stack.callback(self.device.free, address)
        return address

    def zeroed(self, size: int, stream: Stream) -> int:
        """Device memory that holds zeros for whatever is queued on the stream from now on."""
        address = self.memory(size)
        self.device.fill(address, 0, max(size, 1), stream)
        return address

    def pinned(self, size: int) -> Pinned:
        """Page-locked host memory."""
        return self.keep(self.device.pinned(max(size, 1)))

    def stream(self) -> Stream:
        """A stream."""
        stream = self.keep(self.device.stream())
        self._streams.append(stream)
        return stream

    def event(self, *, timed: bool = False) -> Event:
        """An event; it takes no time of passing unless it is to."""
        return self.keep(self.device.event(timed=timed))

    def settle(self) -> None:
        """Wait until nothing is under way, as far as the device still answers."""
        for stream in self._streams:
            with suppress(EngineFault):
                stream.synchronise()

    def close(self) -> None:
        """Give everything back once nothing uses it; raises the last fault after all was tried."""
        self.settle()
        self._streams.clear()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            with suppress(EngineFault):  # the first fault is the one to tell
                self.close()

"""Streams, events, graphs and page-locked memory of the checked device."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from engines.contracts import AnyArray, UInt8
from engines.gpu.hazards import Clock, Region, join
from engines.gpu.pinned import PinnedBytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engines.gpu.device import Event, Pinned, Stream
    from engines.gpu.device_checked import CheckedDevice


class CheckedPinned(PinnedBytes):
    """Page-locked memory that knows when the host may look."""

    def __init__(self, device: CheckedDevice, region: Region) -> None:
        super().__init__(region.memory, partial(device.release, region))
        self._device, self.region = device, region

    def write(self, values: AnyArray, offset: int = 0) -> None:
        """Put bytes there, unless a copy may still read what they replace."""
        self._device.touch_by_host(self.region, offset, values.nbytes, "writes")
        super().write(values, offset)

    def read(self, size: int, offset: int = 0) -> UInt8:
        """Bytes, unless a copy may still write them."""
        self._device.touch_by_host(self.region, offset, size, "reads")
        return super().read(size, offset)


class CheckedStream:
    """An actor beside the host."""

    def __init__(self, device: CheckedDevice, handle: int) -> None:
        self._device, self.handle = device, handle
        self.clock: Clock = {}
        self.captured: list[Callable[[], None]] | None = None  # while a capture goes on

    def wait(self, event: Event) -> None:
        """What is queued from now on happens after the event."""
        self._device.enter("wait", self)
        join(self.clock, checked_event(event).clock)

    def synchronise(self) -> None:
        """The host happens after all that was queued."""
        self._device.enter("synchronise", self)
        join(self._device.host, self.clock)

    def close(self) -> None:
        """Release the stream."""
        self._device.drop(self)


class CheckedEvent:
    """A stream's clock as it was."""

    def __init__(self, device: CheckedDevice, *, timed: bool) -> None:
        self._device, self._is_timed = device, timed
        self.clock: Clock = {}
        self._passed_ms: float | None = None

    def record(self, stream: Stream) -> None:
        """Mark what is queued so far."""
        self._device.enter("record", self)
        self.clock = dict(self._device.stream_of(stream).clock)
        self._passed_ms = self._device.now_ms

    def synchronise(self) -> None:
        """The host happens after what was marked."""
        self._device.enter("synchronise", self)
        join(self._device.host, self.clock)

    def elapsed_ms(self, since: Event) -> float:
        """The device's own time between two marks that the host waited for."""
        self._device.enter("elapsed", self)
        return self._passed() - checked_event(since)._passed()

    def close(self) -> None:
        """Release the event."""
        self._device.drop(self)

    def _passed(self) -> float:
        if not self._is_timed or self._passed_ms is None:
            raise self._device.hazard("time is asked of an event that takes none")
        if any(ticks > self._device.host.get(actor, 0) for actor, ticks in self.clock.items()):
            raise self._device.hazard("time is asked of an event that nobody waited for")
        return self._passed_ms


class CheckedGraph:
    """Work to be done again, addresses and sizes as they were."""

    def __init__(self, device: CheckedDevice, work: Sequence[Callable[[], None]]) -> None:
        self._device, self._work = device, work

    def launch(self, stream: Stream) -> None:
        """Do it on the stream it was captured on."""
        self._device.enter("graph", self)
        self._device.stream_of(stream)
        for one in self._work:
            one()

    def close(self) -> None:
        """Release the graph."""
        self._device.drop(self)


def checked_event(event: Event) -> CheckedEvent:
    """Events of two devices are never mixed."""
    assert isinstance(event, CheckedEvent)  # noqa: S101
    return event


def checked_pinned(device: CheckedDevice, memory: Pinned) -> Region:
    """The region of page-locked memory; any other memory makes a copy wait on a real device."""
    if not isinstance(memory, CheckedPinned):
        raise device.hazard("a copy was queued with memory that is not page-locked")
    return memory.region

"""pycuda.driver with its errors as sentences, and its streams and events behind our own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines.gpu.faults import refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.gpu.device import Event, Stream

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING; pycuda has no name for it


class PycudaLibrary:
    """pycuda.driver with its errors as sentences."""

    def __init__(self, driver: Any) -> None:  # noqa: ANN401 - pycuda ships no types
        self.driver = driver

    def call(self, name: str, *arguments: object, **options: object) -> Any:  # noqa: ANN401
        """A function or class of pycuda.driver."""
        return self.guard(name, getattr(self.driver, name), *arguments, **options)

    def guard(self, name: str, call: Callable[..., Any], *arguments: object, **options: Any) -> Any:  # noqa: ANN401
        """Raises EngineFault for whatever pycuda raises."""
        try:
            return call(*arguments, **options)
        except self.driver.MemoryError as error:
            raise refused(name, "out of memory") from error
        except self.driver.Error as error:
            raise refused(name, first_line(error)) from error


class PycudaStream:
    """A stream of pycuda, kept for its calls."""

    def __init__(self, library: PycudaLibrary) -> None:
        self._library = library
        self.raw = library.call("Stream", NON_BLOCKING)
        self.handle = int(self.raw.handle)

    def wait(self, event: Event) -> None:
        """Let what is queued from now on wait."""
        self._library.guard("wait_for_event", self.raw.wait_for_event, raw_event(event))

    def synchronise(self) -> None:
        """Wait for all that was queued."""
        self._library.guard("synchronize", self.raw.synchronize)

    def close(self) -> None:
        """Release the stream; pycuda destroys what nobody names any more."""
        self.raw = None


class PycudaEvent:
    """An event of pycuda."""

    def __init__(self, library: PycudaLibrary, *, timed: bool) -> None:
        self._library = library
        flags = library.driver.event_flags
        self.raw = library.call("Event", flags.DEFAULT if timed else flags.DISABLE_TIMING)

    def record(self, stream: Stream) -> None:
        """Mark what is queued so far."""
        self._library.guard("record", self.raw.record, raw_stream(stream))

    def synchronise(self) -> None:
        """Wait for what was marked."""
        self._library.guard("synchronize", self.raw.synchronize)

    def elapsed_ms(self, since: Event) -> float:
        """Time from another mark to this one."""
        return float(self._library.guard("time_since", self.raw.time_since, raw_event(since)))

    def close(self) -> None:
        """Release the event."""
        self.raw = None


def raw_stream(stream: Stream) -> Any:  # noqa: ANN401 - pycuda ships no types
    """pycuda's own stream."""
    assert isinstance(stream, PycudaStream)  # noqa: S101 - streams of two libraries are never mixed
    return stream.raw


def raw_event(event: Event) -> Any:  # noqa: ANN401 - pycuda ships no types
    """pycuda's own event."""
    assert isinstance(event, PycudaEvent)  # noqa: S101 - as above
    return event.raw


def first_line(error: Exception) -> str:
    """pycuda says "cuMemFree failed: an illegal memory access was encountered"."""
    return str(error).strip().split("\n", maxsplit=1)[0]

"""Threads whose crash is seen, and calls that outlast the loss of the server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from tenacity import Retrying, retry_if_exception_type, sleep_using_event, stop_when_event_set
from tenacity.wait import wait_exponential

from engines.contracts import InspectionError, StreamLost
from pipeline.telemetry import facts

P = ParamSpec("P")
T = TypeVar("T")
JOIN_S = 15.0  # a thread that has not ended by then is left to the end of the process


class Lane:
    """A thread that runs inside a ``with`` block and is told to end when the block is left.

    What it raises is raised again in whoever calls ``check`` or leaves the block.
    """

    def __init__(self, name: str, run: Callable[[threading.Event], None]) -> None:
        self.closing = threading.Event()
        self._run = run
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)

    def check(self) -> None:
        """Raise what ended the thread, if anything did."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.closing.set()
        self._thread.join(JOIN_S)
        if error is None:
            self.check()
            if self._thread.is_alive():
                raise InspectionError(f"thread {self._thread.name} did not end in {JOIN_S:.0f} s")

    def _guarded(self) -> None:
        _show_name(self._thread.name)
        try:
            self._run(self.closing)
        except BaseException as error:
            self._error = error


def _show_name(name: str) -> None:
    """Name the calling thread for the system too, so that ``top -H`` says who works (Linux).

    Threads that it starts, as an engine does, inherit the name.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:15])


class Patience:
    """Calls a function again after StreamLost, ever more slowly, until told to give up."""

    def __init__(self, retrying: Retrying) -> None:
        self._retrying = retrying

    def __call__(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the call returns, or what it raises but for StreamLost."""
        try:
            return call(*args, **kwargs)  # bare: what goes well is not worth a retry's own cost
        except StreamLost as lost:
            return self._retrying(_failed_once(lost, call), *args, **kwargs)


def outlasting_loss(role: str, give_up: threading.Event) -> Patience:
    """Patience with a lost server until ``give_up`` is set; each loss is counted."""

    def note(_: object) -> None:
        facts.count("stream_lost_total", role=role)

    return Patience(
        Retrying(
            retry=retry_if_exception_type(StreamLost),
            wait=wait_exponential(multiplier=0.05, max=2),
            stop=stop_when_event_set(give_up),
            sleep=sleep_using_event(give_up),
            before_sleep=note,
            reraise=True,
        )
    )


def _failed_once(lost: StreamLost, call: Callable[P, T]) -> Callable[P, T]:
    """The function, as it is after its first attempt has failed."""
    failures = [lost]

    def attempt(*args: P.args, **kwargs: P.kwargs) -> T:
        if failures:
            raise failures.pop()
        return call(*args, **kwargs)

    return attempt

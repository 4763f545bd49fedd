"""What every live camera needs: to come back after an outage, and to end when it cannot.

An outage begins when a session ends with SourceLost and is over when a new session has connected.
Attempts follow each other with an exponential, jittered pause, so that forty cameras behind one
switch do not all knock at once when it returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Protocol

import tenacity

from engines.contracts import SourceLost
from pipeline.sources.source import Exposure
from pipeline.telemetry import facts

LEAST_PAUSE_S = 0.1
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 5.0


class Session(Protocol):
    """One connection to a camera, from the moment it delivers until it is lost."""

    def exposures(self, stop: threading.Event) -> Iterator[Exposure]:
        """Exposures until ``stop`` is set; raises SourceLost when the camera falls silent."""
        ...

    def close(self) -> None:
        """Let the camera go; never raises."""
        ...


def reconnecting(
    connect: Callable[[], Session], camera: str, give_up_s: float, stop: threading.Event
) -> Iterator[Exposure]:
    """Exposures of session after session; raises SourceLost after ``give_up_s`` of outage."""
    while not stop.is_set():
        try:
            session = _attempts(camera, give_up_s, stop)(connect)
        except SourceLost:
            if stop.is_set():
                return
            raise
        facts.event("camera_connected", camera=camera)
        facts.gauge("camera_connected", 1, camera=camera)
        with closing(session):
            try:
                yield from session.exposures(stop)
            except SourceLost as error:
                facts.event("camera_lost", level="warning", camera=camera, reason=str(error))
                facts.gauge("camera_connected", 0, camera=camera)


def _attempts(camera: str, give_up_s: float, stop: threading.Event) -> tenacity.Retrying:
    """At least one attempt; none begins later than ``give_up_s`` after the first."""

    def tell(state: tenacity.RetryCallState) -> None:
        reason = str(state.outcome.exception()) if state.outcome else ""
        facts.event("camera_retry", camera=camera, attempt=state.attempt_number, reason=reason)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(SourceLost),
        wait=tenacity.wait_random_exponential(FIRST_PAUSE_S, LONGEST_PAUSE_S, min=LEAST_PAUSE_S),
        stop=tenacity.stop_before_delay(give_up_s) | tenacity.stop_when_event_set(stop),
        sleep=tenacity.sleep_using_event(stop),
        before_sleep=tell,
        reraise=True,
    )

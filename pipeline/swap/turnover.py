"""Which bundle of a worker has the turn: it follows the line's orders while parts are inspected.

The new bundle is loaded beside the old one. From one moment on all parts that are read go to the
new one; those in flight finish on the old one, which then stays loaded, so that the way back takes
no time. What cannot be loaded is refused, and the old one never stopped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from engines.contracts import InspectionError
from pipeline.loading import loaded
from pipeline.reading import FrameReader
from pipeline.swap.opening import First, opened_beside, resting
from pipeline.swap.roster import Place, Standing
from pipeline.swap.station import Opening, Station
from pipeline.swap.wanted import Wanted, wanted_of
from pipeline.telemetry import facts
from pipeline.writing import VerdictWriter

if TYPE_CHECKING:
    from pipeline.config import LineSettings

LOOK_S = 0.1


class Turnover:
    """The bundles of one worker: one has the turn, one is kept, one may be coming."""

    def __init__(
        self,
        settings: LineSettings,
        frames: FrameReader,
        verdicts: VerdictWriter,
        clock: Callable[[], int],
        place: Place,
        *,
        first: First,
    ) -> None:
        self._settings = settings
        self._frames = frames
        self._verdicts = verdicts
        self._clock = clock
        self._place = place
        self._moved = threading.Event()
        self._first = first
        self._number = first.number  # of the order that was followed or refused last
        self._current: Station | None = None
        self._kept: Station | None = None
        self._coming: Station | None = None
        self._order: Wanted | None = None  # that the coming one follows

    def __enter__(self) -> Self:
        self._place.say(Standing(number=self._number, state="loading"))
        self._current = self._station(
            lambda _: loaded(self._settings, self._first.bundle, self._clock)
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        stations = [one for one in (self._coming, self._kept, self._current) if one is not None]
        for station in stations:
            station.closing.set()
        for station in stations:
            station.__exit__(kind, error, at)

    def run(self, stop: threading.Event) -> None:
        """Inspect, and follow orders, until ``stop`` is set and what was read is done."""
        first = self._station_now
        while not first.is_loaded and not first.is_done:
            self._wait()
        first.check()
        self._turn_to(first)
        while not (stop.is_set() and self._station_now.is_done):
            self._wait()
            self._check()
            self._arrive()
            if not stop.is_set():
                self._obey()

    @property
    def _station_now(self) -> Station:
        if self._current is None:
            raise RuntimeError("no bundle has the turn")
        return self._current

    def _station(self, opening: Opening) -> Station:
        station = Station(opening, self._frames, self._verdicts, self._moved)
        station.__enter__()
        return station

    def _wait(self) -> None:
        self._moved.wait(LOOK_S)
        self._moved.clear()

    def _check(self) -> None:
        """Raise what has ended a station: with its engine the process starts again."""
        self._station_now.check()
        if self._kept is not None:
            self._kept.check()

    # -- orders --------------------------------------------------------------------------------

    def _obey(self) -> None:
        """Follow the newest order, unless it is the last one still."""
        try:
            wanted = wanted_of(self._settings)
        except InspectionError:
            return  # whoever spoiled the file is told when the next one is written
        known = self._order.number if self._order else self._number
        if wanted is None or wanted.number == known:
            return
        if self._coming is not None:  # that one first has to be out of the way
            self._coming.closing.set()
            return
        chosen, kept = wanted.chosen, self._kept
        if self._station_now.runs(chosen):
            self._follow(wanted, self._station_now, kept)
        elif kept is not None and kept.runs(chosen):
            self._follow(wanted, kept, self._station_now)
        else:
            self._fetch(wanted)

    def _fetch(self, wanted: Wanted) -> None:
        """Load what is wanted, beside what inspects; what was kept until now makes room."""
        self._forget()
        running = self._station_now.seat.bundle
        self._order = wanted
        self._coming = self._station(
            lambda closing: opened_beside(
                self._settings,
                wanted.chosen,
                running,
                self._clock,
                resting(self._frames, closing),
            )
        )

    def _arrive(self) -> None:
        """Turn to the bundle that was coming, where it is there; or say why it is not."""
        coming, order = self._coming, self._order
        if coming is None or order is None or not (coming.is_loaded or coming.is_done):
            return
        self._coming, self._order = None, None
        refusal = coming.refusal()
        if refusal is None:
            self._follow(order, coming, self._station_now)
            return
        self._number = order.number
        self._place.say(self._station_now.standing(self._number, refusal))
        facts.event("swap_refused", level="error", order=order.number, sentence=refusal)

    def _follow(self, order: Wanted, now: Station, kept: Station | None) -> None:
        """An order is done: this one inspects, that one stays loaded if it may."""
        has_changed = now is not self._current
        self._number, self._current, self._kept = order.number, now, kept
        if has_changed:
            self._turn_to(now)
            told = now.standing(self._number)
            facts.event(
                "swapped", level="warning", bundle=told.bundle_id, calibration=told.calibration_id
            )
        if not order.keeps:
            self._forget()
        self._place.say(now.standing(self._number))

    def _turn_to(self, station: Station) -> None:
        if station.is_loaded:
            self._frames.turn_to(station.seat)
            station.tell_promise()
            self._place.say(station.standing(self._number))

    def _forget(self) -> None:
        """Close the bundle that was kept, once its last parts are done."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.__exit__(None, None, None)

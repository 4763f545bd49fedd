"""One bundle in a thread of its own, which opens and closes its engines, and uses the first.

Each other engine has a thread besides. Where one fails, all of them end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from pipeline.judging import Judge
from pipeline.lanes import Lane
from pipeline.loading import Loaded
from pipeline.reading import FrameReader
from pipeline.seats import Seat
from pipeline.swap.roster import Standing
from pipeline.swap.wanted import Choice
from pipeline.telemetry import facts
from pipeline.writing import VerdictWriter

NAME = "inspect"  # of its threads
Opening = Callable[[threading.Event], AbstractContextManager[Loaded]]


class Station(Lane):
    """Loads, then inspects whenever it has the turn at the reader; two may drain and fill at once.

    ``moved`` is set when it is ready and when it has ended.
    """

    def __init__(
        self,
        opening: Opening,
        frames: FrameReader,
        verdicts: VerdictWriter,
        moved: threading.Event,
    ) -> None:
        super().__init__(NAME, self._inspect_on)
        self._opening = opening
        self._frames = frames
        self._verdicts = verdicts
        self._moved = moved
        self._loaded: Loaded | None = None
        self._identity = ("", "")  # of bundle and calibration, as they were loaded
        self._failed = threading.Event()  # one of its engines
        self.is_done = False

    @property
    def is_loaded(self) -> bool:
        """Whether it can inspect, or could until it ended."""
        return self._loaded is not None

    @property
    def seat(self) -> Seat:
        """Its place at the reader, once it is loaded."""
        if self._loaded is None:
            raise RuntimeError("the bundle is not loaded yet")
        return self._loaded.seat

    def runs(self, choice: Choice) -> bool:
        """Whether it was loaded for this choice."""
        return self._identity == (choice.bundle_id, choice.calibration_id)

    def standing(self, number: int, refusal: str = "") -> Standing:
        """What a worker says that inspects here after an order, followed or refused."""
        return Standing(
            number=number,
            state="refused" if refusal else "runs",
            bundle_id=self.seat.bundle.bundle_id,
            calibration_id=self.seat.judge.calibration_id,
            sentence=refusal,
        )

    def refusal(self) -> str | None:
        """Why it cannot have the turn; None where it can."""
        if self.is_loaded and not self.closing.is_set():
            return None
        try:
            self.__exit__(None, None, None)
        except Exception as error:  # whatever it is: the old bundle goes on
            return str(error) or type(error).__name__
        return "another bundle is wanted by now"

    def _inspect_on(self, closing: threading.Event) -> None:
        try:
            with self._opening(closing) as loaded:
                seat = loaded.seat
                self._identity = (seat.bundle.bundle_id, seat.judge.calibration_id)
                loaded.follow()  # thresholds that were applied before it was loaded
                self._loaded = loaded
                self._moved.set()
                with ExitStack() as others:
                    for number in range(1, len(loaded.inspectors)):
                        others.enter_context(self._beside(loaded, number, closing))
                    self._take_turns(loaded, 0, closing)
        finally:
            self.is_done = True
            self._moved.set()

    def _beside(self, loaded: Loaded, number: int, closing: threading.Event) -> Lane:
        return Lane(NAME, lambda _: self._take_turns(loaded, number, closing))

    def _take_turns(self, loaded: Loaded, number: int, closing: threading.Event) -> None:
        """Inspect on one engine whenever this bundle has the turn."""
        try:
            while not self._failed.is_set() and self._frames.await_turn(loaded.seat, closing):
                inspect(self._frames, loaded, self._verdicts, number, self._failed)
        except BaseException:
            self._failed.set()
            closing.set()
            raise

    def tell_promise(self) -> None:
        """What the thresholds of this bundle promise, for whoever watches the line."""
        tell_promise(self.seat.judge)


def inspect(
    frames: FrameReader,
    loaded: Loaded,
    verdicts: VerdictWriter,
    number: int,
    failed: threading.Event,
) -> None:
    """The main loop of one engine, until nothing more comes to it and nothing is in flight.

    ``failed`` is set where another engine of the bundle can go on no more: this one then takes
    nothing more, and the process begins anew.
    """
    seat, inspector = loaded.seat, loaded.inspectors[number]

    def expects_more() -> bool:
        return frames.more(seat) and not failed.is_set()

    frames.beat(seat, number)
    while expects_more() or inspector.in_flight:
        if number == 0 and loaded.follow():
            _tell_thresholds(seat.judge)
        free_slots = 0 if failed.is_set() else inspector.free_slots
        patience_s, due_ns = inspector.patience_s, inspector.due_ns
        inspector.admit(frames.take(seat, free_slots, patience_s, number, due_ns))
        for finding in inspector.step(expects_more=expects_more()):
            verdicts.put(finding)
        frames.beat(seat, number)
    frames.rest(seat, number)


def tell_promise(judge: Judge) -> None:
    """What the thresholds in force promise of good parts."""
    for category, entry in judge.calibration.entries[judge.backend_key].items():
        promised = entry.evidence.max_false_reject
        facts.gauge("false_reject_promise_ratio", promised, category=category)


def _tell_thresholds(judge: Judge) -> None:
    """Others are in force from this turn on."""
    facts.event("thresholds_changed", level="warning", calibration=judge.calibration_id)
    tell_promise(judge)

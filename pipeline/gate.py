"""The gate keeper: no part reaches the reject gate without a verdict.

It answers UNDECIDED(deadline) for whatever is still open shortly before its gate, by the same
compare-and-set as the inspectors, so it needs none of them to be alive. It is a thread of the sink.

A thread of a busy machine wakes late. What is not answered in one look has to wait for the end of
the next, so the keeper measures the time from each look to the end of the next, however many looks
it takes until none is left, remembers the longest of late, and answers that much earlier. It also
tells those who admit parts: one with too little left for a late look is refused at once, so that
the keeper need not look the more often, the fuller the machine is, up to what parts can bear.

The server's clock may be set while parts are on their way. Set forward, their gates seem to have
passed and they are answered at once. Set back, their gates would seem far away: what is due later
than any part exposed now could be was stamped before, and is answered at once too; and after a step
shorter than a gate, everything is answered earlier by the step until those parts are gone.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from engines.contracts import BadConfig, Reason, StreamFull, StreamLost, Verdict
from pipeline.stream import Stream
from pipeline.telemetry import facts
from pipeline.urgency import hurry
from pipeline.wire import FrameHead, undecided

LEAST_MS, PERIOD_MS = 1.0, 5.0  # between looks
# Between looks while no open frame is near its gate: a share of the nearest gate, but no more than
# so long; the longest of these.
RESTS_MS = ((1 / 4, 25.0), (1 / 10, 100.0), (1 / 100, 500.0))
BACK_OFF_S = 0.2
LATE_AT_FIRST_MS = 50.0  # what is assumed before anything has been measured
LATE_MAX_MS = 1000.0  # a machine that sleeps longer than this is beyond what a margin can mend
WARY = 1.5  # the next delay may be so many times the longest of late
INSPECT_MS = 90.0  # left to inspection, however late looks were: wary of all, nothing is decided
FORGET_S = 20.0  # a lateness has lost two thirds of its weight after so long
ASSUMED_S = 3.0  # and one that nobody measured after so long: looks are taken all the while
TELL_S = 1.0  # a server that was restarted meanwhile is told again after so long
STEP_MS = 20.0  # a clock that falls behind by more was set back
SLACK_MS = 250.0  # how far clocks of honest processes may lie apart


class Lateness:
    """The longest delay of late, forgotten exponentially, ms; at first one that is assumed."""

    def __init__(self, at_first_ms: float = LATE_AT_FIRST_MS) -> None:
        self._assumed_ms, self._peak_ms = at_first_ms, 0.0
        self._began_s = self._noted_s = time.monotonic()

    @property
    def ms(self) -> float:
        """By how much to be early now."""
        now_s = time.monotonic()
        assumed_ms = self._assumed_ms * math.exp((self._began_s - now_s) / ASSUMED_S)
        return max(assumed_ms, self._measured_ms(now_s))

    def note(self, delay_ms: float) -> None:
        """Learn of one delay."""
        now_s = time.monotonic()
        self._peak_ms = max(min(delay_ms, LATE_MAX_MS), self._measured_ms(now_s))
        self._noted_s = now_s

    def _measured_ms(self, now_s: float) -> float:
        return self._peak_ms * math.exp((self._noted_s - now_s) / FORGET_S)


class SteadyClock:
    """Notes when a clock is set back, for as long as parts stamped before may be on their way."""

    def __init__(self, gate_ms: float) -> None:
        self._remembered_s = gate_ms / 1e3 + 2.0  # others learn of a step a second later
        self._base_ns = 0  # of the clock, over the monotonic one
        self._unclear_ms = 0.0
        self._until_s = 0.0
        self._step_ms = 0.0

    def read(self, now_ns: int, unclear_ms: float) -> int:
        """Take note of what the clock says, known to ``unclear_ms``, and say it."""
        base_ns = now_ns - time.monotonic_ns()
        back_ms = (self._base_ns - base_ns) / 1e6
        if self._base_ns and back_ms > STEP_MS + self._unclear_ms + unclear_ms:
            self._step_ms = self.set_back_ms + back_ms
            self._until_s = time.monotonic() + self._remembered_s
            facts.event("clock_set_back", level="warning", by_ms=round(back_ms))
        self._base_ns, self._unclear_ms = base_ns, unclear_ms
        return now_ns

    @property
    def set_back_ms(self) -> float:
        """By how much it was set back of late."""
        return self._step_ms if time.monotonic() < self._until_s else 0.0


class GateKeeper:
    """Watches the open frames of some cameras; each answer comes ``margin_ms`` before the gate.

    ``gates_ms`` is each camera's time to its gate: see ``_most_ms`` for what lateness takes of it.
    """

    def __init__(
        self,
        stream: Stream,
        cameras: Sequence[str],
        margin_ms: float = 5.0,
        gates_ms: Mapping[str, float] | None = None,
    ) -> None:
        self._stream = stream
        self._cameras = tuple(cameras)
        self._margin_ms = margin_ms
        self._gates_ms = dict(gates_ms or {})
        self._late_max_ms = {name: _most_ms(gate_ms) for name, gate_ms in self._gates_ms.items()}
        nearest_ms = min(self._gates_ms.values(), default=0.0)
        self._rest_ms, self._borne_ms = _rest_ms(nearest_ms), _borne_ms(nearest_ms)
        self._first_ms = math.inf  # until the first open frame has to be answered
        self._clock = SteadyClock(max(self._gates_ms.values(), default=0.0))
        self.lateness = Lateness()
        self._looked_s: float | None = None  # monotonic; None where no look is to be measured
        self._told_ms = 0.0  # our lateness, by what the server says to those who admit frames
        self._known_ms = 0.0  # the least that any of them went by since the last look
        self._tell_at_s = 0.0  # monotonic
        self._is_mute = False  # this user may not tell

    def run(self, stop: threading.Event) -> None:
        """Tick until ``stop``; a lost server is waited for."""
        hurry()
        wait_s = PERIOD_MS / 1000
        while not stop.wait(wait_s):
            try:
                self.tick(waited_ms=wait_s * 1000)
                self.tell()
            except StreamLost:
                self._looked_s, self._told_ms, wait_s = None, 0.0, BACK_OFF_S
                continue
            facts.gauge("gate_lateness_seconds", self.lateness.ms / 1e3)
            wait_s = self.pause_ms / 1000

    @property
    def pause_ms(self) -> float:
        """Until the next look: when the first frame has to be answered, or a rest before that.

        A rest is shorter by as much as looks are later than those who admit frames were told: of
        what is admitted meanwhile nobody here knows. Not more than that: few parts come so late
        that they could miss it, and each look makes a full machine fuller.
        """
        rest_ms = self._rest_ms - max(0.0, self.lateness.ms - self._known_ms)
        return min(max(LEAST_MS, self._first_ms), max(PERIOD_MS, rest_ms))

    def tell(self) -> None:
        """Tell those who admit frames how late looks are: each rise at once, a fall in a while.

        A server without room for it goes on saying what it said, perhaps not of every camera.
        """
        self._known_ms, late_ms = self._told_ms, min(self.lateness.ms, self._borne_ms)
        is_due = late_ms > self._told_ms or time.monotonic() >= self._tell_at_s
        if self._is_mute or not is_due:
            return
        self._tell_at_s = time.monotonic() + TELL_S
        self._known_ms = self._told_ms = min(late_ms, self._told_ms)  # a fall holds at once
        try:
            self._stream.tell_lateness(self._cameras, late_ms)
            self._told_ms = late_ms
        except StreamFull:
            pass
        except BadConfig as error:  # a user made before this was told: then rests are shorter
            self._is_mute = True
            facts.event("lateness_untold", level="warning", sentence=str(error))

    def tick(self, now_ns: int | None = None, *, waited_ms: float = 0.0) -> list[Verdict]:
        """Answer what would be late by the end of the next look; the verdicts that were given.

        ``now_ns`` is the server's clock; its uncertainty, the period and the lateness of late are
        taken off the gate too. ``waited_ms`` since the tick before were meant.
        """
        given: list[Verdict] = []
        self._first_ms = math.inf
        while True:  # one look is bounded: look until none is left
            began_s = time.monotonic()
            heads = self._expiring(now_ns)
            if heads:
                decided_ns = self._stream.now_ns() if now_ns is None else now_ns
                given += self._stream.answer_all_open(
                    [undecided(head, Reason.DEADLINE, decided_ns) for head in heads]
                )
            self._note(began_s, waited_ms)
            if not heads:
                return given
            waited_ms = 0.0

    def _note(self, began_s: float, waited_ms: float) -> None:
        """Learn from a look that has just ended how long the one before it had to reach."""
        if self._looked_s is not None:
            self.lateness.note((time.monotonic() - self._looked_s) * 1000 - waited_ms)
        self._looked_s = began_s

    def _expiring(self, now_ns: int | None) -> list[FrameHead]:
        """Frames that have to be answered now; every camera in one round trip."""
        unclear_ms = self._stream.clock_uncertainty_ms
        now = self._clock.read(self._stream.now_ns(), unclear_ms) if now_ns is None else now_ns
        due_ns = {camera: now + int(self._ahead_ms(camera) * 1e6) for camera in self._cameras}
        rest_ns = int(self._rest_ms * 1e6)
        near = self._stream.deadlines({name: due + rest_ns for name, due in due_ns.items()})
        left_ns = {frame: at - due_ns[frame.partition("/")[0]] for frame, at in near.items()}
        self._first_ms = min(left_ns.values(), default=math.inf) / 1e6
        due = {frame: near[frame] for frame, left in left_ns.items() if left <= 0}
        return [*self._stamped_before(now), *self._stream.heads(due)]

    def _ahead_ms(self, camera: str) -> float:
        """How long before its gate a part of this camera is answered."""
        late_ms, step_ms = WARY * self.lateness.ms, self._clock.set_back_ms
        gate_ms = self._gates_ms.get(camera, 0.0)
        ahead_ms = self._margin_ms + PERIOD_MS + self._stream.clock_uncertainty_ms
        ahead_ms += min(late_ms, self._late_max_ms.get(camera, late_ms))
        return ahead_ms + (step_ms if step_ms <= gate_ms else 0.0)

    def _stamped_before(self, now_ns: int) -> Iterator[FrameHead]:
        """Frames due later than any exposed now could be, after a clock was set back."""
        if not self._clock.set_back_ms:
            return
        for camera in self._cameras:
            far_ms = self._gates_ms.get(camera, 0.0) + SLACK_MS + self._stream.clock_uncertainty_ms
            yield from self._stream.due_after(camera, now_ns + int(far_ms * 1e6))


def least_left_ms(gates_ms: Iterable[float], margin_ms: float, late_ms: float) -> float:
    """How long before its gate a part of a line may be admitted at the latest.

    One admitted just after a look is then seen by the next, and answered ``margin_ms`` before its
    gate, should nobody else have done so; as long as looks are not later than of late, which is
    what their keeper tells (``late_ms``), and late by less than a rest.
    """
    nearest_ms = min(gates_ms, default=0.0)
    return _rest_ms(nearest_ms) + PERIOD_MS + margin_ms + min(late_ms, _borne_ms(nearest_ms))


def _borne_ms(gate_ms: float) -> float:
    """How much lateness the parts that are admitted bear; for more, the keeper rests less."""
    return min(_rest_ms(gate_ms), _most_ms(gate_ms))


def _rest_ms(gate_ms: float) -> float:
    """How long a keeper, whose nearest gate this is, may rest while nothing open is near its own.

    Each look wakes two processes, whose memory the engine has swept out of the caches meanwhile.
    """
    return max(min(most_ms, gate_ms * share) for share, most_ms in RESTS_MS)


def _most_ms(gate_ms: float) -> float:
    """By how much lateness may have parts answered early: half a gate, where inspection has time.

    Beyond that, and on a machine that stalls for longer, an answer may come after the gate.
    """
    return max(gate_ms / 8, min(gate_ms / 2, gate_ms - INSPECT_MS))

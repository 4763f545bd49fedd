"""Whether every part is answered in time, watched from outside while faults are done to a line.

A verdict counts twice. Its own stamp, which its writer took, has to lie ``MARGIN_MS`` before the
gate. And an onlooker without a part in the line has to have seen it before the gate: what a stamp
claims, somebody could act on. The onlooker is no faster than this machine, so he judges strictly.

Nobody can answer through a server that is stopped, frozen or read-only, across a cut network, or
without a sink, which keeps the gate. Such an injury excuses the parts whose gate comes between its
beginning and the moment the line is well again, or ``READY_S`` later. Where the clock is set, it
also excuses what is seen in that time, since stamps on both sides of a step do not compare. Where a
camera's process dies or stands still, it excuses the part that it had in its hand: one that was
exposed within ``HAND_S`` of that moment and that nobody else knew of.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from engines.contracts import StreamLost
from pipeline.lanes import Lane
from pipeline.stream import open_stream
from pipeline.urgency import hurry
from pipeline.watch import BEGINNING

if TYPE_CHECKING:
    from engines.contracts import Verdict
    from pipeline.stream import Stream
    from tests.faults.standing import Standing

MARGIN_MS = 5.0
READY_S, HAND_S = 0.5, 0.1
Excused = Literal["gate", "clock", "held"]
BLOCK_MS, FEW = 200, 8  # few at once, so that reading them takes no time
AGAIN_S = 0.005


class Sight(NamedTuple):
    """One verdict as an onlooker saw it; milliseconds before its gate, negative = after it."""

    frame_id: str
    captured_s: float  # monotonic, like the next two
    gate_s: float
    seen_s: float
    stamped_ms: float
    seen_ms: float
    reason: str


class Excuse(NamedTuple):
    """Monotonic seconds in which nobody could answer: by their gate, when seen, or exposed."""

    first_s: float
    last_s: float
    of: Excused

    def holds_for(self, sight: Sight) -> bool:
        """Whether nobody could have answered this part in time."""
        met = self.first_s <= sight.gate_s <= self.last_s + READY_S
        match self.of:
            case "gate":
                return met
            case "clock":
                return met or self.first_s <= sight.seen_s <= self.last_s + READY_S
            case "held":
                return abs(sight.captured_s - self.first_s) <= HAND_S


class Onlooker:
    """Follows a line's verdicts on a connection of his own."""

    def __init__(self, stream: Stream, gates_ms: Mapping[str, float]) -> None:
        self.sights: dict[str, Sight] = {}  # by frame id; the first time it was seen
        self._stream = stream
        self._gates_ms = gates_ms

    def follow(self, camera: str, closing: threading.Event) -> None:
        """Look until ``closing``; a server that comes back is read from its beginning."""
        hurry()
        after = BEGINNING
        while not closing.is_set():
            try:
                self._stream.now_ns()  # so that its clock is known before something comes
                found = self._stream.follow_verdicts(camera, after, FEW, BLOCK_MS)
            except StreamLost:
                after = BEGINNING
                closing.wait(AGAIN_S)
                continue
            seen_s, seen_ns = time.monotonic(), self._stream.estimated_now_ns()
            for delivery in found:
                self._note(delivery.verdict, seen_s, seen_ns)
            after = found[-1].entry_id if found else after

    def _note(self, verdict: Verdict, seen_s: float, seen_ns: int) -> None:
        age_ms, gate_ms = _ms(seen_ns, verdict), self._gates_ms[verdict.camera]
        sight = Sight(
            verdict.frame_id,
            seen_s - age_ms / 1e3,
            seen_s + (gate_ms - age_ms) / 1e3,
            seen_s,
            gate_ms - _ms(verdict.decided_ns, verdict),
            gate_ms - age_ms,
            str(verdict.reason or ""),
        )
        self.sights.setdefault(verdict.frame_id, sight)


@contextmanager
def watched_gates(here: Standing) -> Iterator[Onlooker]:
    """An onlooker for as long as the block lasts; he sees past whatever network the line has."""
    gates_ms = {camera.name: float(camera.gate_ms) for camera in here.settings.cameras}
    with ExitStack() as stack:
        stream = stack.enter_context(open_stream(here.server.url, here.settings.redis.namespace))
        onlooker = Onlooker(stream, gates_ms)
        for name in gates_ms:

            def follow(closing: threading.Event, camera: str = name) -> None:
                onlooker.follow(camera, closing)

            stack.enter_context(Lane(f"onlooker {name}", follow))
        yield onlooker


@dataclass
class Gates:
    """How the gates of a round were kept."""

    checked: int = 0
    excused: int = 0  # parts whose gate met an injury that nobody can answer through
    least_stamped_ms: float | None = None  # before the gate, of those checked
    least_seen_ms: float | None = None
    late: list[str] = field(default_factory=list)  # frames, with milliseconds and reason


def judged(sights: Sequence[Sight], excused: Sequence[Excuse]) -> Gates:
    """Weigh what was seen."""
    told = Gates()
    for sight in sights:
        if _is_excused(sight, excused):
            told.excused += 1
            continue
        told.checked += 1
        told.least_stamped_ms = _least(told.least_stamped_ms, sight.stamped_ms)
        told.least_seen_ms = _least(told.least_seen_ms, sight.seen_ms)
        if sight.stamped_ms < MARGIN_MS or sight.seen_ms < 0:
            told.late.append(
                f"{sight.frame_id} {sight.reason} stamped {sight.stamped_ms:.1f} ms and seen "
                f"{sight.seen_ms:.1f} ms before its gate"
            )
    return told


def least_ms(
    sights: Sequence[Sight], span: tuple[float, float], excused: Sequence[Excuse]
) -> float | None:
    """How long before its gate the last part was answered whose gate came within a span."""
    met = (one for one in sights if span[0] <= one.gate_s <= span[1])
    return min((one.stamped_ms for one in met if not _is_excused(one, excused)), default=None)


def _is_excused(sight: Sight, excused: Sequence[Excuse]) -> bool:
    return any(one.holds_for(sight) for one in excused)


def _least(known: float | None, new: float) -> float:
    return round(new if known is None else min(known, new), 3)


def _ms(moment_ns: int, verdict: Verdict) -> float:
    return (moment_ns - verdict.captured_ns) / 1e6

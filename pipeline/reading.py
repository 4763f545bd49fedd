"""Frames out of the stream, as many as there are free slots, kept alive by their inspection.

A thread of the worker reads, decodes and renews. It renews only after every inspection loop has
beaten again, so one that hangs loses its frames to another worker; and it takes over frames that
another worker has let go cold. What is read goes to one seat at a time, as one bundle at a time has
the turn.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from engines.contracts import BadFrame, Reason, StreamLost, Verdict
from engines.images import MAX_PIXELS
from engines.inspector import Part
from pipeline.config import WorkerSettings
from pipeline.judging import Judge
from pipeline.lanes import Lane
from pipeline.pulse import Pulse
from pipeline.seats import IDLE, Seat
from pipeline.shared import LostImage
from pipeline.stream import Delivery, Stream
from pipeline.telemetry import facts
from pipeline.urgency import hurry
from pipeline.wire import Fetch, FrameEntry, FrameHead, entry_from, undecided

ROLE = "inspect"
BLOCK_MS = 20  # longest wait for new frames, so that renewal is never late
ENOUGH = 8  # places that are worth a round trip while the loop has work for a while
GATHER_S = 0.025  # how long they, or frames, are waited for; a round trip wakes everybody
GATHER_MAX_S = 0.1  # the same where none had come, and no gate is near
HURRY = 8  # times that long to a frame's gate
IDLE_S = 0.05
TICKS_IDLE = 5  # an entry is cold when it was not renewed for this many of our longest ticks


@dataclass(slots=True, eq=False)
class Held:
    """One frame this worker has to answer."""

    delivery: Delivery  # replaced when it is delivered to us again
    entry: FrameEntry
    read_ns: int  # server clock
    read_s: float  # monotonic, when it was asked for; no setting of a clock makes it younger
    seat: Seat  # that inspects it
    judge: Judge  # of that seat when it was read: thresholds may change before it is found


class FrameReader:
    """Free slots in, parts out; holds what is not yet answered."""

    def __init__(
        self,
        stream: Stream,
        cameras: Sequence[str],
        consumer: str,
        *,
        pulse: Pulse,
        settings: WorkerSettings,
        stop: threading.Event,
        fetch: Fetch | None = None,
    ) -> None:
        self._stream = stream
        self._cameras = cameras
        self._consumer = consumer
        self._pulse = pulse
        self._settings = settings
        self._stop = stop
        self._fetch = fetch  # of images in shared memory
        self._changed = threading.Condition()
        self._seat: Seat | None = None  # what is read goes there
        self._held: dict[str, Held] = {}  # frame_id -> what must be answered and renewed
        self._losing: set[str] = set()  # cameras whose last image was lost
        self._room = 0  # frames that may still be read
        self._is_reading = False  # the server may be handing frames to us just now
        self._is_drained = False  # the last read left no frame waiting
        self._gather_s = GATHER_S
        self._gate_s = math.inf  # the shortest time from exposure to gate that was seen
        self._beat_s = self._renewed_s = self._reclaimed_s = self._asked_s = time.monotonic()
        self._longest_tick_s = 0.0
        self._lane = Lane("read", self._read_on)

    def __enter__(self) -> Self:
        for camera in self._cameras:
            self._stream.ensure_group(camera)
        self._lane.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._lane.__exit__(kind, error, at)
        self._pulse.end(ROLE, self._consumer)

    # -- for the inspection loop ---------------------------------------------------------------

    def turn_to(self, seat: Seat) -> None:
        """What is read from now on is for this seat; what was read stays with the one before."""
        with self._changed:
            self._seat = seat
            for loop in seat.loops:  # they rested while they had no turn
                loop.beat_s = time.monotonic()
            self._room = 0
            self._changed.notify_all()

    def await_turn(self, seat: Seat, closing: threading.Event) -> bool:
        """Wait until parts come to a seat; False where none will, since all is to end."""
        with self._changed:
            while not self._has_turn(seat):
                if self._stop.is_set() or closing.is_set():
                    return False
                self._changed.wait(IDLE_S)
            return True

    def more(self, seat: Seat) -> bool:
        """Whether parts are still to come to a seat: some are read or being read, or will be."""
        with self._changed:
            return self._has_turn(seat)

    def _has_turn(self, seat: Seat) -> bool:
        is_fed = self._seat is seat and (self._is_reading or not self._stop.is_set())
        return is_fed or bool(seat.ready)

    def take(
        self,
        seat: Seat,
        free_slots: int,
        patience_s: float,
        number: int = 0,
        due_ns: float = IDLE,
    ) -> list[Part]:
        """At most ``free_slots`` parts; a loop with patience waits a moment for the first one.

        ``number`` of the loop at this seat; with several, each takes its share. ``due_ns``: the
        deadline of the first part in line at a loop without patience.
        """
        self._lane.check()
        loop = seat.loops[number]
        with self._changed:
            loop.free, loop.due_ns = free_slots, IDLE if patience_s > 0 else due_ns
            if self._seat is seat:
                self._make_room(seat.room)
            taken = seat.take(number)
            if patience_s > 0 and not taken:
                self._changed.wait(min(IDLE_S, patience_s))
                taken = seat.take(number)
            return taken

    def _make_room(self, room: int) -> None:
        """Have so many frames read: now, or in a moment with others where there is work at hand."""
        self._room = room
        if self._is_worth_reading():
            self._changed.notify_all()

    @property
    def _is_room_enough(self) -> bool:
        return self._room >= (ENOUGH if self.is_busy else 1)

    def _is_worth_reading(self) -> bool:
        """Whether there is no reason to wait for more places or more frames."""
        is_patient = self.is_busy and self._is_drained
        return self._is_room_enough and not is_patient and not self._stop.is_set()

    @property
    def is_busy(self) -> bool:
        """Whether more is held than half the slots: those who come now have to wait anyway."""
        return len(self._held) > self._settings.slots // 2

    @property
    def is_idle(self) -> bool:
        """Whether no part at all is held."""
        with self._changed:
            return not self._held

    def beat(self, seat: Seat, number: int = 0) -> None:
        """A loop has made a turn: what is held is alive, if the others of this seat have, too."""
        now, loop = time.monotonic(), seat.loops[number]
        tick_s = max(0.0, now - loop.beat_s)
        loop.beat_s = now
        with self._changed:
            self._longest_tick_s = max(tick_s, 0.98 * self._longest_tick_s)  # slowly forgotten
            self._beat_s = seat.beat_s
        facts.observe("loop_turn_seconds", tick_s)

    def rest(self, seat: Seat, number: int = 0) -> None:
        """A loop has nothing left and turns no more; what others hold lives by theirs."""
        with self._changed:
            seat.loops[number].beat_s = math.inf

    # -- for the writer ------------------------------------------------------------------------

    def held(self, frame_id: str) -> Held:
        """What is known about a part that was taken."""
        with self._changed:
            return self._held[frame_id]

    def release(self, frame_id: str) -> None:
        """The part has its answer, from us or from somebody else."""
        with self._changed:
            was_busy = self.is_busy
            self._held.pop(frame_id, None)
            if was_busy and not self.is_busy:  # who gathers frames gathers no longer
                self._changed.notify_all()

    # -- the thread ----------------------------------------------------------------------------

    def _read_on(self, closing: threading.Event) -> None:
        hurry()
        back_off_s = 0.05
        while not closing.is_set():
            try:
                self._renew()
                self._read()
                back_off_s = 0.05
            except StreamLost as error:
                facts.count("stream_lost_total", role="inspect")
                facts.event("stream_lost", level="error", sentence=str(error))
                closing.wait(back_off_s)
                back_off_s = min(2.0, 2 * back_off_s)

    def _read(self) -> None:
        room = self._wait_for_room()
        try:
            if room > 0:
                self._reclaim()  # before new frames take the room: those are late already
                room = self._room
            if room > 0:
                self._asked_s = time.monotonic()
                block_ms = 0 if self.is_busy else BLOCK_MS  # else each frame of many comes alone
                found = self._stream.read(self._cameras, self._consumer, room, block_ms)
                self._is_drained = len(found) < room
                self._gather_s = GATHER_S if found else self._longer()
                for delivery in found:
                    self._hold(delivery)
        finally:
            self._is_reading = False

    def _longer(self) -> float:
        """How long frames are waited for after a read that brought none: empty ones cost most."""
        fitting_s = min(2 * self._gather_s, GATHER_MAX_S, self._gate_s / HURRY)
        return max(GATHER_S, fitting_s)

    def _wait_for_room(self) -> int:
        """Frames to read now; what is read after the loop has looked for more would be orphaned."""
        with self._changed:
            patience_s = self._gather_s if self.is_busy else IDLE_S
            self._changed.wait_for(self._is_worth_reading, patience_s)
            self._is_reading = self._room > 0 and not self._stop.is_set()
            return self._room if self._is_reading else 0

    def _renew(self) -> None:
        """Tell the server that we and our frames live, if the loop has beaten since last time."""
        due = self._renewed_s + self._settings.renew_ms / 1e3
        if self._beat_s <= self._renewed_s or time.monotonic() < due:
            return
        self._renewed_s = time.monotonic()
        with self._changed:
            held = list(self._held.values())
        self._pulse.beat(ROLE, self._consumer, str(len(held)))
        facts.gauge("worker_beat_timestamp_seconds", time.time())
        facts.gauge("frames_in_flight", len(held))
        if mine := [one.delivery for one in held if self._is_old(one)]:
            self._stream.renew(self._consumer, mine)

    def _is_old(self, held: Held) -> bool:
        """Whether a frame must be renewed now, lest two renewals more make it look cold."""
        renew_ms = self._settings.renew_ms
        young_ms = min(renew_ms, self._settings.reclaim_idle_ms - 3 * renew_ms)
        return 1e3 * (time.monotonic() - held.read_s) >= young_ms

    def _reclaim(self) -> None:
        """Take over what another worker has let go cold."""
        idle_s = max(self._settings.reclaim_idle_ms / 1e3, TICKS_IDLE * self._longest_tick_s)
        now = time.monotonic()
        if self._stop.is_set() or self._room < 1 or now < self._reclaimed_s + idle_s / 4:
            return
        self._reclaimed_s = self._asked_s = now
        for delivery in self._stream.reclaim(
            self._cameras, self._consumer, int(idle_s * 1e3), self._room
        ):
            facts.count("entries_reclaimed_total", camera=delivery.camera)
            self._hold(delivery)

    def _hold(self, delivery: Delivery) -> None:
        """Make a delivery a part to inspect, or answer it at once where it cannot be one."""
        with self._changed:
            if (known := self._held.get(delivery.frame_id)) is not None:
                known.delivery = delivery  # ours already; only the fencing token is new
                return
        try:
            entry = self._usable(delivery)
        except BadFrame as error:
            self._set_aside(delivery, error)
            return
        except LostImage as error:
            self._give_up(delivery, error)
            return
        self._losing.discard(delivery.camera)
        self._gate_s = min(self._gate_s, (entry.deadline_ns - entry.captured_ns) / 1e9)
        now_ns = self._stream.now_ns()
        if entry.deadline_ns <= now_ns:
            self._stream.answer(delivery, self._consumer, undecided(entry, Reason.DEADLINE, now_ns))
            return
        self._seat_part(delivery, entry, now_ns)

    def _seat_part(self, delivery: Delivery, entry: FrameEntry, now_ns: int) -> None:
        """Make the part for the seat whose turn it is at this very moment."""
        with self._changed:
            seat = self._seat
            if seat is None:  # nothing is read before the first turn
                raise RuntimeError(f"{entry.frame_id} was read for nobody")
            try:
                part = seat.part(entry)
            except BadFrame as error:
                unfit = error
            else:
                self._held[entry.frame_id] = Held(
                    delivery, entry, now_ns, self._asked_s, seat, seat.judge
                )
                seat.ready.append(part)
                self._room -= 1
                self._changed.notify_all()
                return
        self._set_aside(delivery, unfit)

    def _usable(self, delivery: Delivery) -> FrameEntry:
        """The entry of a delivery; BadFrame where it is none, or has failed too often."""
        if delivery.deliveries > self._settings.deliveries_max:
            raise BadFrame(f"{delivery.frame_id} was given up by {delivery.deliveries - 1} workers")
        entry = entry_from(delivery.fields, self._fetch)
        if entry.frame_id != delivery.frame_id:
            raise BadFrame(f"the entry of {delivery.frame_id} calls itself {entry.frame_id}")
        _check_geometry(entry)
        return entry

    def _set_aside(self, delivery: Delivery, error: BadFrame) -> None:
        facts.count("frames_quarantined_total", camera=delivery.camera)
        facts.event("quarantined", level="warning", frame_id=delivery.frame_id, sentence=str(error))
        verdict = self._verdict_on_bad(delivery, Reason.BAD_FRAME)
        self._stream.quarantine(self._whole(delivery), self._consumer, verdict)

    def _whole(self, delivery: Delivery) -> Delivery:
        """The entry with its image, where one lies in shared memory: its place is free soon.

        As of any other entry, quarantine keeps half a megabyte of it.
        """
        if b"slot" not in delivery.fields:
            return delivery
        try:
            image = entry_from(delivery.fields, self._fetch).image
        except (BadFrame, LostImage):
            return delivery
        return replace(delivery, fields={**delivery.fields, b"image": image.tobytes()})

    def _give_up(self, delivery: Delivery, error: LostImage) -> None:
        facts.count("images_lost_total", camera=delivery.camera)
        if delivery.camera not in self._losing:  # the first in a row: a broken ring fills no log
            facts.event("image_lost", level="warning", sentence=str(error))
        self._losing.add(delivery.camera)
        verdict = self._verdict_on_bad(delivery, Reason.TRANSPORT)
        self._stream.answer(delivery, self._consumer, verdict)

    def _verdict_on_bad(self, delivery: Delivery, reason: Reason) -> Verdict:
        """UNDECIDED with what admission knew about the part, however damaged its entry is."""
        now_ns = self._stream.now_ns()
        head = self._stream.open_frame(delivery.frame_id) or FrameHead(
            frame_id=delivery.frame_id,
            camera=delivery.camera,
            captured_ns=now_ns,
            deadline_ns=now_ns,
        )
        return undecided(head, reason, now_ns)


def _check_geometry(entry: FrameEntry) -> None:
    """BadFrame where the mask could not be drawn: no such crop, or a frame beyond any camera."""
    height, width = entry.frame_size
    x, y, crop_width, crop_height = entry.crop
    if height * width > MAX_PIXELS or x + crop_width > width or y + crop_height > height:
        raise BadFrame(f"{entry.frame_id} has the crop {entry.crop} of {width} x {height} pixels")
    if any(entry.crop) and not (crop_width and crop_height):
        raise BadFrame(f"{entry.frame_id} has the empty crop {entry.crop}")

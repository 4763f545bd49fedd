"""Frames of one camera go to the inspectors: by credits, through its ring, some of them together.

A camera's credits bound what is admitted and unanswered. A source that gives exposures as fast as
they are taken, from storage and with no gate near, will probably give the next one at once; so a
frame of it that lies in shared memory waits a moment for its successors, and all go in one call: to
wake the server for each of them costs more than all that it does for it. ``send_on`` ends the wait
where the source falls silent instead.
"""

from __future__ import annotations

import contextlib
import threading
import time
from functools import cached_property

from engines.contracts import Reason, StreamFull, StreamLost
from pipeline.config import CameraSettings
from pipeline.shared import FrameRing
from pipeline.stream import Placed, Stream
from pipeline.telemetry import facts
from pipeline.wire import FrameEntry, FrameHead, undecided

WORTH = 0.25  # of its credits, which a source waits for: frames together cost half of one by one
TOGETHER = 8  # frames in one call, at most
WAIT_S = 0.25  # after which a frame has waited long enough; looked for as often
FAR_MS = 5_000  # to the gate, of frames that may wait
ROOM_S, LOOK_S = 1.0, 0.02  # how long room is waited for before a refusal, and looked for meanwhile


class Admission:
    """The credits of one camera and the way of its frames; ``send_on`` is for another thread."""

    def __init__(self, stream: Stream, camera: CameraSettings, ring: FrameRing | None) -> None:
        self._stream = stream
        self._camera = camera
        self._ring = ring  # None: images travel inline
        self._lock = threading.Lock()  # of the next two
        self._placed: list[Placed] = []  # to be sent: waiting for others, or for room at the server
        self._since_s = 0.0  # monotonic; when the first of them came
        self._is_full = False  # the server, at the last attempt
        self.credits = 0  # left of the last look
        self.free = 0  # at the last look, whether worth having or not

    @property
    def worth(self) -> int:
        """Credits that a waiting source waits for."""
        return max(1, int(WORTH * self._camera.credits))

    @cached_property
    def is_patient(self) -> bool:
        """Whether frames may wait for others here."""
        camera = self._camera
        can_wait = camera.overrun == "wait" and camera.is_unhurried and camera.gate_ms >= FAR_MS
        return can_wait and self._ring is not None

    @property
    def unsent(self) -> set[str]:
        """Ids of the frames that the server has not heard of, or may not have."""
        with self._lock:
            return {one.entry.frame_id for one in self._placed}

    @property
    def waits_for_room(self) -> bool:
        """Whether frames wait here for room at the server."""
        return self._is_full and bool(self._placed)

    def has_credit(self, least: int = 1) -> bool:
        """Whether one more frame may be open; asks the server only when the last answer is used.

        Then ``least`` frames or none; none at all while a full server keeps others waiting.
        """
        if self.waits_for_room and not self.try_send():
            return False
        if self.credits <= 0:
            self.free = self._ask()
            self.credits = self.free if self.free >= least else 0
        return self.credits > 0

    def take(self, frame: FrameEntry, head: FrameHead, *, in_a_row: bool = False) -> bool:
        """Admit a frame now or soon, or answer it where a full server leaves no time for that.

        False where there is no credit for it; raises StreamLost where the server is lost.
        ``in_a_row``: the last one came just before.
        """
        if not self.has_credit():
            return False
        slot = self._ring.put(frame.frame_id, frame.image) if self._ring else b""
        if slot is None:
            self.credits = 0  # more were counted than there are places: who is open is asked anew
            return False
        self.credits -= 1
        with self._lock:
            if not self._placed:
                self._since_s = time.monotonic()
            self._placed.append(Placed(frame, slot, head))
            is_enough = len(self._placed) >= TOGETHER or not self.credits
        if not (in_a_row and self.is_patient) or is_enough:
            self.try_send()
        return True

    def refuse(self, head: FrameHead, reason: Reason) -> None:
        """Answer for a part that is not admitted, after all that came before it."""
        self.send_all()  # ids ascend: whoever came before would be a repeat
        self._refuse(head, reason)

    def try_send(self) -> bool:
        """Send what waits; False where the server is full, and all of it waits for room.

        For a part that comes near its gate, as on a belt each does, nobody waits: it is answered.
        """
        with self._lock:
            return self._try_send()

    def send_all(self) -> None:
        """``try_send`` until nothing waits; StreamFull where that takes too long."""
        give_up_s = time.monotonic() + ROOM_S
        while not self.try_send():
            if time.monotonic() >= give_up_s:
                raise StreamFull("there is no room at the server, and more has to be said there")
            time.sleep(LOOK_S)

    def send_on(self, closing: threading.Event) -> None:
        """Send what waits for others that do not come, until ``closing``."""
        while not closing.wait(WAIT_S):
            # Whoever feeds us learns of a loss, and what there is to do, with the next exposure.
            with self._lock, contextlib.suppress(StreamLost):
                if time.monotonic() - self._since_s >= WAIT_S:
                    self._try_send()

    def forget(self) -> None:
        """Begin again with nothing to send and no credits: who is open is asked anew."""
        with self._lock:
            self._placed = []
        self.credits = 0

    def _try_send(self) -> bool:
        try:
            self._send()
        except StreamFull as error:
            if not self._is_full:
                facts.event("stream_full", level="error", sentence=str(error))
            self._is_full = True
            if not self._is_pressing:
                return False
            self._refuse_all()
        return True

    @property
    def _is_pressing(self) -> bool:
        """Whether the first of those that wait has less than half of a far gate's way left."""
        if self._camera.overrun == "reject":
            return True
        now_ns = self._stream.estimated_now_ns()
        return any(one.entry.deadline_ns - now_ns < FAR_MS / 2 * 1e6 for one in self._placed[:1])

    def _refuse_all(self) -> None:
        """Answer what waits, in the order of its ids; a full server has room for that."""
        for entry, _, _ in self._placed:
            self._refuse(entry, Reason.TRANSPORT)
        self._placed = []

    def _refuse(self, part: FrameEntry | FrameHead, reason: Reason) -> None:
        self._stream.refuse(undecided(part, reason, self._stream.now_ns()), begun=True)
        facts.count("frames_refused_total", camera=part.camera, recipe=part.recipe, reason=reason)

    def _send(self) -> None:
        """All of it or nothing; what raises leaves it waiting."""
        if not self._placed:
            return
        if self._ring is not None:
            self._stream.admit_placed(self._placed, begun=True)
        else:
            for frame, _, head in self._placed:
                self._stream.admit(frame, begun=True, codec=self._camera.codec, head=head)
        for entry, _, _ in self._placed:
            facts.count("frames_admitted_total", camera=entry.camera, recipe=entry.recipe)
        self._placed, self._is_full = [], False

    def _ask(self) -> int:
        """Ask how many more frames may be open; with a ring, which ones are, too."""
        name, budget = self._camera.name, self._camera.credits
        if self._ring is None:
            return self._stream.credits(name, budget)
        self.send_all()  # else their places would count as free
        open_ids = self._stream.open_ids(name)
        self._ring.release_all_but(open_ids)
        return budget - len(open_ids)

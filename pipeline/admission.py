"""Frames of one camera go to the inspectors: by credits, through its ring, some of them together.

A camera's credits bound what is admitted and unanswered. Where a source that can wait gives one
exposure right after the other, their frames share a call: to wake the server for each of them costs
more than all that it does for it.
"""

from __future__ import annotations

from engines.contracts import Reason, StreamFull
from pipeline.config import CameraSettings
from pipeline.shared import FrameRing
from pipeline.stream import Placed, Stream
from pipeline.telemetry import facts
from pipeline.wire import FrameEntry, FrameHead

WORTH = 0.25  # of its credits, which a source waits for: frames together cost half of one by one
TOGETHER = 8  # frames in one call, at most
FAR_MS = 5_000  # to the gate, of frames that may wait for each other


class Admission:
    """The credits of one camera and the way of its frames."""

    def __init__(self, stream: Stream, camera: CameraSettings, ring: FrameRing | None) -> None:
        self._stream = stream
        self._camera = camera
        self._ring = ring  # None: images travel inline
        self._placed: list[Placed] = []  # in the ring, and to be sent with those that follow
        self._is_full = False  # the server, at the last attempt
        self.credits = 0  # left of the last look
        self.free = 0  # at the last look, whether worth having or not

    @property
    def worth(self) -> int:
        """Credits that a waiting source waits for."""
        return max(1, int(WORTH * self._camera.credits))

    def has_credit(self, least: int = 1) -> bool:
        """Whether one more frame may be open; asks the server only when the last answer is used.

        Then ``least`` frames or none.
        """
        if self.credits <= 0:
            self.free = self._ask()
            self.credits = self.free if self.free >= least else 0
        return self.credits > 0

    def take(self, frame: FrameEntry, head: FrameHead, *, in_a_row: bool = False) -> Reason | None:
        """Admit a frame, or say why not; StreamLost where the server cannot be reached.

        ``in_a_row``: the next one follows at once, so that both may be sent together. ``send`` must
        be called before anything else is said of this camera's frames.
        """
        if not self.has_credit():
            return Reason.OVERRUN
        slot = self._ring.put(frame.frame_id, frame.image) if self._ring else b""
        if slot is None:
            self.credits = 0  # more were counted than there are places: who is open is asked anew
            return Reason.OVERRUN
        self.credits -= 1
        self._placed.append(Placed(frame, slot, head))
        may_wait = in_a_row and slot and self.credits and len(self._placed) < TOGETHER
        return None if may_wait and self._is_patient else self.send()

    def send(self) -> Reason | None:
        """Send what waits for others; why its frames, which nobody else could keep, are refused."""
        placed, self._placed = self._placed, []
        if not placed:
            return None
        try:
            self._admit(placed)
        except StreamFull as error:
            if self._camera.overrun == "wait":  # its source waits until there is room
                raise
            self._note_full(error)  # nobody waits for room until the part is at its gate
            self.credits = 0  # with the next look its place in the ring is free again
            return Reason.TRANSPORT
        self._is_full = False
        for one in placed:
            facts.count("frames_admitted_total", camera=one.entry.camera, recipe=one.entry.recipe)
        return None

    def forget(self) -> None:
        """Begin again with nothing to send and no credits: who is open is asked anew."""
        self._placed, self.credits = [], 0

    @property
    def _is_patient(self) -> bool:
        """Whether frames may wait for others: they come from storage, and no gate is near."""
        return self._camera.overrun == "wait" and self._camera.gate_ms >= FAR_MS

    def _admit(self, placed: list[Placed]) -> None:
        if self._ring is not None:
            self._stream.admit_placed(placed, begun=True)
            return
        for frame, _, head in placed:
            self._stream.admit(frame, begun=True, codec=self._camera.codec, head=head)

    def _note_full(self, error: StreamFull) -> None:
        if not self._is_full:
            facts.event("stream_full", level="error", sentence=str(error))
        self._is_full = True

    def _ask(self) -> int:
        """Ask how many more frames may be open; with a ring, which ones are, too."""
        name, budget = self._camera.name, self._camera.credits
        if self._ring is None:
            return self._stream.credits(name, budget)
        self.send()  # else their places would count as free
        open_ids = self._stream.open_ids(name)
        self._ring.release_all_but(open_ids)
        return budget - len(open_ids)

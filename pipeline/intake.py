"""Exposures of one camera become frames of the stream, each admitted or answered, by a journal.

Every exposure gets an id and a place in the journal before anything can go wrong with it, and then
either a place in the stream or an answer from here: ``bad_frame`` where no usable image came,
``deadline`` where it came too late, ``overrun`` where the camera has no credit left,
``transport_restart`` where the server was lost. Ids ascend and the server takes each once, so
asking again after a doubt never counts a part twice.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from engines.contracts import Reason, StreamLost
from pipeline.admission import Admission
from pipeline.config import CameraSettings
from pipeline.framing import Framing
from pipeline.journal import Journal
from pipeline.originals import Originals
from pipeline.shared import FrameRing
from pipeline.sources import BadExposure
from pipeline.sources.source import Exposure
from pipeline.stream import Stream
from pipeline.telemetry import facts
from pipeline.wire import FrameEntry, FrameHead, head_of, undecided

ROLE = "ingest"
SETTLE_S = 0.25  # how often the journal learns what has been answered
LOOK_S = 0.02  # how often a waiting source looks for a server or a sink that is away
REST_S = (0.002, 0.5)  # before it looks for credits again: a look wakes the server
IN_A_ROW_S = 0.0125  # from one exposure to the next, which its frame may wait for
RETRY_MAX_S = 2.0
OWED_MAX = 50_000  # frames journalled while the server is away; then the source has to wait
BEHIND_MAX = 1_000  # frames that no sink has acted on; a source that can wait lets it catch up
STOP_PATIENCE_S = 1.5  # of a stopped line: two seconds later every part has its verdict
ACT_PATIENCE_S = 3.0  # for a sink to act on the last verdicts; some outputs never do


class Intake:
    """Turns the exposures of one camera into admitted or answered frames."""

    def __init__(
        self,
        stream: Stream,
        journal: Journal,
        camera: CameraSettings,
        size: tuple[int, int],
        *,
        ring: FrameRing | None = None,
        originals: Originals | None = None,
        least_left_ms: Callable[[float], float] = lambda _: 0.0,
    ) -> None:
        self._stream = stream
        self._journal = journal
        self._camera = camera
        self._framing = Framing(stream, camera, size)
        self._admission = Admission(stream, camera, ring)
        self._originals = originals
        # To its gate, of a part that is admitted, by the lateness of the gate keeper.
        self._least_left_ms, self._ample_ms = least_left_ms, least_left_ms(math.inf)
        self._epoch = 0
        self._counter = 0
        self._settle_at = 0.0  # monotonic seconds
        self._retry_at = 0.0  # monotonic seconds; only meaningful while failures > 0
        self._failures = 0  # consecutive, of the server
        self._knows_sink = False  # whether any server has met one
        self._waits = False  # whether a frame was open at the last look
        self._credit_s = LOOK_S / self._admission.worth  # that one takes to come
        self._unsaid = ""  # the frame whose way to the server is not decided yet
        self._ready_s = time.monotonic()  # since when the next exposure may come
        self.sight = self._framing.sight
        self._resume()

    def send_on(self, closing: threading.Event) -> None:
        """For a thread beside ``take``: no frame waits long for one that does not come."""
        if self._admission.is_patient:
            self._admission.send_on(closing)

    def take(self, exposure: Exposure) -> FrameHead:
        """Admit one exposure, or answer for it; what it is known by from now on."""
        in_a_row = time.monotonic() - self._ready_s < IN_A_ROW_S
        self._counter += 1
        frame = self._framing.frame(exposure, f"{self._camera.name}/{self._epoch}-{self._counter}")
        head = head_of(frame) if isinstance(frame, FrameEntry) else frame
        self._unsaid = head.frame_id
        self._journal.add(head)
        facts.gauge("camera_connected", 1, camera=head.camera)
        facts.gauge("camera_frame_timestamp_seconds", head.captured_ns / 1e9, camera=head.camera)
        self._waits = True
        if self._originals and not isinstance(exposure, BadExposure):
            self._originals.keep(head.frame_id, exposure.image)
        try:
            if not self._connect():  # else it has been answered with all that was owed
                self._send(frame, head, in_a_row)
            self._unsaid = ""
            self._settle()
        except StreamLost as error:
            self._unsaid = ""
            self._lose(error)
        self._ready_s = time.monotonic()
        return head

    def wait_for_room(self, stop: threading.Event) -> None:
        """Where frames can wait at their source: return when the next one would be admitted."""
        began_s, lacks_credits = time.monotonic(), True
        while self._must_wait() and not stop.wait(self._rest_s):
            lacks_credits &= not self._is_forsaken
            try:
                self._connect()
                self._settle()
            except StreamLost as error:
                self._lose(error)
        self._ready_s = time.monotonic()
        if lacks_credits:
            self._learn(self._ready_s - began_s)

    @property
    def _is_forsaken(self) -> bool:
        """Whether it is a server, room in it or a sink that is waited for, and not credits."""
        is_behind = len(self._journal.owed) >= BEHIND_MAX
        return bool(self._failures) or is_behind or self._admission.waits_for_room

    @property
    def _rest_s(self) -> float:
        """Until the credits that are still missing should have come."""
        if self._is_forsaken:
            return LOOK_S
        least_s, most_s = REST_S
        missing = max(1, self._admission.worth - self._admission.free)
        return min(most_s, max(least_s, missing * self._credit_s))

    def _learn(self, waited_s: float) -> None:
        """How long a credit takes to come, half by this wait and half by those before."""
        come = self._admission.credits
        if waited_s > REST_S[0] and come:
            self._credit_s = (self._credit_s + waited_s / come) / 2

    def finish(self, stop: threading.Event) -> None:
        """Return when every frame is answered, and as a rule acted on.

        What outlives its gate is answered from here; what no sink acts on stays in the journal.
        """
        self._see_answered(stop)
        give_up_s = time.monotonic() + ACT_PATIENCE_S
        while self._journal.owed and time.monotonic() < give_up_s:
            try:
                self._connect()
                self._settle(at_once=True)
            except StreamLost as error:
                self._lose(error)
                give_up_s = max(give_up_s, self._retry_at + ACT_PATIENCE_S)
            time.sleep(LOOK_S)

    def _see_answered(self, stop: threading.Event) -> None:
        began = time.monotonic()
        gate_s = self._camera.gate_ms / 1e3 + 2
        self._waits = bool(self._journal.owed)
        while self._waits:
            patience_s = min(gate_s, STOP_PATIENCE_S) if stop.is_set() else gate_s
            last_chance = time.monotonic() - began > patience_s
            try:
                self._connect(at_once=last_chance)
                if last_chance:
                    self._answer_owed(Reason.SHUTDOWN if stop.is_set() else Reason.DEADLINE)
                self._admission.try_send()
                self._settle(at_once=True)
            except StreamLost as error:
                if last_chance:
                    raise
                self._lose(error)
            time.sleep(LOOK_S)

    def _send(self, frame: FrameEntry | FrameHead, head: FrameHead, in_a_row: bool) -> None:
        if isinstance(frame, FrameHead):
            self._admission.refuse(head, Reason.BAD_FRAME)
        elif self._comes_late(head):
            self._admission.refuse(head, Reason.DEADLINE)
        elif not self._admission.take(frame, head, in_a_row=in_a_row):
            self._admission.refuse(head, Reason.OVERRUN)

    def _comes_late(self, head: FrameHead) -> bool:
        """Whether its gate is so near that the gate keeper might see the part too late."""
        if self._left_ms(head) >= self._ample_ms:
            return False
        least_ms = self._least_left_ms(self._stream.told_lateness_ms(head.camera))
        return self._left_ms(head) < least_ms  # after the server was asked, which takes time

    def _left_ms(self, head: FrameHead) -> float:
        return (head.deadline_ns - self._stream.estimated_now_ns()) / 1e6

    def _must_wait(self) -> bool:
        can_wait, owed = self._camera.overrun == "wait", len(self._journal.owed)
        if self._failures:
            return can_wait or owed >= OWED_MAX
        try:
            if self._admission.waits_for_room and not self._admission.try_send():
                return can_wait
            is_behind = owed >= BEHIND_MAX
            return can_wait and (is_behind or not self._admission.has_credit(self._admission.worth))
        except StreamLost as error:
            self._lose(error)
            return True

    def _settle(self, at_once: bool = False) -> None:
        """Strike from the journal what a sink has acted on."""
        now = time.monotonic()
        if now < self._settle_at and not at_once:
            return
        self._settle_at = now + SETTLE_S
        unsent = self._admission.unsent  # before the look: what is sent meanwhile stays owed
        standing = self._stream.standing(self._camera.name, knows_sink=self._knows_sink)
        if self._stream.server_incarnation() != self._journal.incarnation:
            self._resume()  # that server's empty open set does not mean answered
            return
        self._knows_sink |= standing.has_sink
        owed = self._journal.owed
        pending = standing.open | standing.unacted.keys() | unsent | {self._unsaid}
        self._journal.settle([frame for frame in owed if frame not in pending], standing.acted)
        self._waits = not (standing.open | unsent).isdisjoint(owed)

    def _lose(self, error: StreamLost) -> None:
        if self._failures and time.monotonic() < self._retry_at:
            return  # it was not even tried
        if not self._failures:
            facts.count("stream_lost_total", role=ROLE)
            facts.event("stream_lost", level="error", sentence=str(error))
        self._failures += 1
        self._retry_at = time.monotonic() + min(RETRY_MAX_S, 0.1 * 2 ** min(self._failures, 10))

    def _connect(self, at_once: bool = False) -> bool:
        """Carry on after a loss, not sooner than the back-off allows; StreamLost until then.

        Whether there was a loss, after which everything journalled is answered.
        """
        if not self._failures:
            return False
        if time.monotonic() < self._retry_at and not at_once:
            raise StreamLost("the server was lost and is tried again soon")
        self._resume()
        self._failures = 0
        facts.event("stream_back", camera=self._camera.name)
        return True

    def _resume(self) -> None:
        """Answer what is owed from before; a server that has restarted begins a new epoch.

        What was answered and perhaps not acted on is answered again; the sink knows what it did.
        """
        incarnation = self._stream.server_incarnation()
        restarted = incarnation != self._journal.incarnation
        if restarted:
            self._stream.recall(self._camera.name, self._journal.totals)
        self._answer_owed(Reason.TRANSPORT_RESTART, also_open=restarted)
        if restarted:
            self._journal.belong_to(incarnation)
        # After any loss: ids of this epoch may be refused for ever, where someone else has thrown a
        # later one into the stream.
        self._epoch, self._counter = self._stream.begin_epoch(self._camera.name), 0
        self._settle(at_once=True)

    def _answer_owed(self, reason: Reason, also_open: bool = True) -> None:
        """Answer for owed frames; those the server knows as answered it does not take again."""
        self._admission.forget()  # what was not sent is owed, too
        self._unsaid = ""
        open_now = set(self._stream.open_ids(self._camera.name))
        now_ns = self._stream.now_ns()
        for head in list(self._journal.owed.values()):
            verdict = undecided(head, reason, now_ns)
            if head.frame_id not in open_now:
                self._stream.refuse(verdict)
            elif also_open:
                self._stream.answer_open(verdict)

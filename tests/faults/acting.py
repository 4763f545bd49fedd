"""The protocol's actions, by their names, on the real scripts of a real server."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from engines.contracts import Decision, Reason, StreamLost, Verdict
from pipeline.stream import Delivery, Stream, VerdictDelivery, ledger_field
from pipeline.wire import FrameEntry, undecided
from tests.faults.protocol import ABSENT, BAD, LATE, OPEN, PASS, RESTART, Action, State, holds

CAMERA, GROUP, SINK = "cam", "inspect", "sink"
FIELD = {PASS: "pass", **{reason: f"undecided:{reason}" for reason in (BAD, LATE, RESTART)}}
IDLE_MS = 1_000_000  # what is idle for so long is meant


class Acting:
    """One camera's process, two workers, a gate keeper and a sink, each as far as Redis sees it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._epoch = stream.begin_epoch(CAMERA)
        self._counter = 0
        self._ids: dict[int, str] = {}  # frame of the model -> frame_id
        self._held: dict[tuple[int, int], Delivery] = {}  # worker, frame
        self._acted: dict[str, str] = {}  # the sink's disk: frame_id -> ledger field

    def do(self, action: Action, before: State, after: State) -> None:
        """Do what the model did, and see that the server answers as the model says."""
        getattr(self, action.name)(action, before, after)

    def seen(self) -> dict[str, object]:
        """What the server says of every frame, in the words of ``expected``."""
        keys = self._stream._of(CAMERA)
        commands = self._stream._commands
        groups = commands.exists(keys.frames) and commands.xinfo_groups(keys.frames)
        pending = commands.xpending_range(keys.frames, GROUP, "-", "+", 100) if groups else []
        verdicts = self._stream.follow_verdicts(CAMERA, "0", 100)
        ledger = self._stream.ledger(CAMERA)
        told = {"pass": ledger.passed, **{f"undecided:{r}": n for r, n in ledger.undecided.items()}}
        return {
            "open": set(self._stream.open_ids(CAMERA)),
            "waiting": self._stream.backlog(CAMERA),
            "pending": {
                (
                    f"{CAMERA}/{one['message_id'].decode()}",
                    int(one["consumer"]),
                    one["times_delivered"],
                )
                for one in pending
            },
            "verdicts": Counter(delivery.verdict.frame_id for delivery in verdicts),
            "ledger": +Counter(told),
            "captured": ledger.captured,
            "unacted": set(self._stream.standing(CAMERA, knows_sink=True).unacted.items()),
        }

    def expected(self, state: State) -> dict[str, object]:
        """The same of the model's state."""
        frames = {self._ids[at]: f for at, f in enumerate(state.frames) if at in self._ids}
        answered = {name: f for name, f in frames.items() if f.server not in (ABSENT, OPEN)}
        return {
            "open": {name for name, f in frames.items() if f.server == OPEN},
            "waiting": sum(f.server == OPEN for f in frames.values()),
            "pending": {(name, f.holder, f.tries) for name, f in frames.items() if f.holder >= 0},
            "verdicts": Counter({name: f.writes for name, f in answered.items()}),
            "ledger": Counter(FIELD[f.server] for f in answered.values()),
            "captured": sum(f.server != ABSENT for f in frames.values()),
            "unacted": {(name, FIELD[f.server]) for name, f in answered.items() if not f.acked},
        }

    # -- the server and the camera -----------------------------------------------------------------

    def lose_server(self, *_: object) -> None:
        """It comes back empty, and knows no script."""
        commands = self._stream._commands
        for key in list(commands.scan_iter(match=f"{self._stream.namespace}:*")):
            commands.delete(key)
        commands.script_flush()

    def expose(self, action: Action, *_: object) -> None:
        """An id, before anything can go wrong."""
        self._counter += 1
        self._ids[action.frame] = f"{CAMERA}/{self._epoch}-{self._counter}"

    def admit(self, action: Action, before: State, after: State) -> None:
        """Taken exactly where the server does not know the frame."""
        is_new = before.frames[action.frame].server != after.frames[action.frame].server
        assert self._stream.admit(self._entry(action.frame), begun=True) == is_new

    def admit_unbegun(self, action: Action, *_: object) -> None:
        """A server that forgot refuses, and takes nothing."""
        with pytest.raises(StreamLost, match="UNBEGUN"):
            self._stream.admit(self._entry(action.frame), begun=True)

    def lose_request(self, *_: object) -> None:
        """Nothing arrives."""

    def lose_reply(self, action: Action, *_: object) -> None:
        """It arrives, and nobody hears so."""
        self._stream.admit(self._entry(action.frame), begun=True)

    def crash_camera(self, *_: object) -> None:
        """The journal is on disk."""

    def notice_loss(self, *_: object) -> None:
        """The camera compares incarnations; here, whether its epoch is known."""
        assert not self._stream._commands.exists(self._stream._of(CAMERA).epoch)

    def settle(self, *_: object) -> None:
        """The journal's own affair."""

    def restore(self, action: Action, before: State, after: State) -> None:
        """An answer from the camera's process for what the server does not know."""
        was, now = before.frames[action.frame].writes, after.frames[action.frame].writes
        verdict = undecided(self._entry(action.frame), Reason.TRANSPORT_RESTART, 1)
        assert self._stream.refuse(verdict) == (now > was)

    def begin_epoch(self, *_: object) -> None:
        """Later ids than any before."""
        epoch = self._stream.begin_epoch(CAMERA)
        assert epoch > self._epoch
        self._epoch, self._counter = epoch, 0

    # -- workers -----------------------------------------------------------------------------------

    def read(self, action: Action, *_: object) -> None:
        """The oldest frame that nobody has."""
        [delivery] = self._stream.read([CAMERA], str(action.worker), 1, 0)
        self._take(action, delivery, 1)

    def reclaim(self, action: Action, before: State, after: State) -> None:
        """What has become idle, with one delivery more."""
        frame = before.frames[action.frame]
        key, entry_id = self._stream._of(CAMERA).frames, self._ids[action.frame].partition("/")[2]
        self._stream._commands.xclaim(
            key, GROUP, str(frame.holder), 0, [entry_id], idle=IDLE_MS, justid=True
        )
        [delivery] = self._stream.reclaim([CAMERA], str(action.worker), IDLE_MS // 2, 10)
        self._take(action, delivery, after.frames[action.frame].tries)

    def renew(self, action: Action, before: State, _: State) -> None:
        """Kept exactly where it is the newest delivery."""
        delivery = self._held[action.worker, action.frame]
        kept = self._stream.renew(str(action.worker), [delivery])
        assert bool(kept) == holds(before.frames[action.frame], action.worker)

    def answer(self, action: Action, before: State, after: State) -> None:
        """Written exactly where it is the newest delivery and the frame is open."""
        delivery = self._held.pop((action.worker, action.frame))
        passed = self._verdict(action, Reason.DEADLINE)
        passed = passed.model_copy(update={"decision": Decision.PASS, "reason": None})
        written = self._stream.answer(delivery, str(action.worker), passed)
        assert written == _was_written(action, before, after)

    def quarantine(self, action: Action, before: State, after: State) -> None:
        """The same, with the entry set aside."""
        delivery = self._held.pop((action.worker, action.frame))
        verdict = self._verdict(action, Reason.BAD_FRAME)
        written = self._stream.quarantine(delivery, str(action.worker), verdict)
        assert written == _was_written(action, before, after)

    def crash_worker(self, action: Action, *_: object) -> None:
        """Memory is gone; what is pending stays."""
        self._held = {of: d for of, d in self._held.items() if of[0] != action.worker}

    # -- the gate keeper and the sink --------------------------------------------------------------

    def gate(self, action: Action, before: State, after: State) -> None:
        """An open frame is answered whoever has it, and an answered one is not."""
        written = self._stream.answer_open(self._verdict(action, Reason.DEADLINE))
        assert written == _was_written(action, before, after)

    def act(self, action: Action, before: State, _: State) -> None:
        """The sink sees the verdict that the server wrote, and writes down what it did."""
        delivery = self._delivered(action)
        field = ledger_field(delivery.verdict)
        assert field == FIELD[before.frames[action.frame].server]
        self._acted.setdefault(delivery.verdict.frame_id, field)

    def acknowledge(self, action: Action, *_: object) -> None:
        """What was acted on is what counts."""
        delivery = self._delivered(action)
        self._stream.acknowledge_verdicts(SINK, [delivery], self._acted)

    def _delivered(self, action: Action) -> VerdictDelivery:
        """The verdict as this server hands it to the sink: new, or left unacknowledged."""
        self._stream._position.clear()  # a sink that was started again
        found: dict[str, VerdictDelivery] = {}
        for _ in range(2):  # those it had, then new ones
            some = self._stream.read_verdicts([CAMERA], SINK, SINK, 100, 0)
            found |= {delivery.verdict.frame_id: delivery for delivery in some}
        return found[self._ids[action.frame]]

    def _take(self, action: Action, delivery: Delivery, deliveries: int) -> None:
        assert (delivery.frame_id, delivery.deliveries) == (self._ids[action.frame], deliveries)
        self._held[action.worker, action.frame] = delivery

    def _verdict(self, action: Action, reason: Reason) -> Verdict:
        return undecided(self._entry(action.frame), reason, 1)

    def _entry(self, frame: int) -> FrameEntry:
        return FrameEntry(self._ids[frame], CAMERA, 0, 2**62, np.zeros((4, 4, 3), np.uint8))


def _was_written(action: Action, before: State, after: State) -> bool:
    return after.frames[action.frame].writes > before.frames[action.frame].writes

"""The frame side: admission by credits, and delivery to inspectors, who answer.

A frame is *open* from its admission to its verdict. Whoever closes it (an inspector, the gate
keeper, ingest) does so in one script that also writes the verdict, counts it and deletes the frame;
the open set decides who was first, the delivery count keeps out an inspector that has lost the
entry. Nothing is ever trimmed by length: what is in the frames stream is open, and the open
frames are bounded by the credits of the camera.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from engines.contracts import Reason, Verdict
from pipeline.stream.answers import GROUP, Answers
from pipeline.stream.facts import Delivery, Keys
from pipeline.stream.link import Call, is_refusal
from pipeline.stream.packing import Word
from pipeline.wire import (
    Codec,
    FrameEntry,
    FrameHead,
    head_bytes,
    head_of,
    to_fields,
    undecided,
)

QUARANTINE_ENTRY_BYTES = 524_288  # so a camera's quarantine never exceeds 32 MiB
REFUSAL_NS = 1_000_000_000  # a frame half refused waits that long for the gate keeper


@contextmanager
def open_stream(url: str, namespace: str = "assayline") -> Iterator[Stream]:
    """Connect and check the server; ``unix:///path.sock`` or ``redis[s]://...``.

    StreamLost when nothing answers there, BadConfig when it refuses us or would lose frames.
    """
    stream = Stream(url, namespace)
    try:
        stream.check_server()
        yield stream
    finally:
        stream.close()


class Placed(NamedTuple):
    """A frame whose image lies in shared memory."""

    entry: FrameEntry
    slot: bytes  # where
    head: FrameHead | None = None  # the entry's, where there is one already


class Stream(Answers):
    """All of Redis that Assayline uses; may be shared by threads."""

    _turn = 0

    # -- ingest ------------------------------------------------------------------------------

    def begin_epoch(self, camera: str) -> int:
        """A new epoch for a camera's frame ids; it ascends even over a server that forgot."""
        return int(self._run("begin_epoch", [self._of(camera).epoch]))

    def credits(self, camera: str, budget: int) -> int:
        """Frames that may be admitted now; with one ingest per camera it is only ever too low."""
        with self._translated():
            return max(0, budget - int(self._ask("ZCARD", self._of(camera).open)))

    def admit(
        self,
        entry: FrameEntry,
        *,
        begun: bool = False,
        slot: bytes = b"",
        codec: Codec = "none",
        head: FrameHead | None = None,
    ) -> bool:
        """Open a frame and hand it to the inspectors, in one round trip; False if it is a repeat.

        A camera's frame ids ascend, which makes a repeat after a lost reply (or after the answer)
        known as one. A full server refuses as StreamLost and has then changed nothing: XADD aborts
        the MULTI, and with ``slot`` (where the image lies in shared memory) the script is one that
        needs room. So does, with ``begun``, a server that has not begun this epoch, since it was
        lost in between.
        """
        if slot:
            return self.admit_placed([Placed(entry, slot, head)], begun=begun) > 0
        keys, entry_id = self._place(entry.frame_id)
        fields = to_fields(entry, slot, codec, head)
        payload = [part for field in fields.items() for part in field]
        opening = self._admission(keys, entry_id, entry.deadline_ns, fields["head"], begun=begun)
        with self._translated():
            taken, added = self._transact(opening, ("XADD", keys.frames, entry_id, *payload))
            # XADD refuses an id it has had: right for a repeat, an error for a new frame.
            is_taken, is_added = bool(taken) and not is_refusal(taken), not is_refusal(added)
            if not is_taken and is_added:
                self._commands.xdel(keys.frames, entry_id)  # a refused frame, new to this stream
            if is_taken and not is_added:  # open, and no inspector will ever see it
                self.answer_open(undecided(entry, Reason.TRANSPORT, self.now_ns()))
            for refusal in (taken, added if taken else None):
                if is_refusal(refusal):
                    raise refusal
        return bool(taken)

    def admit_placed(self, placed: Sequence[Placed], *, begun: bool = False) -> int:
        """``admit`` for frames of one camera whose images lie in shared memory, by one script.

        How many were new. They come in the order of their ids; where the server cannot take one
        (StreamLost), neither has it taken those after it.
        """
        if not placed:
            return 0
        keys, _ = self._place(placed[0].entry.frame_id)
        told: list[Word] = [int(begun)]
        for one in placed:
            _, entry_id = self._place(one.entry.frame_id)
            fields = to_fields(one.entry, one.slot, head=one.head)
            payload = [part for field in fields.items() for part in field]
            told += _opening(entry_id, one.entry.deadline_ns, fields["head"], len(payload))
            told += payload
        return int(self._run("admit", _admission_keys(keys), *told))

    def refuse(self, verdict: Verdict, *, begun: bool = False) -> bool:
        """Answer a frame that reaches no inspector (overrun, a lost server): False if answered.

        Counts it as captured where the server does not know it; call it in the order of frame ids.
        ``begun`` as in ``admit``.
        """
        keys, entry_id = self._place(verdict.frame_id)
        head = head_bytes(head_of(verdict))
        # Opened, then answered. Not one MULTI, which a full server refuses: if we die in between,
        # the gate keeper finds the frame open.
        gate_ns = verdict.decided_ns + REFUSAL_NS
        opened = self._admission(keys, entry_id, gate_ns, head, begun=begun)
        answered = ("EVAL", self._scripts["answer"].script, *self._answer_call(verdict).words)
        with self._translated(), self._commands.pipeline(transaction=False) as pipe:
            pipe.execute_command(*opened)
            pipe.execute_command(*answered)
            _, was_open = pipe.execute()
        return bool(was_open)

    def open_ids(self, camera: str) -> list[str]:
        """Frame ids without a verdict, most urgent first."""
        with self._translated():
            ids = self._commands.zrange(self._of(camera).open, 0, -1)
        return [f"{camera}/{entry_id.decode()}" for entry_id in ids]

    # -- inspect -----------------------------------------------------------------------------

    def ensure_group(self, camera: str) -> None:
        """The inspectors' group on a camera; ``read`` makes a missing one by itself."""
        self._ensure_group(self._of(camera).frames, GROUP)

    def read(
        self, cameras: Sequence[str], consumer: str, count: int, block_ms: int
    ) -> list[Delivery]:
        """At most ``count`` new frames, shared fairly by the cameras, in one round trip."""
        if count < 1 or not cameras:
            return []
        self._turn += 1
        first = self._turn % len(cameras)
        chosen = [*cameras[first:], *cameras[:first]][:count]
        camera_of = {self._of(camera).frames: camera for camera in chosen}
        ids = dict.fromkeys(camera_of, ">")
        found = self._read_group(GROUP, consumer, ids, count // len(chosen), block_ms)
        return [
            Delivery(camera_of[key], entry_id.decode(), 1, fields)
            for key, entries in found
            for entry_id, fields in entries
        ]

    def renew(self, consumer: str, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Keep frames in work from being reclaimed; returns those still held by this consumer."""
        by_camera: dict[str, dict[str, Delivery]] = {}
        for delivery in deliveries:
            by_camera.setdefault(delivery.camera, {})[delivery.entry_id] = delivery
        held: list[Delivery] = []
        for camera, mine in by_camera.items():
            tokens = [part for d in mine.values() for part in (d.entry_id, d.deliveries)]
            ids = self._run("renew", [self._of(camera).frames], GROUP, consumer, *tokens)
            held += [mine[entry_id.decode()] for entry_id in ids]
        return held

    def reclaim(
        self, cameras: Sequence[str], consumer: str, min_idle_ms: int, count: int
    ) -> list[Delivery]:
        """Take over frames idle for ``min_idle_ms``; a former owner's answer is refused from now.

        A frame whose payload has vanished from the stream is answered UNDECIDED(bad_frame) here.
        """
        deliveries: list[Delivery] = []
        for camera in cameras:
            wanted = count - len(deliveries)
            if wanted < 1:
                break
            key = self._of(camera).frames
            taken, lost = self._reclaim(key, GROUP, consumer, min_idle_ms, wanted)
            deliveries += [Delivery(camera, *entry) for entry in taken]
            for entry_id in lost:
                self._answer_lost(f"{camera}/{entry_id}")
        return deliveries

    def answer(
        self,
        delivery: Delivery,
        consumer: str,
        verdict: Verdict,
        mask_png: bytes = b"",
        picture_png: bytes = b"",
        *,
        map_png: bytes = b"",
    ) -> bool:
        """Write the verdict, count it and delete the frame, all or nothing; False if not ours.

        It is ours while the entry is pending for this consumer with this delivery count and open.
        """
        pictures = {"mask_png": mask_png, "picture_png": picture_png, "map_png": map_png}
        return self._answer(self._answer_call(verdict, consumer, delivery, pictures=pictures))

    def answer_all(
        self, consumer: str, answers: Iterable[tuple[Delivery, Verdict, Mapping[str, bytes]]]
    ) -> list[bool]:
        """``answer`` for many frames in one round trip, each with its pictures by their names."""
        calls = [
            self._answer_call(verdict, consumer, delivery, pictures=pictures)
            for delivery, verdict, pictures in answers
        ]
        return [bool(answered) for answered in self._run_all("answer", calls)]

    def quarantine(self, delivery: Delivery, consumer: str, verdict: Verdict) -> bool:
        """Answer, and set the entry aside for people; the last few are kept, cut to size."""
        evidence = _cut(delivery)
        return self._answer(self._answer_call(verdict, consumer, delivery, evidence=evidence))

    def backlog(self, camera: str) -> int:
        """Frames waiting or in work; finished ones are gone from the stream."""
        with self._translated():
            return int(self._commands.xlen(self._of(camera).frames))

    def _answer_lost(self, frame_id: str) -> None:
        head = self.open_frame(frame_id)
        if head is not None:
            self.answer_open(undecided(head, Reason.BAD_FRAME, self.now_ns()))

    def _admission(
        self,
        keys: Keys,
        entry_id: str,
        deadline_ns: int,
        head: bytes | memoryview,
        *,
        begun: bool,
    ) -> tuple[Word, ...]:
        # EVAL with its text, not EVALSHA: an unknown script would fail inside MULTI, alone.
        told = [int(begun), *_opening(entry_id, deadline_ns, head)]
        return ("EVAL", self._admit, *Call(_admission_keys(keys), told).words)


def _admission_keys(keys: Keys) -> list[str]:
    return [keys.open, keys.heads, keys.ledger, keys.epoch, keys.frames]


def _opening(
    entry_id: str, deadline_ns: int, head: bytes | memoryview, payload_words: int = 0
) -> tuple[Word, ...]:
    """What the script of admission is told of one frame, before its payload."""
    return (entry_id, deadline_ns // 1000, head, payload_words)


def _cut(delivery: Delivery) -> dict[bytes, bytes]:
    """An entry's fields with a note on its origin, cut so that a hostile one fills no memory."""
    kept = {b"frame_id": delivery.frame_id.encode(), b"deliveries": b"%d" % delivery.deliveries}
    left = QUARANTINE_ENTRY_BYTES
    for name, value in list(delivery.fields.items())[:16]:
        kept[b"entry:" + name[:64]] = value[:left]
        left -= len(value[:left])
    return kept

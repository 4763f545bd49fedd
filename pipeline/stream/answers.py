"""The one answer to every frame, and what the gate keeper sees and says of open ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from engines.contracts import BadConfig, BadFrame, Verdict
from pipeline.stream.facts import Delivery, Keys, ledger_field
from pipeline.stream.link import Call, scored
from pipeline.stream.packing import Word
from pipeline.stream.verdicts import Verdicts
from pipeline.wire import FrameHead, head_from, split_frame_id, verdict_fields

GROUP = "inspect"
QUARANTINE_LENGTH = 64


class Answers(Verdicts):
    """Open frames as the gate keeper sees them, and the script that closes one."""

    def open_frame(self, frame_id: str) -> FrameHead | None:
        """What is known about an open frame; None once it is answered."""
        keys, entry_id = self._place(frame_id)
        with self._translated():
            head = self._commands.hget(keys.heads, entry_id)
        return head_from(head) if head else None

    def deadlines(self, before_ns: Mapping[str, int], count: int = 64) -> dict[str, int]:
        """Open frames of each camera due at or before its ``before_ns``: id -> deadline, ns.

        All cameras in one round trip; of each the most urgent come first.
        """
        told = ("BYSCORE", "LIMIT", 0, count, "WITHSCORES")
        ranges = [(self._of(name).open, "-inf", due // 1000) for name, due in before_ns.items()]
        with self._translated():
            replies = self._ask_each(("ZRANGE", *within, *told) for within in ranges)
        return {
            f"{camera}/{entry_id.decode()}": int(float(deadline_us)) * 1000
            for camera, reply in zip(before_ns, replies, strict=True)
            for entry_id, deadline_us in scored(reply)
        }

    def heads(self, deadlines: Mapping[str, int]) -> list[FrameHead]:
        """What is known of open frames, given with their deadlines; in one round trip."""
        places = {frame_id: self._place(frame_id) for frame_id in deadlines}
        if not places:
            return []
        with self._translated(), self._commands.pipeline(transaction=False) as pipe:
            for keys, entry_id in places.values():
                pipe.hget(keys.heads, entry_id)
            found = pipe.execute()
        return [
            _known(frame_id, head, deadlines[frame_id])
            for frame_id, head in zip(places, found, strict=True)
        ]

    def due_after(self, camera: str, after_ns: int, count: int = 64) -> list[FrameHead]:
        """Open frames whose deadline is later than ``after_ns``."""
        keys = self._of(camera)
        with self._translated():
            ids = self._commands.zrange(
                keys.open, f"({after_ns // 1000}", "+inf", byscore=True, offset=0, num=count
            )
            heads = self._commands.hmget(keys.heads, ids) if ids else []
        pairs = zip(ids, heads, strict=True)
        return [_known(f"{camera}/{entry.decode()}", head, after_ns) for entry, head in pairs]

    def answer_open(self, verdict: Verdict) -> bool:
        """Answer a frame whoever works on it; False if it has its verdict already."""
        return self._answer(self._answer_call(verdict))

    def answer_all_open(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """``answer_open`` for many frames in one round trip; those that had no verdict yet."""
        answered = self._run_all("answer", [self._answer_call(verdict) for verdict in verdicts])
        return [verdict for verdict, was_open in zip(verdicts, answered, strict=True) if was_open]

    def tell_lateness(self, cameras: Sequence[str], late_ms: float) -> None:
        """Say how late the looks of the gate keeper may be, to those that admit frames."""
        with self._translated():
            told = f"{late_ms:.3f}"
            self._ask_each(("SET", self._of(camera).lateness, told) for camera in cameras)

    def told_lateness_ms(self, camera: str) -> float:
        """What the gate keeper has said; inf where it said nothing, no time, or not to this user.

        So a server that was restarted, and users that were made before, cost parts that come late
        and no promise.
        """
        try:
            with self._translated():
                late_ms = float(self._ask("GET", self._of(camera).lateness) or math.inf)
        except (BadConfig, ValueError):
            return math.inf
        return late_ms if late_ms >= 0 else math.inf

    # -- the one answer ----------------------------------------------------------------------

    def _answer(self, call: Call) -> bool:
        return bool(self._run("answer", call.keys, *call.arguments))

    def _answer_call(
        self,
        verdict: Verdict,
        consumer: str = "",
        delivery: Delivery | None = None,
        *,
        pictures: Mapping[str, bytes] | None = None,
        evidence: Mapping[bytes, bytes] | None = None,
    ) -> Call:
        keys, entry_id = self._place(verdict.frame_id)
        if delivery is not None and delivery.frame_id != verdict.frame_id:
            raise BadFrame(f"A verdict on {verdict.frame_id} does not answer {delivery.frame_id}.")
        arguments = _answer_arguments(verdict, entry_id, consumer, delivery, **(pictures or {}))
        arguments += [part for field in (evidence or {}).items() for part in field]
        return Call(_answer_keys(keys), arguments)

    def _place(self, frame_id: str) -> tuple[Keys, str]:
        try:
            camera, entry_id = split_frame_id(frame_id)
        except ValueError as error:
            raise BadFrame(f"{error}.") from None
        return self._of(camera), entry_id


def _answer_keys(keys: Keys) -> list[str]:
    return [
        keys.frames,
        keys.open,
        keys.heads,
        keys.ledger,
        keys.verdicts,
        keys.quarantine,
        keys.unacted,
    ]


def _answer_arguments(
    verdict: Verdict,
    entry_id: str,
    consumer: str = "",
    delivery: Delivery | None = None,
    **pictures: bytes,
) -> list[Word]:
    fence = (GROUP, entry_id, consumer, delivery.deliveries if delivery else 0)
    record = verdict_fields(verdict, **pictures).values()
    return [*fence, ledger_field(verdict), *record, QUARANTINE_LENGTH]


def _known(frame_id: str, head: bytes | None, deadline_ns: int) -> FrameHead:
    """What the head says, or no more than the name: a head of another version stops no gate."""
    try:
        return head_from(head or b"")
    except BadFrame:
        return FrameHead(
            frame_id=frame_id,
            camera=frame_id.partition("/")[0],
            captured_ns=deadline_ns,
            deadline_ns=deadline_ns,
        )

"""Two ways for a frame through Redis: our stream with every promise, and the barest loop there is.

Each lane has two ends that run in processes of their own. Both carry the same bytes, keep the same
number of frames under way, and end a frame by deleting it; ours also counts credits, keeps the open
set and the ledger, fences the answer and writes a verdict.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import redis

from engines.contracts import Decision, Verdict
from pipeline.wire import FrameEntry, entry_from

if TYPE_CHECKING:
    from pipeline.stream import Delivery, Stream

CAMERA, CONSUMER = "bench", "bench-1"
UNDER_WAY = 32  # frames admitted and unanswered
BATCH = 8  # frames per read
BLOCK_MS = 50
PAUSE_S = 0.0002  # a producer without room looks again after this
GATE_NS = 60_000_000_000


class Lane(Protocol):
    """One way through; ``add`` runs in the producer, ``answer`` in the consumer."""

    def add(self, frames: int) -> None:
        """Put that many frames in, never more than UNDER_WAY unanswered."""
        ...

    def answer(self, frames: int) -> None:
        """Read and end that many frames."""
        ...


class OurLane:
    """Through our stream: credits, open set, ledger, fenced answer, verdict."""

    def __init__(self, stream: Stream, side: int) -> None:
        self._stream, self._image = stream, picture(side)
        self._epoch, self._counter = 0, 0

    def add(self, frames: int) -> None:
        """Admit by credits, as ingest does."""
        self._epoch = self._epoch or self._stream.begin_epoch(CAMERA)
        left = frames
        while left:
            room = min(left, self._stream.credits(CAMERA, UNDER_WAY))
            for _ in range(room):
                self._stream.admit(self._next_entry())
            left -= room
            if not room:
                time.sleep(PAUSE_S)

    def _next_entry(self) -> FrameEntry:
        self._counter += 1
        now_ns = self._stream.now_ns()
        frame_id = f"{CAMERA}/{self._epoch}-{self._counter}"
        return FrameEntry(frame_id, CAMERA, now_ns, now_ns + GATE_NS, self._image)

    def answer(self, frames: int) -> None:
        """Read, unpack and answer, as a worker with an infinitely fast engine does."""
        self._stream.ensure_group(CAMERA)
        left = frames
        while left:
            for delivery in self._stream.read([CAMERA], CONSUMER, min(BATCH, left), BLOCK_MS):
                self._stream.answer(delivery, CONSUMER, self._verdict(delivery))
                left -= 1

    def _verdict(self, delivery: Delivery) -> Verdict:
        entry = entry_from(delivery.fields)
        return Verdict(
            frame_id=entry.frame_id,
            camera=entry.camera,
            decision=Decision.PASS,
            captured_ns=entry.captured_ns,
            decided_ns=self._stream.now_ns(),
        )


class BareLane:
    """XADD, XREADGROUP, XACK and XDEL, and nothing else: no promise is kept here."""

    KEY, GROUP = "bare:frames", "bare"

    def __init__(self, url: str, side: int) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=10)
        self._image = picture(side)
        with suppress(redis.ResponseError):  # the other process made it
            self._redis.xgroup_create(self.KEY, self.GROUP, id="0", mkstream=True)

    def add(self, frames: int) -> None:
        """XADD while fewer than UNDER_WAY entries lie in the stream."""
        left, view = frames, self._image.data.cast("B")
        while left:
            room = min(left, UNDER_WAY - int(self._redis.xlen(self.KEY)))
            for _ in range(room):
                self._redis.xadd(self.KEY, {"image": view})
            left -= max(0, room)
            if room <= 0:
                time.sleep(PAUSE_S)

    def answer(self, frames: int) -> None:
        """XREADGROUP, then XACK and XDEL of each entry in one round trip."""
        left = frames
        while left:
            for entry_id, fields in self._read(min(BATCH, left)):
                np.frombuffer(fields[b"image"], np.uint8)
                with self._redis.pipeline(transaction=False) as both:
                    both.xack(self.KEY, self.GROUP, entry_id)
                    both.xdel(self.KEY, entry_id)
                    both.execute()
                left -= 1

    def _read(self, count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        found = cast(
            "list[Any]",
            self._redis.xreadgroup(
                self.GROUP, CONSUMER, {self.KEY: ">"}, count=count, block=BLOCK_MS
            ),
        )
        return found[0][1] if found else []


def picture(side: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A model input [side, side, 3] that compresses as badly as a real one."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)

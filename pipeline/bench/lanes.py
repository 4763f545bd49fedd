"""Ways for a frame through Redis: our stream with every promise, and the barest loop there is.

Each lane has two ends that run in processes of their own. All carry the same bytes, keep the same
number of frames under way, and end a frame by deleting it; ours also count credits, keep the open
set and the ledger, fence the answer and write a verdict. Ours come in two: images in the stream,
and images in shared memory with their place in the stream.

Frames are admitted one by one, as a camera makes them, and read and answered eight at a time. One
answer per round trip costs 20 % more processor time for the whole way, at either end and inline or
not.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import redis

from engines.contracts import Decision, UInt8, Verdict
from pipeline.shared import FRAMES, FrameRing, FrameRings, shared_path
from pipeline.stream.packing import Packer
from pipeline.wire import FrameEntry, entry_from

if TYPE_CHECKING:
    from pipeline.stream import Delivery, Stream

CONSUMER = "bench-1"
UNDER_WAY = 32  # frames admitted and unanswered
BATCH = 8  # frames per read
BLOCK_MS = 50
PAUSE_S = 0.0002  # a producer without room looks again after this
REST_S = 0.002  # before a large frame, so that the worker waits for it
GATE_NS = 60_000_000_000
NO_PICTURES: dict[str, bytes] = {}


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

    camera = "inline"

    def __init__(self, stream: Stream, image: UInt8) -> None:
        self._stream, self._image = stream, image
        self._epoch, self._counter = 0, 0

    def add(self, frames: int) -> None:
        """Admit by credits, as ingest does."""
        self._epoch = self._epoch or self._stream.begin_epoch(self.camera)
        left = frames
        while left:
            room = min(left, self._room())
            for _ in range(room):
                self._admit(self._next_entry())
            left -= room
            if not room:
                time.sleep(PAUSE_S)

    def _room(self) -> int:
        return self._stream.credits(self.camera, UNDER_WAY)

    def _admit(self, entry: FrameEntry) -> None:
        self._stream.admit(entry)

    def _next_entry(self) -> FrameEntry:
        self._counter += 1
        now_ns = self._stream.now_ns()
        frame_id = f"{self.camera}/{self._epoch}-{self._counter}"
        return FrameEntry(frame_id, self.camera, now_ns, now_ns + GATE_NS, self._image)

    def answer(self, frames: int) -> None:
        """Read, unpack and answer, as a worker with an infinitely fast engine does."""
        self._stream.ensure_group(self.camera)
        left = frames
        while left:
            found = self._stream.read([self.camera], CONSUMER, min(BATCH, left), BLOCK_MS)
            answers = [(one, self._verdict(self._entry(one)), NO_PICTURES) for one in found]
            left -= len(self._stream.answer_all(CONSUMER, answers))

    def _entry(self, delivery: Delivery) -> FrameEntry:
        return entry_from(delivery.fields)

    def _verdict(self, entry: FrameEntry) -> Verdict:
        return Verdict(
            frame_id=entry.frame_id,
            camera=entry.camera,
            decision=Decision.PASS,
            captured_ns=entry.captured_ns,
            decided_ns=self._stream.now_ns(),
        )


class SharedLane(OurLane):
    """The same with images in shared memory, as many slots as frames may be under way."""

    camera = "shared"
    under_way = UNDER_WAY

    def __init__(self, stream: Stream, image: UInt8, run_dir: Path) -> None:
        super().__init__(stream, image)
        self._path = shared_path(run_dir, self.camera, FRAMES)
        self._ring: FrameRing | None = None  # made by the end that adds
        self._rings = FrameRings(run_dir, [self.camera])

    def _room(self) -> int:
        open_ids = self._stream.open_ids(self.camera)
        self._written.release_all_but(open_ids)
        return self.under_way - len(open_ids)

    def _admit(self, entry: FrameEntry) -> None:
        slot = self._written.put(entry.frame_id, entry.image)
        self._stream.admit(entry, slot=slot or b"")

    def _entry(self, delivery: Delivery) -> FrameEntry:
        return entry_from(delivery.fields, self._rings.fetch)

    @property
    def _written(self) -> FrameRing:
        if self._ring is None:
            self._ring = FrameRing(self._path, self.under_way, self._image.nbytes)
        return self._ring


class LargeLane(SharedLane):
    """Large frames in shared memory, one at a time: how long from camera to worker.

    ``seconds`` are those of each frame's journey at the end that answers, and those of a plain copy
    of the same bytes, just before each frame, at the end that adds.
    """

    camera = "large"
    under_way = 3

    def __init__(self, stream: Stream, image: UInt8, run_dir: Path) -> None:
        super().__init__(stream, image, run_dir)
        self.seconds: list[float] = []

    def add(self, frames: int) -> None:
        """Admit one frame whenever the last one has its answer."""
        self._epoch = self._epoch or self._stream.begin_epoch(self.camera)
        copied = np.zeros_like(self._image)
        for _ in range(frames):
            while self._room() < self.under_way:
                time.sleep(PAUSE_S)
            began = time.perf_counter()
            np.copyto(copied, self._image)
            self.seconds.append(time.perf_counter() - began)
            time.sleep(REST_S)
            self._admit(self._next_entry())

    def _next_entry(self) -> FrameEntry:
        return replace(super()._next_entry(), captured_ns=time.monotonic_ns())

    def _entry(self, delivery: Delivery) -> FrameEntry:
        entry = super()._entry(delivery)
        self.seconds.append((time.monotonic_ns() - entry.captured_ns) / 1e9)
        return entry


class BareLane:
    """XADD, XREADGROUP, XACK and XDEL, and nothing else: no promise is kept here."""

    KEY, GROUP = "bare:frames", "bare"

    def __init__(self, url: str, image: UInt8, **client: Any) -> None:  # noqa: ANN401 - redis-py's
        self._redis = redis.Redis.from_url(url, socket_timeout=10, **client)
        self._image = image
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


class LeanLane(BareLane):
    """The same loop through a client that copies no image: ours, in its barest use."""

    KEY = "lean:frames"

    def __init__(self, url: str, image: UInt8) -> None:
        super().__init__(url, image, command_packer=Packer())


def picture(height: int, width: int) -> UInt8:
    """An image [height, width, 3] that compresses as badly as a real one."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def client_rate(url: str, size: int, frames: int) -> float:
    """Pairs of SET and GET per second at a payload, one after the other, by redis-py."""
    value = bytes(size)
    with redis.Redis.from_url(url, socket_timeout=10) as client:
        began = time.perf_counter()
        for _ in range(frames):
            client.set("bench:value", value)
            client.get("bench:value")
        return frames / (time.perf_counter() - began)

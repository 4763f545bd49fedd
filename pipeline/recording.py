"""Recordings: what the cameras saw and what was decided, in MCAP files that Foxglove opens.

A frame is kept as it was captured, whole and lossless, in one message with its provenance, so that
a crash never leaves one without the other. Every burst of messages is closed as a chunk and handed
to the system: a killed process leaves a file that is readable up to its last burst.
"""

from __future__ import annotations

import json
import queue
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import zstandard
from mcap.exceptions import McapError
from mcap.records import Channel, Message
from mcap.stream_reader import CRCValidationError
from mcap.writer import MCAP0_MAGIC, Writer
from pydantic import ValidationError

from engines.contracts import BadData, BadFrame, Frame, Verdict
from engines.images import encode_png
from pipeline.annotations import drawing, log_line
from pipeline.comparison import Difference, compare_verdicts
from pipeline.foxglove import (
    CHANNELS,
    SCHEMAS,
    bad_exposure_from,
    frame_from,
    picture,
    provenance,
)
from pipeline.records import bounded_records
from pipeline.sources.source import BadExposure, Exposure
from pipeline.telemetry import facts
from pipeline.wire import MAX_VERDICT_BYTES

__all__ = [
    "Difference",
    "Recorder",
    "check_recording",
    "compare_verdicts",
    "read_exposures",
    "read_frames",
    "read_verdicts",
    "recorded_cameras",
]

QUEUE_MAX = 32  # exposures and verdicts waiting for the disk
BURST_MAX = 8  # exposures and verdicts a crash can cost
CHUNK_BYTES = 64 * 1024
EXPOSURES = ("frame", "bad_exposure")  # kinds of messages
_Entry = tuple[Exposure | Verdict, bytes]  # a verdict comes with its mask as PNG
# What a file that ends or breaks in the middle makes the reader raise.
BREAKS = (
    McapError,
    CRCValidationError,
    zstandard.ZstdError,
    struct.error,
    ValueError,
    MemoryError,
    OverflowError,
)


class Recorder:
    """Writes a recording on a thread of its own; every method may be called from any thread.

    The line never waits for the disk: what finds the queue full is not recorded and counted in
    ``overruns``, and so is everything after a failure of the disk, which leaving the context
    raises as BadData. Do not change an image after handing it over.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.frames = 0  # exposures that a crash of this process cannot lose
        self.verdicts = 0  # verdicts likewise
        self.overruns = 0  # exposures and verdicts not recorded
        self.failure = ""  # why nothing more can be written
        self._queue: queue.Queue[_Entry | None] = queue.Queue(QUEUE_MAX)
        self._lock = threading.Lock()
        self._closed = False
        self._file = _created(self.path)
        self._writer = Writer(self._file, chunk_size=CHUNK_BYTES)
        self._writer.start(library="assayline")
        self._writer.flush()  # type: ignore[no-untyped-call]
        self._unsafe: list[Exposure | Verdict] = []  # written, but not yet the system's
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
        self._queue.put(None)
        self._thread.join()
        if self.failure and error is None:
            raise BadData(self.failure)

    def frame(self, exposure: Exposure) -> bool:
        """Record an exposure; False where the disk is behind and it is not recorded."""
        return self._offer((exposure, b""))

    def verdict(self, verdict: Verdict, mask_png: bytes = b"") -> bool:
        """Record a verdict and its mask; False where the disk is behind."""
        return self._offer((verdict, mask_png))

    def _offer(self, entry: _Entry) -> bool:
        with self._lock:
            try:
                if not self.failure and not self._closed:
                    self._queue.put_nowait(entry)
                    return True
            except queue.Full:
                pass
            self.overruns += 1
            return False

    def _write_all(self) -> None:
        """The thread: write until told to end, then the summary and the footer."""
        try:
            with self._file:
                while (entry := self._queue.get()) is not None:
                    self._unsafe.append(entry[0])
                    self._write(*entry)
                    if self._queue.empty() or len(self._unsafe) == BURST_MAX:
                        self._hand_over()
                self._hand_over()
                self._writer.finish()  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever it is, the line goes on and the loss is counted
            self._give_up(getattr(error, "strerror", None) or error)

    def _hand_over(self) -> None:
        """Close the chunk and give it to the system: from here on a crash loses none of it."""
        self._writer.flush()  # type: ignore[no-untyped-call]
        verdicts = sum(isinstance(entry, Verdict) for entry in self._unsafe)
        self.verdicts += verdicts
        self.frames += len(self._unsafe) - verdicts
        self._unsafe.clear()

    def _give_up(self, reason: object) -> None:
        with self._lock:
            self.failure = (
                f"the recording {self.path} is cut short ({reason}): make room on its disk."
            )
            self.overruns += len(self._unsafe)
        facts.event("recording_failed", level="error", sentence=self.failure)
        while self._queue.get() is not None:
            with self._lock:
                self.overruns += 1

    def _write(self, entry: Exposure | Verdict, mask_png: bytes) -> None:
        match entry:
            case Frame():
                image = picture(entry.camera, entry.captured_ns, encode_png(entry.image))
                image["frame"] = provenance(entry)
                self._add(entry.camera, "frame", entry.captured_ns, image)
            case BadExposure():
                record = provenance(entry) | {"sentence": entry.sentence, "reason": entry.reason}
                self._add(entry.camera, "bad_exposure", entry.captured_ns, record)
            case Verdict():
                self._write_verdict(entry, mask_png)

    def _write_verdict(self, verdict: Verdict, mask_png: bytes) -> None:
        """Beside its frame in time, published when it was decided."""
        camera, seen_ns, told_ns = verdict.camera, verdict.captured_ns, verdict.decided_ns
        self._add(camera, "verdict", seen_ns, verdict.model_dump(mode="json"), told_ns)
        self._add(camera, "annotations", seen_ns, drawing(verdict, mask_png), told_ns)
        if mask_png:
            self._add(camera, "mask", seen_ns, picture(camera, seen_ns, mask_png), told_ns)
        self._add(camera, "log", told_ns, log_line(verdict))

    def _add(
        self, camera: str, kind: str, time_ns: int, message: dict[str, Any], told_ns: int = 0
    ) -> None:
        channel = self._channel(f"/{camera}/{kind}", CHANNELS[kind])
        data = json.dumps(message, separators=(",", ":")).encode()
        self._writer.add_message(channel, time_ns, data, told_ns or time_ns)

    def _channel(self, topic: str, schema: str) -> int:
        if schema not in self._schemas:
            text = json.dumps(SCHEMAS[schema]).encode()
            self._schemas[schema] = self._writer.register_schema(schema, "jsonschema", text)
        if topic not in self._channels:
            self._channels[topic] = self._writer.register_channel(
                topic, "json", self._schemas[schema]
            )
        return self._channels[topic]


def read_exposures(path: str | Path, camera: str = "") -> Iterator[Exposure]:
    """Frames and bad exposures of a recording in recorded order; of one camera where named.

    A file that breaks off (a crash, a full disk) yields all that is whole. Raises BadData where it
    is no recording or a whole message is not what this project writes.
    """
    for topic, data in _messages(Path(path)):
        name, kind = topic.removeprefix("/").rsplit("/", 1)
        if kind not in EXPOSURES or camera not in ("", name):
            continue
        try:
            yield frame_from(name, data) if kind == "frame" else bad_exposure_from(name, data)
        except (ValueError, KeyError, TypeError, RecursionError, BadFrame) as error:
            raise BadData(f"{path} holds a damaged message on {topic}: {error}") from None


def recorded_cameras(path: str | Path) -> list[str]:
    """Names of the cameras whose exposures a recording holds; no image is decoded."""
    topics = {topic for topic, _ in _messages(Path(path))}
    places = (topic.removeprefix("/").rsplit("/", 1) for topic in topics)
    return sorted({camera for camera, kind in places if kind in EXPOSURES})


def read_frames(path: str | Path, camera: str = "") -> Iterator[Frame]:
    """Frames of a recording with the ids and stamps they were recorded with."""
    return (one for one in read_exposures(path, camera) if isinstance(one, Frame))


def read_verdicts(path: str | Path) -> Iterator[Verdict]:
    """Verdicts of a recording, or of a file with one verdict's JSON per line."""
    path = Path(path)
    for data in _verdict_texts(path):
        try:
            yield Verdict.model_validate_json(data)
        except ValidationError as error:
            where = error.errors()[0]
            raise BadData(
                f"{path} holds something that is no verdict ({where['msg']}): name a recording "
                "or a file with one verdict per line."
            ) from None


def check_recording(path: Path) -> None:
    """Raise BadData where a file is no recording."""
    if not _starts_as_recording(path):
        raise BadData(f"{path} is not a recording: name an .mcap file that was recorded.")


def _created(path: Path) -> BinaryIO:
    """A new file; an existing recording is never overwritten."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")
    except FileExistsError:
        raise BadData(f"{path} exists already: name another file, or move it away.") from None
    except OSError as error:
        reason = error.strerror or error
        raise BadData(f"{path} cannot be written ({reason}): check the folder.") from None


def _verdict_texts(path: Path) -> Iterator[bytes]:
    if _starts_as_recording(path):
        for topic, data in _messages(path):
            if topic.endswith("/verdict"):
                yield data
        return
    with path.open("rb") as lines:
        while line := lines.readline(MAX_VERDICT_BYTES + 1):  # a longer one is no verdict
            if line.strip():
                yield line


def _messages(path: Path) -> Iterator[tuple[str, bytes]]:
    """(topic, data) of every whole message, up to the end or to where the file breaks off."""
    check_recording(path)
    channels: dict[int, str] = {}
    with path.open("rb") as file:
        records = bounded_records(file)
        while True:
            try:
                record = next(records, None)
            except BREAKS as error:
                facts.event("recording_broken", level="warning", path=str(path), reason=repr(error))
                return
            if record is None:
                return
            if isinstance(record, Channel):
                channels[record.id] = record.topic
            elif isinstance(record, Message) and record.channel_id in channels:
                yield channels[record.channel_id], record.data


def _starts_as_recording(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(MCAP0_MAGIC)) == MCAP0_MAGIC
    except OSError as error:
        reason = error.strerror or error
        raise BadData(f"{path} cannot be read ({reason}): check its name and rights.") from None

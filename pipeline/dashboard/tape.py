"""A recording to look at: its parts in the order of time, and the picture of each when asked for.

A recording that breaks off is first brought into a whole file of its own, up to where it is whole,
and says so. Pictures stay on the disk until somebody looks.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from mcap.reader import SeekingReader
from pydantic import ValidationError

from engines.contracts import BadData, Verdict
from pipeline.comparison import Difference, compare_verdicts
from pipeline.dashboard.picture import outlined
from pipeline.merge import is_whole, merge_recordings
from pipeline.recording import BREAKS, check_recording, read_verdicts
from pipeline.records import MAX_RECORD_BYTES

PARTS_MAX = 50_000  # of one recording
OPEN_MAX = 2  # recordings at once
SUFFIX = ".mcap"
CROWDED = {"archive", "engines", "logs", "redis", "swap", "thresholds"}  # no recordings there


class Tape:
    """One recording, open; close it to let its copy go."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self.name = path.name
        self.key = _key(path)
        try:
            check_recording(path)
            with path.open("rb") as file:
                self.is_cut = not is_whole(file)
            readable = self._salvaged(path) if self.is_cut else path
            self._reader = SeekingReader(
                self._stack.enter_context(readable.open("rb")),
                validate_crcs=True,
                record_size_limit=MAX_RECORD_BYTES,
            )
            self.verdicts = self._verdicts()
        except (*BREAKS, KeyError, OSError) as error:
            self._stack.close()
            raise BadData(f"{path.name} cannot be read: {error}") from error
        except BaseException:
            self._stack.close()
            raise
        self.is_long = len(self.verdicts) == PARTS_MAX

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._stack.close()

    def picture(self, index: int) -> bytes:
        """PNG of a part's frame with its mask; empty where the recording has none of it."""
        if not 0 <= index < len(self.verdicts):
            return b""
        verdict = self.verdicts[index]
        frame = self._image(verdict, "frame")
        return outlined(frame, self._image(verdict, "mask")) if frame else b""

    def _image(self, verdict: Verdict, kind: str) -> bytes:
        at_ns, topic = verdict.captured_ns, f"/{verdict.camera}/{kind}"
        try:
            with self._lock:
                found = list(
                    self._reader.iter_messages([topic], starting_at=at_ns, ending_at=at_ns)
                )
            told = [json.loads(message.data) for _, _, message in found]
            # Two exposures may have one stamp; a mask does not say whose it is.
            ours = [one for one in told if _is_of(one, verdict)] or told[:1]
            return base64.b64decode(ours[0]["data"]) if ours else b""
        except (*BREAKS, KeyError, TypeError, OSError):
            return b""

    def _verdicts(self) -> list[Verdict]:
        summary = self._reader.get_summary()
        channels = summary.channels.values() if summary else ()
        topics = [channel.topic for channel in channels if channel.topic.endswith("/verdict")]
        found: list[Verdict] = []
        for _, _, message in self._reader.iter_messages(topics) if topics else ():
            try:
                found.append(Verdict.model_validate_json(message.data))
            except ValidationError:
                continue
            if len(found) == PARTS_MAX:
                break
        return found

    def _salvaged(self, path: Path) -> Path:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="assayline-"))
        whole = Path(folder) / path.name
        merge_recordings([path], whole)
        return whole


class Tapes:
    """The recordings of a run folder; the last few stay open."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Tape] = OrderedDict()

    def names(self) -> list[str]:
        """Recordings below the run folder, newest first, by their paths there."""
        return self._found(f"*{SUFFIX}")

    def logs(self) -> list[str]:
        """What a recording's verdicts can be compared with: logs, and other recordings."""
        return self._found("verdicts.jsonl") + self.names()

    def open(self, name: str) -> Tape:
        """A recording by its name; BadData where there is none, or where it cannot be read."""
        if name not in self.names():
            raise BadData("there is no such recording")
        path = self.folder / name
        with self._lock:
            key = _key(path)
            if key not in self._open:
                self._open[key] = Tape(path)
                while len(self._open) > OPEN_MAX:
                    self._open.popitem(last=False)[1].close()
            self._open.move_to_end(key)
            return self._open[key]

    def picture(self, key: str, index: int) -> bytes:
        """A picture of a recording that is open; empty where it is no more."""
        tape = self._open.get(key)
        return tape.picture(index) if tape else b""

    def compared(self, tape: Tape, name: str) -> tuple[dict[str, Difference], dict[str, Verdict]]:
        """Parts of the tape that differ, and the other verdicts, by frame id."""
        if name not in self.logs():
            raise BadData("there is no such log")
        others = list(read_verdicts(self.folder / name))
        differences = compare_verdicts(tape.verdicts, others)
        ours = {one.frame_id: one for one in differences if one.kind != "extra"}
        return ours, _by_origin(others)

    def close(self) -> None:
        """Let go of every recording."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()

    def _found(self, pattern: str) -> list[str]:
        below = [folder for folder in self.folder.glob("*/") if folder.name not in CROWDED]
        folders = [self.folder, *below]
        paths = [path for one in folders for path in one.glob(pattern) if path.is_file()]
        newest = sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [str(path.relative_to(self.folder)) for path in newest]


def next_difference(
    verdicts: Sequence[Verdict], differences: Mapping[str, Difference], index: int
) -> int:
    """The next part behind ``index`` that differs, from the start again at the end."""
    count = len(verdicts)
    ways = ((index + by) % count for by in range(1, count + 1))
    return next((at for at in ways if verdicts[at].frame_id in differences), index)


def _by_origin(verdicts: Sequence[Verdict]) -> dict[str, Verdict]:
    return {verdict.source_frame_id or verdict.frame_id: verdict for verdict in verdicts}


def _is_of(told: Mapping[str, object], verdict: Verdict) -> bool:
    frame = told.get("frame")
    return isinstance(frame, dict) and frame.get("frame_id") == verdict.frame_id


def _key(path: Path) -> str:
    """Names a recording in addresses, as it is now."""
    try:
        found = path.stat()
    except OSError as error:
        raise BadData(f"{path.name} cannot be read: {error.strerror}") from error
    told = f"{path.resolve()}:{found.st_mtime_ns}:{found.st_size}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]

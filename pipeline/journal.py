"""What ingest still owes an answer for, on disk: not even the loss of the server forgets a part.

An append-only file of one camera: the head of each frame before it is admitted, and a line when a
sink is known to have acted on its verdict, with the totals of all such frames: a server that begins
again recalls them. It is bounded twice: the camera's credits bound what is owed, and the
file is written anew when the settled lines outweigh the owed ones. Written through to the operating
system, which survives the death of the process; a power cut also stops the belt.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from engines.contracts import BadConfig, BadFrame
from pipeline.telemetry import facts
from pipeline.wire import FrameHead, head_bytes, head_from

# What a line that is no record makes its reading raise.
UNREADABLE = (ValueError, TypeError, OverflowError, RecursionError, BadFrame)
COMPACT_LINES = 4096  # about 1 MB


def journal_path(run_dir: Path, camera: str) -> Path:
    """Where the journal of a camera is kept."""
    return run_dir / f"{camera}.journal"


class Journal:
    """The heads of one camera's frames that are admitted and not known to be dealt with."""

    def __init__(self, path: Path) -> None:
        self.owed: dict[str, FrameHead] = {}  # frame_id -> head, oldest first
        self.incarnation = ""  # of the server that holds them
        self.totals: dict[str, int] = {}  # ledger field -> frames dealt with, of all servers
        self._path = path
        self._is_torn = False  # the last line reached the disk in part or not at all
        try:
            self._load()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._compact()
        except OSError as error:
            raise BadConfig(f"the journal {path} cannot be written: {error}") from error

    def add(self, head: FrameHead) -> None:
        """Owe an answer for this frame."""
        self.owed[head.frame_id] = head
        self._write(head_bytes(head))

    def settle(self, frame_ids: Iterable[str], totals: Mapping[str, int] | None = None) -> None:
        """Owe nothing any more for these frames, which the ``totals`` include."""
        settled = [frame_id for frame_id in frame_ids if self.owed.pop(frame_id, None)]
        counts = self.totals if totals is None else dict(totals)
        if settled or counts != self.totals:
            self.totals = counts
            self._write(json.dumps({"settled": settled, "totals": counts}).encode())

    def count_anew(self) -> None:
        """Begin the totals of another run; what is owed stays owed."""
        self.settle((), {})

    def belong_to(self, incarnation: str) -> None:
        """Note the server that holds the frames from now on."""
        self.incarnation = incarnation
        self._write(json.dumps({"incarnation": incarnation}).encode())

    def close(self) -> None:
        """Leave the file for the next ingest of this camera."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        """Append a line. A full disk keeps no part from the line: then memory alone remembers."""
        text = b"\n" * self._is_torn + line + b"\n"  # a torn line ends before the next begins
        try:
            is_whole = self._file.write(text) == len(text)
            self._lines += 1
            if self._lines > COMPACT_LINES + 2 * len(self.owed):
                old = self._file
                self._compact()
                old.close()
        except OSError:
            is_whole = False
        if not is_whole and not self._is_torn:
            sentence = f"the journal {self._path} cannot be written: make room on its disk"
            facts.event("journal_failed", level="error", sentence=sentence)
        self._is_torn = not is_whole

    def _compact(self) -> None:
        fresh = self._path.with_suffix(".new")
        about = ({"incarnation": self.incarnation}, {"settled": [], "totals": self.totals})
        lines = [json.dumps(record).encode() for record in about]
        lines += [head_bytes(head) for head in self.owed.values()]
        fresh.write_bytes(b"\n".join(lines) + b"\n")
        fresh.replace(self._path)
        self._file = self._path.open("ab", buffering=0)
        self._lines = len(lines)

    def _load(self) -> None:
        if not self._path.exists():
            return
        for line in self._path.read_bytes().splitlines():
            # The last line may be torn by the death of its writer; its frame was not yet admitted.
            with contextlib.suppress(*UNREADABLE):
                self._replay(json.loads(line), line)

    def _replay(self, record: dict[str, object], line: bytes) -> None:
        match record:
            case {"incarnation": str(incarnation)}:
                self.incarnation = incarnation
            case {"settled": list(frame_ids), **others}:
                match others:
                    case {"totals": dict(totals)}:
                        self.totals = {str(field): int(count) for field, count in totals.items()}
                for frame_id in frame_ids:
                    self.owed.pop(str(frame_id), None)
            case _:
                head = head_from(line)
                self.owed[head.frame_id] = head

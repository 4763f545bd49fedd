"""What ingest still owes an answer for, on disk: not even the loss of the server forgets a part.

An append-only file of one camera: the head of each frame before it is admitted, and a line when its
verdict is known to exist. It is bounded twice: the camera's credits bound what is owed, and the
file is written anew when the settled lines outweigh the owed ones. Written through to the operating
system, which survives the death of the process; a power cut also stops the belt.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from engines.contracts import BadConfig, BadFrame
from pipeline.wire import FrameHead, head_bytes, head_from

COMPACT_LINES = 4096  # about 1 MB


class Journal:
    """The heads of one camera's frames that are admitted and not known to be answered."""

    def __init__(self, path: Path) -> None:
        self.owed: dict[str, FrameHead] = {}  # frame_id -> head, oldest first
        self.incarnation = ""  # of the server that holds them
        self._path = path
        self._load()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._compact()
        except OSError as error:
            raise BadConfig(f"the journal {path} cannot be written: {error}") from error

    def add(self, head: FrameHead) -> None:
        """Owe an answer for this frame."""
        self.owed[head.frame_id] = head
        self._write(head_bytes(head))

    def settle(self, frame_ids: Iterable[str]) -> None:
        """Owe nothing any more for these frames."""
        settled = [frame_id for frame_id in frame_ids if self.owed.pop(frame_id, None)]
        if settled:
            self._write(json.dumps({"settled": settled}).encode())

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
        self._file.write(line + b"\n")
        self._lines += 1
        if self._lines > COMPACT_LINES + 2 * len(self.owed):
            self._file.close()
            self._compact()

    def _compact(self) -> None:
        fresh = self._path.with_suffix(".new")
        lines = [json.dumps({"incarnation": self.incarnation}).encode()]
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
            with contextlib.suppress(ValueError, BadFrame):
                self._replay(json.loads(line), line)

    def _replay(self, record: dict[str, object], line: bytes) -> None:
        match record:
            case {"incarnation": str(incarnation)}:
                self.incarnation = incarnation
            case {"settled": list(frame_ids)}:
                for frame_id in frame_ids:
                    self.owed.pop(str(frame_id), None)
            case _:
                head = head_from(line)
                self.owed[head.frame_id] = head

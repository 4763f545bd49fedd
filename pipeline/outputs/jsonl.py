"""One line of JSON per verdict, in one file; the record that outlives the server."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Literal

from engines.contracts import BadConfig
from pipeline.stream import VerdictDelivery

REMEMBERED = 10_000  # newest frame ids that are not written twice
TAIL_BYTES = 16_000_000
FSYNC_S = 1.0


class Jsonl:
    """Appends verdicts; a frame id in the tail of the file is not written again."""

    name = "jsonl"

    def __init__(self, path: Path, fsync: Literal["never", "second", "each"] = "second") -> None:
        self._fsync = fsync
        self._synced_s = time.monotonic()
        self._dirty = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b", buffering=0)
            self._written = self._read_tail()
        except OSError as error:
            raise BadConfig(f"verdicts cannot be written to {path}: {error}") from error

    def act(self, delivery: VerdictDelivery, closing: threading.Event) -> None:  # noqa: ARG002 - Output
        """Append one line, whole or not at all."""
        frame_id = delivery.verdict.frame_id
        if frame_id in self._written:
            return
        self._append(delivery.verdict.model_dump_json().encode() + b"\n")
        self._remember(frame_id)
        self._sync_when_due()

    def rest(self) -> None:
        """Let written lines reach the disk."""
        self._sync_when_due()

    def close(self) -> None:
        """Let everything reach the disk."""
        if self._fsync != "never":
            os.fsync(self._file.fileno())
        self._file.close()

    def _append(self, line: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            written = self._file.write(line)
        except OSError:
            written = 0
            raise
        finally:
            if written != len(line):  # a full disk takes half a line
                self._file.truncate(end)
        if written != len(line):
            raise OSError("the disk took only a part of a line")
        self._dirty = True

    def _sync_when_due(self) -> None:
        due = self._fsync == "each" or (
            self._fsync == "second" and time.monotonic() - self._synced_s >= FSYNC_S
        )
        if due and self._dirty:
            os.fsync(self._file.fileno())
            self._synced_s, self._dirty = time.monotonic(), False

    def _remember(self, frame_id: str) -> None:
        self._written[frame_id] = None
        if len(self._written) > REMEMBERED:
            self._written.popitem(last=False)

    def _read_tail(self) -> OrderedDict[str, None]:
        """The newest frame ids; a last line torn by a crash is cut off, its verdict comes again."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, size - TAIL_BYTES))
        tail = self._file.read()
        whole, _, torn = tail.rpartition(b"\n")
        self._file.truncate(size - len(torn))
        lines = whole.splitlines()[-REMEMBERED:]
        return OrderedDict((found, None) for line in lines if (found := _frame_id(line)))


def _frame_id(line: bytes) -> str:
    try:
        return str(json.loads(line)["frame_id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""

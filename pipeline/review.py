"""What people said of rejected parts: one line of JSON each, appended, never rewritten.

The newest line about a frame counts, so an answer can be changed and nothing is lost. Lines are
written whole and brought to the disk before anybody is told that they are kept; a line torn by a
crash is passed over.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.contracts import BadConfig, Decision, Stamp, Verdict
from pipeline.wire import MAX_VERDICT_BYTES

LABELS = "labels.jsonl"
Answer = Literal["agree", "false_reject", "unsure"]
Text = Annotated[str, Field(max_length=256)]


class ReviewLabel(BaseModel):
    """One answer of one person about one part."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    frame_id: Text
    answer: Answer
    who: Text
    at_ns: Stamp
    decision: Decision
    category: Text = ""
    calibration_id: Text = ""


class ReviewLabels:
    """The labels of a run folder; safe from every thread."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LABELS
        self._lock = threading.Lock()
        self._newest: dict[str, ReviewLabel] = {}
        self._read_to = 0

    def of(self, frame_id: str) -> ReviewLabel | None:
        """What was said of a frame last; None for nothing."""
        return self.newest().get(frame_id)

    def newest(self) -> dict[str, ReviewLabel]:
        """The newest label of every frame; lines that others appended are seen too."""
        with self._lock:
            self._read_on()
            return dict(self._newest)

    def add(self, verdict: Verdict, answer: Answer, who: str) -> ReviewLabel:
        """Keep an answer; BadConfig where the disk does not take it."""
        label = ReviewLabel(
            frame_id=verdict.frame_id,
            answer=answer,
            who=who[:256],
            at_ns=time.time_ns(),
            decision=verdict.decision,
            category=verdict.category,
            calibration_id=verdict.calibration_id,
        )
        with self._lock:
            append_line(self.path, label.model_dump_json())
            self._read_on()
        return label

    def _read_on(self) -> None:
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == self._read_to:
                    return
                file.seek(self._read_to)
                while (line := file.readline(MAX_VERDICT_BYTES)).endswith(b"\n"):
                    self._read_to = file.tell()
                    self._take(line)
        except OSError:  # nobody has said anything yet
            return

    def _take(self, line: bytes) -> None:
        try:
            label = ReviewLabel.model_validate_json(line)
        except ValidationError:  # torn by a crash, or written by hand
            return
        self._newest[label.frame_id] = label


def append_line(path: Path, text: str) -> None:
    """Append one line, whole and on the disk when this returns; BadConfig where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = end > 0 and file.read(1) != b"\n"  # a crash left half a line
            data = b"\n" * torn + text.encode() + b"\n"
            if file.write(data) != len(data):
                file.truncate(end)
                raise OSError("the disk is full")
            os.fsync(file.fileno())
    except OSError as error:
        raise BadConfig(f"{path} cannot be written: {error.strerror or error}") from error

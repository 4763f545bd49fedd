"""Recorded verdicts of the line, and what another threshold would have made of them.

The log is followed as it grows, a piece at a time, on a thread of its own; only the newest verdicts
are kept, and of each only what a threshold is weighed against.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from engines.contracts import Decision

KEPT = 100_000  # verdicts
TAIL_BYTES = 128_000_000  # of the log are looked at, at most, when the page starts
PIECE_BYTES = 2_000_000  # in one go, so that reading never takes a core for long
LOOK_S = 1.0


class Judged(NamedTuple):
    """One recorded verdict that a threshold decided."""

    frame_id: str
    part_id: str
    decided_ns: int
    backend: str
    category: str
    surprise: float
    decision: Decision


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Recorded verdicts at another threshold."""

    count: int
    begin_ns: int
    end_ns: int
    fails_then: int  # as judged
    fails: int  # at this threshold
    to_fail: tuple[Judged, ...]  # PASS that becomes FAIL, newest first
    to_pass: tuple[Judged, ...]


def what_if(judged: Sequence[Judged], threshold: float) -> WhatIf | None:
    """Which verdicts flip; None where there are none. A part fails above its threshold."""
    if not judged:
        return None
    fails = [one.surprise > threshold for one in judged]
    failed = [one.decision is Decision.FAIL for one in judged]
    flips = [
        (one, now) for one, now, then in zip(judged, fails, failed, strict=True) if now is not then
    ]
    newest = sorted(flips, key=lambda flip: flip[0].decided_ns, reverse=True)
    return WhatIf(
        count=len(judged),
        begin_ns=min(one.decided_ns for one in judged),
        end_ns=max(one.decided_ns for one in judged),
        fails_then=sum(failed),
        fails=sum(fails),
        to_fail=tuple(one for one, now in newest if now),
        to_pass=tuple(one for one, now in newest if not now),
    )


class History:
    """The newest verdicts of a log that a threshold decided."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._kept: deque[Judged] = deque(maxlen=KEPT)
        self._read_to: int | None = None

    def run(self, stop: threading.Event) -> None:
        """Follow the log until ``stop``."""
        while not stop.wait(LOOK_S):
            while self.look() and not stop.is_set():
                pass

    def of(self, backend: str, categories: Iterable[str]) -> list[Judged]:
        """Verdicts of one backend over these categories, as the parts themselves name them."""
        wanted = set(categories)
        with self._lock:
            return [o for o in self._kept if o.backend == backend and o.category in wanted]

    def categories(self) -> set[str]:
        """Categories that parts name."""
        with self._lock:
            return {one.category for one in self._kept}

    def look(self) -> bool:
        """Read a piece on; whether there may be more."""
        if self._path is None:
            return False
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                if self._read_to is None or size < self._read_to:  # a log of another run
                    self._read_to = max(0, size - TAIL_BYTES)
                file.seek(self._read_to)
                piece = file.read(PIECE_BYTES)
        except OSError:
            return False
        whole, newline, _ = piece.rpartition(b"\n")
        if not newline:
            return False
        self._read_to += len(whole) + 1
        found = [one for line in whole.splitlines() if (one := _judged(line)) is not None]
        with self._lock:
            self._kept.extend(found)
        return len(piece) == PIECE_BYTES


def _judged(line: bytes) -> Judged | None:
    """A verdict that a threshold decided; None for any other line."""
    try:
        told = json.loads(line)
        if told["surprise"] is None or told["decision"] == Decision.UNDECIDED:
            return None
        return Judged(
            str(told["frame_id"]),
            str(told["part_id"]),
            int(told["decided_ns"]),
            str(told["backend"]),
            str(told["category"]),
            float(told["surprise"]),
            Decision(told["decision"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None

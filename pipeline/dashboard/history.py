"""Recorded verdicts of the line, and what another threshold would have made of them.

The log is followed as it grows, a piece at a time, on a thread of its own; only the newest verdicts
are kept, and of each only what a threshold is weighed against.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engines.contracts import Decision

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


class Stretch:
    """Recorded verdicts in columns, so that a threshold is weighed against a shift at once."""

    def __init__(self, judged: Sequence[Judged]) -> None:
        self._judged = judged
        self.surprises = np.array([one.surprise for one in judged], np.float64)
        self._decided_ns = np.array([one.decided_ns for one in judged], np.int64)
        self._failed = np.array([one.decision is Decision.FAIL for one in judged], np.bool_)

    def __len__(self) -> int:
        return len(self._judged)

    def what_if(self, threshold: float) -> WhatIf | None:
        """Which verdicts flip; None where there are none. A part fails above its threshold."""
        if not self._judged:
            return None
        fails = self.surprises > threshold
        return WhatIf(
            count=len(self),
            begin_ns=int(self._decided_ns.min()),
            end_ns=int(self._decided_ns.max()),
            fails_then=int(self._failed.sum()),
            fails=int(fails.sum()),
            to_fail=self._newest_first(fails & ~self._failed),
            to_pass=self._newest_first(~fails & self._failed),
        )

    def _newest_first(self, chosen: NDArray[np.bool_]) -> tuple[Judged, ...]:
        places = np.flatnonzero(chosen)
        order = np.argsort(-self._decided_ns[places], kind="stable")
        return tuple(self._judged[place] for place in places[order].tolist())


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

    def of(self, backend: str, categories: Iterable[str]) -> Stretch:
        """Verdicts of one backend over these categories, as the parts themselves name them."""
        wanted = set(categories)
        with self._lock:
            kept = list(self._kept)  # the reader is not kept waiting for long
        return Stretch([o for o in kept if o.backend == backend and o.category in wanted])

    def counts(self) -> Counter[tuple[str, str]]:
        """Verdicts by backend and category, as parts name it."""
        with self._lock:
            kept = list(self._kept)
        return Counter((one.backend, one.category) for one in kept)

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

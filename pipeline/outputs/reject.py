"""The reject signal: what the PLC acts on. Silence means reject.

The gate opens only for a fresh PASS with a heartbeat beside it. So every verdict is signalled,
PASS too, with a sequence number that never goes back, and the heartbeat beats only while verdicts
flow: a dead sink, a lost server and a full disk all fall silent.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from pathlib import Path
from typing import Protocol

from engines.contracts import BadConfig, Verdict
from pipeline.telemetry import facts

RECENT = 64  # signals in the file, so that a reader slower than the belt misses none
TOGETHER = RECENT // 2  # new ones at a time


class RejectSignal(Protocol):
    """How the gate is told."""

    def signal(self, *verdicts: Verdict) -> None:
        """Tell the gate about parts; a repeated frame id changes nothing."""
        ...

    def beat(self) -> None:
        """Say that verdicts flow; called on every turn of the sink."""
        ...


class NoReject:
    """A line without a gate."""

    def signal(self, *verdicts: Verdict) -> None:
        """Nobody listens."""

    def beat(self) -> None:
        """Nobody listens."""


class FileReject:
    """The newest signals in a JSON file, replaced as a whole.

    ``{sequence, frame_id, decision, at_ns, heartbeat_ns, recent: [...]}``; ``recent`` holds the
    last 64 signals, oldest first. Stamps are epoch nanoseconds of this machine.
    """

    def __init__(self, path: Path, heartbeat_ms: int = 100) -> None:
        self._path = path
        self._fresh = path.with_name(f"{path.name}.new")
        self._heartbeat_s = heartbeat_ms / 1e3
        self._next_beat_s = 0.0
        self._broken = False
        self._recent: deque[dict[str, object]] = deque(maxlen=RECENT)
        self._texts: deque[str] = deque(maxlen=RECENT)  # the same as JSON, written again and again
        self._sequence = self._written = self._resume()

    def signal(self, *verdicts: Verdict) -> None:
        """Write signals at once; those of one call share a writing, half of what it holds."""
        for verdict in verdicts:
            self._note(verdict)
            if self._sequence - self._written >= TOGETHER:
                self._write()
        if self._sequence > self._written:
            self._write()

    def _note(self, verdict: Verdict) -> None:
        if any(known["frame_id"] == verdict.frame_id for known in self._recent):
            return
        self._sequence += 1
        self._remember(
            {
                "sequence": self._sequence,
                "frame_id": verdict.frame_id,
                "camera": verdict.camera,
                "part_id": verdict.part_id,
                "decision": str(verdict.decision),
                "at_ns": time.time_ns(),
            }
        )

    def _remember(self, signal: dict[str, object]) -> None:
        self._recent.append(signal)
        self._texts.append(json.dumps(signal))

    def beat(self) -> None:
        """Renew the heartbeat when it is due."""
        if time.monotonic() >= self._next_beat_s:
            self._write()

    def _write(self) -> None:
        self._next_beat_s = time.monotonic() + self._heartbeat_s
        self._written = self._sequence
        newest = self._recent[-1] if self._recent else {"frame_id": "", "decision": "", "at_ns": 0}
        signal = {
            "sequence": self._sequence,
            "frame_id": newest["frame_id"],
            "decision": newest["decision"],
            "at_ns": newest["at_ns"],
            "heartbeat_ns": time.time_ns(),
        }
        recent = ", ".join(self._texts)
        text = f'{json.dumps(signal)[:-1]}, "recent": [{recent}]}}'
        try:
            self._fresh.write_bytes(text.encode())
            self._fresh.replace(self._path)
            self._broken = False
        except OSError as error:  # the file grows stale, and stale means reject
            facts.count("outputs_failed_total", output="reject")
            if not self._broken:
                facts.event("output_failed", level="error", output="reject", sentence=str(error))
            self._broken = True

    def _resume(self) -> int:
        """Go on after the last sequence number of a former run."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadConfig(f"the reject signal has no place at {self._path}: {error}") from error
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            last = json.loads(self._path.read_text("utf-8"))
            for known in last["recent"]:
                if "frame_id" in known:
                    self._remember(known)
            return int(last["sequence"])
        return 0

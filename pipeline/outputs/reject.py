"""The reject signal: what the PLC acts on. Silence means reject.

The gate opens only for a fresh PASS with a heartbeat beside it. So every verdict is signalled,
PASS too, with a sequence number that never goes back, and the heartbeat beats only while verdicts
flow: a dead sink, a lost server and a full disk all fall silent.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

from engines.contracts import BadConfig, Verdict
from pipeline.outputs.replaced import Replaced
from pipeline.telemetry import facts

RECENT = 64  # signals in the file, so that a reader slower than the belt misses none
TOGETHER = RECENT // 2  # new ones at a time
REST_S = 0.1
NEEDED = {"frame_id", "decision", "at_ns"}  # of a signal, to go on after it


class RejectSignal(Protocol):
    """How the gate is told."""

    def signal(self, *verdicts: Verdict) -> None:
        """Tell the gate about parts; a repeated frame id changes nothing."""
        ...

    def beat(self) -> None:
        """Say that verdicts flow; called on every turn of the sink."""
        ...

    @property
    def rest_s(self) -> float:
        """How long until the next beat is due, at most ``REST_S``."""
        ...


class NoReject:
    """A line without a gate."""

    def signal(self, *verdicts: Verdict) -> None:
        """Nobody listens."""

    def beat(self) -> None:
        """Nobody listens."""

    @property
    def rest_s(self) -> float:
        """No beat is due."""
        return REST_S


class FileReject:
    """The newest signals in a JSON file, replaced as a whole.

    ``{sequence, frame_id, decision, at_ns, heartbeat_ns, recent: [...]}``; ``recent`` holds the
    last 64 signals, oldest first. Stamps are epoch nanoseconds of this machine.
    """

    def __init__(self, path: Path, heartbeat_ms: int = 100) -> None:
        self._file = Replaced(path)
        self._heartbeat_s = heartbeat_ms / 1e3
        self._next_beat_s = 0.0
        self._broken = False
        self._recent: OrderedDict[str, str] = OrderedDict()  # frame_id -> its signal as JSON
        self._newest = {"sequence": 0, "frame_id": "", "decision": "", "at_ns": 0}
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
        if verdict.frame_id in self._recent:
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

    def _remember(self, signal: dict[str, Any]) -> None:
        self._newest = signal
        self._recent[str(signal["frame_id"])] = json.dumps(signal)
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def beat(self) -> None:
        """Renew the heartbeat when it is due."""
        if time.monotonic() >= self._next_beat_s:
            self._write()

    @property
    def rest_s(self) -> float:
        """How long until the heartbeat is to be renewed; writing signals renews it too."""
        return min(REST_S, max(0.0, self._next_beat_s - time.monotonic()))

    def _write(self) -> None:
        self._next_beat_s = time.monotonic() + self._heartbeat_s
        self._written = self._sequence
        signal = {
            "sequence": self._sequence,
            "frame_id": self._newest["frame_id"],
            "decision": self._newest["decision"],
            "at_ns": self._newest["at_ns"],
            "heartbeat_ns": time.time_ns(),
        }
        recent = ", ".join(self._recent.values())
        text = f'{json.dumps(signal)[:-1]}, "recent": [{recent}]}}'
        try:
            self._file.write(text.encode())
            self._broken = False
        except OSError as error:  # the file grows stale, and stale means reject
            facts.count("outputs_failed_total", output="reject")
            if not self._broken:
                facts.event("output_failed", level="error", output="reject", sentence=str(error))
            self._broken = True

    def _resume(self) -> int:
        """Go on after the last sequence number of a former run."""
        path, spare = self._file.path, self._file.spare
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadConfig(f"the reject signal has no place at {path}: {error}") from error
        last = _told_in(path) or _told_in(spare)  # a power cut may tear one of them
        if last is None:
            return 0
        for known in last["recent"]:
            self._remember(known)
        return int(last["sequence"])


def _told_in(path: Path) -> dict[str, Any] | None:
    """What a file of signals holds; None where it is none."""
    try:
        told = json.loads(path.read_text("utf-8"))
        recent = [known for known in told["recent"] if known.keys() >= NEEDED]
        return {"sequence": int(told["sequence"]), "recent": recent}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None

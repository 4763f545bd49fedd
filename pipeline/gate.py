"""The gate keeper: no part reaches the reject gate without a verdict.

It answers UNDECIDED(deadline) for whatever is still open shortly before its gate, by the same
compare-and-set as the inspectors, so it needs none of them to be alive. It is a thread of the sink.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from engines.contracts import Reason, StreamLost, Verdict
from pipeline.stream import Stream
from pipeline.wire import undecided

PERIOD_MS = 5.0
BACK_OFF_S = 0.2


class GateKeeper:
    """Watches the open frames of some cameras; each answer comes ``margin_ms`` before the gate."""

    def __init__(self, stream: Stream, cameras: Sequence[str], margin_ms: float = 5.0) -> None:
        self._stream = stream
        self._cameras = tuple(cameras)
        self._margin_ms = margin_ms

    def run(self, stop: threading.Event) -> None:
        """Tick until ``stop``; a lost server is waited for."""
        wait_s = PERIOD_MS / 1000
        while not stop.wait(wait_s):
            try:
                self.tick()
                wait_s = PERIOD_MS / 1000
            except StreamLost:
                wait_s = BACK_OFF_S

    def tick(self, now_ns: int | None = None) -> list[Verdict]:
        """Answer what would be late by the next tick; the verdicts that were given.

        ``now_ns`` is the server's clock; its uncertainty and the period are taken off the gate too.
        """
        now = self._stream.now_ns() if now_ns is None else now_ns
        ahead_ms = self._margin_ms + PERIOD_MS + self._stream.clock_uncertainty_ms
        horizon_ns = now + int(ahead_ms * 1e6)
        return [
            verdict for camera in self._cameras for verdict in self._answer(camera, now, horizon_ns)
        ]

    def _answer(self, camera: str, now_ns: int, horizon_ns: int) -> Iterator[Verdict]:
        """Look again until nothing is late: one look is bounded."""
        while heads := self._stream.expiring(camera, horizon_ns):
            for head in heads:
                verdict = undecided(head, Reason.DEADLINE, now_ns)
                if self._stream.answer_open(verdict):
                    yield verdict

"""What the gate is told of each part: one signal, and no PASS for a part that has gone by.

A verdict is read again where a sink died before its outputs were done with it, which may be
hundreds of parts later; the signal's own file remembers no more than its newest few. And after a
sink or a server was away there are verdicts of parts whose gate has passed. The gate has rejected
those, since nobody told it anything; a PASS that came now would stand beside another part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from engines.contracts import Decision, Reason, Verdict
from pipeline.acted import Acted
from pipeline.outputs.reject import TOGETHER, FileReject, NoReject, RejectSignal

if TYPE_CHECKING:
    from pipeline.config import LineSettings
    from pipeline.stream import Stream


class Told:
    """The signal to the gate, and on disk the newest parts that it was told of."""

    def __init__(
        self, stream: Stream, settings: LineSettings, gates_ms: Mapping[str, float], record: Acted
    ) -> None:
        self._stream = stream
        self._gates_ms = gates_ms
        self._record = record
        self.reject = _reject_signal(settings)
        stream.now_ns()  # so that its clock is known before the first verdict: it may be late

    def tell(self, verdicts: Sequence[Verdict]) -> None:
        """Signal those that were not; what is signalled together the signal's file remembers."""
        fresh = [verdict for verdict in verdicts if verdict.frame_id not in self._record]
        for first in range(0, len(fresh), TOGETHER):
            told = [self._in_time(verdict) for verdict in fresh[first : first + TOGETHER]]
            self.reject.signal(*told)
            self._record.add({verdict.frame_id: str(verdict.decision) for verdict in told})

    def _in_time(self, verdict: Verdict) -> Verdict:
        """The verdict as the gate may hear it."""
        gate_ms = self._gates_ms.get(verdict.camera)
        if gate_ms is None or verdict.decision is not Decision.PASS:
            return verdict
        if self._stream.estimated_now_ns() <= verdict.captured_ns + gate_ms * 1e6:
            return verdict
        return verdict.model_copy(
            update={"decision": Decision.UNDECIDED, "reason": Reason.DEADLINE}
        )


def _reject_signal(settings: LineSettings) -> RejectSignal:
    chosen = settings.sinks.reject
    if chosen is None:
        return NoReject()
    return FileReject(chosen.path or settings.run_dir / "reject.json", chosen.heartbeat_ms)

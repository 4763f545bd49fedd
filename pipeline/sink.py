"""Process 3: every verdict reaches the gate first and the slower outputs after it, once.

This thread reads, tells the gate, and hands each verdict to the outputs, which have threads of
their own; a verdict is acknowledged when all of them are done with it. Another thread keeps the
gate: it answers for the frames that nobody has answered in time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

from pipeline.acted import Acted
from pipeline.alone import alone
from pipeline.config import LineSettings
from pipeline.gate import GateKeeper
from pipeline.heap import return_large_blocks
from pipeline.lanes import Lane, outlasting_loss
from pipeline.outputs import OutputLane, open_outputs
from pipeline.outputs.told import Told
from pipeline.pulse import BEAT_S, Pulse, name_of_process
from pipeline.soundings import Soundings, tell_verdict
from pipeline.stream import Stream, VerdictDelivery, ledger_field, open_stream
from pipeline.telemetry import reporting
from pipeline.urgency import hurrying

ROLE = "sink"
READ_MAX = 32  # verdicts per camera and read
BLOCK_MIN_MS = 10
ACKNOWLEDGE_S = 0.25  # each round trip wakes two processes; what is acted on may wait for others
TRIM_S = 1.0
KEPT = 256  # verdicts left in the stream for those who look on
TWICE = "another sink of line {line} runs: two would act on a verdict twice; stop that one first"


def run_sink(settings: LineSettings, stop: threading.Event) -> None:
    """Act on verdicts until ``stop`` is set and none is left; keeps the gate all the while.

    Raises StreamLost where there is no server at the start or the end, BadConfig for outputs that
    have no place and where another sink of this line runs.
    """
    return_large_blocks()
    url, namespace = settings.redis.address(ROLE), settings.redis.namespace
    gates_ms = {camera.name: camera.gate_ms for camera in settings.cameras}
    keeping = (settings.camera_names, settings.keeper_margin_ms, gates_ms)
    with (
        alone(settings.run_dir / "sink.lock", TWICE.format(line=settings.line)),
        reporting(ROLE, settings),
        open_stream(url, namespace) as stream,
        closing(Pulse(url, namespace)) as pulse,
        Acted(settings.run_dir / "sink.acted") as acted,
        Acted(settings.run_dir / "sink.told") as signalled,
        Lane("gate", GateKeeper(stream, *keeping).run) as gate,
        _soundings(stream, pulse, settings),
    ):
        group = f"{ROLE}:{settings.line}"
        inbox = Inbox(
            stream,
            settings.camera_names,
            group,
            acted,
            stop,
            gates_ms=gates_ms,
            gather_s=settings.gathering_ms / 1e3,
        )
        told = Told(stream, settings, gates_ms, signalled)
        signs = Signs(gate, pulse, told, name_of_process())
        with open_outputs(settings) as outputs, hurrying():  # their threads would inherit it
            distribute(inbox, signs, outputs)
        inbox.settle()


def distribute(inbox: Inbox, signs: Signs, outputs: Sequence[OutputLane]) -> None:
    """The main loop: the gate first, then whoever may be slow."""
    while inbox.more:
        found = inbox.read(signs.rest_ms)
        signs.told.tell([delivery.verdict for delivery in found])
        for delivery in found:
            done = inbox.owe(delivery, len(outputs))
            for output in outputs:
                output.offer(delivery, done, from_backlog=inbox.is_behind)
        signs.beat()
        inbox.settle_when_due()


class Signs:
    """What the sink shows to the world: the reject signal, and that it lives."""

    def __init__(self, gate: Lane, pulse: Pulse, told: Told, name: str) -> None:
        self.told = told
        self._gate = gate
        self._pulse = pulse
        self._name = name
        self._next_s = 0.0

    @property
    def rest_ms(self) -> int:
        """How long the loop may wait for verdicts before it has to beat again."""
        return max(BLOCK_MIN_MS, int(1000 * self.told.reject.rest_s))

    def beat(self) -> None:
        """Beat on every turn of the loop; raises what ended the gate keeper, if anything did."""
        self._gate.check()
        self.told.reject.beat()
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + BEAT_S
            self._pulse.beat(ROLE, self._name)


@dataclass(slots=True)
class Owed:
    """One frame's verdict on its way through the outputs."""

    left: int  # outputs that still have to act
    field: str  # of the ledger; what the first of its verdicts counts as
    deliveries: dict[str, VerdictDelivery]  # by entry id; rarely more than one


class Inbox:
    """Verdicts of one consumer group: read, handed out once, acknowledged when dealt with."""

    def __init__(
        self,
        stream: Stream,
        cameras: Sequence[str],
        group: str,
        acted: Acted,
        stop: threading.Event,
        *,
        gates_ms: Mapping[str, float] | None = None,
        gather_s: float = 0.0,
    ) -> None:
        self._stream = stream
        self._cameras = cameras
        self._group = group
        self._acted = acted
        self._stop = stop
        self._gates_ms = gates_ms or {}
        self._gather_s = gather_s  # verdicts that flow are let come so long
        self._flows = False  # whether the last read found verdicts
        self._patiently = outlasting_loss(ROLE, stop)
        self._owed: dict[str, Owed] = {}  # by frame_id
        self._done: deque[VerdictDelivery] = deque()
        self._lock = threading.Lock()
        self._read_some = True
        self.is_behind = False  # whether the last read found more than it takes at a time
        self._settle_at = self._trim_at = 0.0  # monotonic seconds

    @property
    def more(self) -> bool:
        """Whether verdicts may still come: not stopped, or the last read was not empty."""
        return self._read_some or not self._stop.is_set()

    def read(self, block_ms: int) -> list[VerdictDelivery]:
        """The next verdicts that nobody has acted on; waits so long for the first."""
        if self._flows and not self.is_behind:
            gather_s = min(self._gather_s, block_ms / 1e3)
            self._stop.wait(gather_s)
            block_ms = max(BLOCK_MIN_MS, block_ms - int(1000 * gather_s))
        found = self._patiently(self._take, block_ms)
        self._read_some = self._flows = bool(found)
        of_cameras = Counter(delivery.camera for delivery in found)
        self.is_behind = max(of_cameras.values(), default=0) >= READ_MAX
        with self._lock:
            return [delivery for delivery in found if self._is_new(delivery)]

    def _take(self, block_ms: int) -> list[VerdictDelivery]:
        return self._stream.read_verdicts(self._cameras, self._group, ROLE, READ_MAX, block_ms)

    def owe(self, delivery: VerdictDelivery, outputs: int) -> Callable[[], None]:
        """Note that so many outputs will act; each calls what is returned once it is done."""
        frame_id = delivery.verdict.frame_id
        tell_verdict(delivery.verdict, self._gates_ms.get(delivery.camera))

        def sign() -> None:
            with self._lock:
                owed = self._owed[frame_id]
                owed.left -= 1
                if owed.left <= 0:
                    self._acted.add({frame_id: owed.field})  # before anyone says so
                    self._done.extend(self._owed.pop(frame_id).deliveries.values())

        with self._lock:
            field = ledger_field(delivery.verdict)
            self._owed[frame_id] = Owed(outputs, field, {delivery.entry_id: delivery})
        if not outputs:
            sign()
        return sign

    def settle_when_due(self) -> None:
        """Settle a few times a second, or at once where nothing more comes."""
        if time.monotonic() >= self._settle_at or not self.more:
            self._settle_at = time.monotonic() + ACKNOWLEDGE_S
            self.settle()

    def settle(self) -> None:
        """Acknowledge what is dealt with, and let the stream forget what nobody needs."""
        done = [self._done.popleft() for _ in range(len(self._done))]
        if done:
            names = {delivery.verdict.frame_id for delivery in done}
            acted = {frame_id: self._acted.field(frame_id) for frame_id in names}
            self._patiently(self._stream.acknowledge_verdicts, self._group, done, acted)
        if time.monotonic() >= self._trim_at:
            self._trim_at = time.monotonic() + TRIM_S
            for camera in self._cameras:
                self._patiently(self._stream.trim_verdicts, camera, KEPT)

    def _is_new(self, delivery: VerdictDelivery) -> bool:
        """Whether its frame is neither acted on nor in hand; a repeat is only acknowledged."""
        frame_id = delivery.verdict.frame_id
        if (owed := self._owed.get(frame_id)) is not None:
            owed.deliveries[delivery.entry_id] = delivery
            return False
        if frame_id in self._acted:
            self._done.append(delivery)
            return False
        return True


def _soundings(
    stream: Stream, pulse: Pulse, settings: LineSettings
) -> AbstractContextManager[object]:
    """The thread that looks at the line as a whole, where /metrics is served."""
    if not settings.metrics.port:
        return nullcontext()
    return Lane("soundings", Soundings(stream, pulse, settings).run)

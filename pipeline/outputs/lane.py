"""One output's thread and its bounded queue.

To wake a thread costs more than most outputs do for a verdict; so one that nobody waits for gathers
verdicts for a moment, and one that a verdict does not concern is not woken at all.

A full queue is an overrun: counted, and the verdict is done as far as this output is concerned. A
failure is counted too. Of either, the first in a row is an event; a broken output may not fill the
log. After a sink was away its verdicts come faster than any output acts: an output that moves is
then waited for a little, and not again before it has caught up.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from engines.contracts import Verdict
from pipeline.lanes import Lane
from pipeline.outputs.output import Output, StillOwed
from pipeline.stream import VerdictDelivery
from pipeline.telemetry import facts

LOOK_S = 0.25
CATCH_UP_S = 2.0  # that one way through a backlog may be held up
WAIT_S = 0.05  # for one place in the queue: an output that gives none so long does not move
Done = Callable[[], None]


class OutputLane:
    """Hands verdicts to one output, in order, without ever making the caller wait."""

    def __init__(
        self,
        output: Output,
        queue_max: int,
        *,
        gather_s: float = 0.0,
        concerned: Callable[[Verdict], bool] = lambda _: True,
    ) -> None:
        self._output = output
        self._gather_s = gather_s  # how long verdicts wait for others
        self._concerned = concerned  # whether the output would do anything
        self._queue: queue.Queue[tuple[VerdictDelivery, Done]] = queue.Queue(queue_max)
        self._patience_s = CATCH_UP_S
        self._troubled = False
        self._full = False
        self._lane = Lane(f"output {output.name}", self._act_on)

    def __enter__(self) -> Self:
        self._lane.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lane.__exit__(kind, error, trace)

    def offer(self, delivery: VerdictDelivery, done: Done, *, from_backlog: bool = False) -> None:
        """Queue a verdict; ``done`` is called when the output has dealt with it, or never will.

        Only verdicts ``from_backlog`` may wait for a place. Raises what ended the output's thread,
        if anything did.
        """
        self._lane.check()
        if not self._concerned(delivery.verdict):
            done()
            return
        try:
            self._put((delivery, done), self._patience_s if from_backlog else 0.0)
            self._full = False
        except queue.Full:
            facts.count("outputs_overrun_total", output=self._output.name)
            if not self._full:
                facts.event("output_overrun", level="warning", output=self._output.name)
            self._full = True
            done()

    def _put(self, one: tuple[VerdictDelivery, Done], patience_s: float) -> None:
        if patience_s <= 0 or not self._queue.full():
            self._queue.put_nowait(one)
            return
        began_s = time.monotonic()
        try:
            self._queue.put(one, timeout=min(WAIT_S, patience_s))
        except queue.Full:
            self._patience_s = 0.0
            raise
        self._patience_s -= time.monotonic() - began_s

    def _act_on(self, closing: threading.Event) -> None:
        try:
            while not (closing.is_set() and self._queue.empty()):
                try:
                    delivery, done = self._queue.get(timeout=LOOK_S)
                except queue.Empty:
                    self._attempt(self._output.rest)
                    continue
                self._act(delivery, done, closing)
                if self._queue.empty():
                    self._patience_s = CATCH_UP_S
                    closing.wait(self._gather_s)
        finally:
            self._attempt(self._output.close)

    def _act(self, delivery: VerdictDelivery, done: Done, closing: threading.Event) -> None:
        name = self._output.name
        try:
            self._output.act(delivery, closing)
        except StillOwed:
            return
        except Exception as error:  # whatever a disk or a network comes up with
            facts.count("outputs_failed_total", output=name)
            self._mention(error)
        else:
            facts.count("verdicts_acted_total", output=name)
            self._troubled = False
        done()

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._mention(error)

    def _mention(self, error: Exception) -> None:
        if not self._troubled:
            name = self._output.name
            facts.event("output_failed", level="error", output=name, sentence=str(error))
        self._troubled = True

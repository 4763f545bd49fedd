"""Findings become verdicts on the stream: a thread of the worker judges, draws and answers."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from engines.contracts import Finding, Verdict
from pipeline.judging import Answer
from pipeline.labels import STAGES
from pipeline.lanes import Lane, outlasting_loss
from pipeline.reading import FrameReader, Held
from pipeline.stream import Stream
from pipeline.telemetry import facts
from pipeline.urgency import hurry

LOOK_S = 0.05
TOGETHER = 8  # answers in one round trip, at most
GATHER_S = (0.025, 0.1)  # how long an answer waits for others while the worker is busy
HURRY = 8  # times that long to the gate: what has less left waits for nobody
GRACE_S = 5.0  # how long a lost server holds up the end of the process


class Found(NamedTuple):
    """A finding that is not weighed yet."""

    finding: Finding
    found_ns: int  # server clock
    began_s: float
    deadline_ns: int  # of its part, which may be answered and gone once this is put


class Judged(NamedTuple):
    """A finding on its way to the stream."""

    held: Held
    answer: Answer
    began_s: float


class VerdictWriter:
    """Findings in, answers out; the queue is bounded by the slots."""

    def __init__(self, stream: Stream, frames: FrameReader, consumer: str, slots: int) -> None:
        self._stream = stream
        self._frames = frames
        self._consumer = consumer
        self._found: queue.Queue[Found] = queue.Queue(2 * slots)
        self._hurried = threading.Event()  # as many are found as share a round trip, or one is due
        self._judged: list[Judged] = []
        self._give_up = threading.Event()
        self._patiently = outlasting_loss("inspect", self._give_up)  # one: each leaves cycles
        self._lane = Lane("write", self._write_on)

    def __enter__(self) -> Self:
        self._lane.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        timer = threading.Timer(GRACE_S, self._give_up.set)
        timer.start()
        try:
            self._lane.__exit__(kind, error, at)
        finally:
            timer.cancel()
            timer.join()

    def put(self, finding: Finding) -> None:
        """Have a finding answered; waits where the server is slower than the engine."""
        deadline_ns = self._frames.held(finding.frame_id).entry.deadline_ns
        found_ns = self._stream.estimated_now_ns()
        found = Found(finding, found_ns, time.perf_counter(), deadline_ns)
        while True:
            self._lane.check()
            try:
                self._found.put(found, timeout=LOOK_S)
                break
            except queue.Full:
                continue
        if self._found.qsize() >= TOGETHER - 1 or not self._fitting_s(found):
            self._hurried.set()

    def _write_on(self, closing: threading.Event) -> None:
        hurry()
        while not (closing.is_set() and self._found.empty()):
            try:
                first = self._found.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            self._hurried.wait(self._patience_s(first, closing))
            self._hurried.clear()
            found = [first, *self._waiting(TOGETHER - 1)]
            if not self._found.empty():  # one that hurried may be left, behind them
                self._hurried.set()
            self._answer(found)

    def _waiting(self, most: int) -> Iterator[Found]:
        """Findings that are there by now."""
        with contextlib.suppress(queue.Empty):
            for _ in range(most):
                yield self._found.get_nowait()

    def _answer(self, found: Iterable[Found]) -> None:
        """Answer findings in one round trip; nobody waits for more than one picture."""
        for one in found:
            self._judged.append(self._weigh(one))
            if self._judged[-1].answer.picture_png:
                self._send_judged()
        if self._judged:
            self._send_judged()

    def _patience_s(self, first: Found, closing: threading.Event) -> float:
        """How long to wait for other findings before the first one is weighed and sent.

        Findings of one turn share a round trip. While frames queue for the engine anyway, so do
        those of a few turns, unless a gate is near. To weigh them together, and to wake once for
        them, costs half.
        """
        is_plenty = self._found.qsize() >= TOGETHER - 1
        if is_plenty or not self._frames.is_busy or closing.is_set():
            return 0.0
        return max(0.0, self._fitting_s(first) - (time.perf_counter() - first.began_s))

    def _fitting_s(self, found: Found) -> float:
        """How long a finding may wait for others by its own gate; 0 where that is near."""
        least_s, most_s = GATHER_S
        fitting_s = (found.deadline_ns - self._stream.estimated_now_ns()) / 1e9 / HURRY
        return min(fitting_s, most_s) if fitting_s >= least_s else 0.0

    def _weigh(self, found: Found) -> Judged:
        held = self._frames.held(found.finding.frame_id)
        stages_ms = _stages_ms(held, found.found_ns)
        answer = held.judge.answer(held.entry, found.finding, self._stream.now_ns(), stages_ms)
        return Judged(held, answer, found.began_s)

    def _send_judged(self) -> None:
        now_ns = self._stream.estimated_now_ns()
        self._judged = [one._replace(answer=one.answer.told_at(now_ns)) for one in self._judged]
        written = self._patiently(self._send, self._judged)
        for one, was_written in zip(self._judged, written, strict=True):
            self._frames.release(one.answer.verdict.frame_id)
            self._note(one.answer, was_written, (time.perf_counter() - one.began_s) * 1e3)
        self._judged.clear()

    def _send(self, judged: Sequence[Judged]) -> list[bool]:
        return self._stream.answer_all(
            self._consumer,
            [(one.held.delivery, one.answer.verdict, _pictures(one.answer)) for one in judged],
        )

    def _note(self, answer: Answer, written: bool, write_ms: float) -> None:
        verdict = answer.verdict
        if not written:  # another worker owns it now, or the gate keeper has answered it
            facts.count("verdicts_stale_total", camera=verdict.camera)
            return
        _tell(verdict, write_ms)
        facts.event(
            "verdict",
            level="debug" if verdict.decision == "PASS" else "info",
            frame_id=verdict.frame_id,
            decision=verdict.decision,
            reason=verdict.reason,
            surprise=verdict.surprise,
            noise_level=verdict.level,
            steps=verdict.steps,
            total_ms=round(verdict.latency_ms["total"], 1),
        )


def _tell(verdict: Verdict, write_ms: float) -> None:
    """What this worker did for a frame; its time as a whole is told by the sink."""
    place = {"camera": verdict.camera, "recipe": verdict.recipe}
    facts.count("verdicts_written_total", decision=verdict.decision, **place)
    facts.observe("depth_steps", verdict.steps, **place)
    if verdict.level is not None and verdict.level >= 0:
        facts.observe("noise_level", verdict.level, **place)
    for stage, value_ms in {**verdict.latency_ms, "write": write_ms}.items():
        if stage in STAGES:
            facts.observe("stage_seconds", value_ms / 1e3, camera=verdict.camera, stage=stage)


def _stages_ms(held: Held, found_ns: int) -> dict[str, float]:
    """Milliseconds from exposure to reading, and from reading to the finding."""
    return {
        "queue": max(0.0, (held.read_ns - held.entry.captured_ns) / 1e6),
        "inspect": max(0.0, (found_ns - held.read_ns) / 1e6),
    }


def _pictures(answer: Answer) -> dict[str, bytes]:
    return {
        "mask_png": answer.mask_png,
        "picture_png": answer.picture_png,
        "map_png": answer.map_png,
    }

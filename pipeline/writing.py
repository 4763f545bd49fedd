"""Findings become verdicts on the stream: a thread of the worker judges, draws and answers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

from engines.contracts import Finding, Verdict
from pipeline.judging import Answer
from pipeline.labels import STAGES
from pipeline.lanes import Lane, outlasting_loss
from pipeline.reading import FrameReader, Held
from pipeline.stream import Stream
from pipeline.telemetry import facts

LOOK_S = 0.05
TOGETHER = 8  # answers in one round trip, at most
GATHER_S = 0.025  # how long an answer waits for others while the worker is busy
HURRY = 8  # times that long to the gate: what has less left waits for nobody
GRACE_S = 5.0  # how long a lost server holds up the end of the process


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
        self._findings: queue.Queue[tuple[Finding, int]] = queue.Queue(2 * slots)
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
        found_ns = self._stream.estimated_now_ns()
        while True:
            self._lane.check()
            try:
                self._findings.put((finding, found_ns), timeout=LOOK_S)
                return
            except queue.Full:
                continue

    def _write_on(self, closing: threading.Event) -> None:
        while self._judged or not (closing.is_set() and self._findings.empty()):
            try:
                finding, found_ns = self._findings.get(timeout=self._patience_s(closing))
            except queue.Empty:
                if self._judged:
                    self._send_judged()
                continue
            self._judged.append(self._weigh(finding, found_ns))
            if len(self._judged) >= TOGETHER or self._is_due(closing):
                self._send_judged()

    def _is_due(self, closing: threading.Event) -> bool:
        """Whether what is judged is sent now; others wait for one picture at most."""
        has_picture = bool(self._judged[-1].answer.picture_png)
        return has_picture or (self._findings.empty() and self._patience_s(closing) <= 0)

    def _patience_s(self, closing: threading.Event) -> float:
        """How long to wait for the next finding, before what is judged is sent.

        Findings of one turn share a round trip. While frames queue for the engine anyway, so do
        those of two or three turns, unless a gate is near.
        """
        if not self._judged:
            return LOOK_S
        first = self._judged[0]
        waited_s = time.perf_counter() - first.began_s
        left_s = (first.held.entry.deadline_ns - self._stream.estimated_now_ns()) / 1e9
        if not self._frames.is_busy or closing.is_set() or left_s < HURRY * GATHER_S:
            return 0.0
        return max(0.0, GATHER_S - waited_s)

    def _weigh(self, finding: Finding, found_ns: int) -> Judged:
        held = self._frames.held(finding.frame_id)
        began_s = time.perf_counter()
        answer = held.judge.answer(
            held.entry, finding, self._stream.now_ns(), _stages_ms(held, found_ns)
        )
        return Judged(held, answer, began_s)

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

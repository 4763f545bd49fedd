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
        while not (closing.is_set() and self._findings.empty()):
            try:
                finding, found_ns = self._findings.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            self._judged.append(self._weigh(finding, found_ns))
            # Findings of one turn share a round trip; they wait for one picture at most.
            has_picture = bool(self._judged[-1].answer.picture_png)
            if self._findings.empty() or has_picture or len(self._judged) >= TOGETHER:
                self._send_judged()

    def _weigh(self, finding: Finding, found_ns: int) -> Judged:
        held = self._frames.held(finding.frame_id)
        began_s = time.perf_counter()
        answer = held.judge.answer(
            held.entry, finding, self._stream.now_ns(), _stages_ms(held, found_ns)
        )
        return Judged(held, answer, began_s)

    def _send_judged(self) -> None:
        written = outlasting_loss("inspect", self._give_up)(self._send, self._judged)
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

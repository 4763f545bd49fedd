"""Parts in, findings out: rows in flight over slots, in-flight batching of denoise steps.

One tick starts the newly admitted, steps the oldest in flight, and finishes the done; a row that is
finished leaves at once and a new one joins at the next tick. If a batch raises, its rows are tried
alone, and a row that fails alone becomes a finding without evidence; if every row fails alone it is
the engine that is broken.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from engines.contracts import (
    ADAPTIVE,
    EngineFault,
    Evidence,
    Finding,
    Progress,
    Reason,
    Rows,
    UInt8,
)
from engines.images import image_seed
from engines.scheduler import Job, advance, begin, choose, finished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from engines.contracts import Backend

Answer = TypeVar("Answer", Progress, Evidence)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One frame as the engine needs it."""

    frame_id: str
    category_id: int
    category: str  # the name that calibrations are keyed by
    image: UInt8  # [h, w, 3] model input
    plan: int = ADAPTIVE
    deadline_ns: int = 0


class Inspector:
    """Keeps up to ``backend.capacity`` frames in flight; not thread-safe, as a backend is not."""

    def __init__(self, backend: Backend, batch_max: int = 16) -> None:
        self._backend = backend
        self._batch_max = batch_max
        self._free = deque(range(backend.capacity))
        self._waiting: deque[tuple[Part, Job]] = deque()
        self._jobs: dict[int, Job] = {}  # slot -> job, in order of admission

    @property
    def free_slots(self) -> int:
        """How many more parts may be admitted now."""
        return len(self._free)

    @property
    def in_flight(self) -> int:
        """Parts admitted and not finished."""
        return len(self._waiting) + len(self._jobs)

    def admit(self, parts: Iterable[Part]) -> None:
        """Give each part a slot; raises IndexError beyond ``free_slots``."""
        for part in parts:
            slot = self._free.popleft()
            job = Job(part.frame_id, part.category, slot, part.deadline_ns)
            self._waiting.append((part, job))

    def step(self) -> list[Finding]:
        """One tick: start the new, step those in flight, finish the done."""
        failures = self._start_waiting()
        failures += self._step_chosen()
        return failures + self._finish_done()

    def drain(self) -> list[Finding]:
        """Finish everything in flight, admitting nothing."""
        findings: list[Finding] = []
        while self.in_flight:
            findings += self.step()
        return findings

    def _start_waiting(self) -> list[Finding]:
        fresh = list(islice(self._waiting, self._batch_max))
        parts = {job.slot: part for part, job in fresh}

        def start(jobs: Sequence[Job]) -> Progress:
            rows = _rows([parts[job.slot] for job in jobs])
            return self._backend.start(rows, [job.slot for job in jobs])

        def join(jobs: Sequence[Job], progress: Progress) -> None:
            begin(jobs, progress)
            self._jobs |= {job.slot: job for job in jobs}

        failures = self._attempt([job for _, job in fresh], start, join)
        for _ in fresh:  # only now: a job that never began must not look finished after a fault
            self._waiting.popleft()
        return failures

    def _step_chosen(self) -> list[Finding]:
        def step(jobs: Sequence[Job]) -> Progress:
            return self._backend.step([job.slot for job in jobs])

        return self._attempt(choose(self._jobs.values(), self._batch_max), step, advance)

    def _finish_done(self) -> list[Finding]:
        findings: list[Finding] = []

        def finish(jobs: Sequence[Job]) -> Evidence:
            return self._backend.finish([job.slot for job in jobs])

        def leave(jobs: Sequence[Job], evidence: Evidence) -> None:
            for row, job in enumerate(jobs):
                findings.append(_finding(job, evidence, row))
                self._release(job)

        done = finished(self._jobs.values())
        failures = [
            failure
            for first in range(0, len(done), self._batch_max)
            for failure in self._attempt(done[first : first + self._batch_max], finish, leave)
        ]
        return findings + failures

    def _attempt(
        self,
        jobs: Sequence[Job],
        call: Callable[[Sequence[Job]], Answer],
        commit: Callable[[Sequence[Job], Answer], None],
    ) -> list[Finding]:
        """Decide, run, commit; findings come back only for rows that fail alone."""
        if not jobs:
            return []
        try:
            commit(jobs, call(jobs))
        except EngineFault:
            return self._attempt_alone(jobs, call, commit)
        return []

    def _attempt_alone(
        self,
        jobs: Sequence[Job],
        call: Callable[[Sequence[Job]], Answer],
        commit: Callable[[Sequence[Job], Answer], None],
    ) -> list[Finding]:
        failed: list[Job] = []
        for job in jobs:
            try:
                commit([job], call([job]))
            except EngineFault as error:
                failed.append(job)
                fault = error
        if len(failed) == len(jobs):
            raise fault
        for job in failed:
            self._release(job)
        return [_failure(job) for job in failed]

    def _release(self, job: Job) -> None:
        self._jobs.pop(job.slot, None)  # a row that failed to start is not there yet
        self._free.append(job.slot)


def inspect_all(inspector: Inspector, parts: Iterable[Part]) -> Iterator[Finding]:
    """Findings of any number of parts as they finish, never more in flight than slots."""
    source = iter(parts)
    exhausted = False
    while not exhausted or inspector.in_flight:
        batch = list(islice(source, inspector.free_slots))
        exhausted = exhausted or (not batch and inspector.free_slots > 0)
        inspector.admit(batch)
        yield from inspector.step()


def _rows(parts: Sequence[Part]) -> Rows:
    return Rows(
        image=np.stack([part.image for part in parts]),
        category=np.array([part.category_id for part in parts], np.int64),
        seed=np.array([image_seed(part.image) for part in parts], np.int64),
        plan=np.array([part.plan for part in parts], np.int32),
    )


def _finding(job: Job, evidence: Evidence, row: int) -> Finding:
    score = float(evidence.anomaly_score[row])
    return Finding(
        frame_id=job.frame_id,
        category=job.category,
        anomaly_map=evidence.anomaly_map[row].copy(),
        anomaly_score=score,
        plan=job.plan,
        level=job.level,
        steps=job.steps,
        steps_planned=job.steps_planned,
        reason=None if math.isfinite(score) else Reason.NO_EVIDENCE,
    )


def _failure(job: Job) -> Finding:
    return Finding(
        frame_id=job.frame_id,
        category=job.category,
        anomaly_map=np.full((1, 1), np.nan, np.float32),
        anomaly_score=math.nan,
        plan=job.plan,
        level=job.level,
        steps=job.steps,
        steps_planned=job.steps_planned,
        reason=Reason.BAD_FRAME,
    )

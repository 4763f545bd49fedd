"""Parts in, findings out: rows in flight over slots, in-flight batching of denoise steps.

One turn is one call of one graph, as the scheduler decides; a row that is finished leaves at once
and a new one joins at the next turn. If a batch raises, its rows are tried alone, and a row that
fails alone becomes a finding without evidence; if every row fails alone it is the engine that is
broken.

Where a bundle cuts frames, the tiles of one are so many rows, admitted together and answered
together. A frame that loses a tile is answered at once: what its other tiles would still find could
not make it pass, and others need the time.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import numpy as np

from engines.backend import start_inputs
from engines.contracts import (
    ADAPTIVE,
    BadConfig,
    EngineFault,
    Evidence,
    Finding,
    Progress,
    Reason,
    UInt8,
)
from engines.jobs import Job, Sheet
from engines.scheduler import Policy, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from engines.bundle import GraphName
    from engines.contracts import Backend
    from engines.mosaic import Mosaic

Answer = TypeVar("Answer", Progress, Evidence)


@runtime_checkable
class Bringing(Protocol):
    """A backend to which frames may travel while others are computed, ahead of their start."""

    def bring(self, images: Sequence[UInt8], slots: Sequence[int]) -> None:
        """Let frames travel; one that did not arrive travels with its start."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One frame as the engine needs it."""

    frame_id: str
    category_id: int
    category: str  # the name that calibrations are keyed by
    image: UInt8  # [h, w, 3] model input, or the frame that is cut into several
    plan: int = ADAPTIVE
    deadline_ns: int = 0  # 0 = none
    camera: str = ""


class Inspector:
    """Keeps up to ``backend.capacity`` rows in flight; not thread-safe, as a backend is not.

    A frame is one row, or as many as it has tiles by ``mosaic``; BadConfig where they are too many.
    ``clock`` gives nanoseconds of the deadlines' clock; without one nothing is ever late. ``timer``
    gives nanoseconds to time calls by (the clock where there is none): what they cost is learned.
    """

    def __init__(
        self,
        backend: Backend,
        batch_max: int = 16,
        *,
        scheduler: Scheduler | None = None,
        clock: Callable[[], int] = lambda: 0,
        timer: Callable[[], int] | None = None,
        mosaic: Mosaic | None = None,
    ) -> None:
        self._backend = backend
        self._bring = backend.bring if isinstance(backend, Bringing) else None
        self._mosaic = mosaic
        self._tiles = 1 if mosaic is None else mosaic.tiling.count
        if backend.capacity < self._tiles:
            raise BadConfig(
                f"there are {backend.capacity} slots, but one frame of this bundle takes "
                f"{self._tiles}: set worker.slots to {self._tiles} or more"
            )
        self._scheduler = Scheduler(Policy(batch_max)) if scheduler is None else scheduler
        self._clock, self._timer = clock, timer or clock
        self._free = deque(range(backend.capacity))
        self._parts: dict[int, Part] = {}  # slot -> part, or tile of one, that waits to start
        self._sheets: dict[int, Sheet] = {}  # slot -> frame that its row belongs to
        self._in_flight = 0
        self._until_ns = math.inf  # when the last turn wants the next, unless parts arrive

    @property
    def free_slots(self) -> int:
        """How many more parts may be admitted now."""
        return len(self._free) // self._tiles

    @property
    def in_flight(self) -> int:
        """Parts admitted and not finished."""
        return self._in_flight

    @property
    def due_ns(self) -> float:
        """The deadline of the first part in line; inf where there is none."""
        return self._scheduler.due_ns

    @property
    def patience_s(self) -> float:
        """How long there is nothing to do unless parts arrive."""
        if not self.in_flight:
            return math.inf
        return max(0.0, (self._until_ns - self._clock()) / 1e9)

    def admit(self, parts: Iterable[Part]) -> None:
        """Give each part a slot; raises IndexError beyond ``free_slots``."""
        now_ns = self._clock()
        fresh: dict[int, UInt8] = {}
        for part in parts:
            if self.free_slots < 1:
                raise IndexError(f"there is no slot for {part.frame_id}")
            self._in_flight += 1
            sheet = Sheet({})
            for tile, row in enumerate(self._rows_of(part)):
                slot = self._free.popleft()
                self._parts[slot], self._sheets[slot] = row, sheet
                fresh[slot] = row.image
                sheet.jobs[tile] = _job(row, slot, now_ns, tile)
                self._scheduler.add(sheet.jobs[tile])
        if fresh and self._bring is not None:
            self._bring(list(fresh.values()), list(fresh))

    def step(self, *, expects_more: bool = True) -> list[Finding]:
        """One turn: one call of one graph, or parts given up because nothing could save them.

        ``expects_more``: other parts may still come, which those at hand may wait for.
        """
        is_full = self.free_slots < 1
        turn = self._scheduler.next(
            self._clock(), expects_more=expects_more and not is_full, is_full=is_full
        )
        self._until_ns = turn.until_ns if turn.kind == "wait" else -math.inf
        match turn.kind:
            case "start":
                return self._attempt(turn.jobs, self._start, self._scheduler.started)
            case "step":
                return self._attempt(turn.jobs, self._step, self._scheduler.stepped)
            case "look":
                return self._finished(turn.jobs, self._scheduler.looked)
            case "finish":
                return self._finished(turn.jobs)
            case "drop":
                return self._given_up(turn.jobs, Reason.DEADLINE)
            case "wait":
                return []

    def drain(self) -> list[Finding]:
        """Finish everything in flight, admitting nothing."""
        findings: list[Finding] = []
        while self.in_flight:
            findings += self.step(expects_more=False)
        return findings

    def _rows_of(self, part: Part) -> list[Part]:
        """The part itself, or its tiles, row by row."""
        if self._mosaic is None or self._tiles == 1:
            return [part]
        return [replace(part, image=tile) for tile in self._mosaic.tiling.cut(part.image)]

    def _start(self, jobs: Sequence[Job]) -> Progress:
        parts = [self._parts[job.slot] for job in jobs]
        rows = start_inputs(
            [part.image for part in parts],
            [part.category_id for part in parts],
            [job.request for job in jobs],
        )
        slots = [job.slot for job in jobs]
        progress = self._timed("start", slots, lambda: self._backend.start(rows, slots))
        for slot in slots:
            del self._parts[slot]
        return progress

    def _step(self, jobs: Sequence[Job]) -> Progress:
        slots = [job.slot for job in jobs]
        return self._timed("step", slots, lambda: self._backend.step(slots))

    def _finish(self, jobs: Sequence[Job]) -> Evidence:
        slots = [job.slot for job in jobs]
        return self._timed("finish", slots, lambda: self._backend.finish(slots))

    def _timed(self, graph: GraphName, slots: Sequence[int], call: Callable[[], Answer]) -> Answer:
        began_ns = self._timer()
        answer = call()
        self._scheduler.costs.note(graph, len(slots), self._timer() - began_ns)
        return answer

    def _finished(
        self,
        jobs: Sequence[Job],
        leaving: Callable[[Sequence[Job], Evidence], Sequence[Job]] = lambda jobs, _: jobs,
    ) -> list[Finding]:
        """Evidence of jobs; those that are ``leaving`` with it are findings."""
        findings: list[Finding] = []

        def leave(done: Sequence[Job], evidence: Evidence) -> None:
            gone = {job.slot for job in leaving(done, evidence)}
            for row, job in enumerate(done):
                if job.slot in gone:
                    findings.extend(self._leave(job, _finding(job, evidence, row)))

        failures = self._attempt(jobs, self._finish, leave)
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
        return self._given_up(failed, Reason.BAD_FRAME)

    def _given_up(self, jobs: Iterable[Job], reason: Reason) -> list[Finding]:
        """Frames of which one of these jobs is a tile, answered by what their other tiles found."""
        findings: list[Finding] = []
        for job in jobs:
            sheet = self._sheets.get(job.slot)  # None: gone with a job before this one
            for tile in list(sheet.jobs.values()) if sheet else ():
                findings += self._leave(tile, _without_evidence(tile, reason))
        return findings

    def _leave(self, job: Job, finding: Finding) -> list[Finding]:
        """Let a row go; with the last one of its frame comes the frame's finding."""
        self._scheduler.leave(job)
        self._parts.pop(job.slot, None)  # of a row that never started
        self._free.append(job.slot)
        sheet = self._sheets.pop(job.slot)
        if not sheet.note(job, finding):
            return []
        self._in_flight -= 1
        return [finding if self._mosaic is None else self._mosaic.whole(sheet.findings)]


def inspect_all(inspector: Inspector, parts: Iterable[Part]) -> Iterator[Finding]:
    """Findings of any number of parts as they finish, never more in flight than slots."""
    source = iter(parts)
    exhausted = False
    while not exhausted or inspector.in_flight:
        batch = list(islice(source, inspector.free_slots))
        exhausted = exhausted or (not batch and inspector.free_slots > 0)
        inspector.admit(batch)
        yield from inspector.step()


def _job(part: Part, slot: int, now_ns: int, tile: int) -> Job:
    return Job(
        part.frame_id,
        part.category,
        slot,
        part.deadline_ns,
        camera=part.camera,
        asked=part.plan,
        arrived_ns=now_ns,
        tile=tile,
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


def _without_evidence(job: Job, reason: Reason) -> Finding:
    return Finding(
        frame_id=job.frame_id,
        category=job.category,
        anomaly_map=np.full((1, 1), np.nan, np.float32),
        anomaly_score=math.nan,
        plan=job.plan,
        level=job.level,
        steps=job.steps,
        steps_planned=job.steps_planned,
        reason=reason,
    )

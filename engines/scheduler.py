"""Which jobs go through which graph next: pure policy over jobs, costs and deadlines.

One turn is one call of one graph. Who is done leaves first; who waits joins as soon as there is
room; everybody else takes a step together, whatever their level and depth, because the graphs keep
each row's place on its walk in the row itself (README, *Why*). Earliest deadline first: a row that
is due later than one who waits does not take up its room.

Depth is bought with time. Before frames start, the deepest limit is sought under which every frame
at hand would be done in time; as load rises the limit falls, never below the shallowest plan, and
it rises again as soon as the queue is shorter. What not even the shallowest plan can save is given
up, and answered, before anything more is computed for it.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.backend import BUCKETS
from engines.bundle import GRAPHS
from engines.contracts import ADAPTIVE
from engines.costs import CostTable
from engines.depths import DepthMix, Depths
from engines.jobs import Job, Turn
from engines.outlook import Company, Outlook, Prices

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engines.bundle import GraphName
    from engines.calibration import ExitRule
    from engines.contracts import Evidence, Progress

AROUND: tuple[GraphName, ...] = ("start", "finish")  # the price of coming and going


@dataclass(frozen=True, slots=True)
class Policy:
    """What a line says of its time."""

    batch_max: int = BUCKETS[-1]
    margin_ns: int = 0  # evidence must be there so long before the deadline
    fill_ns: int = 0  # how long a frame may wait for company while nothing else is to be done


class Scheduler:
    """Decides turn by turn; whoever carries the turns out reports back.

    Without ``depths`` no plan is ever limited, without ``exits`` none is left before its end.
    """

    def __init__(
        self,
        policy: Policy,
        costs: CostTable | None = None,
        depths: Depths | None = None,
        exits: ExitRule | None = None,
    ) -> None:
        self.costs = CostTable() if costs is None else costs
        self._policy = policy
        self._batch_max = min(policy.batch_max, self.costs.widest)
        self._depths, self._exits = depths, exits
        self._mix = None if depths is None else DepthMix(depths)
        self._outlook = Outlook(self.costs, self._batch_max, depths, self._mix)
        self._waiting: list[Job] = []  # by due time
        self._running: list[Job] = []  # by due time
        self._idle_ns = 0.0  # worth of the places that stayed empty while frames waited
        self._owes_step = False  # frames that make no step must not keep others from theirs
        self._called_ns = -math.inf  # when the last call had ended
        self._is_calling = False
        self._served: Counter[str] = Counter()  # frames started by camera, since all was well

    @property
    def in_flight(self) -> int:
        """Jobs that wait or run."""
        return len(self._waiting) + len(self._running)

    @property
    def due_ns(self) -> float:
        """The first deadline of the jobs at hand; inf where there is none."""
        first = (jobs[0] for jobs in (self._running, self._waiting) if jobs)
        return min((job.deadline_ns or math.inf for job in first), default=math.inf)

    # ---- what happened

    def add(self, job: Job) -> None:
        """A job has arrived."""
        if job.deadline_ns:
            job.due_ns = job.deadline_ns - self._policy.margin_ns
        insort(self._waiting, job, key=_due)

    def started(self, jobs: Sequence[Job], progress: Progress) -> None:
        """Write down what the start graph chose."""
        for row, job in enumerate(jobs):
            job.plan, job.level = int(progress.plan[row]), int(progress.level[row])
            job.steps_left = job.steps_planned = int(progress.steps_left[row])
            job.is_running = True
            self._waiting.remove(job)
            insort(self._running, job, key=_due)
            self._served[job.camera] += job.tile == 0
            if self._mix is not None and job.asked == ADAPTIVE:
                self._mix.note(job.plan, job.limit)
        self._idle_ns, self._owes_step = 0.0, True
        if all(job.is_done for job in self._running):
            self._doubt_if_limited(jobs)

    def _doubt_if_limited(self, jobs: Sequence[Job]) -> None:
        """A price of steps that keeps everybody from making one would never be measured again."""
        if any(job.limit is not None for job in jobs):
            self.costs.doubt("step")

    def stepped(self, jobs: Sequence[Job], progress: Progress) -> None:
        """Count one denoiser call for each job."""
        for row, job in enumerate(jobs):
            job.steps_left = int(progress.steps_left[row])
            job.level = int(progress.level[row])  # GLAD's is where it closes, known only now
            job.steps += 1
        self._owes_step = False
        if self._waiting:
            empty = max(0, self._batch_max - len(jobs))
            self._idle_ns += empty * self.costs.row_ns("step", self._batch_max)

    def looked(self, jobs: Sequence[Job], evidence: Evidence) -> list[Job]:
        """Those whose verdict no further step can change; they leave with this evidence."""
        for row, job in enumerate(jobs):
            job.looked_at, score = job.steps, float(evidence.anomaly_score[row])
            job.is_cut = self._exits is not None and self._exits.decides(
                job.category, job.plan, job.steps, score
            )
        return [job for job in jobs if job.is_cut]

    def exit_by(self, exits: ExitRule | None) -> None:
        """Another rule of where jobs may leave; what has left already is not called back."""
        self._exits = exits

    def leave(self, job: Job) -> None:
        """A job has its finding, or is given up."""
        (self._running if job.is_running else self._waiting).remove(job)
        if self._mix is not None and job.is_running and job.is_done:
            self._mix.note_made(job.steps, job.steps_planned)

    # ---- what to do next

    def next(self, now_ns: float, *, expects_more: bool = True, is_full: bool = False) -> Turn:
        """The next turn at a time in nanoseconds of the deadlines' clock.

        ``expects_more``: other frames may still come; without it nobody waits for company.
        ``is_full``: there is no slot for them, so there may be any number.
        """
        if self._is_calling:
            self._called_ns, self._is_calling = now_ns, False
        prices, most, lost = self._prospects(now_ns, is_full=is_full)
        if lost:
            self._doubt_what_refuses(prices, now_ns)
            return Turn("drop", lost)
        self._cut_overdue(prices, now_ns)
        patience_ns = self._patience_ends_ns(prices, expects_more=expects_more)
        if now_ns < patience_ns:
            return Turn("wait", until_ns=patience_ns)
        self._is_calling = True
        return self._call(prices, most, now_ns)

    def _call(self, prices: Prices, most: int, now_ns: float) -> Turn:
        """The call to make now, of those that somebody waits for."""
        done = [job for job in self._running if job.is_done]
        walking = [job for job in self._running if not job.is_done]
        joining: tuple[Job, ...] = ()
        if not (walking and self._owes_step):
            joining = self._joining(walking, prices, most, now_ns)
        if done and (joining or not self._may_linger(done, walking, prices, now_ns)):
            return Turn("finish", self._sharing("finish", done))
        if asking := [job for job in walking if self._asks(job)]:
            return Turn("look", self._sharing("finish", asking))
        if joining and self._may_start(joining, walking, prices, now_ns):
            return Turn("start", joining)
        return Turn("step", self._sharing("step", walking))

    def _prospects(self, now_ns: float, *, is_full: bool) -> tuple[Prices, int, tuple[Job, ...]]:
        """Prices, how many may start together, and who is lost.

        Whoever is late in full company is given up for the others, who would be late for his sake.
        Where that is everybody, the company is made smaller, down to one; but not while others
        queue for a slot: small calls would make those late in turn.
        """
        done = sum(job.is_done for job in self._running)
        owed = 1 if self._owes_step and done < len(self._running) else 0
        most = min(self._batch_max, max(1, len(self._waiting)))
        while True:
            company = Company(len(self._running) - done, done, most)
            prices = self._outlook.prices(company)
            behind = self._rounds_behind(most)
            lost = [
                job
                for job in self._all()
                if self._is_late(job, prices, owed, now_ns, behind.get(job.slot, 0))
            ]
            waiting = sum(not job.is_running for job in lost)
            if is_full or most == 1 or not waiting or waiting < len(self._waiting):
                return prices, most, tuple(lost)
            most //= 2

    def _rounds_behind(self, most: int) -> dict[int, int]:
        """Slot -> how many rounds of ``most`` rows a tile starts after the first of its frame.

        A frame of which only some tiles would be in time is not begun.
        """
        if not any(job.tile for job in self._waiting):
            return {}
        first: dict[str, int] = {}
        return {
            job.slot: place // most - first.setdefault(job.frame_id, place // most)
            for place, job in enumerate(self._waiting)
        }

    def _is_late(
        self, job: Job, prices: Prices, owed: int, now_ns: float, rounds_behind: int
    ) -> bool:
        cut_in = self._cut_in(job) if job.is_running else math.inf
        needed_ns = self._outlook.least_ns(job, prices, owed, cut_in)
        return now_ns + (1 + rounds_behind) * needed_ns > job.due_ns

    def _doubt_what_refuses(self, prices: Prices, now_ns: float) -> None:
        """Prices by which frames are refused while nothing is called are lowered, to be tried."""
        if now_ns - self._called_ns > prices.start + prices.finish:
            for graph in GRAPHS:
                self.costs.doubt(graph)

    def _all(self) -> Iterator[Job]:
        yield from self._running
        yield from self._waiting

    def _sharing(self, graph: GraphName, jobs: Sequence[Job]) -> tuple[Job, ...]:
        """The first jobs, as many as share one call well."""
        return tuple(jobs[: self.costs.rows_of(graph, min(len(jobs), self._batch_max))])

    # ---- joining

    def _joining(
        self, walking: Sequence[Job], prices: Prices, most: int, now_ns: float
    ) -> tuple[Job, ...]:
        """Waiting jobs that start now, each with the deepest plan that it may take."""
        if not self._waiting:
            return ()
        room = self._batch_max - sum(job.due_ns <= self._waiting[0].due_ns for job in walking)
        if room < 1:
            return ()
        limit, is_feasible = self._outlook.limit(self._all(), prices, now_ns)
        if is_feasible:
            self._served.clear()
        order = self._waiting if is_feasible else self._in_turns()
        fitting = min(most, self._room_for_starts(room, limit))
        chosen = self._sharing("start", order[:fitting])
        chosen = chosen if is_feasible else self._without_torn(chosen, prices, now_ns)
        if not chosen:
            return ()
        if fitting < len(self._waiting) and not self._is_worth_starting(len(chosen)):
            return ()
        for job in chosen:
            job.limit = self._outlook.limit_of(job, limit, prices, now_ns)
        return chosen

    def _in_turns(self) -> list[Job]:
        """Waiting jobs, the least served camera first: no camera's flood starves another.

        Tiles of a frame keep together, and those whose frame has begun come before all: without
        them the work on the others would be lost.
        """
        served = self._served.copy()
        ranks: dict[str, tuple[int, int]] = {}  # of frames
        for job in self._waiting:
            if job.frame_id not in ranks:
                has_begun = job.tile > 0
                ranks[job.frame_id] = (-1 if has_begun else served[job.camera], len(ranks))
                served[job.camera] += not has_begun
        return sorted(self._waiting, key=lambda job: ranks[job.frame_id])

    def _without_torn(
        self, jobs: tuple[Job, ...], prices: Prices, now_ns: float
    ) -> tuple[Job, ...]:
        """Without the last frame where some of its tiles are left out and would then be late."""
        last = jobs[-1]
        of_last = [job for job in jobs if job.frame_id == last.frame_id]
        count = sum(job.frame_id == last.frame_id for job in self._waiting)
        rest = jobs[: len(jobs) - len(of_last)]
        has_choice = len(of_last) < count <= self._batch_max and (rest or self._running)
        return rest if has_choice and self._is_late(last, prices, 0, now_ns, 1) else jobs

    def _room_for_starts(self, room: int, limit: int | None) -> int:
        """How many may start so that ``room`` places are filled: some will make no step at all."""
        if self._mix is None or limit is None:
            return room
        stepping = max(self._mix.stepping_below(limit), 1 / self._batch_max)
        return max(1, int(room / stepping))

    def _is_worth_starting(self, count: int) -> bool:
        """Whether places have stayed empty for longer than small calls waste (ski rental).

        A start with few rows costs more per row than a full one, and so does the finish that made
        room for it; so does a step with empty places. To wait until both losses are equal is what
        an economic order quantity is, and at most twice as dear as to know the future.
        """
        full = self._batch_max
        extra_ns = sum(
            self.costs.call_ns(graph, count) - count * self.costs.row_ns(graph, full)
            for graph in AROUND
        )
        gained_ns = count * self.costs.row_ns("step", full)
        return not self._running or extra_ns <= self._idle_ns + gained_ns

    def _patience_ends_ns(self, prices: Prices, *, expects_more: bool) -> float:
        """Until when there is nothing to do: for ever, or while the first waits for company."""
        if not self.in_flight:
            return math.inf
        fill_ns = self._policy.fill_ns if expects_more else 0
        if not fill_ns or self._running or len(self._waiting) >= self._batch_max:
            return -math.inf
        first = self._waiting[0]
        spare_ns = first.due_ns - self._outlook.least_ns(first, prices, 0, math.inf) - fill_ns
        return min(fill_ns + min(job.arrived_ns for job in self._waiting), spare_ns)

    # ---- leaving

    def _asks(self, job: Job) -> bool:
        """Whether a job stands where it may leave early, and was not looked at there."""
        if self._exits is None or job.looked_at == job.steps or job.asked != ADAPTIVE:
            return False
        return self._exits.asks(job.category, job.plan, job.steps)

    def _may_linger(
        self, done: Sequence[Job], walking: Sequence[Job], prices: Prices, now_ns: float
    ) -> bool:
        """Whether jobs that are done wait for others, so that they share a call.

        Only where frames queue anyway, until the next of them start, and nobody is due by then.
        """
        turn_ns = prices.start + prices.step_after + prices.finish
        return bool(walking and self._waiting) and done[0].due_ns - now_ns > 2 * turn_ns

    def _may_start(
        self, joining: Sequence[Job], walking: Sequence[Job], prices: Prices, now_ns: float
    ) -> bool:
        """Whether those who walk and are due first can wait for others to start, and gain by it."""
        first_due_ns = min(job.due_ns for job in joining)
        older = [job for job in walking if job.due_ns < first_due_ns]
        after_ns = now_ns + self.costs.sure_ns("start", len(joining)) + prices.finish
        if any(after_ns + job.steps_left * prices.tick > job.due_ns for job in older):
            return False
        waiting = len(self._waiting)
        return self._outlook.pays_to_start(len(joining), walking, len(older), waiting)

    def _cut_in(self, job: Job) -> float:
        """Calls until a job may stop before its end; inf where it may not."""
        if self._depths is None or self._exits is None or job.asked != ADAPTIVE:
            return math.inf
        steps = self._depths.steps_to_cut(job.steps)
        has_threshold = self._exits.has_threshold(job.category, job.plan, job.steps + steps)
        return steps if has_threshold else math.inf

    def _cut_overdue(self, prices: Prices, now_ns: float) -> None:
        """Let jobs leave at a cut point that would be late at the next one."""
        if self._depths is None:
            return
        for job in self._running:
            left_ns = job.due_ns - now_ns - prices.finish
            unit = min(job.steps_left, self._depths.steps_unit)
            if unit * prices.tick > left_ns and not self._cut_in(job):
                job.is_cut = True


def _due(job: Job) -> float:
    return job.due_ns

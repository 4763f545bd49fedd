"""Which jobs go through which graph next: pure policy over jobs, costs and deadlines.

One turn is one call of one graph. Who is done leaves first; who waits joins as soon as there is
room; everybody else takes a step together, whatever their level and depth, because the graphs keep
each row's place on its walk in the row itself (README, *Why*). Earliest deadline first, throughout.

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

from engines.bundle import GraphName
from engines.contracts import ADAPTIVE
from engines.costs import CostTable
from engines.depths import DepthMix, Depths
from engines.jobs import Job, Turn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engines.calibration import ExitRule
    from engines.contracts import Evidence, Progress

AROUND: tuple[GraphName, ...] = (
    "start",
    "finish",
)  # what a step's company pays for coming and going
HEADROOM = 0.6  # of the time left that the queue at hand may fill; the rest is for who comes next


@dataclass(frozen=True, slots=True)
class Policy:
    """What a line says of its time."""

    batch_max: int = 16
    margin_ns: int = 0  # evidence must be there so long before the deadline
    fill_ns: int = 0  # how long a frame may wait for company while nothing else is to be done


@dataclass(frozen=True, slots=True)
class Prices:
    """What time costs in the company at hand, ns."""

    start: float  # of a call
    step: float
    finish: float
    row_start: float  # of one row in such a call
    row_step: float
    row_finish: float
    tick: float  # from one step of a job to its next, with all that joins and leaves between


class Scheduler:
    """Decides turn by turn; whoever carries the turns out reports back.

    Without ``depths`` no plan is ever limited or cut.
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
        self._depths = depths
        self._exits = exits
        self._mix = None if depths is None else DepthMix(depths)
        self._waiting: list[Job] = []  # by due time
        self._running: list[Job] = []  # by due time
        self._idle_ns = 0.0  # worth of the places that stayed empty while frames waited
        self._owes_step = False  # frames that make no step must not keep others from theirs

    @property
    def in_flight(self) -> int:
        """Jobs that wait or run."""
        return len(self._waiting) + len(self._running)

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
            if self._mix is not None and job.asked == ADAPTIVE:
                self._mix.note(job.plan, job.limit)
        self._idle_ns, self._owes_step = 0.0, True

    def stepped(self, jobs: Sequence[Job], progress: Progress) -> None:
        """Count one denoiser call for each job."""
        for row, job in enumerate(jobs):
            job.steps_left = int(progress.steps_left[row])
            job.level = int(progress.level[row])  # GLAD's is where it closes, known only now
            job.steps += 1
        self._owes_step = False
        if self._waiting:
            empty = max(0, self._policy.batch_max - len(jobs))
            self._idle_ns += empty * self.costs.row_ns("step", self._policy.batch_max)

    def looked(self, jobs: Sequence[Job], evidence: Evidence) -> list[Job]:
        """Those whose verdict no further step can change; they leave with this evidence."""
        for row, job in enumerate(jobs):
            job.looked_at, score = job.steps, float(evidence.anomaly_score[row])
            decides = self._exits is not None and self._exits.decides
            job.is_cut = bool(decides and decides(job.category, job.plan, job.steps, score))
        return [job for job in jobs if job.is_cut]

    def leave(self, job: Job) -> None:
        """A job has its finding, or is given up."""
        (self._running if job.is_running else self._waiting).remove(job)

    # ---- what to do next

    def next(self, now_ns: float) -> Turn:
        """The next turn at a time in nanoseconds of the deadlines' clock."""
        prices = self._prices()
        self._cut_overdue(prices, now_ns)
        lost = [job for job in self._all() if now_ns + self._least_ns(job, prices) > job.due_ns]
        if lost:
            return Turn("drop", tuple(lost))
        done = [job for job in self._running if job.is_done]
        walking = [job for job in self._running if not job.is_done]
        stepping = self._sharing("step", walking)
        joining = () if stepping and self._owes_step else self._joining(walking, prices, now_ns)
        if done and (joining or not self._may_linger(done, walking, prices, now_ns)):
            return Turn("finish", self._sharing("finish", done))
        if asking := [job for job in walking if self._asks(job)]:
            return Turn("look", self._sharing("finish", asking))
        if joining and not self._is_step_urgent(joining, prices, now_ns):
            return Turn("start", joining)
        if stepping:
            return Turn("step", stepping)
        return Turn("wait", until_ns=self._patience_ends_ns(prices))

    def _asks(self, job: Job) -> bool:
        """Whether a job stands where it may leave early, and was not looked at there."""
        if self._exits is None or job.looked_at == job.steps or job.asked != ADAPTIVE:
            return False
        return self._exits.asks(job.category, job.plan, job.steps)

    def _all(self) -> Iterator[Job]:
        yield from self._running
        yield from self._waiting

    def _sharing(self, graph: GraphName, jobs: Sequence[Job]) -> tuple[Job, ...]:
        """The first jobs, as many as share one call well."""
        return tuple(jobs[: self._rows_of(graph, len(jobs))])

    def _rows_of(self, graph: GraphName, at_hand: int) -> int:
        return self.costs.rows_of(graph, min(at_hand, self._policy.batch_max))

    def _prices(self) -> Prices:
        start, step, finish = (
            max(1, self._rows_of(graph, self.in_flight)) for graph in ("start", "step", "finish")
        )
        row_start, row_finish = (
            self.costs.row_ns("start", start),
            self.costs.row_ns("finish", finish),
        )
        steps = max(1.0, self._mix.steps_below(-1)) if self._mix is not None else 1.0
        around = step / steps * (row_start + row_finish)  # so many join and leave at every step
        return Prices(
            start=self.costs.call_ns("start", start),
            step=self.costs.call_ns("step", step),
            finish=self.costs.call_ns("finish", finish),
            row_start=row_start,
            row_step=self.costs.row_ns("step", step),
            row_finish=row_finish,
            tick=self.costs.sure_ns("step", step) + around,
        )

    # ---- joining

    def _may_linger(
        self, done: Sequence[Job], walking: Sequence[Job], prices: Prices, now_ns: float
    ) -> bool:
        """Whether jobs that are done wait for others, so that they share a call.

        Only where frames queue anyway, until the next of them start, and nobody is due by then.
        """
        turn_ns = prices.start + prices.step + prices.finish
        return bool(walking and self._waiting) and done[0].due_ns - now_ns > 2 * turn_ns

    def _joining(self, walking: Sequence[Job], prices: Prices, now_ns: float) -> tuple[Job, ...]:
        """Waiting jobs that start now, each with the deepest plan that it may take."""
        room = self._policy.batch_max - len(walking)
        if not self._waiting or room < 1 or now_ns < self._patience_ends_ns(prices):
            return ()
        limit, is_feasible = self._limit(prices, now_ns)
        most = self._room_for_starts(room, limit)
        order = self._waiting if is_feasible else _in_turns(self._waiting)
        chosen = self._sharing("start", order[:most])
        if most < len(self._waiting) and not self._is_worth_starting(len(chosen)):
            return ()
        for job in chosen:
            job.limit = self._limit_of(job, limit, prices, now_ns)
        return chosen

    def _room_for_starts(self, room: int, limit: int | None) -> int:
        """How many may start so that ``room`` places are filled: some will make no step at all."""
        if self._mix is None or limit is None:
            return room
        stepping = max(self._mix.stepping_below(limit), 1 / self._policy.batch_max)
        return max(1, int(room / stepping))

    def _is_worth_starting(self, count: int) -> bool:
        """Whether places have stayed empty for longer than small calls waste (ski rental).

        A start with few rows costs more per row than a full one, and so does the finish that made
        room for it; so does a step with empty places. To wait until both losses are equal is what
        an economic order quantity is, and at most twice as dear as to know the future.
        """
        full = self._policy.batch_max
        extra_ns = sum(
            self.costs.call_ns(graph, count) - count * self.costs.row_ns(graph, full)
            for graph in AROUND
        )
        gained_ns = count * self.costs.row_ns("step", full)
        return not self._running or extra_ns <= self._idle_ns + gained_ns

    def _patience_ends_ns(self, prices: Prices) -> float:
        """Until when the first in line waits for company, where there is nothing else to do."""
        fill_ns = self._policy.fill_ns
        if not self._waiting:
            return math.inf
        if not fill_ns or self._running or len(self._waiting) >= self._policy.batch_max:
            return 0.0
        spare_ns = self._waiting[0].due_ns - self._least_ns(self._waiting[0], prices) - fill_ns
        return min(fill_ns + min(job.arrived_ns for job in self._waiting), spare_ns)

    def _is_step_urgent(self, joining: Sequence[Job], prices: Prices, now_ns: float) -> bool:
        """Whether starting others would make somebody late who runs and is due before them."""
        after_ns = now_ns + self.costs.sure_ns("start", len(joining)) + prices.finish
        first_due_ns = min(job.due_ns for job in joining)
        return any(
            after_ns + job.steps_left * prices.tick > job.due_ns
            for job in self._running
            if job.due_ns < first_due_ns
        )

    # ---- depth for time

    def _limit(self, prices: Prices, now_ns: float) -> tuple[int | None, bool]:
        """The deepest plan that waiting jobs may take, and whether all would be in time by it."""
        if self._depths is None or self._mix is None:
            return None, True
        for limit in self._depths.limits:
            if self._is_feasible(self._mix.steps_below(limit), prices, now_ns):
                return limit, True
        return limit, False

    def _is_feasible(self, fresh_steps: float, prices: Prices, now_ns: float) -> bool:
        """Whether all jobs at hand, in order of their deadlines, fit into their ``HEADROOM``.

        Those that wait are taken to make ``fresh_steps`` in the mean.
        """
        fresh_ns = prices.row_start + fresh_steps * prices.row_step + prices.row_finish
        work_ns = 0.0
        for job in sorted(self._all(), key=_due):
            if job.is_running:
                work_ns += job.steps_left * prices.row_step + prices.row_finish
            else:
                work_ns += fresh_ns
            if work_ns > HEADROOM * (job.due_ns - now_ns):
                return False
        return True

    def _limit_of(self, job: Job, limit: int | None, prices: Prices, now_ns: float) -> int | None:
        """The limit of one job: no plan that it could not finish by itself; None = any."""
        if self._depths is None or limit is None or job.asked != ADAPTIVE:
            return None
        left_ns = job.due_ns - now_ns - prices.start - prices.finish
        plans = [plan for plan in self._depths.limits if plan <= limit]
        fitting = (plan for plan in plans if self._depths.steps[plan] * prices.tick <= left_ns)
        chosen = next(fitting, plans[-1])
        return None if chosen == self._depths.limits[0] else chosen

    # ---- who is late

    def _least_ns(self, job: Job, prices: Prices) -> float:
        """Time until a job has evidence by the shallowest way, in the company at hand.

        An estimate by what it would need alone would spend calls on frames that are late in the
        end, and so make the next ones late.
        """
        if job.is_running:
            steps_left: float = 0 if job.is_done else job.steps_left
            if self._depths is not None:
                steps_left = min(steps_left, self._depths.steps_to_cut(job.steps))
            return steps_left * prices.step + prices.finish
        steps = 1 if self._running and self._owes_step else 0
        if self._depths is not None:
            steps += self._depths.steps[0 if job.asked == ADAPTIVE else job.asked]
        return prices.start + steps * prices.step + prices.finish

    def _cut_overdue(self, prices: Prices, now_ns: float) -> None:
        """Let jobs leave at a cut point that would be late at the next, and at their end."""
        if self._depths is None or not self._depths.can_cut:
            return
        for job in self._running:
            left_ns = job.due_ns - now_ns - prices.finish
            unit = min(job.steps_left, self._depths.steps_unit)
            if unit * prices.tick > left_ns and not self._depths.steps_to_cut(job.steps):
                job.is_cut = True


def _due(job: Job) -> float:
    return job.due_ns


def _in_turns(jobs: Sequence[Job]) -> list[Job]:
    """The cameras in turns, jobs of each in their order: no camera's flood starves another."""
    turn: Counter[str] = Counter()
    ranked: list[tuple[int, int, Job]] = []
    for job in jobs:
        ranked.append((turn[job.camera], len(ranked), job))
        turn[job.camera] += 1
    return [job for *_, job in sorted(ranked, key=lambda row: row[:2])]

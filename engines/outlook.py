"""What time costs in the company at hand, and how much depth it buys. Pure functions of both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.contracts import ADAPTIVE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engines.costs import CostTable
    from engines.depths import DepthMix, Depths
    from engines.jobs import Job

HEADROOM = 0.6  # of the time left that the queue at hand may fill; the rest is for who comes next


@dataclass(frozen=True, slots=True)
class Company:
    """How many share calls now."""

    walking: int  # jobs that make steps
    done: int
    joining: int  # waiting jobs that would start together


@dataclass(frozen=True, slots=True)
class Prices:
    """Nanoseconds of calls and of their rows, for one company."""

    start: float  # of a call
    step: float  # of a call with those that walk
    step_after: float  # of a call with those that would join besides
    finish: float
    row_start: float  # of one row in such a call
    row_step: float
    row_finish: float
    tick: float  # from one step of a job to its next, with all that joins and leaves between


class Outlook:
    """Prices and depths over a cost table; ``batch_max`` rows share a call at the most."""

    def __init__(
        self, costs: CostTable, batch_max: int, depths: Depths | None, mix: DepthMix | None
    ) -> None:
        self._costs, self._batch_max = costs, batch_max
        self._depths, self._mix = depths, mix

    def prices(self, company: Company) -> Prices:
        """What a turn costs this company."""
        costs = self._costs
        start = self._rows("start", company.joining)
        step = self._rows("step", company.walking)
        step_after = self._rows("step", company.walking + company.joining)
        finish = self._rows("finish", company.done or company.joining)
        row_start, row_finish = costs.row_ns("start", start), costs.row_ns("finish", finish)
        steps = 1.0 if self._mix is None else max(1.0, self._mix.steps_below(-1))
        around = step_after / steps * (row_start + row_finish)  # so many come and go at each step
        return Prices(
            start=costs.call_ns("start", start),
            step=costs.call_ns("step", step),
            step_after=costs.call_ns("step", step_after),
            finish=costs.call_ns("finish", finish),
            row_start=row_start,
            row_step=costs.row_ns("step", step_after),
            row_finish=row_finish,
            tick=costs.sure_ns("step", step_after) + around,
        )

    def _rows(self, graph: str, at_hand: int) -> int:
        return max(1, self._costs.rows_of(graph, min(at_hand, self._batch_max)))  # type: ignore[arg-type]

    def least_ns(self, job: Job, prices: Prices, owed_steps: int, cut_in: float) -> float:
        """Time until a job has evidence by the shallowest way, in this company.

        ``owed_steps``: calls that others are owed before it may start; ``cut_in``: calls until it
        may stop, should it not reach its end.
        """
        if job.is_running:
            steps_left = 0 if job.is_done else min(job.steps_left, cut_in)
            return steps_left * prices.step + prices.finish
        steps = 0
        if self._depths is not None:
            steps = self._depths.steps[0 if job.asked == ADAPTIVE else job.asked]
        walk_ns = owed_steps * prices.step + steps * prices.step_after
        return prices.start + walk_ns + prices.finish

    def pays_to_start(self, joining: int, walking: Sequence[Job], older: int, waiting: int) -> bool:
        """Whether others start before those who walk make their next step.

        ``older`` of the ``walking`` are due before all who would join; each of them waits for that
        call. What sharing their next steps saves, everyone gains of the ``waiting``. So a machine
        that shares nothing walks one frame to its end, and a queue is what makes sharing pay.
        """
        costs = self._costs
        alone_ns = costs.call_ns("step", len(walking)) + costs.call_ns("step", joining)
        together = min(len(walking) + joining, self._batch_max)
        saved_ns = alone_ns - costs.call_ns("step", together)
        fresh = math.inf
        if self._mix is not None:
            fresh = self._mix.share_made * self._mix.steps_below(-1)
        shared = min(fresh, max((job.steps_left for job in walking), default=0))
        return saved_ns * shared * waiting >= costs.call_ns("start", joining) * older

    def limit(self, jobs: Iterable[Job], prices: Prices, now_ns: float) -> tuple[int | None, bool]:
        """The deepest plan that waiting jobs may take, and whether all would be in time by it."""
        if self._depths is None or self._mix is None:
            return None, True
        by_due = sorted(jobs, key=lambda job: job.due_ns)
        for limit in self._depths.limits:
            if self._is_feasible(by_due, self._mix.steps_below(limit), prices, now_ns):
                return limit, True
        return limit, False

    def _is_feasible(
        self, by_due: list[Job], fresh_steps: float, prices: Prices, now_ns: float
    ) -> bool:
        """Whether all jobs, in order of their deadlines, fit into their ``HEADROOM``.

        Those that wait are taken to make ``fresh_steps`` in the mean; some of what is planned is
        spared by those who leave early.
        """
        made = 1.0 if self._mix is None else self._mix.share_made
        fresh_ns = prices.row_start + made * fresh_steps * prices.row_step + prices.row_finish
        work_ns = 0.0
        for job in by_due:
            if job.is_running:
                work_ns += made * job.steps_left * prices.row_step + prices.row_finish
            else:
                work_ns += fresh_ns
            if work_ns > HEADROOM * (job.due_ns - now_ns):
                return False
        return True

    def limit_of(self, job: Job, limit: int | None, prices: Prices, now_ns: float) -> int | None:
        """The limit of one job: no plan that it could not finish by itself; None = any."""
        if self._depths is None or limit is None or job.asked != ADAPTIVE:
            return None
        left_ns = job.due_ns - now_ns - prices.start - prices.finish
        plans = [plan for plan in self._depths.limits if plan <= limit]
        fitting = (plan for plan in plans if self._depths.steps[plan] * prices.tick <= left_ns)
        chosen = next(fitting, plans[-1])
        return None if chosen == self._depths.limits[0] else chosen

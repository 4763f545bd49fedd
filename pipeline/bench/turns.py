"""Runs that are measured in turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from engines.contracts import Backend, BadBundle, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engines.bundle import Bundle

Seconds = dict[str, list[float]]  # by what was timed
Medians = dict[str, float]


def in_turns(runs: Mapping[str, Callable[[], Seconds]], rounds: int) -> dict[str, Medians]:
    """Medians of each run over the rounds; the first round warms up and is dropped."""
    kept: dict[str, Seconds] = {name: defaultdict(list) for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            measured = run()
            for part, values in (measured if turn else {}).items():
                kept[name][part] += values
    return {
        name: {part: statistics.median(values) for part, values in seconds.items()}
        for name, seconds in kept.items()
    }


def drawn_rows(bundle: Bundle, batch: int) -> Rows:
    """Random images at the plan with most steps, forced, so that all backends walk the same way."""
    height, width = bundle.manifest.image_size
    draw = np.random.default_rng(0)
    return Rows(
        image=draw.integers(0, 256, (batch, height, width, 3), np.uint8),
        category=np.zeros(batch, np.int64),
        seed=np.arange(batch, dtype=np.int64),
        plan=np.full(batch, deepest_plan(bundle), np.int32),
    )


def deepest_plan(bundle: Bundle) -> int:
    """The plan with most steps; BadBundle where none has any."""
    depths = [len(plan.levels) for plan in bundle.manifest.plans]
    if not depths or not max(depths):
        raise BadBundle(f"bundle {bundle.folder} has no plan with a step; there is nothing to time")
    return depths.index(max(depths))


def timed_pass(backend: Backend, rows: Rows) -> Seconds:
    """One whole pass: seconds of start, of each step, of finish, and of all."""
    slots = list(range(len(rows)))
    clock = [time.perf_counter()]
    progress = backend.start(rows, slots)
    clock.append(time.perf_counter())
    while int(progress.steps_left.max()) > 0:
        progress = backend.step(slots)
        clock.append(time.perf_counter())
    backend.finish(slots)
    clock.append(time.perf_counter())
    first, *steps, last = (after - before for before, after in itertools.pairwise(clock))
    return {"start": [first], "step": steps, "finish": [last], "pass": [clock[-1] - clock[0]]}

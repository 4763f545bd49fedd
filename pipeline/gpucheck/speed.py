"""How fast an engine is at every batch size, and what in-flight batching is worth on it."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from engines.backend import BatchedBackend, open_backend, start_inputs
from engines.contracts import ADAPTIVE
from engines.costs import CostTable
from engines.inspector import Inspector, Part, inspect_all
from engines.scheduler import Policy, Scheduler
from pipeline.bench.report import Result
from pipeline.bench.turns import deepest_plan, drawn_rows, in_turns, timed_pass
from pipeline.gpucheck.bundles import HUGE, frames_of, tried
from pipeline.gpucheck.each import figures_of_each
from pipeline.gpucheck.outcome import Asked, Found

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engines.bundle import Bundle

TURNS = 8  # as many frames through the scheduler as so many batches hold
STATIC = "run-to-completion, rows leave as they end"


def speed(backend: str, precision: str, asked: Asked) -> Found:
    """Frames per second and latency of whole passes at the deepest plan, by batch size."""

    def timed(name: str, bundle: Bundle) -> Iterator[Result]:
        with open_backend(bundle, backend, precision, max(asked.batches)) as engine:
            yield from passes(name, bundle, engine, asked)

    return figures_of_each(tried(asked, engine=(backend, precision)), timed, _best)


def passes(name: str, bundle: Bundle, engine: BatchedBackend, asked: Asked) -> Iterator[Result]:
    """Of one bundle: a pass and each of its graphs, against the smallest batch."""
    calls = len(bundle.manifest.plans[deepest_plan(bundle)].levels)
    alone_hz = 0.0
    for batch in asked.batches:
        rows = drawn_rows(bundle, batch)
        (took,) = in_turns({"": lambda rows=rows: timed_pass(engine, rows)}, asked.rounds).values()  # type: ignore[misc]
        rate_hz = batch / took["pass"]
        alone_hz = alone_hz or rate_hz
        tail = f"{name}.{engine.key}.b{batch}"
        against = f"batch {asked.batches[0]}, {calls} steps"
        yield Result(f"speed.{tail}", rate_hz, "frames/s", against, rate_hz / alone_hz)
        yield Result(f"latency.{tail}", 1e3 * took["pass"], "ms", f"{calls} steps", 1.0)
        for graph in ("start", "step", "finish"):
            share = took["pass"] / took[graph]
            yield Result(f"call.{graph}.{tail}", 1e3 * took[graph], "ms", "a whole pass", share)


def in_flight(backend: str, precision: str, asked: Asked) -> Found:
    """Frames per second at saturation where depths differ, against whole batches."""

    def flown(name: str, bundle: Bundle) -> Iterator[Result]:
        with open_backend(bundle, backend, precision, 2 * max(asked.batches)) as engine:
            for batch in asked.batches:
                frames = max(asked.frames, TURNS * batch)
                yield from compared(name, bundle, engine, batch, frames)

    known = tried(asked, without=HUGE, engine=(backend, precision))
    return figures_of_each(known, flown, _best)


def compared(
    name: str, bundle: Bundle, engine: BatchedBackend, batch: int, count: int
) -> Iterator[Result]:
    """Both ways on the same frames, each plan asked for equally often; then as graphs choose."""
    parts = list(_parts(bundle, count, forced=True))
    _ = in_flight_s(engine, parts[: 2 * batch], batch)  # warms up
    ours_s, theirs_s = in_flight_s(engine, parts, batch), run_to_completion_s(engine, parts, batch)
    tail = f"{name}.{engine.key}.b{batch}"
    yield Result(f"in_flight.{tail}", count / ours_s, "frames/s", STATIC, theirs_s / ours_s)
    chosen_s = in_flight_s(engine, list(_parts(bundle, count, forced=False)), batch)
    against = "every plan equally often"
    yield Result(f"adaptive.{tail}", count / chosen_s, "frames/s", against, ours_s / chosen_s)


def in_flight_s(engine: BatchedBackend, parts: Sequence[Part], batch: int) -> float:
    """Seconds until all parts have their finding, new ones joining between steps."""
    scheduler = Scheduler(Policy(batch), CostTable(batch))
    began_s = time.perf_counter()
    deque(inspect_all(Inspector(engine, scheduler=scheduler), parts), maxlen=0)
    return time.perf_counter() - began_s


def run_to_completion_s(engine: BatchedBackend, parts: Sequence[Part], batch: int) -> float:
    """Seconds of the same where nobody joins before a whole batch has ended."""
    began_s = time.perf_counter()
    for first in range(0, len(parts), batch):
        group = parts[first : first + batch]
        slots = list(range(len(group)))
        rows = start_inputs(
            [part.image for part in group],
            [part.category_id for part in group],
            [part.plan for part in group],
        )
        left = engine.start(rows, slots).steps_left.copy()
        while left.max() > 0:
            going = [slot for slot in slots if left[slot] > 0]
            left[going] = engine.step(going).steps_left
        engine.finish(slots)
    return time.perf_counter() - began_s


def _parts(bundle: Bundle, count: int, *, forced: bool) -> Iterator[Part]:
    images, categories = frames_of(bundle)
    plans = len(bundle.manifest.plans)
    for number in range(count):
        row = number % len(images)
        name = categories[row]
        plan = number % plans if forced else ADAPTIVE
        yield Part(str(number), bundle.category_id(name), name, images[row], plan)


def _best(results: Sequence[Result]) -> str:
    """The headline: the most frames per second of any bundle and batch."""
    rates = [result for result in results if result.unit == "frames/s"]
    best = max(rates, key=lambda result: result.value)
    return f"{best.value:,.0f} frames/s at best ({best.name})"

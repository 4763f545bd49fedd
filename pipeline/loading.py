"""A bundle made ready to inspect on a line: opened, checked against the line, rehearsed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.backend import BatchedBackend, open_backend, usable_cores
from engines.bundle import Bundle
from engines.calibration import Calibration
from engines.contracts import BadBundle, BadConfig
from engines.costs import CostTable, measure_costs
from engines.depths import Depths
from engines.inspector import Inspector
from engines.mosaic import Mosaic
from engines.scheduler import Policy, Scheduler
from pipeline.applied import AppliedThresholds
from pipeline.config import LineSettings, WorkerSettings
from pipeline.judging import Judge, categories_needed
from pipeline.seats import Loop, Seat

MANY_THREADS = 4  # from so many on, one engine is better than two: measured on two only


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """What follows the thresholds that people apply while a bundle inspects."""

    thresholds: AppliedThresholds
    schedulers: Sequence[Scheduler]
    early_exit: bool

    def follow(self, seat: Seat) -> bool:
        """Have a seat judge by what was applied since; whether that is something else.

        Parts that were read before keep theirs. Where rows may leave early follows at once: a row
        that walks on is only seen deeper.
        """
        if not self.thresholds.changed():
            return False
        now, judge = self.thresholds.now, seat.judge
        for scheduler in self.schedulers:
            scheduler.exit_by(now.exit_rule(judge.backend_key, looks=self.early_exit))
        seat.judge = Judge(now, judge.bundle_id, judge.backend_key, now.calibration_id)
        return True


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """Engines of one bundle that can inspect, and their place at the reader."""

    seat: Seat
    inspectors: Sequence[Inspector]  # of one engine each; each has a loop at the seat
    tuning: Tuning | None = None  # without it thresholds stay what they are

    def follow(self) -> bool:
        """See ``Tuning.follow``."""
        return self.tuning is not None and self.tuning.follow(self.seat)


@contextmanager
def loaded(
    settings: LineSettings,
    bundle: Bundle,
    clock: Callable[[], int],
    rest: Callable[[int], None] | None = None,
) -> Iterator[Loaded]:
    """Open a bundle on the line's backend, in the thread that will use its first engine.

    Closed afterwards.

    ``clock``: nanoseconds of the server. ``rest`` is called after each rehearsed call with the
    nanoseconds it took. Raises BadBundle or BadConfig for what this line cannot run.
    """
    margin_ms = settings.worker.margin_ms + math.ceil(settings.gathering_ms)
    chosen = settings.worker.model_copy(update={"margin_ms": margin_ms})
    count, cache = engines_of(chosen, bundle), settings.run_dir / "engines"
    with backend_of(chosen, bundle, engines=count, cache=cache) as backend:
        calibration = calibrated(bundle)
        judge = judge_of(settings, bundle, calibration, backend.key)
        engines = inspectors_of(chosen, bundle, calibration, backend, clock=clock, rest=rest)
        inspectors, schedulers = zip(*engines, strict=True)
        seat = Seat(bundle, judge, chosen.plan, tuple(Loop() for _ in inspectors))
        applied = AppliedThresholds(settings.run_dir, bundle, calibration)
        yield Loaded(seat, inspectors, Tuning(applied, schedulers, chosen.early_exit))


def backend_of(
    chosen: WorkerSettings, bundle: Bundle, *, engines: int = 1, cache: Path | None = None
) -> BatchedBackend:
    """A bundle on the backend that a worker is to have."""
    return open_backend(
        bundle,
        chosen.backend,
        chosen.precision,
        chosen.slots,
        threads=chosen.threads,
        cache=cache,
        engines=engines,
    )


def engines_of(chosen: WorkerSettings, bundle: Bundle) -> int:
    """How many engines share the processor: as many as are asked for, or fit it.

    Two where it has two or three threads. Where there are more, one frame gains by all of them, and
    the rows of one call go apart.
    """
    threads = chosen.threads or usable_cores()
    is_small = chosen.backend == "openvino" and 1 < threads < MANY_THREADS
    wanted = chosen.engines or (2 if is_small else 1)
    return max(1, min(wanted, chosen.slots // bundle.tiling.count))


def inspectors_of(
    chosen: WorkerSettings,
    bundle: Bundle,
    calibration: Calibration,
    backend: BatchedBackend,
    *,
    clock: Callable[[], int],
    rest: Callable[[int], None] | None = None,
) -> list[tuple[Inspector, Scheduler]]:
    """An inspector and its scheduler for a backend and each beside it, by what calls cost there."""
    backends = [backend, *backend.beside]
    costs = _costs(backends, chosen.batch_max, rest)
    mosaic = Mosaic.of(bundle, calibration, backend.key)
    timer = time.perf_counter_ns
    found = []
    for one, cost in zip(backends, costs, strict=True):
        scheduler = scheduler_of(chosen, bundle, calibration, backend.key, cost)
        inspector = Inspector(one, scheduler=scheduler, clock=clock, timer=timer, mosaic=mosaic)
        found.append((inspector, scheduler))
    return found


def _costs(
    backends: Sequence[BatchedBackend], batch_max: int, rest: Callable[[int], None] | None
) -> list[CostTable]:
    """What calls cost while all engines are at work; with ``rest``, gently, one after the other.

    The first belongs to the calling thread, as engines of some runtimes do.
    """
    timer = time.perf_counter_ns
    if rest is not None:
        return [measure_costs(one, timer, batch_max, rest) for one in backends]
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(measure_costs, one, timer, batch_max) for one in backends[1:]]
        return [measure_costs(backends[0], timer, batch_max), *(one.result() for one in others)]


def policy_of(settings: WorkerSettings) -> Policy:
    """What a line's settings say of its time."""
    return Policy(
        batch_max=settings.batch_max,
        margin_ns=settings.margin_ms * 1_000_000,
        fill_ns=settings.fill_ms * 1_000_000,
    )


def scheduler_of(
    settings: WorkerSettings,
    bundle: Bundle,
    calibration: Calibration,
    backend_key: str,
    costs: CostTable,
) -> Scheduler:
    """The policy of a line's settings over what the bundle can do on this backend."""
    if settings.plan >= len(bundle.manifest.plans):
        raise BadConfig(f"worker.plan is {settings.plan}, which {bundle.folder} lacks")
    exits = calibration.exit_rule(backend_key, looks=settings.early_exit)
    return Scheduler(policy_of(settings), costs, Depths.of(bundle.manifest), exits)


def judge_of(
    settings: LineSettings, bundle: Bundle, calibration: Calibration, backend_key: str
) -> Judge:
    """What findings are weighed against; BadBundle where a camera's category has no threshold."""
    named = categories_needed(bundle, [camera.category for camera in settings.cameras])
    calibration.require(backend_key, named, bundle.bundle_id)
    return Judge(calibration, bundle.bundle_id, backend_key, calibration.calibration_id)


def calibrated(bundle: Bundle) -> Calibration:
    """The thresholds of a bundle; BadBundle where it has none."""
    calibration = bundle.calibration()
    if calibration is None:
        raise BadBundle(
            f"bundle {bundle.folder} is not calibrated; run assayline calibrate with good images"
        )
    return calibration

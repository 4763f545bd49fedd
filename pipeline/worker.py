"""Process 2, as many as the line needs: frames of the stream become verdicts.

A thread reads, this thread inspects, a thread writes. The backend belongs to this thread, which
opens, uses and closes it; nothing else here waits for the network. A worker that dies leaves its
frames pending, and another takes them over; one whose engine fails raises EngineFault and is
started again.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing

from engines.backend import open_backend
from engines.bundle import Bundle, open_bundle
from engines.calibration import Calibration
from engines.contracts import BadBundle, BadConfig
from engines.costs import CostTable, measure_costs
from engines.depths import Depths
from engines.inspector import Inspector
from engines.mosaic import Mosaic
from engines.scheduler import Policy, Scheduler
from pipeline.config import LineSettings, WorkerSettings
from pipeline.judging import Judge, categories_needed
from pipeline.pulse import Pulse, name_of_process
from pipeline.reading import ROLE, FrameReader
from pipeline.shared import FrameRings
from pipeline.stream import open_stream
from pipeline.telemetry import facts, reporting
from pipeline.writing import VerdictWriter


def run_worker(settings: LineSettings, stop: threading.Event) -> None:
    """Inspect until ``stop`` is set, then finish what is in flight.

    Raises BadBundle for a bundle that is damaged or not calibrated for this backend, StreamLost
    where there is no server, and EngineFault where the engine fails for every frame.
    """
    bundle, chosen = open_bundle(settings.bundle), settings.worker
    url, namespace = settings.redis.address(ROLE), settings.redis.namespace
    consumer = name_of_process()
    with (
        reporting(ROLE, settings, chosen.index),
        open_stream(url, namespace) as stream,
        open_backend(
            bundle,
            chosen.backend,
            chosen.precision,
            chosen.slots,
            threads=chosen.threads,
            cache=settings.run_dir / "engines",
        ) as backend,
        closing(Pulse(url, namespace)) as pulse,
        FrameReader(
            stream,
            settings.camera_names,
            consumer,
            pulse=pulse,
            bundle=bundle,
            settings=chosen,
            stop=stop,
            fetch=FrameRings(settings.run_dir, settings.shared_cameras).fetch,
        ) as frames,
        VerdictWriter(
            stream, frames, _judge(settings, bundle, backend.key), consumer, chosen.slots
        ) as verdicts,
    ):
        costs = measure_costs(backend, time.perf_counter_ns, chosen.batch_max)
        inspector = Inspector(
            backend,
            scheduler=scheduler_of(chosen, bundle, backend.key, costs),
            clock=stream.estimated_now_ns,
            timer=time.perf_counter_ns,
            mosaic=Mosaic.of(bundle, calibrated(bundle), backend.key),
        )
        inspect(frames, inspector, verdicts)


def inspect(frames: FrameReader, inspector: Inspector, verdicts: VerdictWriter) -> None:
    """The main loop, until there is nothing more to come and nothing in flight."""
    while frames.more or inspector.in_flight:
        inspector.admit(frames.take(inspector.free_slots, inspector.patience_s))
        for finding in inspector.step(expects_more=frames.more):
            verdicts.put(finding)
        frames.beat()


def policy_of(settings: WorkerSettings) -> Policy:
    """What a line's settings say of its time."""
    return Policy(
        batch_max=settings.batch_max,
        margin_ns=settings.margin_ms * 1_000_000,
        fill_ns=settings.fill_ms * 1_000_000,
    )


def scheduler_of(
    settings: WorkerSettings, bundle: Bundle, backend_key: str, costs: CostTable
) -> Scheduler:
    """The policy of a line's settings over what the bundle can do on this backend."""
    if settings.plan >= len(bundle.manifest.plans):
        raise BadConfig(f"worker.plan is {settings.plan}, which {bundle.folder} lacks")
    exits = calibrated(bundle).exit_rule(backend_key, looks=settings.early_exit)
    return Scheduler(policy_of(settings), costs, Depths.of(bundle.manifest), exits)


def _judge(settings: LineSettings, bundle: Bundle, backend_key: str) -> Judge:
    """What findings are weighed against; an uncalibrated bundle is refused before any frame."""
    calibration = calibrated(bundle)
    named = categories_needed(bundle, [camera.category for camera in settings.cameras])
    calibration.require(backend_key, named, bundle.bundle_id)
    for category, entry in calibration.entries[backend_key].items():
        promised = entry.evidence.max_false_reject
        facts.gauge("false_reject_promise_ratio", promised, category=category)
    return Judge(calibration, bundle.bundle_id, backend_key, calibration.calibration_id)


def calibrated(bundle: Bundle) -> Calibration:
    """The thresholds of a bundle; BadBundle where it has none."""
    calibration = bundle.calibration()
    if calibration is None:
        raise BadBundle(
            f"bundle {bundle.folder} is not calibrated; run assayline calibrate with good images"
        )
    return calibration

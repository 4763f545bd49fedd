"""Process 1, one per camera: what its source shows goes into the stream, and into a recording."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from engines.bundle import open_bundle
from engines.contracts import BadConfig
from pipeline.config import CameraSettings, LineSettings
from pipeline.gate import least_left_ms
from pipeline.intake import LOOK_S, ROLE, Intake
from pipeline.journal import Journal, journal_path
from pipeline.lanes import Lane
from pipeline.originals import Originals
from pipeline.pulse import beating
from pipeline.recording import Recorder
from pipeline.shared import FRAMES, ORIGINALS, FrameRing, remove, shared_path, wants_ring
from pipeline.sources import open_source
from pipeline.sources.source import Exposure
from pipeline.stream import open_stream
from pipeline.swap import bundle_in_force
from pipeline.telemetry import facts, reporting
from pipeline.urgency import hurrying
from pipeline.wire import FrameHead


def run_ingest(settings: LineSettings, camera: str, stop: threading.Event) -> None:
    """Feed one camera's stream until its source ends or ``stop`` is set, then see all dealt with.

    Raises SourceLost, StreamLost where the server cannot be reached at the start or the end, and
    BadConfig or BadBundle for what the settings name.
    """
    chosen = settings.camera(camera)
    size = open_bundle(bundle_in_force(settings)).frame_size
    with (
        ExitStack() as stack,
        reporting(ROLE, settings, settings.camera_names.index(camera)),
        open_stream(settings.redis.address(ROLE), settings.redis.namespace) as stream,
        Journal(journal_path(settings.run_dir, camera)) as journal,
        open_source(chosen.source, camera) as source,
    ):
        ring = stack.enter_context(_ring(settings, chosen, size))
        originals = stack.enter_context(_originals(settings.run_dir, chosen))
        intake = Intake(
            stream,
            journal,
            chosen,
            size,
            ring=ring,
            originals=originals,
            least_left_ms=partial(
                least_left_ms,
                [one.gate_ms for one in settings.cameras],
                settings.keeper_margin_ms,
            ),
        )
        sending = stack.enter_context(Lane("admit", intake.send_on))
        keep = stack.enter_context(_recording(settings.recording, chosen))
        address, namespace = settings.redis.address(ROLE), settings.redis.namespace
        stop = stack.enter_context(beating(ROLE, address, namespace, stop, intake.sight.note))
        urgently = nullcontext if chosen.overrun == "wait" else hurrying
        facts.gauge("camera_connected", 0, camera=camera)  # until it has shown something
        try:
            for exposure in source.frames(stop):
                with urgently():  # but not while it is read or drawn
                    head = intake.take(exposure)
                keep(_as_known(exposure, head))
                sending.check()
                intake.wait_for_room(stop)
        finally:
            facts.gauge("camera_connected", 0, camera=camera)
            intake.finish(stop)
            if originals and journal.owed:  # the next start, or the line, removes them
                originals.leave()


def _ring(
    settings: LineSettings, camera: CameraSettings, size: tuple[int, int]
) -> AbstractContextManager[FrameRing | None]:
    """The ring of a camera that sends by shared memory; of any other what was left is removed.

    A camera that is not told to share does not where that memory is not to be had.
    """
    path = shared_path(settings.run_dir, camera.name, FRAMES)
    if wants_ring(settings, camera):
        try:
            return FrameRing(path, camera.credits, size[0] * size[1] * 3)
        except BadConfig as error:
            if camera.transport == "shared":
                raise
            facts.event("ring_refused", level="warning", camera=camera.name, sentence=str(error))
    remove(path)
    return nullcontext()


def _originals(run_dir: Path, camera: CameraSettings) -> AbstractContextManager[Originals | None]:
    """The originals of a camera that keeps them; of any other what was left is removed."""
    if camera.originals_bytes:
        return Originals(run_dir, camera.name, camera.originals_bytes)
    remove(shared_path(run_dir, camera.name, ORIGINALS))
    return nullcontext()


@contextmanager
def _recording(
    folder: Path | None, camera: CameraSettings
) -> Iterator[Callable[[Exposure], object]]:
    """Where exposures are kept while a line is recorded.

    Frames that can wait at their source wait for the disk, since a recording with gaps replays
    something else; those of a belt cannot, and ``record`` says how many are missing. A process that
    is started again has a file of its own.
    """
    if folder is None:
        yield lambda _: None
        return
    with Recorder(folder / f"{camera.name}-{os.getpid()}.mcap") as recorder:
        waits = camera.overrun == "wait"
        yield (lambda exposure: _kept(recorder, exposure)) if waits else recorder.frame


def _as_known(exposure: Exposure, head: FrameHead) -> Exposure:
    """An exposure with what the line says of it, so that a recording says it too.

    Its stamp becomes the server's, as its verdict's is, so that both lie at one place in time.
    """
    return replace(
        exposure,
        frame_id=head.frame_id,
        captured_ns=head.captured_ns,
        category=head.category,
        recipe=head.recipe,
        lot=head.lot,
    )


def _kept(recorder: Recorder, exposure: Exposure) -> None:
    while not recorder.frame(exposure) and not recorder.failure:
        time.sleep(LOOK_S)

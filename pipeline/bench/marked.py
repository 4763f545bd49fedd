"""Watermarked frames through a real server and a real worker loop, over a stub of an engine.

Every frame carries its number in its pixels and every verdict must carry it back; so a bench shows
that no frame ever gets another's finding, whatever depths share a batch.
"""

from __future__ import annotations

import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engines.backend_stub import TimedStub, watermarked
from engines.bundle import Bundle, GraphsSpec, Manifest, PlanSpec
from engines.calibration import Calibration
from engines.calibration_fit import UNKNOWN, Wanted, fit_entry
from engines.inspector import Inspector
from engines.trajectories import Walked
from pipeline.bench.arrivals import STEPS
from pipeline.config import WorkerSettings
from pipeline.judging import Judge
from pipeline.lanes import Lane
from pipeline.loading import Loaded
from pipeline.pulse import Pulse
from pipeline.reading import FrameReader
from pipeline.seats import Seat
from pipeline.server import embedded_server
from pipeline.stream import Stream, open_stream
from pipeline.swap.station import inspect
from pipeline.wire import FrameEntry
from pipeline.writing import VerdictWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.stream import VerdictDelivery

CAMERAS, GROUP, CONSUMER = ("left", "right"), "bench", "bench"
NAMESPACE = "bench"
SIDE, SLOTS, CREDITS, TOGETHER = 8, 64, 256, 256
GATE_NS = 600_000_000_000
LOOK_S = 0.002
NO_PROGRESS_S = 10.0  # after so long without a verdict, those still missing are lost


def swaps_through_redis(frames: int) -> tuple[int, int]:
    """How many verdicts came of ``frames``, and how many carry another frame's number."""
    with (
        tempfile.TemporaryDirectory(prefix="assayline-bench-") as folder,
        embedded_server(Path(folder)) as url,
        open_stream(url, NAMESPACE) as stream,
        open_stream(url, NAMESPACE) as feeding,
    ):
        seen = _Seen(stream, frames)
        with (
            Lane("feed", lambda closing: _feed(feeding, frames, closing)) as feed,
            Lane("collect", lambda closing: seen.collect(closing, feed.check)),
        ):
            _work(url, stream, seen.complete)
        return len(seen.answered), seen.swapped


class _Seen:
    """Verdicts as they come, acknowledged and trimmed like those of a sink."""

    def __init__(self, stream: Stream, frames: int) -> None:
        self._stream, self._frames = stream, frames
        self.answered: set[str] = set()  # by frame_id
        self.swapped = 0
        self.complete = threading.Event()

    def collect(self, closing: threading.Event, check: Callable[[], None]) -> None:
        """Until all are there, or none has come for so long that the rest are lost.

        ``check`` raises what ended the feed; however this ends, the worker is told to stop.
        """
        try:
            last_s = time.monotonic()
            while len(self.answered) < self._frames and not closing.is_set():
                check()
                if self._take():
                    last_s = time.monotonic()
                elif time.monotonic() - last_s > NO_PROGRESS_S:
                    return
        finally:
            self.complete.set()

    def _take(self) -> int:
        """How many verdicts have come since the last time."""
        found = self._stream.read_verdicts(CAMERAS, GROUP, CONSUMER, TOGETHER, 20)
        self.answered |= {one.verdict.frame_id for one in found}
        self.swapped += sum(not _is_own(one) for one in found)
        self._stream.acknowledge_verdicts(GROUP, found)
        for camera in CAMERAS:
            self._stream.trim_verdicts(camera)
        return len(found)


def _is_own(delivery: VerdictDelivery) -> bool:
    verdict = delivery.verdict
    return verdict.anomaly_score is not None and verdict.part_id == str(int(verdict.anomaly_score))


def _feed(stream: Stream, frames: int, closing: threading.Event) -> None:
    """Admit numbered frames, the cameras in turns, as credits allow."""
    epochs = {camera: stream.begin_epoch(camera) for camera in CAMERAS}
    for number in range(frames):
        camera = CAMERAS[number % len(CAMERAS)]
        while number % TOGETHER < len(CAMERAS) and not stream.credits(camera, CREDITS):
            if closing.wait(LOOK_S):
                return
        now_ns = stream.now_ns()
        stream.admit(
            FrameEntry(
                frame_id=f"{camera}/{epochs[camera]}-{number // len(CAMERAS) + 1}",
                camera=camera,
                captured_ns=now_ns,
                deadline_ns=now_ns + GATE_NS,
                image=watermarked(number, (SIDE, SIDE)),
                part_id=str(number),
            )
        )


def _work(url: str, stream: Stream, stop: threading.Event) -> None:
    """The worker's own loop."""
    bundle = bundle_of(STEPS)
    settings = WorkerSettings(slots=SLOTS)
    stub = TimedStub(SLOTS, lambda _: None, steps=STEPS)
    with (
        closing(Pulse(url, NAMESPACE)) as pulse,
        FrameReader(stream, CAMERAS, CONSUMER, pulse=pulse, settings=settings, stop=stop) as frames,
        VerdictWriter(stream, frames, CONSUMER, SLOTS) as verdicts,
    ):
        seat = Seat(bundle, _judge(bundle, stub.key), settings.plan)
        frames.turn_to(seat)
        inspect(frames, Loaded(seat, [Inspector(stub)]), verdicts, 0, threading.Event())


def bundle_of(steps: Sequence[int]) -> Bundle:
    """As much of a bundle as a worker loop asks for, without any file."""
    manifest = Manifest(
        method="stub",
        categories=(),
        image_size=(SIDE, SIDE),
        plans=tuple(PlanSpec(start_level=n, levels=tuple(range(n))) for n in steps),
        steps_min=min(steps),
        steps_unit=1,
        spec=GraphsSpec(state=(), graphs={}, map_size=(2, 2)),
        configuration={},
        files={},
    )
    return Bundle(Path(), manifest, "stub")


def _judge(bundle: Bundle, key: str) -> Judge:
    """Lets every part pass: no pictures are drawn."""
    count = 60
    walk = Walked(np.linspace(0, 1, count, dtype=np.float32)[:, None], np.ones(count, np.bool_))
    entry = fit_entry(dict.fromkeys(range(len(STEPS)), walk), [0] * count, Wanted())
    entry = entry.model_copy(update={"threshold": 1e12})
    calibration = Calibration(bundle_id=bundle.bundle_id, entries={key: {UNKNOWN: entry}})
    return Judge(calibration, bundle.bundle_id, key, calibration.calibration_id)

"""Process 2, as many as the line needs: frames of the stream become verdicts.

A thread reads, one for each engine inspects, one writes. The first inspecting thread opens and
closes the engines and uses the first of them; none of those waits for the network. While bundles
change there are two such groups, each with a bundle of its own. A worker that dies leaves its
frames pending, and another takes them over; one whose engine fails raises EngineFault and is
started again.
"""

from __future__ import annotations

import threading
from contextlib import closing

from pipeline.config import LineSettings
from pipeline.pulse import Pulse, name_of_process
from pipeline.reading import ROLE, FrameReader
from pipeline.shared import FrameRings
from pipeline.stream import open_stream
from pipeline.swap.opening import first_of
from pipeline.swap.roster import Place
from pipeline.swap.turnover import Turnover
from pipeline.telemetry import reporting
from pipeline.writing import VerdictWriter


def run_worker(settings: LineSettings, stop: threading.Event) -> None:
    """Inspect until ``stop`` is set, then finish what is in flight.

    Raises BadBundle for a bundle that is damaged or not calibrated for this backend, StreamLost
    where there is no server, and EngineFault where the engine fails for every frame.
    """
    first = first_of(settings)  # damage is said before a server is asked for
    chosen, consumer = settings.worker, name_of_process()
    url, namespace = settings.redis.address(ROLE), settings.redis.namespace
    with (
        reporting(ROLE, settings, chosen.index),
        open_stream(url, namespace) as stream,
        closing(Pulse(url, namespace)) as pulse,
        FrameReader(
            stream,
            settings.camera_names,
            consumer,
            pulse=pulse,
            settings=chosen,
            stop=stop,
            fetch=FrameRings(settings.run_dir, settings.shared_cameras).fetch,
        ) as frames,
        VerdictWriter(stream, frames, consumer, chosen.slots) as verdicts,
        Place(settings.run_dir, consumer) as place,
        Turnover(
            settings, frames, verdicts, stream.estimated_now_ns, place, first=first
        ) as turnover,
    ):
        turnover.run(stop)

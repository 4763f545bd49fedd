"""What the sink says of the line as a whole: each verdict once, and now and then the rest.

The sink is the one process that sees every verdict, whoever gave it, and there is one sink to a
line; so it also looks at what no process owns: ledgers, Redis, the workers' signs of life, the
disk. It looks only where somebody can read the answer.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from engines.contracts import InspectionError, StreamLost, Verdict
from pipeline.telemetry import facts

if TYPE_CHECKING:
    from pipeline.config import LineSettings
    from pipeline.pulse import Pulse
    from pipeline.stream import Stream

PERIOD_S = 2.0


def tell_verdict(verdict: Verdict, gate_ms: float | None) -> None:
    """Count one frame's verdict; ``gate_ms`` is its camera's, where that is known."""
    camera, recipe = verdict.camera, verdict.recipe
    facts.count(
        "verdicts_total",
        camera=camera,
        recipe=recipe,
        decision=verdict.decision,
        reason=verdict.reason,
    )
    taken_ms = max(0, verdict.decided_ns - verdict.captured_ns) / 1e6
    facts.observe("verdict_seconds", taken_ms / 1e3, camera=camera, recipe=recipe)
    if gate_ms:
        facts.observe("verdict_gate_ratio", taken_ms / gate_ms, camera=camera, recipe=recipe)
    if verdict.surprise is not None:
        facts.observe("surprise", verdict.surprise, camera=camera, decision=verdict.decision)


class Soundings:
    """Looks at a line from outside its processes, every two seconds."""

    def __init__(self, stream: Stream, pulse: Pulse, settings: LineSettings) -> None:
        self._stream = stream
        self._pulse = pulse
        self._cameras = settings.camera_names
        self._run_dir = settings.run_dir
        self._refused = False
        facts.gauge("workers_expected", settings.worker.processes)
        for camera in settings.cameras:
            facts.gauge("gate_seconds", camera.gate_ms / 1e3, camera=camera.name)

    def run(self, closing: threading.Event) -> None:
        """Look until told to end; what the server cannot tell stays as it was told last."""
        self.sound()
        while not closing.wait(PERIOD_S):
            self.sound()

    def sound(self) -> None:
        """Look once."""
        self._sound_disk()
        try:
            for camera in self._cameras:
                self._sound_camera(camera)
            self._sound_server()
        except StreamLost:
            facts.gauge("server_up", 0)
            facts.gauge("workers_alive", 0)  # none can beat
        except InspectionError as error:  # this user may not look: the line goes on without
            if not self._refused:
                facts.event("soundings_refused", level="warning", sentence=str(error))
            self._refused = True

    def _sound_camera(self, camera: str) -> None:
        ledger = self._stream.ledger(camera)
        undecided = sum(ledger.undecided.values())
        counts: Mapping[str, int] = {
            "captured": ledger.captured,
            "pass": ledger.passed,
            "fail": ledger.failed,
            "undecided": undecided,
        }
        for outcome, count in counts.items():
            facts.gauge("ledger_frames", count, camera=camera, outcome=outcome)
        facts.gauge("ledger_residual_frames", ledger.residual - ledger.open, camera=camera)
        facts.gauge("frames_open", ledger.open, camera=camera)
        facts.gauge("frames_backlog", self._stream.backlog(camera), camera=camera)

    def _sound_server(self) -> None:
        memory = self._stream.memory()
        facts.gauge("server_memory_used_bytes", memory.used_bytes)
        facts.gauge("server_memory_limit_bytes", memory.limit_bytes)
        facts.gauge("clock_uncertainty_seconds", self._stream.clock_uncertainty_ms / 1e3)
        facts.gauge("workers_alive", len(self._pulse.living("inspect")))
        facts.gauge("server_up", 1)

    def _sound_disk(self) -> None:
        try:
            disk = shutil.disk_usage(self._run_dir)
        except OSError:  # a disk that is gone has nothing left
            facts.gauge("disk_free_bytes", 0)
            return
        facts.gauge("disk_free_bytes", disk.free)
        facts.gauge("disk_size_bytes", disk.total)

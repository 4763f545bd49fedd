"""Record a line into one file, and feed a recording to a line again.

While a line runs, each camera's process writes its own frames and this one the verdicts; when it
has ended they are merged in the order of time. After a crash the parts are left beside the
recording, each readable by itself.
"""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from engines.contracts import BadConfig, BadData, Verdict
from pipeline.comparison import Difference, compare_verdicts
from pipeline.config import LineSettings, load_line
from pipeline.merge import merge_recordings
from pipeline.recording import Recorder, read_exposures, read_verdicts
from pipeline.report import Tally, run_report
from pipeline.stream import open_stream
from pipeline.supervisor import line_server, run_line
from pipeline.watch import watching

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.stream import VerdictDelivery

SHOWN_DIFFERENCES = 20
REPLAY_GATE_MS = 600_000  # a replay flat out has no gate


@dataclass(frozen=True, slots=True)
class Kept:
    """What a recording holds."""

    frames: int
    verdicts: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """A replay's report, and where its verdicts differ from earlier ones."""

    report: dict[str, Any]
    compared: int  # parts; 0 where nothing was compared
    differences: tuple[Difference, ...]

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        told = [str(difference) for difference in self.differences]
        return {**self.report, "compared": self.compared, "differences": told}


def run_watched(
    settings: LineSettings,
    line: Path,
    see: Callable[[VerdictDelivery], None],
    stop: threading.Event,
) -> dict[str, Any]:
    """Run a line, show every verdict to ``see``, and return the public report."""
    tally = Tally()

    def look(delivery: VerdictDelivery) -> None:
        tally.add(delivery.verdict)
        see(delivery)

    with (
        line_server(settings) as server,
        open_stream(server.url, settings.redis.namespace) as stream,
        watching(stream, settings.camera_names, look),
    ):
        ledgers = run_line(settings, stop, line, server)
    return run_report(ledgers, tally)


def record_line(
    settings: LineSettings,
    line: Path,
    recording: Path,
    frames: int | None,
    stop: threading.Event,
) -> Kept:
    """Run a line until its sources end, ``frames`` are answered or ``stop`` is set; keep it all.

    Raises BadData where the recording exists already or cannot be written.
    """
    if recording.exists():
        raise BadData(f"{recording} exists already; name another file, or move it away")
    parts = recording.with_suffix(".parts")
    parts.mkdir(parents=True, exist_ok=True)
    recorded = settings.model_copy(update={"recording": parts})
    seen = 0
    with Recorder(parts / "verdicts.mcap") as recorder:

        def keep(delivery: VerdictDelivery) -> None:
            nonlocal seen
            recorder.verdict(delivery.verdict, delivery.mask_png)
            seen += 1
            if frames is not None and seen >= frames:
                stop.set()

        run_watched(recorded, line, keep, stop)
    merge_recordings(sorted(parts.glob("*.mcap")), recording)
    shutil.rmtree(parts)
    return Kept(sum(1 for _ in read_exposures(recording)), seen)


def replay_line(
    settings: LineSettings,
    recording: Path,
    speed: str,
    against: Path | None,
    stop: threading.Event,
) -> Replayed:
    """Feed a recording to the line's bundle, under new frame ids, and compare its verdicts.

    Only the verdict log is written: a replay rejects no part.
    """
    line = _replay_config(settings, recording, _speed(speed))
    again: list[Verdict] = []
    report = run_watched(load_line(line), line, lambda d: again.append(d.verdict), stop)
    original = list(read_verdicts(against)) if against else []
    differences = compare_verdicts(original, again) if against else []
    return Replayed(report, len(original), tuple(differences))


def print_comparison(result: Replayed, console: Console) -> None:
    """The report's counts and the first differences."""
    report = result.report
    console.print(
        f"replayed {report['captured']} frames at {report['frames_per_second']} frames/s: "
        f"{report['pass']} PASS, {report['fail']} FAIL, residual {report['residual']}"
    )
    if result.compared:
        console.print(f"compared {result.compared} parts: {len(result.differences)} differ")
    for difference in result.differences[:SHOWN_DIFFERENCES]:
        console.print(f"  {difference}")


def _replay_config(settings: LineSettings, recording: Path, speed: float | str) -> Path:
    cameras = _recorded_cameras(recording)
    content: dict[str, Any] = {
        "line": f"{settings.line}-replay",
        "bundle": str(settings.bundle),
        "run_dir": str(settings.run_dir / "replay"),
        "cameras": [
            {
                "name": name,
                "source": {
                    "kind": "replay",
                    "path": str(recording.resolve()),
                    "speed": speed,
                    "camera": name,
                },
                "gate_ms": REPLAY_GATE_MS,
                "overrun": "wait",
            }
            for name in cameras
        ],
        "worker": settings.worker.model_dump(mode="json"),
        "sinks": {"jsonl": {}},
        "dashboard": {"enabled": False},
    }
    folder = settings.run_dir / "replay"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "line.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def _recorded_cameras(recording: Path) -> list[str]:
    cameras = sorted({exposure.camera for exposure in read_exposures(recording)})
    if not cameras:
        raise BadData(f"{recording} holds no frames")
    return cameras


def _speed(text: str) -> float | str:
    if text == "max":
        return text
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < math.inf:
        raise BadConfig(f"speed {text!r} is no speed; give 1, 2.5 or max")
    return speed

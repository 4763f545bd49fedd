"""Record a line into one file, and feed a recording to a line again.

While a line runs, each camera's process writes its own frames and this one the verdicts; when it
has ended they are merged in the order of time. After a crash the parts are left beside the
recording, each readable by itself.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from engines.contracts import BadConfig, BadData, Verdict
from pipeline.comparison import Difference, compare_verdicts
from pipeline.config import LineSettings, load_line
from pipeline.merge import merge_recordings
from pipeline.recording import EXPOSURES, Recorder, read_verdicts, recorded_cameras
from pipeline.report import Tally, run_report
from pipeline.stream import open_stream
from pipeline.supervisor import line_server, run_line
from pipeline.swap import bundle_in_force
from pipeline.watch import watching

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.stream import VerdictDelivery

SHOWN_DIFFERENCES = 20
REPLAY_GATE_MS = 600_000  # a replay flat out has no gate
LOOK_S = 0.01  # how often a waiting watcher looks whether the disk has caught up
OVERRIDES = "ASSAYLINE_"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a recording holds."""

    frames: int
    verdicts: int
    missing: int = 0  # exposures that were answered, and that the disk was too slow to take


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

    namespace = settings.redis.namespace
    with (
        line_server(settings) as server,
        open_stream(settings.redis.address("record", server.url), namespace) as stream,
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
            seen += 1
            while not recorder.verdict(delivery.verdict, delivery.mask_png):
                if recorder.failure:
                    break
                time.sleep(LOOK_S)  # only this watcher waits, never the line
            if frames is not None and seen >= frames:
                stop.set()

        run_watched(recorded, line, keep, stop)
    merged = merge_recordings(sorted(parts.glob("*.mcap")), recording)
    shutil.rmtree(parts)
    frames_kept = sum(merged[kind] for kind in EXPOSURES)
    return Kept(frames_kept, merged["verdict"], missing=max(0, seen - frames_kept))


def replay_line(
    settings: LineSettings,
    recording: Path,
    speed: str,
    against: Path | None,
    stop: threading.Event,
) -> Replayed:
    """Feed a recording to the line's bundle, under new frame ids, and compare its verdicts.

    It runs on a server of its own and writes only the verdict log: a replay rejects no part.
    """
    original = list(read_verdicts(against)) if against else []
    line = _replay_config(settings, recording, _speed(speed))
    again: list[Verdict] = []
    with no_overrides():
        report = run_watched(load_line(line), line, lambda d: again.append(d.verdict), stop)
    differences = compare_verdicts(original, again) if against else []
    return Replayed(report, len(original), tuple(differences))


def print_comparison(result: Replayed, console: Console) -> None:
    """The report's counts and the first differences."""
    report = result.report
    console.print(
        f"replayed {report['captured']} frames at {report['frames_per_second'] or '-'} frames/s: "
        f"{report['pass']} PASS, {report['fail']} FAIL, "
        f"{sum(report['undecided'].values())} UNDECIDED, residual {report['residual']}"
    )
    if result.compared:
        console.print(f"compared {result.compared} parts: {len(result.differences)} differ")
    for difference in result.differences[:SHOWN_DIFFERENCES]:
        console.print(f"  {difference}")


def _replay_config(settings: LineSettings, recording: Path, speed: float | str) -> Path:
    cameras = recorded_cameras(recording)
    if not cameras:
        raise BadData(f"{recording} holds no frames; name another recording")
    content: dict[str, Any] = {
        "line": f"{settings.line}-replay",
        "bundle": str(bundle_in_force(settings)),
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
                **_of_camera(settings, name),
            }
            for name in cameras
        ],
        "worker": settings.worker.model_dump(mode="json"),
        "sinks": {"jsonl": {}},
        "dashboard": {"enabled": False},
        "log_level": settings.log_level,
    }
    folder = settings.run_dir / "replay"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "line.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def _of_camera(settings: LineSettings, name: str) -> dict[str, Any]:
    """What the line says of a camera's frames; a recording keeps them whole, before the crop."""
    if name not in settings.camera_names:
        return {}
    told = {"category", "recipe", "lot", "crop"}
    return settings.camera(name).model_dump(mode="json", include=told)


@contextmanager
def no_overrides() -> Iterator[None]:
    """The environment has had its say on the line; a replay must not reach its Redis and sinks."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(OVERRIDES)}
    for name in kept:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(kept)


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

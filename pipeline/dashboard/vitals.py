"""How the machine and the line's processes are: looked at every two seconds, on a thread.

Nothing here is asked of a process that inspects: signs of life come from the server, events from
the logs that the supervisor keeps.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from engines.contracts import InspectionError
from pipeline.pulse import Pulse
from pipeline.sight import camera_of, notes_heard
from pipeline.stream import open_stream

if TYPE_CHECKING:
    from pipeline.config import LineSettings

ROLE = "dashboard"
ROLES = ("ingest", "inspect", "sink")  # that beat
LOOK_S = 2.0
LOG_BYTES = 200_000  # of the end of each log
EVENTS_SHOWN = 40
TEXT_MAX = 400
NOTED = {"warning", "error", "critical"}
ORDINARY = {"started", "ended"}
GPU = "name,utilization.gpu,memory.used,memory.total,temperature.gpu"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a log that people should know of."""

    at: str  # as the log has it, ISO 8601 in UTC
    process: str
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Vital:
    """The machine and the processes at one moment."""

    living: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # role -> processes
    cameras: Mapping[str, str] = field(default_factory=dict)  # process -> what it reads
    memory_used: int | None = None  # of Redis, bytes; None where it does not answer
    memory_limit: int = 0
    cpu_percent: float = 0.0
    ram_used: int = 0
    ram_total: int = 0
    disk_free: int | None = None
    own_cpu_percent: float = 0.0  # of one core
    own_bytes: int = 0
    gpus: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()  # newest first


class Vitals:
    """The newest look at machine and processes."""

    def __init__(self, settings: LineSettings) -> None:
        self._settings = settings
        self._logs = settings.run_dir / "logs"
        self._own = psutil.Process()
        self._smi = shutil.which("nvidia-smi")
        self.now = Vital()

    def run(self, stop: threading.Event) -> None:
        """Look until ``stop``."""
        self._own.cpu_percent()  # counts from here on
        psutil.cpu_percent()
        while not stop.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """Look once."""
        living, cameras, used, limit = self._server()
        ram = psutil.virtual_memory()
        self.now = Vital(
            living=living,
            cameras=cameras,
            memory_used=used,
            memory_limit=limit,
            cpu_percent=psutil.cpu_percent(),
            ram_used=ram.used,
            ram_total=ram.total,
            disk_free=_disk(self._settings.run_dir),
            own_cpu_percent=self._own.cpu_percent(),
            own_bytes=self._own.memory_info().rss,
            gpus=tuple(_gpus(self._smi)) if self._smi else (),
            events=tuple(recent_events(self._logs)),
        )

    def _server(self) -> tuple[dict[str, tuple[str, ...]], dict[str, str], int | None, int]:
        redis = self._settings.redis
        try:
            url = redis.address(ROLE)
            with closing(Pulse(url, redis.namespace)) as pulse:
                living = {role: tuple(pulse.living(role)) for role in ROLES}
                notes = notes_heard(pulse) or {}
            with open_stream(url, redis.namespace) as stream:
                memory = stream.memory()
        except InspectionError:
            return dict.fromkeys(ROLES, ()), {}, None, 0
        cameras = {name: camera_of(note) for name, note in notes.items()}
        return living, cameras, memory.used_bytes, memory.limit_bytes


def recent_events(logs: Path) -> list[Event]:
    """What the logs say of late that is not ordinary, newest first."""
    found = [event for path in logs.glob("*.log") for event in _events(path)]
    return sorted(found, key=lambda event: event.at, reverse=True)[:EVENTS_SHOWN]


def _events(path: Path) -> Iterator[Event]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            told = json.loads(line)
            level, event = str(told.pop("level")), str(told.pop("event"))
            at = str(told.pop("timestamp"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # a trace, or half a line
        if level in NOTED or event in ORDINARY:
            told.pop("role", None)
            rest = ", ".join(f"{key} {value}" for key, value in told.items())
            said = event.replace("_", " ") + (f": {rest}" if rest else "")
            yield Event(at, path.stem, level, said[:TEXT_MAX])


def _disk(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _gpus(smi: str) -> Iterator[str]:
    """One sentence per GPU."""
    command = [smi, f"--query-gpu={GPU}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return
    for line in done.stdout.splitlines():
        yield " · ".join(part.strip() for part in line.split(","))[:TEXT_MAX]

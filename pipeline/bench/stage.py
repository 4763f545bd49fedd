"""A whole line for a bench: its own server, the real roles, frames that are drawn beforehand.

It runs as ``assayline run`` runs one, in a folder of its own; settings in the environment do not
reach it. Who spends how much processor time is read from outside, by role. What was decided is read
from the line's log when all is over: who followed its verdicts would be one more to serve.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from engines.bundle import open_bundle
from engines.contracts import EngineFault, Reason, Verdict
from pipeline.config import load_line
from pipeline.lanes import Lane
from pipeline.recording import read_verdicts
from pipeline.supervisor import run_line
from pipeline.takes import no_overrides

CAMERA, SERVER, ENGINE = "bench", "server", "engine"
WORKER = "inspect"  # the role, and its thread that runs the engine
ROLES = ("ingest", WORKER, "sink", SERVER)
PARTS, DRAWN, SEED, JITTER = ("board", "disc", "fabric"), 48, 5, 0.1
DEFECT_RATE = 0.1
LOG = "verdicts.jsonl"
TRANSPORT = "shared"  # as a line with a server of its own has it, and never less for want of room
FAR_MS = 60_000  # a gate so far off that nothing is cut short: parts may wait as long as they do
LOOK_S, SEARCH_S = 0.5, 1.0  # between looks, which cost the line time, and searches for processes
LATE = {Reason.DEADLINE, Reason.OVERRUN}  # what load does to a line


@dataclass(frozen=True, slots=True)
class Look:
    """Processor seconds of each role that runs, since its start, at one moment.

    ``ENGINE`` is a part of the worker's: its inspecting thread, with all that the engine started.
    """

    at_s: float  # monotonic
    verdicts: int
    cpu_s: dict[str, float]


@dataclass(slots=True)
class Seen:
    """What a run showed: when each verdict was decided, how long it took, who worked for it."""

    decided_ns: list[int] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)  # of frames that were inspected
    steps: list[int] = field(default_factory=list)  # of the same
    without_evidence: Counter[Reason] = field(default_factory=Counter)
    residual: int = 0
    looks: list[Look] = field(default_factory=list)

    def add(self, verdict: Verdict) -> None:
        """Note one verdict."""
        self.decided_ns.append(verdict.decided_ns)
        if verdict.reason is not None:
            self.without_evidence[verdict.reason] += 1
            return
        self.latency_ms.append((verdict.decided_ns - verdict.captured_ns) / 1e6)
        self.steps.append(verdict.steps)

    def require_evidence(self, but: Collection[Reason] = ()) -> None:
        """Refuse figures of a line that did not inspect its frames: raises EngineFault.

        Reasons in ``but`` are what the bench measures.
        """
        lacking = {r: count for r, count in self.without_evidence.items() if r not in but}
        if lacking:
            told = ", ".join(f"{count} {reason}" for reason, count in lacking.items())
            raise EngineFault(
                f"of {len(self.decided_ns)} frames the line did not inspect {told}; "
                "see what doctor says of the machine"
            )


def simulator(frames: int | None, rate_hz: float, size: tuple[int, int]) -> dict[str, Any]:
    """The source of a bench; at ``rate_hz`` 0 it gives frames as fast as they are taken.

    Its exposures have the ``size`` that the bundle takes, as a camera that scales gives them.
    Without an end (``frames`` None) the belt is idle, and its first part comes at once.
    """
    return {
        "kind": "simulator",
        "parts": list(PARTS),
        "seed": SEED,
        "rate_hz": rate_hz,
        "defect_rate": DEFECT_RATE,
        "shown": list(size),
        "frames": frames,
        "jitter": 0.0 if frames is None else JITTER,
        "rendered": min(DRAWN, frames or 1),
    }


def run_stage(
    bundle: Path,
    frames: int | None,
    rate_hz: float,
    idle_s: float | None = None,
    *,
    gate_ms: float = FAR_MS,
) -> Seen:
    """Run a line until its frames are answered; with ``idle_s`` so long after the first of them."""
    stop = threading.Event()
    seen = Seen()
    with tempfile.TemporaryDirectory(prefix="assayline-bench-") as name, no_overrides():
        folder = Path(name).resolve()
        source = simulator(frames, rate_hz, open_bundle(bundle).frame_size)
        line = _written(folder, bundle, source, gate_ms)
        with _watched_cpu(folder, seen, stop, idle_s):
            ledgers = run_line(load_line(line), stop, line)
        for verdict in read_verdicts(folder / LOG):
            seen.add(verdict)
    seen.residual = sum(ledger.residual for ledger in ledgers.values())
    return seen


def _written(folder: Path, bundle: Path, source: dict[str, Any], gate_ms: float) -> Path:
    content = {
        "line": "bench",
        "bundle": str(bundle.resolve()),
        "run_dir": str(folder),
        "cameras": [{"name": CAMERA, "source": source, "gate_ms": gate_ms, "transport": TRANSPORT}],
        "sinks": {"jsonl": {"path": str(folder / LOG)}, "archive": {}, "reject": {}},
        "dashboard": {"enabled": False},
        "log_level": "warning",
    }
    path = folder / "line.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@contextmanager
def _watched_cpu(
    folder: Path, seen: Seen, stop: threading.Event, idle_s: float | None
) -> Iterator[None]:
    """Look at the processes of the line in this folder every now and then."""
    roles, log = Roles(folder), Log(folder / LOG)

    def watch(closing: threading.Event) -> None:
        while not closing.wait(LOOK_S):
            seen.looks.append(Look(time.monotonic(), log.verdicts(), roles.cpu_s()))
            if idle_s is not None and _quiet_s(seen) > idle_s:
                stop.set()
                return  # how the line ends is no part of its idling

    with Lane("cpu", watch):
        yield


class Log:
    """How many verdicts a line has logged so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = self._lines = 0

    def verdicts(self) -> int:
        """Lines by now; only what is new is read."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
            self._at, self._lines = self._at + len(new), self._lines + new.count(b"\n")
        return self._lines


def _quiet_s(seen: Seen) -> float:
    """Seconds since the first verdict was seen."""
    first = next((look.at_s for look in seen.looks if look.verdicts), None)
    return 0.0 if first is None else time.monotonic() - first


class Roles:
    """The processes of one line among our children, by what they do."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._known: dict[psutil.Process, str] = {}  # "" = not of this line
        self._children: list[psutil.Process] = []
        self._search_at = 0.0  # monotonic seconds; a search reads of every process of the machine

    def running(self) -> Iterator[tuple[str, psutil.Process]]:
        """Each process of the line with its role; one may end while it is looked at."""
        if time.monotonic() >= self._search_at:
            self._children = psutil.Process().children()
            self._search_at = time.monotonic() + SEARCH_S
        for process in self._children:
            try:
                role = self._known.setdefault(process, "") or self._role(process)
            except psutil.Error:  # it has just ended
                continue
            self._known[process] = role
            if role:
                yield role, process

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds of each role that runs."""
        spent: dict[str, float] = {}
        for role, process in self.running():
            with contextlib.suppress(psutil.Error):  # it has just ended
                times = process.cpu_times()
                spent[role] = spent.get(role, 0.0) + times.user + times.system
                if role == WORKER:
                    spent[ENGINE] = spent.get(ENGINE, 0.0) + _engine_s(process)
        return spent

    def _role(self, process: psutil.Process) -> str:
        words = process.cmdline()
        if not any(self._folder in word for word in words):  # the server names its socket there
            return ""
        return next((role for role in ROLES if role in words), SERVER)


def _engine_s(process: psutil.Process) -> float:
    """Processor seconds of a worker's inspecting thread and of those that bear its name."""
    ticks = 0
    for thread in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            name, _, fields = (thread / "stat").read_text().rpartition(") ")  # see proc(5)
            if name.partition("(")[2] == WORKER:
                user, system = fields.split()[11:13]
                ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")

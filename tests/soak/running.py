"""A line on the timed stub, flat out, with somebody beside it who notes what it holds."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import yaml

from pipeline.bench.stage import Roles
from pipeline.config import load_line
from pipeline.lanes import Lane
from pipeline.stream import Ledger, Stream, open_stream
from pipeline.supervisor import line_server, run_line
from pipeline.takes import no_overrides
from pipeline.watch import watching
from tests.stub_line import (
    BAD_FROM,
    good_number,
    stub_camera,
    write_numbers,
    write_stub_bundle,
    write_stub_line,
)

if TYPE_CHECKING:
    from pipeline.config import LineSettings
    from pipeline.stream import VerdictDelivery

COSTS = {"start": (20_000, 2_000), "step": (40_000, 2_000), "finish": (10_000, 1_000)}
PARTS, BAD_EVERY = 100, 50
ARCHIVE_BYTES = 300_000  # soon full, so that what is old is removed all the time
CREDITS = 64


@dataclass(frozen=True, slots=True)
class Look:
    """What the line held at one moment."""

    at_s: float  # since the first look
    frames: int  # answered by then
    redis_bytes: int
    rss_bytes: dict[str, int]  # by role
    descriptors: dict[str, int]
    latency_ms: tuple[float, float] | None  # p50 and p99 of the frames since the look before


@dataclass(slots=True)
class Soaked:
    """A whole run."""

    looks: list[Look] = field(default_factory=list)
    residual: int = 0
    undecided: dict[str, int] = field(default_factory=dict)
    processes: int = 0  # that there ever were; more than roles where one was started again

    @property
    def frames(self) -> int:
        """Answered until the last look."""
        return self.looks[-1].frames if self.looks else 0

    def as_json(self) -> dict[str, Any]:
        """Everything that was seen."""
        return {"looks": [asdict(look) for look in self.looks]}


def soak(
    folder: Path, frames: int, minutes: float, period_s: float, settings: dict[str, Any]
) -> Soaked:
    """Run a line in ``folder`` until so many frames are answered or the time is over.

    ``settings`` of the line win over what a soak has.
    """
    line, seen, stop = _written(folder, settings), Soaked(), threading.Event()
    with no_overrides():
        chosen = load_line(line)
        with (
            line_server(chosen) as server,
            open_stream(server.url, chosen.redis.namespace) as stream,
            _looking(
                folder, stream, chosen, seen, period_s=period_s, until=_Until(frames, minutes, stop)
            ),
        ):
            ledgers = run_line(chosen, stop, line, server)
    _close(seen, ledgers)
    return seen


@dataclass(frozen=True, slots=True)
class _Until:
    frames: int
    minutes: float  # 0 = no limit
    stop: threading.Event

    def check(self, frames: int, passed_s: float) -> None:
        """Stop the line where it is time."""
        if frames >= self.frames or (self.minutes and passed_s > 60 * self.minutes):
            self.stop.set()


class _Latencies:
    """Of the verdicts since one last asked."""

    def __init__(self) -> None:
        self._newest: list[float] = []

    def add(self, delivery: VerdictDelivery) -> None:
        """Note one verdict."""
        verdict = delivery.verdict
        self._newest.append((verdict.decided_ns - verdict.captured_ns) / 1e6)

    def take(self) -> tuple[float, float] | None:
        """p50 and p99 of them, milliseconds."""
        taken, self._newest = self._newest, []
        if not taken:
            return None
        p50, p99 = np.quantile(taken, (0.5, 0.99))
        return round(float(p50), 3), round(float(p99), 3)


@contextmanager
def _looking(
    folder: Path,
    stream: Stream,
    settings: LineSettings,
    seen: Soaked,
    *,
    period_s: float,
    until: _Until,
) -> Iterator[None]:
    roles, latencies, began_s = Roles(folder), _Latencies(), time.monotonic()
    pids: set[int] = set()

    def look(closing: threading.Event) -> None:
        while not closing.wait(period_s):
            frames = _answered(stream, settings)
            passed_s = time.monotonic() - began_s
            if frames and not until.stop.is_set():
                rss, descriptors = _held(roles, pids)
                used, latency = stream.memory().used_bytes, latencies.take()
                seen.looks.append(Look(round(passed_s, 3), frames, used, rss, descriptors, latency))
                seen.processes = len(pids)
            until.check(frames, passed_s)

    with watching(stream, settings.camera_names, latencies.add), Lane("soak", look):
        yield


def _answered(stream: Stream, settings: LineSettings) -> int:
    ledgers = [stream.ledger(name) for name in settings.camera_names]
    return sum(ledger.captured - ledger.residual for ledger in ledgers)


def _held(roles: Roles, pids: set[int]) -> tuple[dict[str, int], dict[str, int]]:
    """Resident bytes and descriptors by role."""
    rss: defaultdict[str, int] = defaultdict(int)
    descriptors: defaultdict[str, int] = defaultdict(int)
    for role, process in roles.running():
        try:
            held, opened = process.memory_info().rss, process.num_fds()
        except psutil.Error:  # it has just ended
            continue
        pids.add(process.pid)
        rss[role] += held
        descriptors[role] += opened
    return dict(rss), dict(descriptors)


def _close(seen: Soaked, ledgers: dict[str, Ledger]) -> None:
    seen.residual = sum(ledger.residual for ledger in ledgers.values())
    for ledger in ledgers.values():
        for reason, count in ledger.undecided.items():
            seen.undecided[reason] = seen.undecided.get(reason, 0) + count


def _written(folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    bundle = write_stub_bundle(folder / "bundle", COSTS).folder
    numbers = [BAD_FROM + i if i % BAD_EVERY == 0 else good_number(i) for i in range(PARTS)]
    write_numbers(folder / "parts", numbers)
    source = {"kind": "folder", "path": "parts", "loop": True}
    camera = stub_camera() | {"source": source, "credits": CREDITS, "overrun": "wait"}
    sinks = {"jsonl": {"fsync": "never"}, "reject": {}, "archive": {"max_bytes": ARCHIVE_BYTES}}
    path = write_stub_line(folder, bundle.resolve(), [camera], sinks=sinks, log_level="warning")
    if settings:
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))
    return path

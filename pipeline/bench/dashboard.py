"""What the page costs a line: latency with ten visitors looking on against nobody and no page.

A real line (embedded server, ingest, worker and sink as processes of their own) inspects on the
timed stub at half of what its engine can do frame by frame. A latency is told twice: from camera to
verdict, and of the worker alone, from its reading of a frame to its verdict. In turns, so that
whatever else the machine does meets both, there is no page at all, or the page's own process with
ten real web sockets on it. Time in which a page starts or ends counts for neither.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil
import yaml

from engines.contracts import EngineFault
from pipeline.bench.machine import machine_facts
from pipeline.bench.report import Report, Result
from pipeline.bench.stubbed import CATEGORY, frame_s, write_parts, write_stub_bundle
from pipeline.config import load_line
from pipeline.lanes import Lane
from pipeline.takes import no_overrides, run_watched

if TYPE_CHECKING:
    from pipeline.stream import VerdictDelivery

VISITORS, LOAD = 10, 0.5
ROUNDS, TURN_S, SETTLE_S = 8, 16.0, 3.0  # one turn's p99 is known to a tenth or so
PARTS, BAD_EVERY, CREDITS = 120, 12, 256
LINE = "line.yaml"
WARM, PATIENCE_S = 100, 60.0  # verdicts before the first turn; how long they may take
LEAST = 100  # verdicts of a turn that has a p99
QUANTILES = (("p50", 0.5, 0), ("p99", 0.99, 0), ("worker_p50", 0.5, 1), ("worker_p99", 0.99, 1))
ALONE, CORE = "the same line without a page", "one core"


@dataclass(frozen=True, slots=True)
class Turn:
    """One stretch of time: who looked on, and what the page spent meanwhile."""

    begin_ns: int
    end_ns: int
    is_watched: bool
    cpu_share: float = 0.0  # of one core, by the page's process
    memory_bytes: int = 0
    updates_hz: float = 0.0  # of one visitor


class Took(NamedTuple):
    """What one verdict took, milliseconds."""

    line: float  # from camera to verdict
    worker: float  # from its reading by the worker


@dataclass(slots=True)
class Seen:
    """Verdicts of the whole run, and the turns over it."""

    decided: list[tuple[int, Took]] = field(default_factory=list)  # epoch ns, latencies
    turns: list[Turn] = field(default_factory=list)
    missed: int = 0  # frames that nobody inspected: they have no latency

    def add(self, delivery: VerdictDelivery) -> None:
        """Note one verdict."""
        verdict = delivery.verdict
        if verdict.reason is not None:
            self.missed += 1
            return
        line_ms = (verdict.decided_ns - verdict.captured_ns) / 1e6
        took = Took(line_ms, line_ms - verdict.latency_ms["queue"])
        self.decided.append((verdict.decided_ns, took))

    def quantile(self, turn: Turn, share: float, whose: int = 0) -> float:
        """Latency of the verdicts of a turn, milliseconds; EngineFault where they are too few.

        ``whose``: place in ``Took``.
        """
        taken = [took[whose] for at, took in self.decided if turn.begin_ns <= at < turn.end_ns]
        if len(taken) < LEAST:
            raise EngineFault(f"a turn saw {len(taken)} verdicts; the machine is too slow for this")
        return float(np.quantile(taken, share))


def bench_dashboard(rounds: int = ROUNDS, turn_s: float = TURN_S) -> Report:
    """Run a line through turns with and without visitors of its page."""
    seen, stop = Seen(), threading.Event()
    with tempfile.TemporaryDirectory(prefix="assayline-bench-") as name, no_overrides():
        folder = Path(name).resolve()
        line = _written(folder)

        def turn(closing: threading.Event) -> None:
            try:
                _take_turns(folder, seen, closing, rounds, turn_s)
            finally:
                stop.set()

        with Lane("turns", turn):
            report = run_watched(load_line(line), line, seen.add, stop)
            stop.set()
    watched = [one for one in seen.turns if one.is_watched]
    facts = {
        "dashboard_visitors": VISITORS,
        "dashboard_line_hz": round(LOAD / frame_s(), 1),
        "dashboard_turns": f"{rounds} with and {rounds} without, {turn_s:.0f} s each",
        "dashboard_updates_hz": round(statistics.mean(one.updates_hz for one in watched), 2),
        "dashboard_memory_mb": round(max(one.memory_bytes for one in watched) / 1e6),
        "dashboard_missed": f"{seen.missed} of {seen.missed + len(seen.decided)}",
        "dashboard_residual": report["residual"],
    }
    return Report(machine_facts() | facts, results_of(seen))


def results_of(seen: Seen) -> tuple[Result, ...]:
    """Latency with visitors against without, medians over the turns; and the page's own time."""
    found = []
    for name, share, whose in QUANTILES:
        with_ms, without_ms = (
            statistics.median(
                seen.quantile(one, share, whose)
                for one in seen.turns
                if one.is_watched is is_watched
            )
            for is_watched in (True, False)
        )
        found.append(Result(f"dashboard.{name}", with_ms, "ms", ALONE, without_ms / with_ms))
    spent = max(1e-3, statistics.mean(one.cpu_share for one in seen.turns if one.is_watched))
    return (*found, Result("dashboard.cpu", spent, "of a core", CORE, 1 / spent))


def _take_turns(
    folder: Path, seen: Seen, closing: threading.Event, rounds: int, turn_s: float
) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while len(seen.decided) < WARM and not closing.wait(0.1):
        if time.monotonic() > give_up:
            raise EngineFault("the line answered too few frames; see what doctor says")
    for number in range(rounds):
        for is_watched in (number % 2 == 1, number % 2 == 0):  # neither is always the first
            if is_watched:
                seen.turns.append(_watched(folder, closing, turn_s))
            else:
                closing.wait(SETTLE_S)
                seen.turns.append(_stretch(closing, turn_s))


def _stretch(closing: threading.Event, turn_s: float) -> Turn:
    begin_ns = time.time_ns()
    closing.wait(turn_s)
    return Turn(begin_ns, time.time_ns(), is_watched=False)


def _watched(folder: Path, closing: threading.Event, turn_s: float) -> Turn:
    from pipeline.bench.visitors import visiting

    with _page(folder, closing) as (process, address), visiting(address, VISITORS) as crowd:
        closing.wait(SETTLE_S)
        before, updates = _cpu_s(process), crowd.updates
        turn = _stretch(closing, turn_s)
        taken_s = (turn.end_ns - turn.begin_ns) / 1e9
        if crowd.updates == updates:
            raise EngineFault("the page told its visitors nothing")
        return Turn(
            turn.begin_ns,
            turn.end_ns,
            is_watched=True,
            cpu_share=(_cpu_s(process) - before) / taken_s,
            memory_bytes=process.memory_info().rss,
            updates_hz=(crowd.updates - updates) / taken_s / VISITORS,
        )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def _page(folder: Path, closing: threading.Event) -> Iterator[tuple[psutil.Process, str]]:
    """The page as a process of its own; it is ended as `run` ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    told = {
        "ASSAYLINE_REDIS__URL": f"unix://{folder}/redis/redis.sock",
        "ASSAYLINE_DASHBOARD__PORT": str(port),
    }
    command = [sys.executable, "-m", "pipeline", "dashboard", str(folder / LINE)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, env=os.environ | told, stdout=quiet, stderr=quiet)
    address = f"http://127.0.0.1:{port}/"
    try:
        give_up = time.monotonic() + PATIENCE_S
        while not _answers(f"{address}healthz"):
            if process.poll() is not None or time.monotonic() > give_up:
                raise EngineFault("the page did not start; is the extra 'dashboard' installed?")
            closing.wait(0.1)
        yield psutil.Process(process.pid), address
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own address
            return True
    except OSError:
        return False


def _written(folder: Path) -> Path:
    """A line of one camera over stubbed parts, in a folder of its own."""
    source = {
        "kind": "folder",
        "path": str(write_parts(folder / "parts", PARTS, BAD_EVERY)),
        "rate_hz": LOAD / frame_s(),
        "loop": True,
    }
    camera = {
        "name": "bench",
        "source": source,
        "category": CATEGORY,
        "gate_ms": 60_000,
        "credits": CREDITS,
    }
    content = {
        "line": "bench",
        "bundle": str(write_stub_bundle(folder / "bundle").folder),
        "run_dir": str(folder),
        "cameras": [camera],
        "worker": {"backend": "stub"},
        "sinks": {"jsonl": {}, "archive": {}, "reject": {}},
        "dashboard": {"enabled": False},
        "log_level": "warning",
    }
    path = folder / LINE
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path

"""What our promises cost: frames per second through our stream against the barest Redis loop.

Producer and consumer are processes of their own, as on a line. Both lanes run in turns in the same
two processes against the same server, so whatever else the machine does meets both; the figures are
medians over the rounds. Processor time per frame is given too: it is steadier than the clock.
"""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from engines.contracts import EngineFault
from pipeline.bench.lanes import BareLane, Lane, OurLane
from pipeline.bench.machine import machine_facts
from pipeline.bench.report import Report, Result
from pipeline.server import embedded_server
from pipeline.stream import open_stream

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier

FRAMES, ROUNDS, SIDE = 400, 7, 256
WARM_UP_FRAMES = 32
PATIENCE_S = 120.0  # a process that is not at the line by then is dead
BARE = "bare XADD / XREADGROUP / XACK + XDEL"
SET_REQUESTS_MIN = 2000  # fewer may fit into one tick of the tool's clock, which prints "inf"
SET_BENCH = "server's own benchmark: SET, one client"


class Timing(NamedTuple):
    """One lane in one round, seen from one end."""

    lane: str
    end: str  # "add" or "answer"
    wall_s: float
    cpu_s: float


class Course(NamedTuple):
    """What both processes are told."""

    url: str
    frames: int
    rounds: int
    side: int


def bench_transport(frames: int = FRAMES, rounds: int = ROUNDS, side: int = SIDE) -> Report:
    """Run both lanes in turns on an embedded server; ``side`` 256 is a model input of 196 kB."""
    machine = machine_facts()
    with (
        tempfile.TemporaryDirectory(prefix="assayline-bench-") as folder,
        embedded_server(Path(folder)) as url,
    ):
        timings = _race(Course(url, frames, rounds, side))
        set_rate = server_set_rate(url, side * side * 3, frames)
    return Report(machine, _results(timings, frames, side, set_rate))


def _race(course: Course) -> list[Timing]:
    """Start both ends, collect what they measured, and leave none behind."""
    context = multiprocessing.get_context("spawn")
    line, told = context.Barrier(2), context.Queue()
    ends = [
        context.Process(target=_run_end, args=(end, course, line, told), daemon=True)
        for end in ("add", "answer")
    ]
    for process in ends:
        process.start()
    try:
        return [_next(told, ends) for _ in range(4 * course.rounds)]
    finally:
        for process in ends:
            process.join(timeout=5)
            process.kill()
            process.join()
            process.close()
        told.close()


def _next(told: Queue[Timing], ends: list[Any]) -> Timing:
    from queue import Empty

    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            return told.get(timeout=0.5)
        except Empty:
            if any(process.exitcode for process in ends):
                break
    raise EngineFault("a process of the transport bench ended early; see its message above")


def _run_end(end: str, course: Course, line: Barrier, told: Queue[Timing]) -> None:
    """One process: warm both lanes up, then run them in turns from a common start."""
    with open_stream(course.url, "bench") as stream:
        lanes: dict[str, Lane] = {
            "ours": OurLane(stream, course.side),
            "bare": BareLane(course.url, course.side),
        }
        for lane in lanes.values():
            _timed(lane, end, WARM_UP_FRAMES, line)
        for _ in range(course.rounds):
            for name, lane in lanes.items():
                told.put(Timing(name, end, *_timed(lane, end, course.frames, line)))
        line.wait(PATIENCE_S)


def _timed(lane: Lane, end: str, frames: int, line: Barrier) -> tuple[float, float]:
    line.wait(PATIENCE_S)
    wall, cpu = time.perf_counter(), time.process_time()
    (lane.add if end == "add" else lane.answer)(frames)
    return time.perf_counter() - wall, time.process_time() - cpu


def _results(
    timings: list[Timing], frames: int, side: int, set_rate: float | None
) -> tuple[Result, ...]:
    rate, cpu_us = _rates(timings, frames), _cpu_us(timings, frames)
    name = f"transport.inline_{side * side * 3 // 1000}kB"
    results = [
        Result(name, rate["ours"], "frames/s", BARE, rate["ours"] / rate["bare"]),
        Result(f"{name}.cpu", cpu_us["ours"], "us/frame", BARE, cpu_us["bare"] / cpu_us["ours"]),
    ]
    if set_rate is not None:
        against = rate["ours"] / set_rate
        results.append(Result(f"{name}.of_set", rate["ours"], "frames/s", SET_BENCH, against))
    return tuple(results)


def _rates(timings: list[Timing], frames: int) -> dict[str, float]:
    """Frames per second by lane: the median round, timed where frames come out."""
    walls: dict[str, list[float]] = defaultdict(list)
    for one in timings:
        if one.end == "answer":
            walls[one.lane].append(one.wall_s)
    return {lane: frames / statistics.median(seconds) for lane, seconds in walls.items()}


def _cpu_us(timings: list[Timing], frames: int) -> dict[str, float]:
    """Processor time per frame by lane, both ends together, without the server's."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for one in timings:
        seconds[one.lane, one.end].append(one.cpu_s)
    return {
        lane: sum(statistics.median(seconds[lane, end]) for end in ("add", "answer")) / frames * 1e6
        for lane in ("ours", "bare")
    }


def server_set_rate(url: str, size: int, frames: int) -> float | None:
    """SETs per second by redis-benchmark at the same payload; None where it is not installed."""
    tool = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    parts = urlsplit(url)
    if tool is None or parts.scheme != "unix":
        return None
    request = [
        "-t",
        "set",
        "-d",
        str(size),
        "-n",
        str(max(SET_REQUESTS_MIN, frames)),
        "-c",
        "1",
        "--csv",
    ]
    command = [tool, "-s", parts.path, *request]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    rows = [row for row in done.stdout.splitlines() if row.startswith('"SET"')]
    return float(rows[0].split(",")[1].strip('"')) if rows else None

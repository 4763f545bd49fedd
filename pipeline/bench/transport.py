"""What our promises cost: frames per second through our stream against the barest Redis loop.

Producer and consumer are processes of their own, as on a line. All lanes run in turns in the same
two processes against the same server, so whatever else the machine does meets all; the figures are
medians over the rounds. Processor time per frame is given too: it is steadier than the clock.

The barest loop is run twice: through redis-py as it comes, and lean, through the client that we
use, which sends an image from where it lies. Only against the lean one do our promises alone count.
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
from pipeline.bench.codecs import bench_codecs
from pipeline.bench.lanes import (
    BareLane,
    Lane,
    LargeLane,
    LeanLane,
    OurLane,
    SharedLane,
    client_rate,
    picture,
)
from pipeline.bench.machine import machine_facts
from pipeline.bench.report import Report, Result
from pipeline.server import embedded_server
from pipeline.shared import remove_shared
from pipeline.stream import open_stream

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier

FRAMES, ROUNDS, SIDE = 400, 7, 256
LARGE = (1944, 2592)  # height and width of a camera of 5 megapixels
LARGE_FRAMES = 60
LANES = 4
SERVER_ROUNDS = 5
WARM_UP_FRAMES = 32
PATIENCE_S = 120.0  # a process that is not at the line by then is dead
BARE = "bare XADD / XREADGROUP / XACK + XDEL"
LEAN = "the same bare loop, its images not copied"
COPY = "a memcpy of the same bytes"
SET_REQUESTS_MIN = 2000  # fewer may fit into one tick of the tool's clock, which prints "inf"
SET_BENCH = "server's own benchmark: SET, one client"
SET_GET_BENCH = "server's own benchmark: SET then GET, one client"
SET_GET_CLIENT = "SET then GET by redis-py; the server's own benchmark is not installed"


class Timing(NamedTuple):
    """One lane in one round, seen from one end."""

    lane: str
    end: str  # "add" or "answer"
    wall_s: float
    cpu_s: float


class Journeys(NamedTuple):
    """Large frames, seen from one end."""

    end: str
    median_s: float


class Course(NamedTuple):
    """What both processes are told."""

    url: str
    folder: Path
    frames: int
    rounds: int
    side: int
    large: tuple[int, int]


def bench_transport(
    frames: int = FRAMES,
    rounds: int = ROUNDS,
    side: int = SIDE,
    large: tuple[int, int] = LARGE,
) -> Report:
    """Run all lanes in turns on an embedded server; ``side`` 256 is a model input of 196 kB."""
    machine = machine_facts()
    with tempfile.TemporaryDirectory(prefix="assayline-bench-") as name:
        folder = Path(name)
        try:
            with embedded_server(folder) as url:
                told = _race(Course(url, folder, frames, rounds, side, large))
                server_rates = _server_rates(url, side * side * 3, frames)
        finally:
            remove_shared(folder)
    timings = [one for one in told if isinstance(one, Timing)]
    medians = {one.end: one.median_s for one in told if isinstance(one, Journeys)}
    results = _results(timings, frames, side, server_rates)
    return Report(machine, (*results, _large_result(medians, large), *bench_codecs(side)))


def _race(course: Course) -> list[Timing | Journeys]:
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
        return [_next(told, ends) for _ in range(2 * (LANES * course.rounds + 1))]
    finally:
        for process in ends:
            process.join(timeout=5)
            process.kill()
            process.join()
            process.close()
        told.close()


def _next(told: Queue[Timing | Journeys], ends: list[Any]) -> Timing | Journeys:
    from queue import Empty

    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            return told.get(timeout=0.5)
        except Empty:
            if any(process.exitcode for process in ends):
                break
    raise EngineFault("a process of the transport bench ended early; see its message above")


def _run_end(end: str, course: Course, line: Barrier, told: Queue[Timing | Journeys]) -> None:
    """One process: warm all lanes up, then run them in turns from a common start."""
    image = picture(course.side, course.side)
    with open_stream(course.url, "bench") as stream:
        lanes: dict[str, Lane] = {
            "ours": OurLane(stream, image),
            "shared": SharedLane(stream, image, course.folder),
            "bare": BareLane(course.url, image),
            "lean": LeanLane(course.url, image),
        }
        for lane in lanes.values():
            _timed(lane, end, WARM_UP_FRAMES, line)
        for _ in range(course.rounds):
            for name, lane in lanes.items():
                told.put(Timing(name, end, *_timed(lane, end, course.frames, line)))
        large = LargeLane(stream, picture(*course.large), course.folder)
        _timed(large, end, LARGE_FRAMES, line)
        told.put(Journeys(end, statistics.median(large.seconds)))
        line.wait(PATIENCE_S)


def _timed(lane: Lane, end: str, frames: int, line: Barrier) -> tuple[float, float]:
    line.wait(PATIENCE_S)
    wall, cpu = time.perf_counter(), time.process_time()
    (lane.add if end == "add" else lane.answer)(frames)
    return time.perf_counter() - wall, time.process_time() - cpu


def _results(
    timings: list[Timing], frames: int, side: int, server: ServerRates
) -> tuple[Result, ...]:
    rate, cpu_us = _rates(timings, frames), _cpu_us(timings, frames)
    size = f"{side * side * 3 // 1000}kB"
    rows = [
        ("inline", "", "ours", BARE, rate["bare"]),
        ("inline", ".lean", "ours", LEAN, rate["lean"]),
        ("inline", ".of_set", "ours", SET_BENCH, server.set_only),
        ("shared", "", "shared", server.name, server.set_then_get),
        ("shared", ".lean", "shared", LEAN, rate["lean"]),
    ]
    results = [
        Result(f"transport.{way}_{size}{what}", rate[lane], "frames/s", against, rate[lane] / other)
        for way, what, lane, against, other in rows
        if other is not None
    ]
    cost, bare = cpu_us["ours"], cpu_us["bare"]
    return (*results, Result(f"transport.inline_{size}.cpu", cost, "us/frame", BARE, bare / cost))


def _large_result(medians: dict[str, float], large: tuple[int, int]) -> Result:
    """Median time from camera to worker; a ratio of .2 is five times the copy."""
    name = f"transport.shared_{large[0] * large[1] / 1e6:.0f}MP"
    return Result(name, medians["answer"] * 1e3, "ms", COPY, medians["add"] / medians["answer"])


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


class ServerRates(NamedTuple):
    """What one client moves through the server in plain commands, requests or pairs per second."""

    name: str
    set_then_get: float
    set_only: float | None = None


def _server_rates(url: str, size: int, frames: int) -> ServerRates:
    """By the server's own benchmark, or by redis-py where that is not installed; medians."""
    requests = max(SET_REQUESTS_MIN, frames)
    found = [_own_benchmark(url, size, requests) for _ in range(SERVER_ROUNDS)]
    pairs = [1 / (1 / rates[0] + 1 / rates[1]) for rates in found if rates]
    if not pairs:
        return ServerRates(SET_GET_CLIENT, client_rate(url, size, frames))
    of_set = statistics.median(rates[0] for rates in found if rates)
    return ServerRates(SET_GET_BENCH, statistics.median(pairs), of_set)


def _own_benchmark(url: str, size: int, requests: int) -> tuple[float, float] | None:
    """SETs and GETs per second at a payload; None where there is no such tool."""
    tool = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    parts = urlsplit(url)
    if tool is None or parts.scheme != "unix":
        return None
    told = f"-t set,get -d {size} -n {requests} -c 1 --csv".split()
    command = [tool, "-s", parts.path, *told]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    rows = dict(row.replace('"', "").split(",")[:2] for row in done.stdout.splitlines())
    return (float(rows["SET"]), float(rows["GET"])) if {"SET", "GET"} <= rows.keys() else None

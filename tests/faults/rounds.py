"""One round of chaos: a fresh line, faults drawn by a seed, and what it has left behind."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from engines.contracts import Verdict
from pipeline.lanes import Lane
from tests.faults.injuries import INJURIES, drawn
from tests.faults.invariants import late, left_by
from tests.faults.servers import HurtServer, has_compiler
from tests.faults.standing import Standing, standing
from tests.stub_line import mixed, stub_camera, write_numbers, write_stub_bundle, write_stub_line

CAMERAS, RATE_HZ, PARTS = ("left", "right"), 45.0, 200
GATE_MS = 3000
MARGIN_MS = 100  # chaos keeps every core busy, so the gate keeper may wake late
QUIET_S = (0.5, 2.0)  # between a recovery and the next fault
LOOK_S = 1.0
WARM_S = 10.0  # before a process is compared with itself
ROLES = ("ingest", "inspect", "sink")


@dataclass
class Hurt:
    """One injury, and how the line took it."""

    at_s: float  # since the round began
    kind: str
    recovery_s: float
    bound_s: float
    keeps_gate: bool = False
    captured_ns: tuple[int, int] = (0, 0)  # of parts that met it, server clock


@dataclass
class Look:
    """A glance at one process."""

    at_s: float
    role: str
    pid: int
    rss_mb: float
    descriptors: int


@dataclass
class Round:
    """What a round showed."""

    number: int
    seed: int
    conditions: str
    seconds: float = 0.0
    captured: int = 0
    residual: int = 0
    duplicates: int = 0
    decisions: dict[str, int] = field(default_factory=dict)
    hurts: list[Hurt] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    flow: list[tuple[float, int]] = field(default_factory=list)  # seconds, verdicts acted on
    wrongs: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)


def run_round(number: int, seed: int, seconds: float, folder: Path, bundle: Path | None) -> Round:
    """Run one round in ``folder``, which must not exist; it is removed where nothing is wrong.

    ``bundle``: a real one over simulated parts, instead of the timed stub.
    """
    rng = random.Random(f"{seed}/{number}")
    has_network, has_clock = rng.random() < 0.4, has_compiler() and rng.random() < 0.3
    appendonly = rng.random() < 0.5
    conditions = {"remembering server": appendonly, "network": has_network, "clock": has_clock}
    shown = Round(number, seed, ", ".join(name for name, on in conditions.items() if on) or "plain")
    folder.mkdir(parents=True)
    line = _stub_line(folder, rng) if bundle is None else _real_line(folder, bundle)
    began = time.monotonic()
    server = HurtServer(folder / "server", appendonly=appendonly, clock=has_clock)
    with server, standing(line, server, networked=has_network) as here:
        until = time.monotonic() + seconds
        with _watched(here, shown, began):
            while time.monotonic() < until:
                time.sleep(rng.uniform(*QUIET_S))
                kind = drawn(rng, has_network=has_network, has_clock=has_clock)
                shown.hurts.append(_hurt(here, kind, rng, began))
        here.finish()
        left = left_by(here, is_named=bundle is None)
    shown.seconds = time.monotonic() - began
    shown.captured, shown.residual = len(left.verdicts), left.residual
    shown.duplicates, shown.decisions = left.duplicates, dict(left.decisions)
    shown.wrongs += [*left.wrongs, *_late(shown, left.verdicts), *_grown(shown)]
    if not shown.wrongs:
        shutil.rmtree(folder)
    return shown


def _stub_line(folder: Path, rng: random.Random) -> Path:
    write_stub_bundle(folder / "stub")
    write_numbers(folder / "parts", mixed(PARTS))
    (folder / "parts" / "00007-damaged.png").write_bytes(b"no picture")
    shared = {"left": rng.choice(("inline", "shared")), "right": "inline"}
    cameras = [
        stub_camera(name, rate_hz=RATE_HZ, gate_ms=GATE_MS, transport=shared[name])
        for name in CAMERAS
    ]
    return write_stub_line(
        folder,
        folder / "stub",
        cameras,
        worker={"processes": 2},
        sinks={"jsonl": {"fsync": "never"}, "reject": {}, "margin_ms": MARGIN_MS},
        log_level="warning",
    )


def _real_line(folder: Path, bundle: Path) -> Path:
    source = {"kind": "simulator", "rate_hz": 4, "rendered": 24, "seed": 5}
    cameras = [{"name": name, "source": source, "gate_ms": 5000} for name in CAMERAS]
    path = write_stub_line(folder, bundle.resolve(), cameras, worker={"processes": 2})
    content = yaml.safe_load(path.read_text())
    content["worker"] |= {"backend": "openvino", "threads": 1}
    content["log_level"] = "warning"
    path.write_text(yaml.safe_dump(content))
    return path


def _hurt(here: Standing, kind: str, rng: random.Random, began: float) -> Hurt:
    one = INJURIES[kind]
    at_s, from_ns = time.monotonic() - began, here.stream.now_ns()
    one.hurt(here, rng)
    recovery_s = here.recovery_s()
    met = (from_ns, here.stream.now_ns())
    return Hurt(at_s, kind, recovery_s, one.bound_s, one.keeps_gate, met)


@contextmanager
def _watched(here: Standing, shown: Round, began: float) -> Iterator[None]:
    def watch(closing: Any) -> None:  # noqa: ANN401 - an event
        while not closing.wait(LOOK_S):
            at_s = time.monotonic() - began
            shown.flow.append((at_s, here.acted()))
            for role in ROLES:
                for pid in here.pids(role):
                    _look(shown, at_s, role, pid)

    with Lane("looks", watch):
        yield


def _look(shown: Round, at_s: float, role: str, pid: int) -> None:
    try:
        process = psutil.Process(pid)
        rss_mb = process.memory_info().rss / 1e6
        shown.looks.append(Look(at_s, role, pid, rss_mb, process.num_fds()))
    except psutil.Error:  # it has just ended
        return


def _late(shown: Round, verdicts: Sequence[Verdict]) -> list[str]:
    """Parts answered after their gate although sink and server lived from exposure to gate."""
    if {"clock", "network"} & set(shown.conditions.split(", ")):
        return []  # stamps on both sides of a step do not compare; weather is no machine's own
    over: list[str] = []
    for first_ns, last_ns in _kept_spans(shown.hurts):
        met = [v for v in verdicts if first_ns <= v.captured_ns <= last_ns - GATE_MS * 1_000_000]
        over += late(met, GATE_MS)
    return [f"{len(over)} parts were answered after the gate, {over[0]}"] if over else []


def _kept_spans(hurts: Sequence[Hurt]) -> Iterator[tuple[int, int]]:
    """Times of faults in a row during which sink and server lived, server clock."""
    span: tuple[int, int] | None = None
    for hurt in hurts:
        first_ns, last_ns = hurt.captured_ns
        if hurt.keeps_gate:
            span = (span[0] if span else first_ns, last_ns)
        elif span:
            yield span[0], first_ns
            span = None
    if span:
        yield span


def _grown(shown: Round, mb: float = 20.0, descriptors: int = 8) -> list[str]:
    """Processes that hold much more at their end than once they were warm."""
    wrongs = []
    by_pid: dict[int, list[Look]] = {}
    for look in shown.looks:
        by_pid.setdefault(look.pid, []).append(look)
    for looks in by_pid.values():
        warm = [look for look in looks if look.at_s >= looks[0].at_s + WARM_S]
        if len(warm) < 2:
            continue
        first, last = warm[0], warm[-1]
        if last.rss_mb - first.rss_mb > mb:
            wrongs.append(f"{first.role} grew from {first.rss_mb:.0f} to {last.rss_mb:.0f} MB")
        if last.descriptors - first.descriptors > descriptors:
            wrongs.append(f"{first.role}: {first.descriptors} -> {last.descriptors} descriptors")
    return wrongs


def kinds(rounds: list[Round]) -> Counter[str]:
    """How often each injury was done."""
    return Counter(hurt.kind for one in rounds for hurt in one.hurts)

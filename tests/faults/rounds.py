"""One round of chaos: a fresh line, faults drawn by a seed, and what it has left behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.lanes import Lane
from tests.faults.gates import Excuse, Gates, Onlooker, judged, least_ms, watched_gates
from tests.faults.injuries import INJURIES, OTHER, SWAP, drawn
from tests.faults.invariants import left_by
from tests.faults.looks import WARM_S, Look, grown, looks_at
from tests.faults.servers import HurtServer, has_compiler
from tests.faults.standing import Standing, standing
from tests.stub_line import (
    COSTS,
    mixed,
    stub_camera,
    write_numbers,
    write_stub_bundle,
    write_stub_line,
)

CAMERAS, RATE_HZ, PARTS = ("left", "right"), 45.0, 200
GATES_MS = (500, 1000, 3000)  # of a round
FAR_MS = 3000  # where pieces on the network arrive a retransmission late
QUIET_S = (0.5, 2.0)  # between a recovery and the next fault
LOOK_S = 1.0
ROLES = ("ingest", "inspect", "sink")


@dataclass
class Hurt:
    """One injury, and how the line took it."""

    at_s: float  # since the round began
    kind: str
    recovery_s: float
    bound_s: float
    took_s: float = 0.0  # itself, before the recovery
    least_ms: float | None = None  # stamped before the gate, of parts whose gate met it

    @property
    def lasted_s(self) -> float:
        """From its beginning until the line was well again."""
        return self.took_s + self.recovery_s


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
    gates: Gates = field(default_factory=Gates)
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
    told = ", ".join(name for name, on in conditions.items() if on) or "plain"
    gate_ms = FAR_MS if has_network else rng.choice(GATES_MS)
    shown = Round(number, seed, f"{told}, gate {gate_ms} ms" if bundle is None else told)
    folder.mkdir(parents=True)
    line = _stub_line(folder, rng, gate_ms) if bundle is None else _real_line(folder, bundle)
    began = time.monotonic()
    server = HurtServer(folder / "server", appendonly=appendonly, clock=has_clock)
    with server, standing(line, server, networked=has_network) as here:
        until = time.monotonic() + seconds
        with _watched(here, shown, began), watched_gates(here) as onlooker:
            while time.monotonic() < until and not shown.wrongs:
                time.sleep(rng.uniform(*QUIET_S))
                kind = drawn(rng, has_network=has_network, has_clock=has_clock)
                _hurt(here, shown, kind, rng, began)
                if bundle is not None:  # its engine takes long to load: else none may be left
                    here.wait_whole()
            _weigh_gates(shown, onlooker, began)
        here.finish()
        left = left_by(here, is_named=bundle is None)
    shown.seconds = time.monotonic() - began
    shown.captured, shown.residual = len(left.verdicts), left.residual
    shown.duplicates, shown.decisions = left.duplicates, dict(left.decisions)
    shown.wrongs += [*left.wrongs, *_late(shown.gates), *_slow(shown.hurts)]
    shown.wrongs += grown(shown.looks, _swapped_s(shown.hurts), WARM_S + here.load_s)
    if not shown.wrongs:
        shutil.rmtree(folder)
    return shown


def _stub_line(folder: Path, rng: random.Random, gate_ms: int) -> Path:
    write_stub_bundle(folder / "stub")
    write_stub_bundle(folder / OTHER, COSTS | {"start": (210_000, 20_000)})
    write_numbers(folder / "parts", mixed(PARTS))
    (folder / "parts" / "00007-damaged.png").write_bytes(b"no picture")
    shared = {"left": rng.choice(("inline", "shared")), "right": "inline"}
    cameras = [
        stub_camera(name, rate_hz=RATE_HZ, gate_ms=gate_ms, transport=shared[name])
        for name in CAMERAS
    ]
    return write_stub_line(
        folder,
        folder / "stub",
        cameras,
        worker={"processes": 2, "engines": 2},
        sinks={"jsonl": {"fsync": "never"}, "reject": {}},
        log_level="warning",
    )


def _real_line(folder: Path, bundle: Path) -> Path:
    _write_stricter(bundle, folder / OTHER)
    source = {"kind": "simulator", "rate_hz": 4, "rendered": 24, "seed": 5}
    cameras = [{"name": name, "source": source, "gate_ms": 5000} for name in CAMERAS]
    path = write_stub_line(folder, bundle.resolve(), cameras, worker={"processes": 2})
    content = yaml.safe_load(path.read_text())
    content["worker"] |= {"backend": "openvino", "threads": 1}
    content["log_level"] = "warning"
    path.write_text(yaml.safe_dump(content))
    return path


def _write_stricter(bundle: Path, other: Path) -> None:
    """The same graphs with slightly lower thresholds, to swap for; files are linked, not copied."""
    shutil.copytree(bundle, other, copy_function=os.link)
    path = other / "calibration.json"
    told = json.loads(path.read_text())
    for entries in told["entries"].values():
        for entry in entries.values():
            entry["threshold"] *= 0.999
    path.unlink()  # the link, not the bundle's own
    path.write_text(json.dumps(told))


def _hurt(here: Standing, shown: Round, kind: str, rng: random.Random, began: float) -> None:
    """Do it and wait for the line; one that is never well again ends the round, and is told."""
    one, at_s = INJURIES[kind], time.monotonic()
    try:
        one.hurt(here, rng)
        took_s = time.monotonic() - at_s
        recovery_s = here.recovery_s()
    except AssertionError as error:
        shown.wrongs.append(f"{kind}, {at_s - began:.0f} s after the start: {error}")
        return
    bound_s = one.bound_s + (here.load_s if one.reloads else 0.0)
    shown.hurts.append(Hurt(at_s - began, kind, recovery_s, bound_s, took_s))


@contextmanager
def _watched(here: Standing, shown: Round, began: float) -> Iterator[None]:
    def watch(closing: Any) -> None:  # noqa: ANN401 - an event
        while not closing.wait(LOOK_S):
            at_s = time.monotonic() - began
            shown.flow.append((at_s, here.acted()))
            for role in ROLES:
                shown.looks += looks_at(role, here.pids(role), at_s)

    with Lane("looks", watch):
        yield


def _weigh_gates(shown: Round, onlooker: Onlooker, began: float) -> None:
    """How the gates were kept, of all parts and of those that met each injury."""
    spans = [(began + one.at_s, began + one.at_s + one.lasted_s) for one in shown.hurts]
    met = list(zip(shown.hurts, spans, strict=True))
    excused = [Excuse(*span, of) for one, span in met if (of := INJURIES[one.kind].excuses)]
    sights = list(onlooker.sights.values())
    shown.gates = judged(sights, excused)
    for one, span in met:
        one.least_ms = least_ms(sights, span, excused)


def _late(gates: Gates) -> list[str]:
    late = gates.late
    return [f"{len(late)} parts were answered too late: {', '.join(late[:3])}"] if late else []


def _slow(hurts: list[Hurt]) -> list[str]:
    """Faults after which the line was not well in time."""
    slow = [one for one in hurts if one.recovery_s > one.bound_s]
    return [f"{one.kind}: well after {one.recovery_s:.1f} s of {one.bound_s:.0f}" for one in slow]


def _swapped_s(hurts: list[Hurt]) -> float:
    """When the last swap was over: from then on a worker holds what it kept for a way back."""
    return max((one.at_s + one.lasted_s for one in hurts if one.kind == SWAP), default=0.0)


def kinds(rounds: list[Round]) -> Counter[str]:
    """How often each injury was done."""
    return Counter(hurt.kind for one in rounds for hurt in one.hurts)

"""Faults of one camera, and what the other camera's frames notice of them."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from engines.contracts import Verdict
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import Standing, standing
from tests.stub_line import mixed, stub_camera, write_numbers, write_stub_bundle, write_stub_line

HURT, SPARED = "left", "right"
RATIO_MAX = 1.2
RATE_HZ = 45.0
EVERY_S = 4.0


def measure_isolation(folder: Path, frames: int, seed: int) -> dict[str, Any]:
    """p99 of the spared camera's latency, with and without faults of the hurt one; alternating.

    At least ``frames`` frames of the spared camera on each side. Turns alternate, so that what else
    the machine does falls on both.
    """
    write_stub_bundle(folder / "stub")
    write_numbers(folder / "parts", mixed(200))
    cameras = [stub_camera(name, rate_hz=RATE_HZ, gate_ms=5000) for name in (HURT, SPARED)]
    line = write_stub_line(folder, folder / "stub", cameras, log_level="warning")
    rng, turns = random.Random(seed), []
    with HurtServer(folder / "server") as server, standing(line, server) as here:
        time.sleep(EVERY_S)
        left, is_hurt = {True: frames, False: frames}, False
        while max(left.values()) > 0:
            turns.append((is_hurt, *_turn(here, rng, is_hurt=is_hurt)))
            left[is_hurt] -= int(EVERY_S * RATE_HZ * 2)
            is_hurt = not is_hurt
        here.finish()
        verdicts = require_sound(here).verdicts
    quiet, hurt = (_latencies_ms(verdicts, turns, is_hurt=hurt) for hurt in (False, True))
    told = [float(np.percentile(some, 99)) for some in (quiet, hurt)]
    return {
        "frames_quiet": len(quiet),
        "frames_hurt": len(hurt),
        "p99_quiet_ms": told[0],
        "p99_hurt_ms": told[1],
        "ratio": told[1] / told[0],
        "ratio_max": RATIO_MAX,
    }


def _turn(here: Standing, rng: random.Random, *, is_hurt: bool) -> tuple[int, int]:
    """Some seconds with a fault of the camera, or without; first and last moment, server clock."""
    began_ns = here.stream.now_ns()
    if is_hurt:
        pid = here.pid_of_camera(HURT)
        number = rng.choice((signal.SIGKILL, signal.SIGSTOP))
        here.signal_pid(pid, number)
        time.sleep(EVERY_S / 2)
        here.signal_pid(pid, signal.SIGCONT)
        time.sleep(1.5 * EVERY_S)
    else:
        time.sleep(2 * EVERY_S)
    return began_ns, here.stream.now_ns()


def _latencies_ms(
    verdicts: tuple[Verdict, ...], turns: list[tuple[bool, int, int]], *, is_hurt: bool
) -> list[float]:
    spans = [(first, last) for hurt, first, last in turns if hurt == is_hurt]
    return [
        (v.decided_ns - v.captured_ns) / 1e6
        for v in verdicts
        if v.camera == SPARED and any(first <= v.captured_ns < last for first, last in spans)
    ]

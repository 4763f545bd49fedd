"""What can be done to a standing line, by name: each injury hurts, heals, and says what it spared.

An injury returns when it is over; how long the line takes to be well again is measured after that.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from pipeline.swap import bundle_in_force
from pipeline.swap.ordering import swap
from tests.faults.gates import Excused
from tests.faults.servers import HurtServer
from tests.faults.standing import Standing

FROZEN_S = 5.0
HUNG_S = 13.0  # longer than a process may be silent
AWAY_S = (0.2, 3.0)
OTHER = "other"  # folder of the second bundle, beside the line's run folder
SWAP_S = 1.0  # how soon after the order a worker dies
SWAP_PATIENCE_S = 120.0  # as the command's own: a real engine is rehearsed without haste
SWAP = "swap the bundle"
WITH_SECOND_WORKER_S, WITHOUT_S = 3.0, 10.0  # until the line is well

Hurt = Callable[[Standing, random.Random], None]


@dataclass(frozen=True, slots=True)
class Injury:
    """One kind of fault; ``bound_s`` is how soon after it the line has to be well."""

    hurt: Hurt
    bound_s: float = WITHOUT_S
    weight: int = 2
    needs: str = ""  # "network" or "clock"
    reloads: bool = False  # engines: the time that takes comes on top of the bound
    excuses: Excused | None = None  # parts that nobody can answer in time: see ``gates``


def kill(role: str) -> Hurt:
    """SIGKILL one process of a role."""

    def hurt(line: Standing, rng: random.Random) -> None:
        line.signal(role, signal.SIGKILL, rng.randrange(max(1, len(line.pids(role)))))

    return hurt


def freeze(role: str, seconds: float = FROZEN_S, *, everyone: bool = False) -> Hurt:
    """SIGSTOP for a while: one process of a role, or all of it."""

    def hurt(line: Standing, rng: random.Random) -> None:
        pids = line.pids(role)
        chosen = pids if everyone else rng.sample(pids, min(1, len(pids)))
        for number, pause_s in ((signal.SIGSTOP, seconds), (signal.SIGCONT, 0.0)):
            for pid in chosen:
                with suppress(ProcessLookupError):  # ended for hanging
                    os.kill(pid, number)
            time.sleep(pause_s)

    return hurt


def _kill_one(line: Standing) -> None:
    for pid in line.pids("inspect")[:1]:
        line.signal_pid(pid, signal.SIGKILL)


def _kill_all_workers(line: Standing, _: random.Random) -> None:
    for pid in line.pids("inspect"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def for_a_while(begin: Callable[[HurtServer], None], end: Callable[[HurtServer], None]) -> Hurt:
    """Something done to the server, and undone after a while."""

    def hurt(line: Standing, rng: random.Random) -> None:
        begin(line.server)
        time.sleep(rng.uniform(*AWAY_S))
        end(line.server)

    return hurt


def _freeze_server(server: HurtServer) -> None:
    os.kill(server.pid, signal.SIGSTOP)


def _thaw_server(server: HurtServer) -> None:
    os.kill(server.pid, signal.SIGCONT)


def _drop_clients(line: Standing, _: random.Random) -> None:
    for _round in range(20):
        line.server.drop_clients()
        time.sleep(0.05)


def _throw_entries(line: Standing, rng: random.Random) -> None:
    """Entries that nobody admitted, of a nonsense that nobody can read."""
    for camera in line.settings.camera_names:
        key = line.stream._of(camera).frames
        junk = rng.randbytes(rng.randrange(200)).hex()
        line.server.command("XADD", key, "*", "head", junk, "image", junk)


def _step_clock(line: Standing, rng: random.Random) -> None:
    line.server.step_clock(rng.choice((-3600, -2.0, -0.2, 0.2, 2.0, 3600)))
    time.sleep(1.0)


def _weather(change: Callable[[Standing, random.Random], None]) -> Hurt:
    def hurt(line: Standing, rng: random.Random) -> None:
        assert line.network is not None
        change(line, rng)
        time.sleep(rng.uniform(*AWAY_S))
        line.network.calm()

    return hurt


def _cut(line: Standing, _: random.Random) -> None:
    assert line.network is not None
    line.network.is_cut = True


def _slow(line: Standing, rng: random.Random) -> None:
    assert line.network is not None
    line.network.delay_s = rng.uniform(0.002, 0.02)


def _lossy(line: Standing, rng: random.Random) -> None:
    assert line.network is not None
    line.network.loss = rng.uniform(0.01, 0.1)


def _reset(line: Standing, _: random.Random) -> None:
    assert line.network is not None
    line.network.drop()


def _swap(line: Standing, rng: random.Random) -> None:
    """The bundle that the line does not run; half the time a worker dies meanwhile."""
    settings, other = line.settings, line.settings.run_dir.parent / OTHER
    is_back = bundle_in_force(settings) == other
    dies = threading.Timer(rng.uniform(0, SWAP_S), _kill_one, (line,))
    if rng.random() < 0.5:
        dies.start()
    try:
        swap(settings, settings.bundle if is_back else other, SWAP_PATIENCE_S, threading.Event())
    finally:
        dies.cancel()
        if dies.ident:
            dies.join()


INJURIES: dict[str, Injury] = {
    "kill a worker": Injury(kill("inspect"), WITH_SECOND_WORKER_S, 6),
    "kill all workers": Injury(_kill_all_workers, weight=3, reloads=True),
    "kill the sink": Injury(kill("sink"), weight=4, excuses="gate"),
    "kill a camera's process": Injury(kill("ingest"), weight=4, excuses="held"),
    "freeze a worker": Injury(freeze("inspect"), WITH_SECOND_WORKER_S, 3),
    "freeze all workers": Injury(freeze("inspect", everyone=True), weight=1),
    "freeze the sink": Injury(freeze("sink", 2.0), excuses="gate"),
    "freeze a camera's process": Injury(freeze("ingest", 2.0), excuses="held"),
    "hang a worker": Injury(freeze("inspect", HUNG_S), weight=1),
    "hang the sink": Injury(freeze("sink", HUNG_S), weight=1, excuses="gate"),
    "stop the server": Injury(for_a_while(HurtServer.stop, HurtServer.start), excuses="gate"),
    "kill the server": Injury(for_a_while(HurtServer.kill, HurtServer.start), excuses="gate"),
    "freeze the server": Injury(for_a_while(_freeze_server, _thaw_server), excuses="gate"),
    "fill the server": Injury(for_a_while(HurtServer.fill, HurtServer.empty)),
    "make the server read-only": Injury(
        for_a_while(HurtServer.forbid_writes, HurtServer.allow_writes), excuses="gate"
    ),
    "drop all connections 20 times": Injury(_drop_clients),
    "throw entries into the streams": Injury(_throw_entries),
    SWAP: Injury(_swap, WITH_SECOND_WORKER_S),
    "step the server's clock": Injury(_step_clock, needs="clock", excuses="clock"),
    "cut the network": Injury(_weather(_cut), needs="network", excuses="gate"),
    "slow the network": Injury(_weather(_slow), needs="network"),
    "lose pieces on the network": Injury(_weather(_lossy), needs="network"),
    "reset the network": Injury(_weather(_reset), needs="network"),
}


def drawn(rng: random.Random, *, has_network: bool, has_clock: bool) -> str:
    """The next injury of a schedule."""
    missing = {"network": not has_network, "clock": not has_clock}
    names = [name for name, one in INJURIES.items() if not missing.get(one.needs)]
    return rng.choices(names, [INJURIES[name].weight for name in names])[0]

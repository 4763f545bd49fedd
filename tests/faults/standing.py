"""A line that stands while faults are done to it: its processes, its server, what it has left."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.config import LineSettings, load_line
from pipeline.pulse import Pulse
from pipeline.stream import Ledger, Stream, open_stream
from pipeline.supervisor import run_line
from tests.faults.servers import HurtServer
from tests.faults.weather import Weather

PATIENCE_S = 90.0
LOOK_S = 0.01
SETTLED_S = 0.5  # a line is well when no open frame is older than this


@dataclass
class Standing:
    """A line in this process's children, on a server of ours."""

    settings: LineSettings
    server: HurtServer
    stream: Stream
    pulse: Pulse
    network: Weather | None = None
    load_s: float = 0.0  # from the start of the line until its workers were ready
    stop: threading.Event = field(default_factory=threading.Event)
    ready: threading.Event = field(default_factory=threading.Event)
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    error: BaseException | None = None
    thread: threading.Thread | None = None

    # -- processes ---------------------------------------------------------------------------------

    def pids(self, role: str) -> list[int]:
        """Process ids of a role that run, oldest first."""
        mine = str(self.settings.run_dir.parent)
        found = []
        for child in psutil.Process().children(recursive=True):
            try:
                words = child.cmdline()
                if words[1:4] == ["-m", "pipeline", role] and words[4].startswith(mine):
                    found.append((child.create_time(), child.pid))
            except (psutil.Error, IndexError):  # it has just ended
                continue
        return [pid for _, pid in sorted(found)]

    def signal(self, role: str, number: int, at: int = 0) -> int:
        """Send a signal to one process of a role, once there is one; its process id."""
        self.wait_for(lambda: len(self.pids(role)) > at)
        pid = self.pids(role)[at]
        os.kill(pid, number)
        return pid

    def pid_of_camera(self, name: str) -> int:
        """The process of one camera, once it runs."""
        self.wait_for(lambda: any(name in psutil.Process(p).cmdline() for p in self.pids("ingest")))
        return next(p for p in self.pids("ingest") if name in psutil.Process(p).cmdline())

    def signal_pid(self, pid: int, number: int) -> None:
        """Send a signal to a process that may have ended meanwhile."""
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def beats(self, pid: int, role: str) -> bool:
        """Whether a process shows that it works."""
        return any(name.endswith(f"-{pid}") for name in self.pulse.living(role))

    def wait_replaced(self, role: str, gone: int) -> None:
        """Return once another process of the role works in the place of one that is gone."""
        self.wait_for(lambda: any(pid != gone and self.beats(pid, role) for pid in self.pids(role)))

    def wait_whole(self) -> None:
        """Return once every worker works that the line is to have."""
        self.wait_for(lambda: self._works() >= self.settings.worker.processes)

    def _works(self) -> int:
        return sum(self.beats(pid, "inspect") for pid in self.pids("inspect"))

    # -- frames ------------------------------------------------------------------------------------

    def captured(self) -> int:
        """Frames of all cameras so far."""
        return sum(self.stream.ledger(name).captured for name in self.settings.camera_names)

    def wait_captured(self, more: int) -> None:
        """Return once so many more frames were captured."""
        wanted = self.captured() + more
        self.wait_for(lambda: self.captured() >= wanted)

    def acted(self) -> int:
        """Verdicts that the sink has written down."""
        record = self.settings.run_dir / "verdicts.jsonl"
        return record.read_bytes().count(b"\n") if record.exists() else 0

    def wait_acted(self, more: int) -> None:
        """Return once so many more were; a server that forgets does not change this count."""
        wanted = self.acted() + more
        self.wait_for(lambda: self.acted() >= wanted)

    def oldest_s(self) -> float:
        """Age of the oldest open frame."""
        now_ns = self.stream.now_ns()
        ages = [0.0]
        for name in self.settings.camera_names:
            gate_ns = self.settings.camera(name).gate_ms * 1_000_000
            oldest = self.stream.deadlines({name: now_ns + 10 * gate_ns}, count=1)
            heads = self.stream.heads(oldest)
            ages += [(now_ns - head.captured_ns) / 1e9 for head in heads]
        return max(ages)

    def recovery_s(self) -> float:
        """Wait until the line is well again; how long that took.

        It is well when all that waited is answered and acted on, no frame is old, every camera's
        parts are judged, and the sink acts on what is judged.
        """
        began = time.monotonic()
        waiting, judged, acted = self._waiting(), self._judged(), self.acted()
        self.wait_for(lambda: not waiting & self._waiting())
        self.wait_for(
            lambda: (
                self.oldest_s() < SETTLED_S
                and self.acted() > acted
                and all(now != then for now, then in zip(self._judged(), judged, strict=True))
            )
        )
        return time.monotonic() - began

    def _waiting(self) -> set[str]:
        """Frames without a verdict, and those with one that no sink has acted on."""
        found: set[str] = set()
        for name in self.settings.camera_names:
            standing = self.stream.standing(name, knows_sink=True)
            found |= standing.open | standing.unacted.keys()
        return found

    def _judged(self) -> list[int]:
        """A server that forgot counts anew, until its camera tells it what there was."""
        ledgers = [self.stream.ledger(name) for name in self.settings.camera_names]
        return [ledger.passed + ledger.failed for ledger in ledgers]

    # -- life --------------------------------------------------------------------------------------

    def wait_for(self, what: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        """Return once ``what`` is true; fails where that never happens."""
        until = time.monotonic() + patience_s
        while not what():
            assert time.monotonic() < until, "what was waited for never happened"
            assert self.error is None, f"the line ended: {self.error!r}"
            assert not self.ledgers, "the line ended too early"
            time.sleep(LOOK_S)

    def finish(self) -> None:
        """Ask the line to end in order, and wait for that."""
        self.stop.set()
        self.join()

    def join(self) -> None:
        """Wait for the line's own end."""
        assert self.thread is not None
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), "the line did not end"
        assert self.error is None, f"the line ended: {self.error!r}"

    def run(self, line: Path, url: str) -> None:
        """The line itself, in a thread."""
        try:
            self.ledgers |= run_line(self.settings, self.stop, line, url, self.ready.set)
        except BaseException as error:
            self.error = error


@contextmanager
def standing(line: Path, server: HurtServer, *, networked: bool = False) -> Iterator[Standing]:
    """Run a line on a server that runs already; ``networked`` puts weather between them."""
    settings = load_line(line)
    with ExitStack() as stack:
        stream = stack.enter_context(open_stream(server.url, settings.redis.namespace))
        pulse = Pulse(server.url, settings.redis.namespace)
        stack.callback(pulse.close)
        here = Standing(settings, server, stream, pulse)
        url = server.url
        if networked:
            here.network = Weather(line.parent / "network", server.url)
            stack.callback(here.network.close)
            url = here.network.url
        here.thread = threading.Thread(target=here.run, args=(line, url))
        began = time.monotonic()
        here.thread.start()
        try:
            here.wait_for(here.ready.is_set)
            here.load_s = time.monotonic() - began
            here.wait_for(lambda: here.captured() > 0)
            yield here
        finally:
            _end(here)


def _end(here: Standing) -> None:
    """Whatever a test left behind is continued, calmed and ended."""
    for role in ("inspect", "sink", "ingest"):
        for pid in here.pids(role):
            os.kill(pid, signal.SIGCONT)
    if here.network:
        here.network.calm()
    here.stop.set()
    if here.thread:
        here.thread.join(PATIENCE_S)

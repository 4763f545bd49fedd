"""The processes of a line: started, watched, started again ever more slowly, stopped in order."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path

from engines.contracts import ExitCode, InspectionError
from pipeline.telemetry import facts

PR_SET_PDEATHSIG = 1
SILENT_S = 10.0  # a process that stopped beating for so long hangs
QUICK_S = 10.0  # a process that ends sooner counts as a quick crash
QUICK_MAX = 5  # in a row, before it has ever worked; then the line gives up
BACK_OFF_S = (0.0, 0.2, 0.5, 1.0, 2.0)  # before the first, second, ... restart
# The sink keeps the gate, so it goes first where the machine allows that; the workers come after
# the cameras, which have to be on time too. The page is nicer still, by itself.
NICENESS = {"inspect": 5, "sink": -5}
DISPENSABLE = {"dashboard"}  # inspection goes on without it
LOG_BYTES = 10_000_000
# A server that is away comes back; until then its line waits.
# What another start would not mend: wrong words, wrong data, a bundle or line that cannot be.
HOPELESS = {ExitCode.USAGE, ExitCode.BAD_DATA, ExitCode.BAD_BUNDLE, ExitCode.BAD_CONFIG}


class GivenUp(InspectionError):
    """A process cannot be kept alive; the text says which and what it said last."""

    def __init__(self, sentence: str, exit_code: ExitCode) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class _LogFile(RotatingFileHandler):
    """A full disk costs lines of the log, never the thread that listens: nobody else empties the
    pipe, and a process whose pipe is full stands still."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        """Let the line go."""


@dataclass(slots=True, eq=False)
class Member:
    """One process of the line, across its restarts."""

    role: str
    label: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    spare_s: float = 0.0  # that it may be silent beyond ``SILENT_S``
    process: subprocess.Popen[bytes] | None = None
    has_worked: bool = False  # it has beaten, in this life or an earlier one
    started_s: float = 0.0
    restart_s: float = 0.0  # monotonic; when it may start again
    heard_s: float = 0.0  # monotonic; its last sign of life, 0 before the first
    quick_crashes: int = 0
    said: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    ears: threading.Thread | None = None

    def start(self) -> None:
        """Start the process in a session of its own, bound to the life of this thread."""
        self.started_s, self.heard_s = time.monotonic(), 0.0
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which stops in order
            preexec_fn=_bound_to_us(NICENESS.get(self.role, 0)),  # noqa: PLW1509 - system calls only
        )
        self.ears = threading.Thread(target=self._listen, name=f"log {self.label}", daemon=True)
        self.ears.start()

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def has_finished(self) -> bool:
        """Whether the process has ended in order."""
        return self.process is not None and self.process.poll() == ExitCode.OK

    def tend(self) -> None:
        """Start it again where it crashed and its back-off is over; raises GivenUp."""
        if self.process is None or self.process.poll() in (None, ExitCode.OK):
            return
        if not self.restart_s:
            self._note_crash(self.process.returncode)
        if time.monotonic() >= self.restart_s:
            self.restart_s = 0.0
            facts.count("roles_restarted_total", role=self.role)
            self.start()

    def hear(self, living: Collection[int]) -> None:
        """Note whether it is among the ``living``; one that fell silent is killed, to start again.

        Loading an engine takes as long as it takes: who has not beaten yet does not hang.
        """
        if self.process is None or not self.is_running():
            return
        now = time.monotonic()
        if self.process.pid in living:
            self.heard_s, self.has_worked = now, True
        elif self.heard_s and now - self.heard_s > SILENT_S + self.spare_s:
            facts.event("hangs", level="error", process=self.label)
            self.process.kill()

    def end(self, number: int, patience_s: float) -> None:
        """Send a signal and wait; what does not end in time is killed."""
        if self.process is None:
            return
        if self.is_running():
            self.process.send_signal(number)
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            facts.event("killed", level="error", process=self.label)
            self.process.kill()
            self.process.wait()
        if self.ears:
            self.ears.join(1.0)

    def _note_crash(self, code: int) -> None:
        lived_s = time.monotonic() - self.started_s
        self.quick_crashes = self.quick_crashes + 1 if lived_s < QUICK_S else 0
        if self.ears:
            self.ears.join(1.0)
        facts.event("crashed", level="error", process=self.label, code=code, said=self._last_words)
        if code in HOPELESS or (self.quick_crashes >= QUICK_MAX and self._never_will):
            known = ExitCode(code) if code in list(ExitCode) else ExitCode.FAULT
            times = f" {self.quick_crashes} times in a row" if self.quick_crashes > 1 else ""
            raise GivenUp(f"{self.label} ended with code {code}{times}: {self._last_words}", known)
        back_off_s = BACK_OFF_S[min(self.quick_crashes, len(BACK_OFF_S) - 1)]
        self.restart_s = time.monotonic() + back_off_s

    @property
    def _never_will(self) -> bool:
        """Whether there is no sign that it can work.

        What has worked stops for no number of crashes: poison parts in a row, a camera or a server
        that is away for an hour. The gate is kept meanwhile.
        """
        away = self.process is not None and self.process.returncode == ExitCode.NO_SERVER
        return not self.has_worked and not away

    @property
    def _last_words(self) -> str:
        told = [line for line in self.said if line.startswith("assayline: ")]
        words = (told or list(self.said) or ["it said nothing"])[-1]
        return words.removeprefix("assayline: ")

    def _listen(self) -> None:
        """Keep what the process says in a bounded file, and its last lines."""
        process = self.process
        if process is None or process.stderr is None:
            return
        keep = _LogFile(self.log, maxBytes=LOG_BYTES, backupCount=1, delay=True)
        with process.stderr as pipe:
            for raw in pipe:
                line = raw.decode("utf-8", "replace").rstrip()
                self.said.append(line)
                keep.emit(logging.makeLogRecord({"msg": line}))
        keep.close()


class Crew:
    """All processes of one line."""

    def __init__(self, line: Path, run_dir: Path, environment: Mapping[str, str]) -> None:
        self._line = line
        self._run_dir = run_dir
        self._environment = environment
        self._members: list[Member] = []
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)

    def start(
        self, role: str, label: str, *options: str, spare_s: float = 0.0, **environment: str
    ) -> None:
        """Start one process of a role, which may be silent for ``spare_s`` more than others."""
        member = Member(
            role=role,
            label=label,
            command=[sys.executable, "-m", "pipeline", role, str(self._line), *options],
            environment={**self._environment, **environment},
            log=self._run_dir / "logs" / f"{label.replace(' ', '-')}.log",
            spare_s=spare_s,
        )
        self._members.append(member)
        member.start()

    def tend(self) -> None:
        """Start again what crashed; raises GivenUp, except for what no part depends on."""
        for member in list(self._members):
            try:
                member.tend()
            except GivenUp as error:
                if member.role not in DISPENSABLE:
                    raise
                facts.event("given_up", level="error", process=member.label, sentence=str(error))
                self._members.remove(member)

    def hear(self, role: str, living: Collection[int]) -> None:
        """Kill what hangs in a role, given the process ids that beat; ``tend`` starts it again."""
        for member in self._of(role):
            member.hear(living)

    def all_heard(self, role: str) -> bool:
        """Whether every process of a role has beaten since its start."""
        return all(member.heard_s for member in self._of(role))

    def forgive(self) -> None:
        """Nobody could beat: no silence counts from before now."""
        for member in self._members:
            if member.process and member.heard_s:
                member.hear([member.process.pid])

    def all_finished(self, role: str) -> bool:
        """Whether every process of a role has ended in order."""
        return all(member.has_finished() for member in self._of(role))

    def end(self, role: str, patience_s: float) -> None:
        """Ask every process of a role to finish, then wait for them."""
        members = self._of(role)
        for member in members:
            if member.process is not None and member.is_running():
                member.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + patience_s
        for member in members:
            member.end(0, max(0.1, until - time.monotonic()))

    def kill(self) -> None:
        """End whatever still runs, at once."""
        for member in self._members:
            if member.is_running():
                member.end(signal.SIGKILL, 5.0)

    def _of(self, role: str) -> list[Member]:
        return [member for member in self._members if member.role == role]


def _bound_to_us(niceness: int) -> Callable[[], object]:
    """Run between fork and exec: even SIGKILL of the supervisor leaves no process behind."""
    on_linux = sys.platform.startswith("linux")
    prctl = ctypes.CDLL(None).prctl if on_linux else None  # loaded before the fork

    def bind() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError):  # to go first is a right that few have
            os.nice(niceness)

    return bind

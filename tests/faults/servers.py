"""A real server that can be stopped, killed, filled, frozen and lied to about the time."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis, exceptions

from pipeline.server import _wheel_binary, embedded_server

CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile long long *offset_ns(void) {
  static long long none, *seen;
  if (!seen) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY);
    void *at = file < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    seen = at == MAP_FAILED ? &none : at;
  }
  return seen;
}
int clock_gettime(clockid_t which, struct timespec *told) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(which, told);
  if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) {
    long long now = told->tv_sec * 1000000000LL + told->tv_nsec + *offset_ns();
    told->tv_sec = now / 1000000000LL;
    told->tv_nsec = now % 1000000000LL;
  }
  return failed;
}
int gettimeofday(struct timeval *restrict told, void *restrict zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  told->tv_sec = now.tv_sec;
  told->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *told) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (told) *told = now.tv_sec;
  return now.tv_sec;
}
"""


class HurtServer:
    """A server of our own on one address, across its restarts; use it from the main thread.

    ``appendonly`` lets it remember what it held; ``clock`` gives it a clock that can be stepped
    (where there is a C compiler).
    """

    def __init__(self, folder: Path, *, appendonly: bool = False, clock: bool = False) -> None:
        self.folder = folder
        self._appendonly = appendonly
        self._offset = folder / "clock.offset"
        self._binary = _with_clock(folder, self._offset) if clock else None
        self._running = ExitStack()
        self.url = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        return int((self.folder / "redis.pid").read_text())

    def start(self) -> None:
        """Start it, on the same address as before."""
        server = embedded_server(self.folder, appendonly=self._appendonly, binary=self._binary)
        self.url = self._running.enter_context(server)

    def stop(self) -> None:
        """Stop it in order."""
        self._running.close()

    def kill(self) -> None:
        """SIGKILL; it is away until ``start``."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def step_clock(self, seconds: float) -> None:
        """Set its wall clock by so many seconds off ours."""
        with self._offset.open("r+b") as file:
            file.write(struct.pack("<q", int(seconds * 1e9)))

    def fill(self) -> None:
        """Leave it no byte: what needs room is refused."""
        self.command("CONFIG", "SET", "maxmemory", "1mb")

    def empty(self) -> None:
        """Give it room again."""
        self.command("CONFIG", "SET", "maxmemory", "512mb")

    def forbid_writes(self) -> None:
        """Make it the replica of a master that is away, as after a fail-over."""
        self.command("REPLICAOF", "127.0.0.1", "1")

    def allow_writes(self) -> None:
        """Make it a master."""
        self.command("REPLICAOF", "NO", "ONE")

    def drop_clients(self) -> None:
        """End every connection."""
        self.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def command(self, *words: str) -> object:
        """Any command, as the one who keeps the server."""
        with Redis.from_url(self.url, socket_timeout=5) as client:
            return client.execute_command(*words)


def wait_until_answers(url: str, patience_s: float = 10.0) -> None:
    """Return once a server answers."""
    until = time.monotonic() + patience_s
    while True:
        try:
            with Redis.from_url(url, socket_timeout=1) as client:
                client.ping()
            return
        except exceptions.RedisError:
            assert time.monotonic() < until, f"{url} does not answer"
            time.sleep(0.01)


def has_compiler() -> bool:
    """Whether a server can be lied to about the time here."""
    return shutil.which("cc") is not None


def _with_clock(folder: Path, offset: Path) -> Path:
    """A command that runs the server under a clock whose offset stands in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    offset.write_bytes(struct.pack("<q", 0))
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True
    )
    script = folder / "server.sh"
    script.write_text(
        f'#!/bin/sh\nLD_PRELOAD="{library}" CLOCK_OFFSET="{offset}" exec "{_wheel_binary()}" "$@"\n'
    )
    script.chmod(0o755)
    return script

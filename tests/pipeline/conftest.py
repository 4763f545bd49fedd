"""Every server that the delivery contract is proven on."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis, exceptions

from pipeline.gpucheck import Asked
from pipeline.server import embedded_server
from pipeline.stream import Stream, open_stream


@pytest.fixture(scope="session")
def debian_server() -> Path:
    """The distribution's redis-server, Redis 7.0."""
    binary = shutil.which("redis-server")
    if binary is None and os.environ.get("CI"):
        pytest.fail("redis-server is missing; install the package redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed")
    return Path(binary)


@pytest.fixture(scope="session")
def debian_unix_url(debian_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Redis 7.0 on a unix socket."""
    with embedded_server(tmp_path_factory.mktemp("debian"), binary=debian_server) as url:
        yield url


@pytest.fixture(scope="session")
def debian_tcp_url(debian_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Redis 7.0 on a TCP port of this machine."""
    folder = tmp_path_factory.mktemp("tcp")
    while True:
        port = _free_port()
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        server = subprocess.Popen([str(debian_server), *options], stdout=subprocess.DEVNULL)
        if _is_up(server, port):
            break  # else another process took the port first
    yield f"redis://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture(params=["redis_url", "debian_unix_url", "debian_tcp_url"])
def every_stream(request: pytest.FixtureRequest, namespace: str) -> Iterator[Stream]:
    """A stream on each server in turn: embedded, Redis 7.0 on a socket, Redis 7.0 over TCP."""
    with open_stream(request.getfixturevalue(request.param), namespace) as stream:
        yield stream


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_up(server: subprocess.Popen[bytes], port: int) -> bool:
    with Redis(port=port, socket_timeout=1.0) as client:
        while server.poll() is None:
            try:
                return int(client.info("server")["process_id"]) == server.pid
            except exceptions.RedisError:
                time.sleep(0.01)
    return False


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """A check that writes below the test's own folder."""
    found = Asked(tmp_path / "check", batches=(1, 2), rounds=1, frames=4)
    found.write()
    return found

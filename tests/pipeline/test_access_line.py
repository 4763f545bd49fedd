"""A whole line runs with a user of its own for each role, by socket and TLS, and tells nobody."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis, exceptions

from engines.contracts import BadConfig, StreamLost
from pipeline.access.credentials import role_address
from pipeline.access.roles import ROLES
from pipeline.access.setup import exposed, set_up
from pipeline.config import load_line
from pipeline.evidence.verify import verify
from pipeline.stream import open_stream
from pipeline.takes import run_watched
from tests.tiny_line import shared_bundle, write_line, write_parts

FRAMES = 12
NAMESPACE = "assayline"


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``doctor --setup`` makes for a server on this machine."""
    folder = tmp_path_factory.mktemp("access") / "line"
    set_up(folder, NAMESPACE, ("localhost", "127.0.0.1"), tls=shutil.which("openssl") is not None)
    return folder


@pytest.fixture(scope="module")
def tls_server(access: Path) -> Iterator[str]:
    """URL of a server with the users and certificates of ``access``, by its own redis.conf."""
    program = shutil.which("redis-server")
    if program is None or shutil.which("openssl") is None:
        pytest.skip("needs redis-server and openssl; the embedded server speaks no TLS")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    conf = access.parent / "redis.conf"
    ours = (access / "redis.conf").read_text()
    conf.write_text(ours.replace("tls-port 6379", f"tls-port {port}"))
    words = [program, str(conf), "--dir", str(access.parent)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        url, until = f"rediss://localhost:{port}", time.monotonic() + 10
        while True:
            with contextlib.suppress(StreamLost), open_stream(at(url, access, "sink"), NAMESPACE):
                break
            assert server.poll() is None, "this redis-server takes no such configuration"
            assert time.monotonic() < until
        yield url
    finally:
        server.kill()
        server.wait()


def at(url: str, access: Path, role: str) -> str:
    """Where a role connects."""
    return role_address(url, access, NAMESPACE, role)


def ran(folder: Path, base: Path, redis: dict[str, Any]) -> dict[str, Any]:
    """The report of a line of one camera with these settings of Redis, watched while it ran."""
    folder.mkdir()
    write_parts(folder / "parts", FRAMES)
    line = write_line(
        folder,
        shared_bundle(base),
        redis=redis,
        sinks={"jsonl": {}, "archive": {}},
        log_level="debug",
    )
    stop, words = threading.Event(), set[str]()
    watch = threading.Thread(target=note_processes, args=(stop, words))
    watch.start()
    try:
        return run_watched(load_line(line), line, lambda _: None, threading.Event())
    finally:
        stop.set()
        watch.join()
        (folder / "processes").write_text("\n".join(words))


def note_processes(stop: threading.Event, words: set[str]) -> None:
    """Keep every word of every command line until ``stop``."""
    while not stop.wait(0.2):
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words.update(process.cmdline())


def assert_no_secret_told(access: Path, folder: Path) -> None:
    """No file that a run leaves, and no list of processes, holds a password."""
    secrets = [(access / f"{role}.password").read_text().strip() for role in ROLES]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    for path in files:
        text = path.read_bytes()
        assert not any(secret.encode() in text for secret in secrets), path


def test_a_line_runs_on_the_embedded_server(
    access: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every role comes with its own credentials; every frame is answered; no secret is told."""
    base = tmp_path_factory.getbasetemp()
    report = ran(tmp_path / "line", base, {"access": str(access)})
    assert (report["captured"], report["residual"]) == (FRAMES, 0)
    assert report["undecided"] == {}
    assert_no_secret_told(access, tmp_path)
    (proven,) = verify(str(tmp_path / "line" / "run" / "archive"), [])
    assert proven.verdicts == FRAMES
    assert proven.pictures >= 4


def test_a_line_runs_by_tls(
    access: Path, tls_server: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same by TLS on a Redis with the configuration that the setup wrote."""
    base = tmp_path_factory.getbasetemp()
    report = ran(tmp_path / "line", base, {"url": tls_server, "access": str(access)})
    assert (report["captured"], report["residual"]) == (FRAMES, 0)
    assert report["undecided"] == {}
    assert_no_secret_told(access, tmp_path)


def test_the_server_speaks_only_tls_with_certificates_of_ours(
    access: Path, tls_server: str, tmp_path: Path
) -> None:
    """Neither plain text nor a client or an authority of somebody else's gets through."""
    set_up(tmp_path / "other", NAMESPACE, ("localhost",))
    port = tls_server.rpartition(":")[2]
    plain = at(f"redis://localhost:{port}", access, "sink")
    foreign = at(tls_server, tmp_path / "other", "sink")
    bare = at(tls_server, access, "sink").partition("&ssl_certfile")[0]
    for url in (plain, foreign, bare):
        with pytest.raises((exceptions.ConnectionError, exceptions.TimeoutError)):
            Redis.from_url(url, socket_timeout=2).ping()
    address = f"rediss://127.0.0.2:{port}"
    with pytest.raises(StreamLost), open_stream(at(address, access, "sink"), NAMESPACE):
        pass


def test_secrets_are_for_their_owner_alone(access: Path) -> None:
    """Every file of the folder is made for its owner; one that is opened is noticed."""
    assert access.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in access.iterdir()} == {0}
    assert exposed(access) == []
    passwords = {(access / f"{role}.password").read_text() for role in ROLES}
    assert len(passwords) == len(ROLES)
    assert all(len(password.strip()) >= 43 for password in passwords)
    (access / "sink.password").chmod(0o640)
    assert exposed(access) == ["sink.password"]
    (access / "sink.password").chmod(0o600)


def test_a_setup_is_never_overwritten(access: Path) -> None:
    """A second setup in the same place is refused, and changes nothing."""
    before = {path.name: path.read_bytes() for path in access.iterdir()}
    with pytest.raises(BadConfig, match="exists already"):
        set_up(access, NAMESPACE)
    assert {path.name: path.read_bytes() for path in access.iterdir()} == before
    assert [path.name for path in access.parent.glob(".access-*")] == []


@pytest.mark.parametrize("host", ["", "a b", "x;DNS:evil", "-x", "a/b", "h\nx"])
def test_a_host_is_a_name_and_nothing_else(tmp_path: Path, host: str) -> None:
    """What is no host never reaches a certificate or a configuration."""
    with pytest.raises(BadConfig, match="no host"):
        set_up(tmp_path / "access", NAMESPACE, (host,))
    assert list(tmp_path.iterdir()) == []

"""The connection: its errors are one sentence without secrets, its clock is the server's."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.retry import Retry

from engines.contracts import BadConfig, Decision, ExitCode, StreamLost, Verdict
from pipeline.server import embedded_server
from pipeline.stream import Ledger, Stream, link, open_stream
from pipeline.stream.packing import Packer
from pipeline.wire import FrameEntry
from tests.pipeline.relaying import Relay

SECRET = "geheim-17"  # noqa: S105 - of a user that lives as long as its test


def an_entry(number: int) -> FrameEntry:
    """A small frame of camera ``cam``."""
    return FrameEntry(f"cam/1-{number}", "cam", 0, 2**62, np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def stream(redis_url: str, namespace: str) -> Iterator[Stream]:
    """A stream on the embedded server."""
    with open_stream(redis_url, namespace) as opened:
        yield opened


def test_a_frame_larger_than_any_buffer_arrives_whole(stream: Stream) -> None:
    """What a socket takes in several goes is the image that was sent, and the next one follows."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (1024, 2048, 3), np.uint8) for _ in range(2)]
    for number, image in enumerate(images, 1):
        assert stream.admit(FrameEntry(f"cam/1-{number}", "cam", 0, 2**62, image))
    found = stream.read(["cam"], "worker", 2, 1000)
    assert [one.fields[b"image"] for one in found] == [image.tobytes() for image in images]


@pytest.mark.parametrize("protocol", [2, 3])
def test_either_protocol_brings_the_same(redis_url: str, namespace: str, protocol: int) -> None:
    """An address may ask for one; entries, refusals and repeats are the same by both."""
    mark = "&" if "?" in redis_url else "?"
    with open_stream(f"{redis_url}{mark}protocol={protocol}", namespace) as stream:
        assert stream.read(["cam"], "worker", 2, 0) == []
        assert [stream.admit(an_entry(number)) for number in (1, 2, 1)] == [True, True, False]
        found = stream.read(["cam"], "worker", 2, 0)
        assert [one.entry_id for one in found] == ["1-1", "1-2"]
        assert {len(one.fields[b"image"]) for one in found} == {192}
        assert stream.credits("cam", 8) == 6
        assert list(stream.deadlines({"cam": 1 << 62})) == ["cam/1-1", "cam/1-2"]
        assert stream.deadlines({"cam": 0}) == {}
        with pytest.raises(StreamLost, match="UNBEGUN"):
            stream.admit(an_entry(3), begun=True)
        assert stream.ledger("cam") == Ledger(2, 0, 0, {}, 2)


@pytest.mark.parametrize(
    "url", ["unix:///nowhere/redis.sock", "redis://me:geheim-17@127.0.0.1:1/0", "redis://[::1]:1"]
)
def test_nobody_there_is_stream_lost(url: str) -> None:
    """A server that cannot be reached is StreamLost, without the password, and soon."""
    with pytest.raises(StreamLost, match="cannot be reached") as caught, open_stream(url):
        pass
    assert SECRET not in str(caught.value)
    assert caught.value.exit_code is ExitCode.NO_SERVER


@pytest.mark.parametrize("url", ["", "redis.sock", "http://127.0.0.1", "redis://host:many"])
def test_no_redis_address_is_bad_config(url: str) -> None:
    """An address of something else is refused before anything is tried."""
    with pytest.raises(BadConfig, match="no Redis address"), open_stream(url):
        pass


@pytest.mark.parametrize("server", ["debian_tcp_url", "debian_unix_url", "redis_url"])
def test_a_wrong_password_is_bad_config(
    server: str, namespace: str, request: pytest.FixtureRequest
) -> None:
    """A refused password says so, and neither the right nor the wrong one is printed."""
    url = request.getfixturevalue(server)
    with Redis.from_url(url) as admin:
        admin.acl_setuser(namespace, enabled=True, passwords=[f"+{SECRET}"], keys=["*"])
        try:
            with pytest.raises(BadConfig, match="user or password") as caught:
                Stream(f"{as_user(url, namespace, 'wrong-99')}", namespace).check_server()
        finally:
            admin.acl_deluser(namespace)
    assert SECRET not in str(caught.value)
    assert "wrong-99" not in str(caught.value)
    assert caught.value.exit_code is ExitCode.BAD_CONFIG


def test_a_missing_permission_is_bad_config(redis_url: str, namespace: str) -> None:
    """A user that may not do what the contract needs is told which command."""
    with Redis.from_url(redis_url) as admin:
        admin.acl_setuser(
            namespace,
            enabled=True,
            passwords=[f"+{SECRET}"],
            keys=["*"],
            categories=["+@all"],
            commands=["-zcard"],
        )
        try:
            with open_stream(as_user(redis_url, namespace, SECRET), namespace) as stream:
                assert stream.admit(an_entry(1))
                with pytest.raises(BadConfig, match="zcard") as caught:
                    stream.credits("cam", 4)
        finally:
            admin.acl_deluser(namespace)
    assert SECRET not in str(caught.value)


def as_user(url: str, name: str, password: str) -> str:
    """The URL with these credentials."""
    scheme, _, rest = url.partition("://")
    if scheme == "unix":
        return f"{url}?username={name}&password={password}"
    return f"{scheme}://{name}:{password}@{rest}"


def test_a_server_that_evicts_is_refused(tmp_path: Path) -> None:
    """Any policy but noeviction loses whole streams without a word, so it is not opened."""
    with embedded_server(tmp_path) as url, Redis.from_url(url) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(BadConfig, match="noeviction"), open_stream(url):
            pass


def test_a_restart_is_seen_and_survived(tmp_path: Path) -> None:
    """The same stream object goes on with the restarted server, which has another incarnation."""
    with embedded_server(tmp_path) as url, open_stream(url) as stream:
        before = stream.server_incarnation()
        assert stream.server_incarnation() == before
        assert stream.admit(an_entry(1))
        stop_server(tmp_path)
        with pytest.raises(StreamLost):
            stream.credits("cam", 4)
        with embedded_server(tmp_path):
            assert stream.server_incarnation() != before
            assert stream.ledger("cam") == Ledger(0, 0, 0, {}, 0)
            assert stream.read(["cam"], "w1", 4, 0) == []
            assert stream.admit(an_entry(1))
            assert stream.read_verdicts(["cam"], "sink", "c", 4, 0) == []


def test_a_connection_that_was_cut_is_made_anew(tmp_path: Path) -> None:
    """Whoever is handed one that the server has closed meanwhile notices nothing, reading too."""
    with (
        embedded_server(tmp_path) as url,
        open_stream(url) as stream,
        Redis.from_url(url) as admin,
    ):
        assert stream.admit(an_entry(1))
        assert len(stream.read(["cam"], "worker", 4, 0)) == 1
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert stream.read(["cam"], "worker", 4, 0) == []
        assert stream.credits("cam", 4) == 3


def test_a_reply_that_nobody_waited_for_is_never_another_s(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exchange that was broken off leaves a reply on its way; its connection is not used on."""
    with open_stream(redis_url, namespace) as stream:
        assert stream.admit(an_entry(1))
        with monkeypatch.context() as broken:
            broken.setattr(link, "_reply", _broken_off)
            with pytest.raises(KeyboardInterrupt):
                stream.credits("cam", 40)
        assert stream.backlog("cam") == 1
        assert stream.credits("cam", 4) == 3


def _broken_off(_: object) -> None:
    raise KeyboardInterrupt


def stop_server(folder: Path) -> None:
    """End the server of a folder as a crash would."""
    with Redis(unix_socket_path=str(folder / "redis.sock"), retry=Retry(NoBackoff(), 0)) as client:
        os.kill(int(client.info("server")["process_id"]), signal.SIGKILL)
        while True:
            try:
                client.ping()
            except exceptions.ConnectionError:
                return


class LossyLine(Relay):
    """Swallows the first reply to ``command``."""

    def __init__(self, folder: Path, server: str, command: bytes) -> None:
        super().__init__(folder, server)
        self.lost = 0
        self._command = command

    def carry(self, client: socket.socket, server: socket.socket) -> None:
        """Whatever comes, from either side; a request may come in pieces."""
        while True:
            ready, _, _ = select.select([client, server], [], [])
            if client in ready:
                if not (request := client.recv(1 << 20)):
                    return
                server.sendall(request)
                if self._command in request and not self.lost:
                    self.lost += 1
                    self._swallow(client, server)
                    return  # the server has done it, the client will never know
            if server in ready:
                if not (reply := server.recv(1 << 20)):
                    return
                client.sendall(reply)

    def _swallow(self, client: socket.socket, server: socket.socket) -> None:
        """Let the rest of the request through, and no reply, until both are still."""
        while ready := select.select([client, server], [], [], 0.1)[0]:
            if client in ready:
                server.sendall(client.recv(1 << 20))
            if server in ready:
                server.recv(1 << 20)


@pytest.mark.parametrize("command", [b"XADD", b"EVALSHA"])
def test_a_lost_reply_repeats_nothing(
    command: bytes, redis_url: str, namespace: str, tmp_path: Path
) -> None:
    """The client sends an admission or an answer again, and the server counts it once."""
    line = LossyLine(tmp_path, redis_url, command)
    try:
        with open_stream(line.url, namespace) as stream:
            stream.admit(an_entry(1))
            (delivery,) = stream.read(["cam"], "w1", 4, 0)
            stream.answer(delivery, "w1", stream_verdict(delivery.frame_id))
            assert line.lost == 1
            assert stream.ledger("cam") == Ledger(1, 1, 0, {}, 0)
            assert len(stream.follow_verdicts("cam", "0")) == 1
    finally:
        line.close()


def stream_verdict(frame_id: str) -> Verdict:
    """A PASS."""
    return Verdict(
        frame_id=frame_id, camera="cam", decision=Decision.PASS, captured_ns=0, decided_ns=1
    )


def test_answers_ask_nothing_first(tmp_path: Path) -> None:
    """One answer or many are one EVALSHA each, and only a new server is sent the script."""
    with embedded_server(tmp_path) as url, open_stream(url) as stream, Redis.from_url(url) as admin:
        for number in range(1, 8):
            stream.admit(an_entry(number))
        found = stream.read(["cam"], "w1", 8, 0)
        answers = [(each, stream_verdict(each.frame_id), {}) for each in found]
        for some, unknown_to in ((answers[:3], True), (answers[3:6], False), (answers[6:], False)):
            admin.config_resetstat()
            if unknown_to:
                admin.script_flush()
            assert stream.answer_all("w1", some) == [True] * len(some)
            told = admin.info("commandstats")
            assert "cmdstat_script|exists" not in told
            assert ("cmdstat_script|load" in told) == unknown_to
            assert told["cmdstat_evalsha"]["calls"] == len(some) * (1 + unknown_to)
        assert stream.ledger("cam") == Ledger(7, 7, 0, {}, 0)


def test_an_answer_refused_among_others_is_said(tmp_path: Path) -> None:
    """A server that refuses one of several calls is StreamLost, and the others stand."""
    with embedded_server(tmp_path) as url, open_stream(url) as stream, Redis.from_url(url) as admin:
        for number in (1, 2):
            stream.admit(an_entry(number))
        found = stream.read(["cam"], "w1", 8, 0)
        admin.set("assayline:{other}:open", "no sorted set")
        names = [found[0].frame_id, "other/1-1", found[1].frame_id]
        verdicts = [stream_verdict(name) for name in names]
        with pytest.raises(StreamLost, match="WRONGTYPE"):
            stream.answer_all_open(verdicts)
        assert stream.ledger("cam").residual == 0


def test_the_clock_is_the_servers(stream: Stream) -> None:
    """now_ns agrees with TIME within the stated uncertainty, and runs forwards in between."""
    readings = [stream.now_ns() for _ in range(100)]
    assert readings == sorted(readings)
    before = stream.now_ns()
    seconds, microseconds = stream._commands.time()
    after = stream.now_ns()
    slack_ns = stream.clock_uncertainty_ms * 1e6 + 1_000  # TIME counts microseconds
    assert before - slack_ns <= seconds * 10**9 + microseconds * 1_000 <= after + slack_ns


def test_the_clock_is_measured_anew_each_second(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second later the offset is measured again; within the second no round trip is made."""
    now = [10_000_000_000]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])
    readings = 0
    measure = stream._read_clock

    def counted() -> tuple[int, int]:
        nonlocal readings
        readings += 1
        return measure()

    monkeypatch.setattr(stream, "_read_clock", counted)
    for advance_ns in (0, 999_999_999, 0, 1, 10):
        now[0] += advance_ns
        stream.now_ns()
    assert readings == 6


def test_memory_is_told(stream: Stream) -> None:
    """Used bytes grow with what is kept, below the limit given to the embedded server."""
    memory = stream.memory()
    assert 0 < memory.used_bytes < memory.limit_bytes == 512 * 2**20


def test_an_image_is_sent_from_where_it_lies() -> None:
    """Of a command with a view in it the pieces are what Redis expects, and the view itself."""
    view = memoryview(bytes(10_000))
    words = ("XADD", "key", 7, b"\xff", view)
    pieces = Packer().pack(*words)
    assert any(piece is view for piece in pieces)
    assert b"".join(pieces) == Packer().pack(*words[:-1], bytes(view))[0]


@pytest.mark.parametrize(
    "words",
    [
        ("GET", "key"),
        ("SCRIPT LOAD", "return 1"),
        ("XADD", "k", 7, b"\xff\x00 ", "gr\u00fcn", "", b""),
        ("HSET", "k", -3, 10**15),
    ],
)
def test_a_command_is_packed_as_redis_py_packs_it(words: tuple[str | bytes | int, ...]) -> None:
    """Whatever its words are."""
    assert b"".join(Packer().pack(*words)) == b"".join(HiredisRespSerializer().pack(*words))

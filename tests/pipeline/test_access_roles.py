"""Each role has just the rights it needs: proven on a real server, with the users it would have."""

from __future__ import annotations

import math
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from redis import Redis, exceptions

from engines.contracts import BadConfig, Decision, Reason
from pipeline.access.credentials import USERS, role_address
from pipeline.access.roles import ROLES, user_of, users_acl
from pipeline.server import embedded_server
from pipeline.stream import open_stream
from pipeline.wire import FrameEntry, undecided

NAMESPACE = "plant"
CAMERA = "left"
FORBIDDEN = (
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("CONFIG", "REWRITE"),
    ("SHUTDOWN", "NOSAVE"),
    ("ACL", "SETUSER", "intruder", "on", "nopass", "+@all", "~*"),
    ("ACL", "LIST"),
    ("REPLICAOF", "NO", "ONE"),
    ("MODULE", "LIST"),
    ("FUNCTION", "LIST"),
    ("KEYS", "*"),
    ("MONITOR",),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("SCRIPT", "FLUSH"),
    ("SUBSCRIBE", "anything"),
    ("SWAPDB", "0", "1"),
)
READS = (
    ("XRANGE", "{verdicts}", "-", "+"),
    ("XREVRANGE", "{verdicts}", "+", "-"),
    ("XREAD", "STREAMS", "{verdicts}", "0"),
    ("XREADGROUP", "GROUP", "sink", "me", "STREAMS", "{verdicts}", ">"),
    ("XCLAIM", "{verdicts}", "sink", "me", "0", "1-1"),
    ("XAUTOCLAIM", "{verdicts}", "sink", "me", "0", "0"),
    ("XINFO", "STREAM", "{verdicts}", "FULL"),
    ("DUMP", "{verdicts}"),
    ("COPY", "{verdicts}", "{frames}"),
    ("EVAL", "return redis.call('XRANGE', KEYS[1], '-', '+')", "1", "{verdicts}"),
    ("EVAL", "return redis.call('DUMP', KEYS[1])", "1", "{verdicts}"),
)
WRITES = (
    ("SET", "{epoch}", "1"),
    ("DEL", "{verdicts}"),
    ("XADD", "{verdicts}", "*", "verdict", "PASS"),
    ("XADD", "{frames}", "*", "head", "x"),
    ("XTRIM", "{verdicts}", "MAXLEN", "0"),
    ("HSET", "{ledger}", "pass", "9"),
    ("ZREM", "{open}", "1-1"),
    ("EXPIRE", "{ledger}", "1"),
    ("RENAME", "{ledger}", "{epoch}"),
    ("PUBLISH", "anything", "said"),
    ("XGROUP", "CREATE", "{verdicts}", "mine", "0"),
    ("EVAL", "return redis.call('SET', KEYS[1], '1')", "1", "{epoch}"),
    ("EVAL", "return 1", "0"),
    ("EVAL_RO", "return redis.call('SET', KEYS[1], '1')", "1", "{ledger}"),
    ("SCRIPT", "LOAD", "return 1"),
    ("FCALL", "anything", "0"),
    ("FUNCTION", "LOAD", "#!lua name=mine\nredis.register_function('mine', function() end)"),
)


@dataclass(frozen=True)
class Place:
    """A server with the users of every role."""

    url: str
    folder: Path

    def address(self, role: str) -> str:
        """Where a role connects."""
        return role_address(self.url, self.folder, NAMESPACE, role)

    def client(self, role: str) -> Redis:
        """A bare client with a role's credentials."""
        return Redis.from_url(self.address(role))


@pytest.fixture(scope="module", params=["embedded", "redis-server"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """The embedded server, and the machine's own Redis, with an ACL file of ours."""
    program = shutil.which(request.param)
    if request.param != "embedded" and program is None:
        pytest.skip("no redis-server on this machine")
    folder = tmp_path_factory.mktemp("access")
    passwords = {role: secrets.token_urlsafe(32) for role in ROLES}
    (folder / USERS).write_text(users_acl(NAMESPACE, passwords))
    for role, password in passwords.items():
        (folder / f"{role}.password").write_text(password + "\n")
    binary = Path(program) if program else None
    with embedded_server(folder / "server", users=folder / USERS, binary=binary) as url:
        yield Place(url, folder)


def named(command: tuple[str, ...], namespace: str = NAMESPACE) -> list[str]:
    """A command with the camera's keys in the places of their names."""
    keys = ("verdicts", "frames", "epoch", "ledger", "open")
    return [
        f"{namespace}:{{{CAMERA}}}:{word[1:-1]}" if word[1:-1] in keys else word for word in command
    ]


def refused(client: Redis, command: list[str]) -> bool:
    """Whether the server refuses a command for want of rights, and for nothing else."""
    try:
        client.execute_command(*command)
    except exceptions.NoPermissionError:
        return True
    except exceptions.ResponseError as error:
        words = ("NOPERM", "ACL failure", "can't run this command", "can't access")
        return any(word in str(error) for word in words)
    return False


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("command", FORBIDDEN, ids=" ".join)
def test_no_role_rules_the_server(place: Place, role: str, command: tuple[str, ...]) -> None:
    """Nobody may flush, configure, shut down, watch or define users."""
    with place.client(role) as client:
        assert refused(client, list(command))


@pytest.mark.parametrize("role", ["ingest", "inspect", "operator"])
@pytest.mark.parametrize("command", READS, ids=lambda words: f"{words[0]} {len(words[1])}")
def test_who_need_not_read_verdicts_cannot(
    place: Place, role: str, command: tuple[str, ...]
) -> None:
    """Ingest, inspect and the operator read no verdict, by command or by script."""
    with place.client(role) as client:
        assert refused(client, named(command))


@pytest.mark.parametrize("role", ["dashboard", "record"])
@pytest.mark.parametrize("command", WRITES, ids=lambda words: f"{words[0]} {words[1][:12]}")
def test_who_looks_on_writes_nothing(place: Place, role: str, command: tuple[str, ...]) -> None:
    """The page and the recorder change no key, by command or by script, and load no script."""
    with place.client(role) as client:
        assert refused(client, named(command))


@pytest.mark.parametrize("role", ["dashboard", "record", "sink", "operator"])
def test_pictures_of_parts_are_for_inspectors(place: Place, role: str) -> None:
    """Frames are read by inspectors alone."""
    with place.client(role) as client:
        for command in (("XRANGE", "{frames}", "-", "+"), ("XREAD", "STREAMS", "{frames}", "0")):
            assert refused(client, named(command))


@pytest.mark.parametrize("role", ROLES)
def test_a_role_stays_within_its_line(place: Place, role: str) -> None:
    """Keys of another namespace, or of anything else, are out of reach."""
    with place.client(role) as client:
        for command in (*WRITES[:7], *READS[:3]):
            assert refused(client, named(command, "other"))
        assert refused(client, ["GET", "anything"])


def test_nobody_comes_in_without_a_name(place: Place) -> None:
    """The default user is off, a wrong password is refused, and a role has its own."""
    ingest, sink = place.address("ingest"), place.address("sink")
    password = (place.folder / "sink.password").read_text().strip()
    stranger = ingest.replace(ingest.split(":")[2].partition("@")[0], password)
    for url in (place.url, ingest.replace("@", "x@"), stranger):
        with pytest.raises(BadConfig, match="user or password"), open_stream(url, NAMESPACE):
            pass
    assert user_of(NAMESPACE, "sink") in sink


def test_secrets_are_hashed_on_the_server(place: Place) -> None:
    """The ACL file holds no password in plain."""
    users = (place.folder / USERS).read_text()
    for role in ROLES:
        assert (place.folder / f"{role}.password").read_text().strip() not in users


def frame(counter: int, epoch: int) -> FrameEntry:
    """A small frame."""
    return FrameEntry(
        frame_id=f"{CAMERA}/{epoch}-{counter}",
        camera=CAMERA,
        captured_ns=1,
        deadline_ns=2**62,
        image=np.zeros((4, 4, 3), np.uint8),
    )


def test_every_role_does_its_work(place: Place) -> None:
    """The whole contract between the roles, each with its own credentials."""
    with (
        open_stream(place.address("ingest"), NAMESPACE) as ingest,
        open_stream(place.address("inspect"), NAMESPACE) as inspect,
        open_stream(place.address("sink"), NAMESPACE) as sink,
        open_stream(place.address("dashboard"), NAMESPACE) as page,
        open_stream(place.address("record"), NAMESPACE) as recorder,
        open_stream(place.address("operator"), NAMESPACE) as operator,
    ):
        ingest.recall(CAMERA, {"pass": 1})
        epoch = ingest.begin_epoch(CAMERA)
        inspect.ensure_group(CAMERA)
        assert ingest.credits(CAMERA, 8) == 8
        assert all(ingest.admit(frame(count, epoch), begun=True) for count in (1, 2, 3, 4))
        assert not ingest.admit(frame(4, epoch), begun=True)
        assert ingest.refuse(undecided(frame(5, epoch), Reason.OVERRUN, 3), begun=True)
        mine = inspect.read([CAMERA], "one", 4, 0)
        assert inspect.renew("one", mine) == mine
        again = inspect.reclaim([CAMERA], "two", 0, 3)
        assert inspect.open_frame(again[0].frame_id)
        verdict = undecided(frame(1, epoch), Reason.ENGINE_FAULT, 4)
        assert not inspect.answer(mine[0], "one", verdict)
        passed = verdict.model_copy(update={"decision": Decision.PASS, "reason": None})
        assert inspect.answer(again[0], "two", passed)
        bad = undecided(frame(2, epoch), Reason.BAD_FRAME, 4)
        assert inspect.quarantine(again[1], "two", bad)
        assert len(sink.heads(sink.deadlines({CAMERA: 2**62}))) == 2
        assert sink.answer_open(undecided(frame(3, epoch), Reason.DEADLINE, 5))
        sink.tell_lateness([CAMERA], 7.5)
        assert ingest.told_lateness_ms(CAMERA) == 7.5
        assert inspect.told_lateness_ms(CAMERA) == math.inf  # it may not ask
        found = sink.read_verdicts([CAMERA], "sink:line", "sink", 32, 0)
        assert len(found) == 4
        assert len(ingest.standing(CAMERA).unacted) == 4
        sink.acknowledge_verdicts("sink:line", found)
        assert sink.trim_verdicts(CAMERA, 1) == 3
        assert page.ledger(CAMERA) == operator.ledger(CAMERA)
        assert (page.ledger(CAMERA).captured, page.backlog(CAMERA)) == (6, 1)
        assert len(page.follow_verdicts(CAMERA, "0")) == len(recorder.tail_verdicts(CAMERA, 9)) == 1
        assert operator.now_ns() > 0

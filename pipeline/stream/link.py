"""The connection: two clients, scripts, the server's clock, and every Redis error in one sentence.

Commands are either harmless to repeat or made so by a script, so the command client may retry after
a lost reply. A blocking read must not be retried (it would leave entries pending) and outlives the
usual time-out, so it has a client of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, NamedTuple, TypeGuard
from urllib.parse import urlsplit

from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from engines.contracts import BadConfig, InspectionError, StreamFull, StreamLost
from pipeline.stream.facts import Keys, Memory
from pipeline.stream.packing import Packer, Word
from pipeline.stream.spare import Spare
from pipeline.stream.unix import WholeSending

CONNECT_TIMEOUT_S = 2.0
REPLY_TIMEOUT_S = 5.0
BLOCK_MAX_MS = 2000  # a stop is noticed, and a dead peer, within REPLY_TIMEOUT_S more
CLOCK_PERIOD_NS = 1_000_000_000
SCRIPTS = (
    "admit",
    "answer",
    "acknowledge",
    "begin_epoch",
    "ledger",
    "recall",
    "reclaim",
    "renew",
    "standing",
    "trim_verdicts",
)
READING = {"ledger", "standing"}  # scripts that write nothing, for users that may not


def lua(name: str) -> str:
    """Source of one of our scripts."""
    return files("pipeline").joinpath("lua", f"{name}.lua").read_text("utf-8")


def refusable(script: str) -> str:
    """The same script, which a full server refuses before it has changed anything."""
    return script.replace(" flags=allow-oom", "", 1)


def redacted(url: str) -> str:
    """The address without user and password, fit for messages and logs."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class Call(NamedTuple):
    """What a script is told."""

    keys: list[str]
    arguments: list[Word]

    @property
    def words(self) -> tuple[Word, ...]:
        """As EVAL and its kin take them, after the script."""
        return (len(self.keys), *self.keys, *self.arguments)


def is_refusal(reply: object) -> TypeGuard[exceptions.RedisError]:
    """Whether the server answered a command with an error."""
    return isinstance(reply, exceptions.RedisError)


def _pairs(found: Any) -> Iterable[tuple[bytes, Any]]:  # noqa: ANN401 - what the server answered
    """Streams and their entries, whichever protocol an address asks for; none where none came."""
    return found.items() if isinstance(found, dict) else found or ()


def scored(found: Sequence[Any]) -> Iterable[tuple[bytes, Any]]:
    """Members with their scores, whichever protocol an address asks for."""
    is_flat = bool(found) and not isinstance(found[0], list)
    return zip(found[::2], found[1::2], strict=True) if is_flat else map(tuple, found)


def _granted(replies: list[Any]) -> list[Any]:
    """The replies, none of which may be a refusal: the first one is raised."""
    for reply in filter(is_refusal, replies):
        raise reply
    return replies


def _fields(flat: Sequence[bytes] | None) -> dict[bytes, bytes]:
    """Fields of an entry by name; none where it was deleted since it was delivered."""
    pairs = flat or ()
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def _is_unknown(reply: object) -> bool:
    return isinstance(reply, exceptions.NoScriptError)


def _reply(connection: Any) -> Any:  # noqa: ANN401 - redis-py gives neither a type
    """What the server answered, be it an error."""
    try:
        return connection.read_response()
    except exceptions.ResponseError as error:
        return error


class Link:
    """What every face of the stream stands on."""

    def __init__(self, url: str, namespace: str) -> None:
        self.address = redacted(url)
        self.namespace = namespace
        self._keys: dict[str, Keys] = {}
        self._base_ns, self._uncertainty_ns, self._measured_ns = 0, 0, -CLOCK_PERIOD_NS
        # Any: redis-py annotates every reply as a union of all that it could be, sync and async.
        self._commands: Any = self._client(url, retries=2)
        self._blocking: Any = self._client(url, retries=0, extra_s=BLOCK_MAX_MS / 1000)
        self._for_commands, self._for_blocking = Spare(self._commands), Spare(self._blocking)
        self._admit = lua("admit")
        self._scripts: dict[str, Script] = {
            name: self._commands.register_script(lua(name)) for name in SCRIPTS
        }
        self._scripts["admit"] = self._commands.register_script(refusable(self._admit))

    def close(self) -> None:
        """Give the connections back."""
        self._commands.close()
        self._blocking.close()

    def check_server(self) -> None:
        """Refuse, with BadConfig, a server that would lose frames without a word."""
        with self._translated():
            server, memory = self._info("server"), self._info("memory")
        version = str(server["redis_version"])
        if int(version.partition(".")[0]) < 7:
            raise BadConfig(f"{self.address} is Redis {version}: install Redis 7.0 or later.")
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise BadConfig(
                f"{self.address} evicts keys when its memory is full ({policy}), which loses "
                "frames silently: set maxmemory-policy noeviction."
            )

    def server_incarnation(self) -> str:
        """A name of this run of the server: another one after a restart."""
        with self._translated():
            told = self._ask("INFO", "server")  # redis-py would read every line of it
        found = re.search(rb"^run_id:(\w+)", told, re.MULTILINE)
        if found is None:
            raise BadConfig(f"{self.address} is no Redis: it does not say which run of it this is.")
        return found[1].decode()

    def memory(self) -> Memory:
        """How full the server is."""
        with self._translated():
            facts = self._info("memory")
        return Memory(int(facts["used_memory"]), int(facts["maxmemory"]))

    def now_ns(self) -> int:
        """The server's clock, epoch nanoseconds; measured anew when a second old.

        In between it runs on the local monotonic clock: a jump of the local wall clock is not seen.
        """
        if time.monotonic_ns() - self._measured_ns >= CLOCK_PERIOD_NS:
            self._measure_clock()
        return self._base_ns + time.monotonic_ns()

    def estimated_now_ns(self) -> int:
        """The same by the last measurement, without asking: for threads that must not wait."""
        return self._base_ns + time.monotonic_ns()

    @property
    def clock_uncertainty_ms(self) -> float:
        """Half the round trip of the last clock measurement."""
        self.now_ns()
        return self._uncertainty_ns / 1e6

    def _measure_clock(self) -> None:
        """Best of three: a round trip of the least delay bounds the offset most tightly."""
        is_first = self._measured_ns < 0
        self._measured_ns = time.monotonic_ns()
        try:
            with self._translated():
                readings = [self._read_clock() for _ in range(3)]
        except StreamLost:
            if is_first:
                raise
            return  # the last offset serves until the server is back
        self._uncertainty_ns, self._base_ns = min(readings)

    def _read_clock(self) -> tuple[int, int]:
        asked_ns = time.monotonic_ns()
        seconds, microseconds = self._commands.time()
        half_ns = (time.monotonic_ns() - asked_ns) // 2
        return half_ns, seconds * 1_000_000_000 + microseconds * 1000 - asked_ns - half_ns

    def _info(self, section: str) -> dict[str, Any]:
        return dict(self._commands.info(section))

    def _of(self, camera: str) -> Keys:
        if camera not in self._keys:
            self._keys[camera] = Keys(self.namespace, camera)
        return self._keys[camera]

    def _exchange(self, *commands: tuple[Word, ...], blocks: bool = False) -> list[Any]:
        """The replies to commands that are sent in one call, errors of the server among them.

        Sent again where the connection is lost, unless a command ``blocks``. What redis-py does for
        each command besides (for callbacks, its telemetry and its cache) would cost as much again.
        """
        spare = self._for_blocking if blocks else self._for_commands
        connection = spare.take()

        def ask() -> list[Any]:
            connection.send_packed_command(connection.pack_commands(commands))
            return [_reply(connection) for _ in commands]

        try:
            replies: list[Any] = connection.retry.call_with_retry(
                ask, lambda _: connection.disconnect()
            )
        except BaseException:
            spare.drop(connection)  # a reply may be on its way still
            raise
        spare.give(connection)
        return replies

    def _ask(self, *words: Word, blocks: bool = False) -> Any:  # noqa: ANN401 - each command has its own reply
        """The reply to one command, which the server must not refuse."""
        (reply,) = self._exchange(words, blocks=blocks)
        if is_refusal(reply):
            raise reply
        return reply

    def _ask_each(self, commands: Iterable[tuple[Word, ...]]) -> list[Any]:
        """The replies to commands sent together, none of which the server must refuse."""
        return _granted(self._exchange(*commands))

    def _transact(self, *commands: tuple[Word, ...]) -> list[Any]:
        """The replies to commands of one MULTI; raises why the server would not even begin."""
        *queued, done = self._exchange(("MULTI",), *commands, ("EXEC",))
        if isinstance(done, exceptions.RedisError):
            raise next((reply for reply in queued if is_refusal(reply)), done)
        return list(done)

    def _run(self, script: str, keys: list[str], *arguments: Word) -> Any:  # noqa: ANN401 - each script has its own reply
        call = Call(keys, list(arguments))
        with self._translated():
            if script in READING:
                return self._look(self._scripts[script], call)
        return self._run_all(script, [call])[0]

    def _look(self, script: Script, call: Call) -> Any:  # noqa: ANN401 - as above
        """The reply of a script that only reads; no right to load scripts is needed."""
        try:
            return self._ask("EVALSHA_RO", script.sha, *call.words)
        except exceptions.NoScriptError:
            return self._ask("EVAL_RO", script.script, *call.words)

    def _run_all(self, script: str, calls: Sequence[Call]) -> list[Any]:
        """The replies of one script, run for each call, in one round trip and no transaction.

        A server that does not know the script has run none of them: it is told, and asked again.
        """
        if not calls:
            return []
        with self._translated():
            replies = self._ask_all(script, calls)
            unknown = [at for at, reply in enumerate(replies) if _is_unknown(reply)]
            if unknown:
                self._commands.script_load(self._scripts[script].script)
                again = self._ask_all(script, [calls[at] for at in unknown])
                for at, reply in zip(unknown, again, strict=True):
                    replies[at] = reply
            return _granted(replies)

    def _ask_all(self, script: str, calls: Sequence[Call]) -> list[Any]:
        sha = self._scripts[script].sha
        return self._exchange(*(("EVALSHA", sha, *call.words) for call in calls))

    def _read_group(
        self, group: str, consumer: str, ids: dict[str, str], count: int, block_ms: int
    ) -> list[tuple[str, list[tuple[bytes, dict[bytes, bytes]]]]]:
        """Entries of each key in ``ids`` for this consumer, ``count`` per key at the most."""
        block = ("BLOCK", min(block_ms, BLOCK_MAX_MS)) if block_ms > 0 else ()
        command = ("XREADGROUP", "GROUP", group, consumer, "COUNT", count, *block)
        words = (*command, "STREAMS", *ids, *ids.values())
        with self._translated():
            try:
                found = self._ask(*words, blocks=True)
            except exceptions.ResponseError as error:
                # The server was restarted, or the key deleted while the read was blocked on it.
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
                for key in ids:
                    self._ensure_group(key, group)
                found = self._ask(*words, blocks=True)
        return [
            (key.decode(), [(entry_id, _fields(flat)) for entry_id, flat in entries])
            for key, entries in _pairs(found)
        ]

    def _ensure_group(self, key: str, group: str) -> None:
        """A group that starts with the oldest entry kept; no-op where it exists."""
        with self._translated():
            try:
                self._commands.xgroup_create(key, group, "0", mkstream=True)
            except exceptions.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    def _reclaim(
        self, key: str, group: str, consumer: str, min_idle_ms: int, count: int
    ) -> tuple[list[tuple[str, int, dict[bytes, bytes]]], list[str]]:
        """Idle entries taken over (id, deliveries, fields), and ids whose payload is gone."""
        claimed, lost = self._run("reclaim", [key], group, consumer, min_idle_ms, count)
        tokens = [(i.decode(), n) for i, n in zip(claimed[::2], claimed[1::2], strict=True)]
        with self._translated(), self._commands.pipeline(transaction=False) as pipe:
            for entry_id, _ in tokens:
                pipe.xrange(key, entry_id, entry_id)
            found = pipe.execute()
        # An entry without a payload was answered by the gate keeper since.
        taken = [(*token, rows[0][1]) for token, rows in zip(tokens, found, strict=True) if rows]
        return taken, [entry_id.decode() for entry_id in lost]

    def _client(self, url: str, retries: int, extra_s: float = 0.0) -> Redis:
        kind = {"connection_class": WholeSending} if url.startswith("unix:") else {}
        try:
            return Redis.from_url(
                url,
                **kind,
                socket_connect_timeout=CONNECT_TIMEOUT_S,
                socket_timeout=REPLY_TIMEOUT_S + extra_s,
                retry=Retry(NoBackoff(), retries),
                command_packer=Packer(),
                driver_info=None,  # its name and version are no business of the server
            )
        except ValueError:
            raise BadConfig(
                f"{self.address} is no Redis address: use redis://host:port or unix:///path.sock."
            ) from None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (exceptions.RedisError, OSError) as error:
            raise self._sentence(error) from None

    def _sentence(self, error: Exception) -> InspectionError:
        text = str(error)
        if isinstance(error, exceptions.NoPermissionError) or text.startswith("NOPERM"):
            return BadConfig(
                f"{self.address} does not allow this user what we need ({text}): make the users "
                "anew by `assayline doctor --setup`."
            )
        if isinstance(error, exceptions.AuthenticationError) or "NOAUTH" in text:
            return BadConfig(f"{self.address} refused the user or password: correct the address.")
        if isinstance(error, exceptions.OutOfMemoryError):
            return StreamFull(f"{self.address} is full: raise its maxmemory or lower the credits.")
        if isinstance(error, exceptions.TimeoutError):
            return StreamLost(f"{self.address} does not answer: check that it is running.")
        if isinstance(error, exceptions.ConnectionError | OSError):
            return StreamLost(f"{self.address} cannot be reached: check that it is running.")
        return StreamLost(f"{self.address} refused a command: {text}.")

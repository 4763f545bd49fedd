"""Checks of the Redis server: what must be set so that no frame is lost without a word.

The rules are the facts measured in the delivery contract: an evicting server drops whole streams
together with their groups, and one without ``maxmemory`` takes the machine with it.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, cast

import redis

from pipeline.doctor.check import Check, advice, required

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = (7, 0)
HZ = 100  # BLOCK time-outs are rounded up to 1000 / hz milliseconds
CLOCK_MS = 5.0
PROBES = 9
HEADROOM = 2  # frames in memory cost their bytes, the allocator's, and one reply in flight


def server_checks(url: str, frame_bytes: int, frames_open: int) -> list[Check]:
    """Everything about the server at ``url``, for a line of that frame size and sum of credits."""
    client = redis.Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3)
    try:
        about = client.info()
    except redis.AuthenticationError:
        return [
            _unreachable("refuses the user or password", "Set redis.password as on the server.")
        ]
    except redis.RedisError as error:
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        return [_unreachable(text, "Start the server, or correct redis.url.")]
    try:
        return _checks(client, about, frame_bytes, frames_open)
    except redis.RedisError as error:
        mend = "Allow this user +@read +@write +info +time, or use another."
        return [required("redis", False, f"stopped answering: {error}", mend)]
    finally:
        client.close()


def _checks(
    client: redis.Redis, about: Mapping[str, Any], frame_bytes: int, frames_open: int
) -> list[Check]:
    config = _configuration(client)
    checks = [version(about), clock(client)]
    if config is None:
        mend = "Allow CONFIG GET to this user, or have someone who may run doctor look."
        return [*checks, advice("redis settings", False, "CONFIG GET is refused", mend)]
    return [
        *checks,
        memory_bound(config, frame_bytes, frames_open),
        eviction(config),
        persistence(config),
        timer(config),
        protection(config),
        reply_buffer(config, frame_bytes),
    ]


def _unreachable(found: str, mend: str) -> Check:
    return required("redis", False, found, mend)


def _configuration(client: redis.Redis) -> dict[str, str] | None:
    """Every setting by name; None where this user may not ask."""
    try:
        raw = cast("dict[Any, Any]", client.config_get("*"))
    except redis.ResponseError:
        return None
    return {_text(key): _text(value) for key, value in raw.items()}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def version(about: Mapping[str, Any]) -> Check:
    """Redis 7.0, or Valkey, which reports the Redis version it is compatible with."""
    spoken = str(about.get("redis_version", "0"))
    numbers = tuple(int(part) for part in spoken.split(".")[:2] if part.isdigit())
    name = f"Valkey {about['valkey_version']} as Redis" if "valkey_version" in about else "Redis"
    mend = "Install Redis 7.0 or newer, or use redis.url: embedded."
    return required("redis version", numbers >= VERSION, f"{name} {spoken}", mend)


def memory_bound(config: Mapping[str, str], frame_bytes: int, frames_open: int) -> Check:
    """A bound exists, and the frames of every credit fit below it."""
    bound, needed = int(config.get("maxmemory", 0)), HEADROOM * frame_bytes * frames_open
    found = f"{bound / 2**20:.0f} MiB" if bound else "no bound"
    enough = max(needed, 64 * 2**20)
    mend = (
        f"Set maxmemory {-(-enough // 2**20)}mb or more in redis.conf (or lower cameras.credits)."
    )
    return required("redis maxmemory", bound >= max(1, needed), found, mend)


def eviction(config: Mapping[str, str]) -> Check:
    """Under pressure the server must refuse, not forget."""
    policy = config.get("maxmemory-policy", "unknown")
    mend = "Set maxmemory-policy noeviction in redis.conf: others drop whole streams of frames."
    return required("redis eviction", policy == "noeviction", policy, mend)


def persistence(config: Mapping[str, str]) -> Check:
    """Frames do not belong on the server's disk: an append-only file made XADD up to 3x slower."""
    snapshots, journal = config.get("save", ""), config.get("appendonly", "no")
    off = not snapshots and journal == "no"
    found = "off" if off else f"save '{snapshots}', appendonly {journal}"
    mend = "Set save '' and appendonly no: a restart is answered as transport_restart anyway."
    return advice("redis persistence", off, found, mend)


def timer(config: Mapping[str, str]) -> Check:
    """How exact blocking reads end."""
    hz = int(config.get("hz", 10))
    mend = f"Set hz {HZ} in redis.conf: blocking reads now end up to {1000 // max(1, hz)} ms late."
    return advice("redis hz", hz >= HZ, str(hz), mend)


def protection(config: Mapping[str, str]) -> Check:
    """A server open to the network needs a password."""
    bind, port = config.get("bind", ""), config.get("port", "0")
    is_local = port == "0" or all(host.strip("-") in {"127.0.0.1", "::1"} for host in bind.split())
    guarded = config.get("protected-mode") == "yes" or bool(config.get("requirepass"))
    found = "socket only" if port == "0" else f"bind '{bind}', port {port}"
    found += f", protected-mode {config.get('protected-mode', 'unknown')}"
    mend = "Set requirepass (or an ACL user), or bind 127.0.0.1 and protected-mode yes."
    return required(
        "redis protection", guarded or (is_local and bool(bind or port == "0")), found, mend
    )


def reply_buffer(config: Mapping[str, str], frame_bytes: int) -> Check:
    """A reader's reply of eight frames must fit, or the server hangs up on the reader."""
    words = config.get("client-output-buffer-limit", "").split()
    limits = {words[at]: words[at + 1 : at + 4] for at in range(0, len(words) - 3, 4)}
    hard = int(limits.get("normal", ["0"])[0])
    found = "no limit" if hard == 0 else f"{hard / 2**20:.0f} MiB"
    mend = "Set client-output-buffer-limit normal 0 0 0 in redis.conf."
    return required("redis reply buffer", hard == 0 or hard >= 8 * frame_bytes, found, mend)


def clock(client: redis.Redis) -> Check:
    """How well the server's clock is known; deadlines are in its time."""
    offsets, trips = zip(*(_clock_probe(client) for _ in range(PROBES)), strict=True)
    best = min(range(PROBES), key=lambda at: trips[at])
    found = f"offset {offsets[best]:+.1f} ms, round trip {statistics.median(trips):.2f} ms"
    mend = "Keep both machines on one time server (chrony), and the server on this network."
    return advice("redis clock", trips[best] / 2 <= CLOCK_MS, found, mend)


def _clock_probe(client: redis.Redis) -> tuple[float, float]:
    """Offset of the server's clock and the round trip, both in milliseconds."""
    before_ns, started = time.time_ns(), time.perf_counter_ns()
    seconds, micros = client.time()
    trip_ns = time.perf_counter_ns() - started
    server_ns = seconds * 1_000_000_000 + micros * 1_000
    return (server_ns - before_ns - trip_ns / 2) / 1e6, trip_ns / 1e6

"""What each role may do on the Redis server, as the rules of an ACL file (Redis 7.0 and later).

A user starts with nothing. Each grant below is a selector of its own, so a command is allowed only
on the keys beside it: a script's caller needs the script's keys for EVAL, and every command inside
the script is judged again by itself. So ingest, which answers for frames that reach no inspector,
may add to the verdicts and still has no command that reads one. Scripts that only read are called
by EVALSHA_RO, so that who looks on needs no right to write. Nobody may flush, configure, or define
users: that is done on the server's own machine.
"""

from __future__ import annotations

import hashlib

Grant = tuple[str, str]  # commands, and the keys they may touch: R reads, W writes, RW both

# What a client does to be one, and what the server says of itself; no key is touched.
CONNECT = "ping hello info time"
LOAD = "script|load"  # of our scripts, after the server has forgotten them
ANSWERED = "frames open heads ledger verdicts quarantine unacted"
ANSWER: tuple[Grant, ...] = (
    ("eval evalsha", f"RW {ANSWERED}"),
    ("zscore", "R open"),
    ("zrem", "W open"),
    ("hmget", "R ledger"),
    ("hset", "W ledger unacted"),
    ("hincrby", "RW ledger"),
    ("hdel", "W heads"),
    ("xadd", "W verdicts"),
    ("xack xdel", "W frames"),
)
LEDGER: tuple[Grant, ...] = (
    ("eval_ro evalsha_ro", "R ledger open"),
    ("hgetall", "R ledger"),
    ("zcard", "R open"),
)
ROLES: dict[str, tuple[str, tuple[Grant, ...]]] = {
    "ingest": (
        f"{CONNECT} {LOAD} multi exec discard",
        (
            *ANSWER,
            ("eval evalsha", "RW epoch ledger open heads frames"),
            ("get", "R epoch lateness"),
            ("set", "W epoch"),
            ("hget exists hgetall", "R ledger"),
            ("zadd", "W open"),
            ("zcard zrange", "R open"),
            ("hset", "W heads"),
            ("xadd", "W frames"),
            ("eval_ro evalsha_ro", "R open unacted ledger verdicts"),
            ("hgetall", "R unacted"),
            ("xinfo|groups", "R verdicts"),
            ("set del", "W alive:ingest"),
        ),
    ),
    "inspect": (
        f"{CONNECT} {LOAD}",
        (
            *ANSWER,
            ("xreadgroup xrange xpending", "R frames"),
            ("xclaim", "RW frames"),
            ("xgroup|create", "W frames"),
            ("xadd", "W quarantine"),
            ("hget", "R heads"),
            ("set del", "W alive:inspect"),
        ),
    ),
    "sink": (  # it also tells /metrics what the ledgers, the backlog and the signs of life say
        f"{CONNECT} {LOAD} scan",
        (
            *ANSWER,
            *LEDGER,
            ("xlen", "R frames"),
            ("xreadgroup xpending xinfo|groups", "R verdicts"),
            ("xack xtrim xgroup|create", "W verdicts"),
            ("hdel", "W unacted"),
            ("zrange", "R open"),
            ("hget hmget", "R heads"),
            ("set", "W lateness"),
            ("set del", "W alive:sink"),
        ),
    ),
    "dashboard": (
        f"{CONNECT} scan",
        (*LEDGER, ("xread", "R verdicts"), ("xlen", "R frames"), ("get", "R alive:ingest")),
    ),
    "record": (CONNECT, (("xread xrevrange", "R verdicts"),)),
    # `run` and `doctor`: who lives, what is counted, how the server is set.
    "operator": (f"{CONNECT} scan config|get", LEDGER),
}
NOBODY = "user default off resetpass resetkeys resetchannels clearselectors -@all"


def user_of(namespace: str, role: str) -> str:
    """Name of a role's user; lines of other namespaces on the same server have their own."""
    return f"{namespace}-{role}"


def users_acl(namespace: str, passwords: dict[str, str]) -> str:
    """The ACL file: a line per role with the hash of its password, and nobody else."""
    lines = [NOBODY, *(_user(namespace, role, passwords[role]) for role in ROLES)]
    return "\n".join(lines) + "\n"


def _user(namespace: str, role: str, password: str) -> str:
    connect, grants = ROLES[role]
    words = " ".join(f"+{command}" for command in connect.split())
    selectors = " ".join(_selector(namespace, *grant) for grant in grants)
    digest = hashlib.sha256(password.encode()).hexdigest()
    name = user_of(namespace, role)
    return f"user {name} on #{digest} resetchannels -@all {words} {selectors}"


def _selector(namespace: str, commands: str, keys: str) -> str:
    mode, *names = keys.split()
    allowed = [f"+{command}" for command in commands.split()]
    return f"({' '.join([*allowed, *(f'%{mode}~{_key(namespace, name)}' for name in names)])})"


def _key(namespace: str, name: str) -> str:
    """Pattern of a key of every camera, or of the signs of life of a role."""
    return f"{namespace}:{name}:*" if name.startswith("alive:") else f"{namespace}:{{*}}:{name}"

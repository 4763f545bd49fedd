"""Inputs that are almost right: valid ones, hurt in ways that decoders stumble over."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

Case = tuple[bytes, ...]  # the pieces of one input: fields of an entry, or one file
MAX_BYTES = 200_000
NUMBERS = (
    0,
    1,
    2,
    3,
    127,
    128,
    255,
    256,
    32_767,
    65_535,
    65_536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
TOKENS = (
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"-1e999",
    b"NaN",
    b"Infinity",
    b"9" * 400,
    b"9" * 5000,
    b"[" * 60,
    b"[" * 3000,
    b"{" * 60,
    b'{"a":' * 2000,
    b'"',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"\x00",
    b"\xff",
    b"\xc3\x28",
    b"\n",
    b"\r",
    b"../../x",
    b"/etc/passwd",
    b"&a [*a]",
    b"*a",
    b"!!python/name:os.system",
    b"<<: *a",
    b"2026-99-99",
    b"1:1:1",
    b"0x",
    b"--- ",
    b"%s%n",
    b"left/1-1",
    b"left/999999999999999-1",
    b"a/../b",
    b"\xef\xbb\xbf",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    -0.0,
    1e308,
    2**31,
    2**53,
    2**63,
    2**64,
    10**40,
    -(10**40),
    10**400,
    "",
    "x",
    "\x00",
    "\ud800",
    "x" * 300,
    "x" * 20_000,
    "../x",
    "1-1",
    "NaN",
    [],
    {},
    [[]],
    [0] * 300,
    {"a": 1},
    [[[[[[]]]]]],
    float("inf"),
    float("nan"),
)


def mutated(rng: random.Random, seeds: Sequence[Case]) -> Case:
    """A seed with one to four things wrong; now and then plain noise."""
    pieces = list(rng.choice(seeds))
    if rng.random() < 0.04:
        pieces[rng.randrange(len(pieces))] = rng.randbytes(rng.randrange(200))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4))):
        at = rng.randrange(len(pieces))
        other = rng.choice(seeds)[at]
        pieces[at] = rng.choice(WAYS)(rng, pieces[at], other)[:MAX_BYTES]
    if len(pieces) > 1 and rng.random() < 0.03:
        rng.shuffle(pieces)
    return tuple(pieces)


def _flip(rng: random.Random, data: bytes, _: bytes) -> bytes:
    hurt = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if hurt else 0):
        hurt[rng.randrange(len(hurt))] ^= 1 << rng.randrange(8)
    return bytes(hurt)


def _poke(rng: random.Random, data: bytes, _: bytes) -> bytes:
    hurt = bytearray(data)
    if hurt:
        hurt[rng.randrange(len(hurt))] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
    return bytes(hurt)


def _cut(rng: random.Random, data: bytes, _: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _drop(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start, stop = _span(rng, data)
    return data[:start] + data[stop:]


def _double(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start, stop = _span(rng, data)
    return data[:stop] + data[start:stop] * rng.choice((1, 1, 2, 50)) + data[stop:]


def _splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    start, stop = _span(rng, other)
    at = rng.randrange(len(data) + 1)
    return data[:at] + other[start:stop] + data[at + rng.choice((0, stop - start)) :]


def _number(rng: random.Random, data: bytes, _: bytes) -> bytes:
    kind = rng.choice("BHIQ")
    word = rng.choice(NUMBERS) & ((1 << 8 * struct.calcsize(kind)) - 1)
    told = struct.pack(rng.choice("<>") + kind, word)
    at = rng.randrange(len(data) + 1)
    return data[:at] + told + data[at + len(told) :]


def _token(rng: random.Random, data: bytes, _: bytes) -> bytes:
    at, token = rng.randrange(len(data) + 1), rng.choice(TOKENS)
    return data[:at] + token + data[at + rng.choice((0, 0, 1, len(token))) :]


def _nothing(_: random.Random, __: bytes, ___: bytes) -> bytes:
    return b""


def _swap(_: random.Random, __: bytes, other: bytes) -> bytes:
    return other


def _json(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """One value of a JSON text is another, is gone, or there is one more."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return _token(rng, data, data)
    holder, key = _somewhere(rng, [tree])
    match rng.randrange(5):
        case 0 if isinstance(holder, dict):
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(("", "x", "lot", str(key) * 2))] = rng.choice(VALUES)
        case 2:
            holder[key] = [holder[key]] * rng.choice((1, 2, 40))
        case _:
            holder[key] = rng.choice(VALUES)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _somewhere(rng: random.Random, root: list[Any]) -> tuple[Any, Any]:
    """A place in a tree: what holds it, and under which key."""
    holder, key = root[0], None
    where: tuple[Any, Any] = (root, 0)
    while isinstance(holder, dict | list) and holder:
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        where = (holder, key)
        if rng.random() < 0.35:
            break
        holder = holder[key]
    return where


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, 16, 64, 1024)))


Way = Callable[[random.Random, bytes, bytes], bytes]
WAYS: tuple[Way, ...] = (
    _flip,
    _flip,
    _poke,
    _poke,
    _cut,
    _drop,
    _double,
    _splice,
    _number,
    _number,
    _token,
    _token,
    _json,
    _json,
    _json,
    _json,
    _nothing,
    _swap,
)

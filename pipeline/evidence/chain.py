"""A file of entries, each with the hash of the one before it, and its head in a file beside it.

A line is ``{"sha256":"<hash of the entry's bytes>","entry":{"n":<place>,"prev":"<hash of the entry
before>",...}}``: JSON for whoever reads it, exact bytes for whoever checks it. The head holds how
many entries there are and the hash of the last one, so that a cut end is missed. It is written
after the line: a process that dies in between leaves one entry more than the head says, which is
taken over. What else does not fit is never mended: an entry that says so follows, and every check
of the file ends there from then on.

Who can write here can also compute a whole chain anew. Against that only a head helps that is kept
elsewhere (``assayline verify --head``).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engines.contracts import BadData

BEFORE, BETWEEN, AFTER = b'{"sha256":"', b'","entry":', b"}\n"
HASH = 64  # hexadecimal digits
MAX_LINE_BYTES = 8_000_000  # a verdict is at most half of that
REMEMBERED = 2000  # entries looked at when a file is opened again
BREAK = "break"


class Tampered(BadData):
    """A record is not as it was written; the text names the place."""


class Head(NamedTuple):
    """How many entries there are, and the hash of the last one."""

    entries: int
    last: str

    def as_bytes(self) -> bytes:
        """86 bytes, always, so that one head is written over another."""
        return f"{self.entries:020d} {self.last}\n".encode()


class Name(NamedTuple):
    """What an entry is of."""

    kind: str
    frame_id: str


class Link(NamedTuple):
    """One entry as it was read, its own hash proven."""

    hash: str
    entry: dict[str, Any]


def genesis(title: str) -> str:
    """What the first entry has as the hash before it, so that no file passes for another's."""
    return hashlib.sha256(f"assayline evidence: {title}".encode()).hexdigest()


def head_path(path: Path) -> Path:
    """Where the head of a chain is kept."""
    return path.with_suffix(".head")


class Chain:
    """Appends entries to one file; one process at a time, and one thread."""

    def __init__(self, path: Path, title: str) -> None:
        self._file = path.open("a+b", buffering=0)
        self._head_file = os.open(head_path(path), os.O_RDWR | os.O_CREAT, 0o644)
        self._head = Head(0, genesis(title))
        self.tail: list[Name] = []  # of the newest entries, oldest first
        self.broken = self._resume()
        if self.broken:
            self.append({"kind": BREAK, "found": self.broken})

    def append(self, entry: dict[str, Any], verdict: bytes = b"") -> None:
        """Write one entry, whole or not at all; ``verdict`` is JSON that is kept as it is."""
        told = json.dumps({"n": self._head.entries, "prev": self._head.last, **entry})
        body = told.encode()
        if verdict:
            body = body[:-1] + b', "verdict": ' + verdict + b"}"
        digest = hashlib.sha256(body).hexdigest()
        self._write(BEFORE + digest.encode() + BETWEEN + body + AFTER)
        self._set_head(Head(self._head.entries + 1, digest))

    def sync(self) -> None:
        """Let everything reach the disk."""
        os.fsync(self._file.fileno())
        os.fsync(self._head_file)

    def close(self) -> None:
        """Let everything reach the disk, and end."""
        self.sync()
        self._file.close()
        os.close(self._head_file)

    def _write(self, line: bytes) -> None:
        end, written = self._file.seek(0, os.SEEK_END), 0
        try:
            written = self._file.write(line)
        finally:
            if written != len(line):  # a full disk takes half a line
                self._file.truncate(end)
        if written != len(line):
            raise OSError("the disk took only a part of an entry")

    def _set_head(self, head: Head) -> None:
        self._head = head
        os.pwrite(self._head_file, head.as_bytes(), 0)

    def _resume(self) -> str:
        """Take over what a former process left; what does not fit, in words."""
        said = os.pread(self._head_file, 128, 0) or self._head.as_bytes()
        links, torn = self._tail()
        if torn:
            self._file.truncate(self._file.seek(0, os.SEEK_END) - torn)
        self.tail = [_name(link.entry) for link in links]
        expected = [self._head]
        if links:
            newest = links[-1]
            expected = [_head_after(newest), _head_before(newest)]
        self._set_head(expected[0])
        if said in {head.as_bytes() for head in expected}:
            return ""
        return f"the record ended after {expected[0].entries} entries, its head said {said!r}"

    def _tail(self) -> tuple[list[Link], int]:
        """The last entries as far back as their own hashes hold, and the bytes of a torn line."""
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, size - MAX_LINE_BYTES))
        *whole, torn = self._file.read().split(b"\n")
        links: list[Link] = []
        for line in reversed(whole[-REMEMBERED:]):
            link = link_in(line + b"\n")
            if link is None:
                break
            links.append(link)
        return links[::-1], len(torn)


def link_in(line: bytes) -> Link | None:
    """The entry in a line, or None where it is not as it was written."""
    start = len(BEFORE) + HASH + len(BETWEEN)
    told, body = line[len(BEFORE) : len(BEFORE) + HASH], line[start : -len(AFTER)]
    if line != BEFORE + told + BETWEEN + body + AFTER:
        return None
    if hashlib.sha256(body).hexdigest().encode() != told:
        return None
    try:
        entry = json.loads(body)
    except (ValueError, RecursionError):
        return None
    known = isinstance(entry, dict) and isinstance(entry.get("n"), int) and "prev" in entry
    return Link(told.decode(), entry) if known else None


def _head_after(link: Link) -> Head:
    return Head(link.entry["n"] + 1, link.hash)


def _head_before(link: Link) -> Head:
    return Head(link.entry["n"], str(link.entry["prev"]))


def _name(entry: dict[str, Any]) -> Name:
    verdict = entry.get("verdict") or entry
    return Name(str(entry.get("kind")), str(verdict.get("frame_id", "")))


def read_chain(path: Path, title: str) -> Iterator[Link]:
    """Every entry of a chain in its order; Tampered, which names the place, at the first fault.

    After the death of its writer the head may be one entry behind, and half a line may follow.
    """
    heads = [Head(0, genesis(title))]
    said = _head_beside(path)
    for number, line in enumerate(_lines(path), 1):
        where = f"line {number} of {path}"
        if not line.endswith(b"\n") and said == heads[-1].as_bytes():
            return
        link = link_in(line)
        if link is None:
            raise Tampered(f"{where} is not as it was written")
        if _head_before(link) != heads[-1]:
            raise Tampered(
                f"{where} does not follow the one before it: entry {link.entry['n']} stands where "
                f"entry {heads[-1].entries} of {title or 'parts without a lot'} belongs"
            )
        if link.entry.get("kind") == BREAK:
            raise Tampered(f"{where} tells of an earlier fault: {link.entry.get('found')}")
        heads = [heads[-1], _head_after(link)]
        yield link
    if said not in {head.as_bytes() for head in heads}:
        raise _unlike_its_head(path, said, heads[-1])


def _unlike_its_head(path: Path, said: bytes, found: Head) -> Tampered:
    count = int(said[:20]) if said[:20].isdigit() else None
    if count is not None and count > found.entries:
        return Tampered(f"{path} ends after {found.entries} entries, but {count} were written")
    return Tampered(f"{head_path(path)} is not the head of {path}, or was changed")


def _head_beside(path: Path) -> bytes:
    try:
        return head_path(path).read_bytes()[:128]
    except OSError as error:
        raise Tampered(f"{path} has no head beside it ({error.strerror})") from None


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                yield line
    except OSError as error:
        raise BadData(f"{path} cannot be read ({error.strerror}): check its name") from None

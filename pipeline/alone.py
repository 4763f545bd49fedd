"""One process at a time: a lock that the kernel lets go with whoever held it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.contracts import BadConfig


@contextmanager
def alone(path: Path, sentence: str) -> Iterator[None]:
    """Hold the lock ``path``, a file that stays; BadConfig with ``sentence`` where others do."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise BadConfig(f"{path} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadConfig(sentence) from None
        try:
            yield
        finally:  # by word, not by closing alone: a process just forked may hold a copy of the file
            fcntl.flock(file, fcntl.LOCK_UN)

"""Which bundle each worker of a line runs, as the workers say it in files beside their orders.

A worker holds a lock on its file for as long as it lives, however it ends; a file that nobody
locks is of the past.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.swap.wanted import FOLDER

if TYPE_CHECKING:
    from typing import BinaryIO

SUFFIX = ".worker"


class Standing(BaseModel):
    """What one worker says: the order it has followed or refused, and what it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int  # of the order that this answers
    state: Literal["loading", "runs", "refused"]
    bundle_id: str = ""
    calibration_id: str = ""
    sentence: str = ""  # why it refused


class Place:
    """A worker's own entry; leave the block and it is gone. A full disk costs the entry alone."""

    def __init__(self, run_dir: Path, name: str) -> None:
        self._path = run_dir / FOLDER / f"{name}{SUFFIX}"
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        with suppress(OSError), ExitStack() as unless_locked:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = unless_locked.enter_context(self._path.open("wb+"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unless_locked.pop_all()
            self._file = file
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()

    def say(self, standing: Standing) -> None:
        """Tell whoever swaps."""
        if self._file is None:
            return
        told = standing.model_dump_json().encode()
        with suppress(OSError):
            os.pwrite(self._file.fileno(), told, 0)
            os.ftruncate(self._file.fileno(), len(told))


def standings(run_dir: Path) -> dict[str, Standing]:
    """What every living worker says, by its name; one that has said nothing yet is loading."""
    found: dict[str, Standing] = {}
    for path in sorted((run_dir / FOLDER).glob(f"*{SUFFIX}")):
        with suppress(OSError), path.open("rb") as file:
            if _is_left(file):
                path.unlink(missing_ok=True)
                continue
            found[path.name.removesuffix(SUFFIX)] = _read(file.read())
    return found


def _is_left(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(told: bytes) -> Standing:
    try:
        return Standing.model_validate_json(told)
    except ValidationError:  # it is just being written
        return Standing(number=-1, state="loading")

"""Where the cameras of a line have shared memory, and how it is locked and removed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from engines.contracts import BadConfig

if TYPE_CHECKING:
    from pipeline.config import CameraSettings, LineSettings

MEMORY = Path("/dev/shm")  # noqa: S108 - names in it are our own and checked for their owner
FRAMES, ORIGINALS = "frames", "originals"  # kinds of shared memory
PATIENCE_S, LOOK_S = 0.5, 0.01  # of a start, for the end of its forerunner


def memory_folder(run_dir: Path) -> Path:
    """Where this host keeps shared memory."""
    return MEMORY if MEMORY.is_dir() else run_dir


def wants_ring(settings: LineSettings, camera: CameraSettings) -> bool:
    """Whether a camera's model inputs go through a ring, if there is room for one.

    Never by itself where that would be on a disk: this has to be asked for.
    """
    is_memory = memory_folder(settings.run_dir) == MEMORY
    return settings.shares_memory(camera) and (is_memory or camera.transport == "shared")


def shared_path(run_dir: Path, camera: str, kind: str) -> Path:
    """Where a camera's shared memory of one ``kind`` is; other lines have other names."""
    return memory_folder(run_dir) / f"{_prefix(run_dir)}{camera}.{kind}"


def shared_paths(run_dir: Path) -> list[Path]:
    """All that the cameras of a line have in shared memory."""
    return sorted(memory_folder(run_dir).glob(f"{_prefix(run_dir)}*"))


def remove_shared(run_dir: Path) -> None:
    """Remove what the dead cameras of a line have left in shared memory; the living keep theirs."""
    for path in shared_paths(run_dir):
        remove(path)


def remove(path: Path) -> None:
    """Remove one ring or folder, if it is there and no living process holds it."""
    with contextlib.suppress(OSError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            path.unlink()  # nothing that anybody could hold
            return
        held = _held(path, os.O_RDONLY)
        try:
            if stat.S_ISDIR(mode):
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(held)


def locked(path: Path, *, folder: bool = False, new: bool = False) -> int:
    """The file or folder at ``path``, made where it is missing, and locked against a second owner.

    Whoever is about to remove it is waited for. BadConfig where it cannot be had.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            if folder:
                path.mkdir(mode=0o700, exist_ok=True)
            return _held(path, flags | os.O_EXCL * new)
        except (BlockingIOError, FileNotFoundError) as error:
            if time.monotonic() > until:
                raise not_had(path, error) from None
        except OSError as error:
            raise not_had(path, error) from None
        time.sleep(LOOK_S)


def not_had(path: Path, error: OSError) -> BadConfig:
    """Why shared memory cannot be used, in one sentence."""
    return BadConfig(
        f"the shared memory {path} cannot be had ({error.strerror or error}): stop the other "
        "ingest of this camera, or remove what another user has left there"
    )


def is_at(path: Path, file: int) -> bool:
    """Whether an open file is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def _held(path: Path, flags: int) -> int:
    """What is at ``path``, open and locked; BlockingIOError where its owner has it or removes it.

    Nothing but a file or folder of this user is opened, and nothing blocks.
    """
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        found = os.fstat(file)
        if found.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it is another user's")
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise OSError(errno.EINVAL, "it is no file")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_at(path, file):  # removed between the two, so the lock is on nothing
            raise BlockingIOError(errno.EAGAIN, "it is being removed")
    except OSError:
        os.close(file)
        raise
    return file


def _prefix(run_dir: Path) -> str:
    name = hashlib.blake2s(os.fsencode(run_dir.resolve()), digest_size=8).hexdigest()
    return f"assayline-{name}-"

"""Where the cameras of a line have shared memory, and how it is locked and removed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from engines.contracts import BadConfig

MEMORY = Path("/dev/shm")  # noqa: S108 - names in it are our own and checked for their owner
FRAMES, ORIGINALS = "frames", "originals"  # kinds of shared memory


def memory_folder(run_dir: Path) -> Path:
    """Where this host keeps shared memory."""
    return MEMORY if MEMORY.is_dir() else run_dir


def shared_path(run_dir: Path, camera: str, kind: str) -> Path:
    """Where a camera's shared memory of one ``kind`` is; other lines have other names."""
    return memory_folder(run_dir) / f"{_prefix(run_dir)}{camera}.{kind}"


def shared_paths(run_dir: Path) -> list[Path]:
    """All that the cameras of a line have in shared memory."""
    return sorted(memory_folder(run_dir).glob(f"{_prefix(run_dir)}*"))


def remove_shared(run_dir: Path) -> None:
    """Remove whatever the cameras of a line have left in shared memory."""
    for path in shared_paths(run_dir):
        remove(path)


def remove(path: Path) -> None:
    """Remove one ring or folder, if it is there and may be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def locked(path: Path, flags: int = 0) -> int:
    """The file at ``path``, made where it is missing, and locked against a second writer."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | flags, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        reason = error.strerror or error
        raise BadConfig(
            f"the shared memory {path} cannot be had ({reason}): stop the other ingest of this "
            "camera, or remove what another user has left there"
        ) from None
    return file


def _prefix(run_dir: Path) -> str:
    name = hashlib.blake2s(os.fsencode(run_dir.resolve()), digest_size=8).hexdigest()
    return f"assayline-{name}-"

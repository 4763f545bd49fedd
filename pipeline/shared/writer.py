"""The writing end of a ring."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from collections import deque
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from engines.contracts import BadConfig, BadFrame, UInt8
from pipeline.shared.layout import (
    EPOCH,
    GENERATION,
    HEADER,
    MARK,
    REFERENCE,
    copy_summed,
    header_of,
    pixels_of,
    place_of,
    size_of,
    table_of,
)
from pipeline.shared.places import is_at, locked, not_had


class FrameRing:
    """The writing end, one per camera; ``with`` removes it unless an error leaves frames open."""

    def __init__(self, path: Path, slots: int, slot_bytes: int) -> None:
        self._path = path
        self._slot_bytes = slot_bytes
        self._file, self._nonce = _opened(path, slots, slot_bytes)
        try:
            self._memory = mmap.mmap(
                self._file, size_of(slots, slot_bytes), flags=mmap.MAP_SHARED | mmap.MAP_POPULATE
            )
        except OSError as error:
            os.close(self._file)
            raise not_had(path, error) from None
        self._memory[: HEADER.size] = HEADER.pack(MARK, self._nonce, slots, slot_bytes)
        self._table = table_of(self._memory, slots)
        self._pixels = pixels_of(self._memory, slots, slot_bytes)
        self._owners = [f"{epoch}-{counter}" for _, epoch, counter in self._table.tolist()]
        self._free: deque[int] = deque()  # slots whose frame has its verdict

    def release_all_but(self, open_ids: Iterable[str]) -> None:
        """Free every slot whose frame is not among those that are open at the server."""
        is_open = {_entry_id(frame_id) for frame_id in open_ids}
        self._free = deque(slot for slot, at in enumerate(self._owners) if at not in is_open)

    def put(self, frame_id: str, image: UInt8) -> bytes | None:
        """Write an image [h, w, 3] into a free slot and refer to it; None where none is free."""
        if image.nbytes > self._slot_bytes:
            raise BadFrame(f"{frame_id}: {image.nbytes} bytes do not fit into a slot of the ring.")
        if not self._free:
            return None
        slot = self._free.popleft()
        row, pixels = self._table[slot], np.ascontiguousarray(image).reshape(-1)
        writing = (int(row[GENERATION]) + 1) | 1  # odd, and never used before
        row[GENERATION] = writing
        row[EPOCH:] = place_of(frame_id)
        self._owners[slot] = _entry_id(frame_id)
        total = copy_summed(self._pixels[slot, : pixels.size], pixels, pixels)
        row[GENERATION] = writing + 1
        return REFERENCE.pack(self._nonce, slot, writing + 1, total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and is_at(self._path, self._file):
            self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the ring, with what is in it, to the next writer."""
        fcntl.flock(self._file, fcntl.LOCK_UN)  # closing alone would not: the mapping has a copy
        os.close(self._file)


def _entry_id(frame_id: str) -> str:
    return frame_id.rpartition("/")[2]


def _opened(path: Path, slots: int, slot_bytes: int) -> tuple[int, int]:
    """The locked file of a ring and its nonce: a former start's where it fits, else a new one."""
    file = locked(path)
    with ExitStack() as stack:
        stack.callback(os.close, file)
        try:
            known = header_of(file)
            if known is not None and known[1:] == (slots, slot_bytes):
                stack.pop_all()
                return file, known[0]
            path.unlink(missing_ok=True)  # readers may still have it mapped
        except OSError as error:
            raise not_had(path, error) from None
        return _new(path, size_of(slots, slot_bytes)), secrets.randbits(64)


def _new(path: Path, size: int) -> int:
    """A new, empty file, locked, of memory that is all there."""
    file = locked(path, new=True)
    try:
        os.posix_fallocate(file, 0, size)  # memory that is missing is missed now, not as a SIGBUS
    except OSError as error:
        path.unlink(missing_ok=True)
        os.close(file)
        raise BadConfig(
            f"{size / 1e6:.0f} MB do not fit into {path.parent} ({error.strerror}): lower the "
            "credits of the camera, or choose transport: inline"
        ) from None
    return file

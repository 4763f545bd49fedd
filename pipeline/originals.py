"""Exposures at full size, kept at their camera for a while, so that rejected parts can be archived.

A ring of files in the memory of this host, bounded by bytes, and by what others leave free of it:
the oldest makes room. A file appears whole, under the id of its frame, and is there before the
frame can have a verdict. An old file of the right size is written over, since memory fresh from the
system costs four times the copy; it loses its name first, so a reader who finds the name after
reading has read what it stands for. The archive runs on the same host; one elsewhere finds nothing,
and counts that.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Self

import numpy as np

from engines.contracts import BadConfig, UInt8
from pipeline.shared import ORIGINALS, shared_path
from pipeline.shared.places import is_at, locked
from pipeline.telemetry import facts
from pipeline.wire import split_frame_id

HEADER = struct.Struct("<8sII")  # MARK, height, width
MARK = b"assay-o1"
SUFFIX = ".rgb"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM}


class Originals:
    """The writing end, one per camera; ``with`` removes what is left unless it is still needed.

    It is needed after an error, and after ``leave``.
    """

    def __init__(self, run_dir: Path, camera: str, max_bytes: int) -> None:
        self._folder = originals_folder(run_dir, camera)
        self._fresh = self._folder / "fresh"
        self._camera = camera
        self._max_bytes = max_bytes
        self._bytes = 0
        self._is_left = False
        self._kept: OrderedDict[str, int] = OrderedDict()  # file name -> bytes, oldest first
        self._lock = locked(self._folder, folder=True)
        try:
            self._take_stock()
        except OSError as error:
            os.close(self._lock)
            reason = error.strerror or error
            raise BadConfig(f"originals cannot be kept in {self._folder}: {reason}") from None

    def keep(self, frame_id: str, image: UInt8) -> None:
        """Keep an exposure [H, W, 3]; one that does not fit is counted and not kept."""
        header = HEADER.pack(MARK, *image.shape[:2])
        size = len(header) + image.nbytes
        if size > self._max_bytes:
            self._miss("large")
            return
        name = f"{split_frame_id(frame_id)[1]}{SUFFIX}"
        try:
            self._make_room(size)
            self._write(size, header, np.ascontiguousarray(image).data)
            self._fresh.rename(self._folder / name)
        except OSError:
            self._fresh.unlink(missing_ok=True)
            self._miss("full")
            return
        self._kept[name] = size
        self._bytes += size

    def leave(self) -> None:
        """Let what is kept outlive this process: a sink has still to fetch some of it."""
        self._is_left = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._is_left and is_at(self._folder, self._lock):
            shutil.rmtree(self._folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Leave the folder, with what is in it, to the next writer."""
        os.close(self._lock)

    def _make_room(self, size: int) -> None:
        """Forget the oldest until ``size`` is within the limit."""
        while self._kept and self._bytes + size > self._max_bytes:
            self._forget_oldest(size)

    def _forget_oldest(self, size: int) -> None:
        """Forget one; of the ``size`` that is wanted it becomes the fresh file."""
        name, freed = self._kept.popitem(last=False)
        self._bytes -= freed
        if freed == size:
            (self._folder / name).rename(self._fresh)
        else:
            (self._folder / name).unlink(missing_ok=True)

    def _write(self, size: int, *pieces: bytes | memoryview) -> None:
        """Write the fresh file; where memory is full, in the place of the oldest."""
        while True:
            try:
                write_whole(self._fresh, *pieces)
                return
            except OSError as error:
                self._fresh.unlink(missing_ok=True)
                if error.errno not in FULL or not self._kept:
                    raise
                self._forget_oldest(size)

    def _take_stock(self) -> None:
        """Go on with what a start before this one has left; a file it was writing goes."""
        self._fresh.unlink(missing_ok=True)
        for path in sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
            self._kept[path.name] = path.stat().st_size
            self._bytes += self._kept[path.name]
        self._make_room(0)
        self._warn_if_short()

    def _warn_if_short(self) -> None:
        room = shutil.disk_usage(self._folder).free + self._bytes
        if room < self._max_bytes:
            facts.event(
                "originals_short",
                level="warning",
                camera=self._camera,
                sentence=f"{self._folder.parent} has room for {room / 1e6:.0f} MB of the "
                f"{self._max_bytes / 1e6:.0f} MB of originals_bytes: fewer exposures are kept",
            )

    def _miss(self, reason: str) -> None:
        facts.count("originals_missed_total", camera=self._camera, reason=reason)


def write_whole(path: Path, *pieces: bytes | memoryview) -> None:
    """Write over the file at ``path``, all of the pieces or OSError."""
    with path.open("r+b" if path.exists() else "wb", buffering=0) as file:
        for piece in pieces:
            rest = memoryview(piece).cast("B")
            while rest:
                rest = rest[file.write(rest) :]  # memory that ends in between is an error next time


def original_of(run_dir: Path, frame_id: str) -> UInt8 | None:
    """The exposure [H, W, 3] of a frame; None where it is gone or never was kept on this host."""
    camera, entry_id = split_frame_id(frame_id)
    folder = originals_folder(run_dir, camera)
    try:
        if not is_ours(folder):
            return None
        path = folder / f"{entry_id}{SUFFIX}"
        content = path.read_bytes()
        path.stat()
    except OSError:
        return None
    if len(content) < HEADER.size:
        return None
    mark, height, width = HEADER.unpack_from(content)
    if mark != MARK or len(content) != HEADER.size + height * width * 3 or not height * width:
        return None
    return np.frombuffer(content, np.uint8, offset=HEADER.size).reshape(height, width, 3)


def originals_folder(run_dir: Path, camera: str) -> Path:
    """Where the originals of a camera are."""
    return shared_path(run_dir, camera, ORIGINALS)


def is_ours(folder: Path) -> bool:
    """Whether it is a folder, no link to one, and of this user."""
    return folder.is_dir() and not folder.is_symlink() and folder.lstat().st_uid == os.getuid()

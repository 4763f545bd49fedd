"""Model inputs by shared memory, for the processes of one host: the stream carries a reference.

Each camera has a ring: one file in memory, of as many slots as the camera has credits. Its ingest
writes an image into a slot and sends 28 bytes; a worker copies the image out and believes it only
if all of this holds: the ring is the one that was meant, the slot is the frame's own, its
generation is the one that was sent, before the copy and after it, and the copy has the checksum
that was sent. Anything else is :class:`LostImage`, answered UNDECIDED(transport). A slot is
written again only once its frame has its verdict, so an open frame's image is never overwritten;
the checks are for what nobody planned.

The generation is odd while a slot is written (a sequence lock); the checksum also covers
processors that make another's writes visible out of order. It adds up rows of 64-bit words, then
takes the CRC of the sums: any changed word changes its row, any rows exchanged change the CRC, and
adding runs at the speed of memory, where the CRC alone would take five times as long as the copy.

The name of a ring comes from the configuration (run folder and camera), never from an entry. A
ring outlives the death of its writer, whose next start goes on with it: open frames are not lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import secrets
import shutil
import struct
import zlib
from collections import deque
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Self

import numpy as np

from engines.contracts import BadConfig, BadFrame, InspectionError, UInt8
from pipeline.wire import split_frame_id

MEMORY = Path("/dev/shm")  # noqa: S108 - names in it are our own and checked for their owner
FRAMES, ORIGINALS = "frames", "originals"  # kinds of shared memory
PAGE = 4096
HEADER = struct.Struct("<8sQQQ")  # MARK, nonce, slots, bytes per slot
MARK = b"assay-r1"
REFERENCE = struct.Struct("<QIQQ")  # nonce, slot, generation, checksum
GENERATION, EPOCH, COUNTER = range(3)  # columns of the table of slots, uint64
ROW_WORDS = 4096
BLOCK_BYTES = 16 * 8 * ROW_WORDS  # half a megabyte


class LostImage(InspectionError):
    """The image of a frame is not where it was left: answer UNDECIDED(transport)."""


def shared_path(run_dir: Path, camera: str, kind: str) -> Path:
    """Where a camera's shared memory of one ``kind`` is; other lines have other names."""
    return _folder(run_dir) / f"{_prefix(run_dir)}{camera}.{kind}"


def shared_paths(run_dir: Path) -> list[Path]:
    """All that the cameras of a line have in shared memory."""
    return sorted(_folder(run_dir).glob(f"{_prefix(run_dir)}*"))


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


def checksum(pixels: UInt8, before: int = 0) -> int:
    """A 32-bit checksum of the bytes of an array [n] that follow those summed up ``before``."""
    whole = pixels.size - pixels.size % (8 * ROW_WORDS)
    sums = pixels[:whole].view(np.uint64).reshape(-1, ROW_WORDS).sum(axis=1)  # modulo 2^64
    return zlib.crc32(pixels[whole:].data, zlib.crc32(sums.data, before))


def copy_summed(target: UInt8, source: UInt8, summed: UInt8) -> int:
    """Copy an array [n] and return the checksum of ``summed``, which is either of the two.

    Block by block, so that what is summed is still in the processor's cache.
    """
    total = 0
    for start in range(0, source.size, BLOCK_BYTES):
        block = slice(start, start + BLOCK_BYTES)
        target[block] = source[block]
        total = checksum(summed[block], total)
    return total


class FrameRing:
    """The writing end, one per camera; ``with`` removes it unless an error leaves frames open."""

    def __init__(self, path: Path, slots: int, slot_bytes: int) -> None:
        self._path = path
        self._slot_bytes = slot_bytes
        self._file = _locked(path)
        known = _header(self._file)
        if known is None or known[1:] != (slots, slot_bytes):
            self._file = _renewed(path, self._file, _size(slots, slot_bytes))
            self._nonce = secrets.randbits(64)
        else:
            self._nonce = known[0]
        self._memory = mmap.mmap(
            self._file, _size(slots, slot_bytes), flags=mmap.MAP_SHARED | mmap.MAP_POPULATE
        )
        self._memory[: HEADER.size] = HEADER.pack(MARK, self._nonce, slots, slot_bytes)
        self._table = _table(self._memory, slots)
        self._pixels = _pixels(self._memory, slots, slot_bytes)
        self._free: deque[int] = deque()  # slots whose frame has its verdict

    def release_all_but(self, open_ids: Iterable[str]) -> None:
        """Free every slot whose frame is not among those that are open at the server."""
        is_open = {_place(frame_id) for frame_id in open_ids}
        owners = self._table[:, EPOCH:].tolist()
        self._free = deque(slot for slot, at in enumerate(owners) if tuple(at) not in is_open)

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
        row[EPOCH:] = _place(frame_id)
        total = copy_summed(self._pixels[slot, : pixels.size], pixels, pixels)
        row[GENERATION] = writing + 1
        return REFERENCE.pack(self._nonce, slot, writing + 1, total)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the ring, with what is in it, to the next writer."""
        fcntl.flock(self._file, fcntl.LOCK_UN)  # closing alone would not: the mapping has a copy
        os.close(self._file)


class FrameRings:
    """The reading end, one per worker: rings of the cameras that send by shared memory."""

    def __init__(self, run_dir: Path, cameras: Collection[str]) -> None:
        self._run_dir = run_dir
        self._cameras = frozenset(cameras)
        self._mapped: dict[str, _Mapped] = {}

    def fetch(self, frame_id: str, reference: bytes, size: tuple[int, int]) -> UInt8:
        """A copy [h, w, 3] of the image that a reference means, or LostImage.

        BadFrame for what is no reference, or of a camera that sends none.
        """
        camera = split_frame_id(frame_id)[0]
        if len(reference) != REFERENCE.size or camera not in self._cameras:
            raise BadFrame(f"{frame_id} has no image, and no place of one in shared memory.")
        nonce, slot, generation, expected = REFERENCE.unpack(reference)
        ring = self._ring(camera, nonce)
        image = np.empty((*size, 3), np.uint8)
        place = (generation, *_place(frame_id))
        if ring is None or ring.copy(place, slot, image.reshape(-1)) != expected:
            raise LostImage(f"the image of {frame_id} is no longer in its camera's shared memory")
        return image

    def _ring(self, camera: str, nonce: int) -> _Mapped | None:
        known = self._mapped.get(camera)
        if known is None or known.nonce != nonce:
            known = _mapped(shared_path(self._run_dir, camera, FRAMES))
            if known is not None:
                self._mapped[camera] = known
        return known if known is not None and known.nonce == nonce else None


class _Mapped:
    """A ring as a reader sees it."""

    def __init__(self, memory: mmap.mmap, nonce: int, slots: int, slot_bytes: int) -> None:
        self.nonce = nonce
        self._table = _table(memory, slots)
        self._pixels = _pixels(memory, slots, slot_bytes)

    def copy(self, place: tuple[int, int, int], slot: int, target: UInt8) -> int | None:
        """Copy a slot's bytes into an array [n] and sum them up.

        None where the slot is not ``place`` (generation, epoch, counter), before and afterwards.
        """
        if slot >= len(self._table) or target.size > self._pixels.shape[1]:
            return None
        if tuple(self._table[slot].tolist()) != place:
            return None
        total = copy_summed(target, self._pixels[slot, : target.size], target)
        return total if tuple(self._table[slot].tolist()) == place else None


def _mapped(path: Path) -> _Mapped | None:
    """The ring at ``path``, or None where there is none of ours."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        known = _header(file)
        if known is None:
            return None
        memory = mmap.mmap(
            file,
            _size(*known[1:]),
            flags=mmap.MAP_SHARED | mmap.MAP_POPULATE,
            prot=mmap.PROT_READ,
        )
        return _Mapped(memory, *known)
    finally:
        os.close(file)


def _header(file: int) -> tuple[int, int, int] | None:
    """Nonce, slots and bytes per slot of a whole ring that is ours; None for anything else."""
    said, found = os.pread(file, HEADER.size, 0), os.fstat(file)
    if len(said) != HEADER.size or found.st_uid != os.getuid():
        return None
    mark, nonce, slots, slot_bytes = HEADER.unpack(said)
    is_whole = mark == MARK and slots and slot_bytes and found.st_size == _size(slots, slot_bytes)
    return (nonce, slots, slot_bytes) if is_whole else None


def _locked(path: Path, flags: int = 0) -> int:
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


def _renewed(path: Path, old: int, size: int) -> int:
    """A new, empty file in the place of one that readers may still have mapped."""
    path.unlink(missing_ok=True)
    file = _locked(path, os.O_EXCL)
    os.close(old)
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


def _size(slots: int, slot_bytes: int) -> int:
    return _pages(HEADER.size + slots * 24) + slots * _pages(slot_bytes)


def _pages(count: int) -> int:
    return -(-count // PAGE) * PAGE


def _table(memory: mmap.mmap, slots: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    flat = np.frombuffer(memory, np.uint64, 3 * slots, HEADER.size)
    return flat.reshape(slots, 3)


def _pixels(
    memory: mmap.mmap, slots: int, slot_bytes: int
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    stride, start = _pages(slot_bytes), _pages(HEADER.size + slots * 24)
    return np.frombuffer(memory, np.uint8, slots * stride, start).reshape(slots, stride)


def _place(frame_id: str) -> tuple[int, int]:
    epoch, _, counter = split_frame_id(frame_id)[1].partition("-")
    return int(epoch), int(counter)


def _folder(run_dir: Path) -> Path:
    return MEMORY if MEMORY.is_dir() else run_dir


def _prefix(run_dir: Path) -> str:
    name = hashlib.blake2s(os.fsencode(run_dir.resolve()), digest_size=8).hexdigest()
    return f"assayline-{name}-"

"""How the bytes of a ring are laid out, told apart and summed up."""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zlib

import numpy as np

from engines.contracts import UInt8
from pipeline.wire import split_frame_id

PAGE = 4096
HEADER = struct.Struct("<8sQQQ")  # MARK, nonce, slots, bytes per slot
MARK = b"assay-r1"
REFERENCE = struct.Struct("<QIQQ")  # nonce, slot, generation, checksum
GENERATION, EPOCH, COUNTER = range(3)  # columns of the table of slots, uint64
ROW_WORDS = 4096
BLOCK_BYTES = 16 * 8 * ROW_WORDS  # half a megabyte


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


def header_of(file: int) -> tuple[int, int, int] | None:
    """Nonce, slots and bytes per slot of a whole ring that is ours; None for anything else."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        return None
    said = os.pread(file, HEADER.size, 0)
    if len(said) != HEADER.size:
        return None
    mark, nonce, slots, slot_bytes = HEADER.unpack(said)
    is_whole = mark == MARK and slots and slot_bytes and found.st_size == size_of(slots, slot_bytes)
    return (nonce, slots, slot_bytes) if is_whole else None


def size_of(slots: int, slot_bytes: int) -> int:
    """Bytes of a whole ring."""
    return _pages(HEADER.size + slots * 24) + slots * _pages(slot_bytes)


def table_of(memory: mmap.mmap, slots: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """The table of slots [slots, 3] in a mapped ring."""
    flat = np.frombuffer(memory, np.uint64, 3 * slots, HEADER.size)
    return flat.reshape(slots, 3)


def pixels_of(
    memory: mmap.mmap, slots: int, slot_bytes: int
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """The slots [slots, whole pages of bytes] in a mapped ring."""
    stride, start = _pages(slot_bytes), _pages(HEADER.size + slots * 24)
    return np.frombuffer(memory, np.uint8, slots * stride, start).reshape(slots, stride)


def place_of(frame_id: str) -> tuple[int, int]:
    """Epoch and counter of a frame, as its slot says them."""
    epoch, _, counter = split_frame_id(frame_id)[1].partition("-")
    return int(epoch), int(counter)


def _pages(count: int) -> int:
    return -(-count // PAGE) * PAGE

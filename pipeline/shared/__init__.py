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
Its writer holds a lock on it, and nobody removes what is locked.
"""

from __future__ import annotations

from pipeline.shared.layout import REFERENCE, checksum
from pipeline.shared.places import (
    FRAMES,
    ORIGINALS,
    memory_folder,
    remove,
    remove_shared,
    shared_path,
    shared_paths,
    wants_ring,
)
from pipeline.shared.reader import FrameRings, LostImage
from pipeline.shared.writer import FrameRing

__all__ = [
    "FRAMES",
    "ORIGINALS",
    "REFERENCE",
    "FrameRing",
    "FrameRings",
    "LostImage",
    "checksum",
    "memory_folder",
    "remove",
    "remove_shared",
    "shared_path",
    "shared_paths",
    "wants_ring",
]

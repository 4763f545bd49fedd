"""Frames on their way to the device: a bounded ring of page-locked memory and a stream for copies.

An entry is filled by the host, copied to a place of its own on the device by the copy stream, and
from there into the batch by the compute stream. So the next frames travel while the current batch
is computed, and the batch is touched in the order of the compute stream alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.contracts import UInt8
    from engines.gpu.device import Event, Pinned, Stream
    from engines.gpu.lease import Lease

ENTRIES = 4
FRAMES = 16  # of an entry


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A part of the ring."""

    host: Pinned
    staged: int  # address on the device
    uploaded: Event  # the host may fill it again
    taken: Event  # the copy stream may overwrite what is staged


class FrameRing:
    """``entries`` times ``frames`` images of ``frame_bytes`` each on their way at once."""

    def __init__(
        self,
        lease: Lease,
        frame_bytes: int,
        compute: Stream,
        *,
        frames: int = FRAMES,
        entries: int = ENTRIES,
    ) -> None:
        self._device, self._compute = lease.device, compute
        self._frame_bytes, self._frames = frame_bytes, frames
        self.copies = lease.stream()
        size = frames * frame_bytes
        self._entries = [
            Entry(lease.pinned(size), lease.memory(size), lease.event(), lease.event())
            for _ in range(entries)
        ]
        self._next = 0

    def send(self, images: UInt8, target: int) -> None:
        """Queue images [n, H, W, 3] into a batch at ``target``; waits only for a free entry."""
        for first in range(0, len(images), self._frames):
            part = images[first : first + self._frames]
            self._send(part, target + first * self._frame_bytes)

    def _send(self, images: UInt8, target: int) -> None:
        entry = self._entries[self._next]
        self._next = (self._next + 1) % len(self._entries)
        entry.uploaded.synchronise()
        entry.host.write(images)
        self.copies.wait(entry.taken)
        self._device.upload(entry.staged, entry.host, images.nbytes, self.copies)
        entry.uploaded.record(self.copies)
        self._compute.wait(entry.uploaded)
        self._device.copy(target, entry.staged, images.nbytes, self._compute)
        entry.taken.record(self._compute)

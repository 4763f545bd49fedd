"""Frames on their way to the device: a bounded ring of page-locked memory and a stream for copies.

An entry is filled by the host and copied by the copy stream to where its frames belong, while the
compute stream does other work. Whoever sends knows that nothing reads those places any more; the
compute stream waits for what it is to read by ``arrive``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.contracts import UInt8
    from engines.gpu.device import Event, Pinned, Stream
    from engines.gpu.lease import Lease

ENTRIES = 4
FRAMES = 16  # of an entry


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A part of the ring."""

    host: Pinned
    uploaded: Event  # the host may fill it again


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
        self.copies, self._arrived = lease.stream(), lease.event()
        size = frames * frame_bytes
        self._entries = [Entry(lease.pinned(size), lease.event()) for _ in range(entries)]
        self._next = 0

    def send(self, images: UInt8, targets: Sequence[int]) -> None:
        """Queue images [n, H, W, 3] to an address each; waits only for a free entry."""
        for first in range(0, len(images), self._frames):
            part = slice(first, first + self._frames)
            self._send(images[part], targets[part])

    def arrive(self) -> None:
        """Let the compute stream wait for all that was sent."""
        self._arrived.record(self.copies)
        self._compute.wait(self._arrived)

    def _send(self, images: UInt8, targets: Sequence[int]) -> None:
        entry = self._entries[self._next]
        self._next = (self._next + 1) % len(self._entries)
        entry.uploaded.synchronise()
        entry.host.write(images)
        size = self._frame_bytes
        for place, target in enumerate(targets):
            self._device.upload(target, entry.host, size, self.copies, offset=place * size)
        entry.uploaded.record(self.copies)

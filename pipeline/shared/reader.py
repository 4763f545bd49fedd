"""The reading end of rings."""

from __future__ import annotations

import mmap
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from engines.contracts import BadFrame, InspectionError, UInt8
from pipeline.shared.layout import (
    REFERENCE,
    copy_summed,
    header_of,
    pixels_of,
    place_of,
    size_of,
    table_of,
)
from pipeline.shared.places import FRAMES, shared_path
from pipeline.wire import split_frame_id


class LostImage(InspectionError):
    """The image of a frame is not where it was left: answer UNDECIDED(transport)."""


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
        place = (generation, *place_of(frame_id))
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
        self._table = table_of(memory, slots)
        self._pixels = pixels_of(memory, slots, slot_bytes)

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
    """The ring at ``path``, or None where there is none of ours; nothing there makes it wait."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        known = header_of(file)
        if known is None:
            return None
        memory = mmap.mmap(
            file,
            size_of(*known[1:]),
            flags=mmap.MAP_SHARED | mmap.MAP_POPULATE,
            prot=mmap.PROT_READ,
        )
        return _Mapped(memory, *known)
    except (OSError, ValueError):  # no memory to map it, or cut meanwhile
        return None
    finally:
        os.close(file)

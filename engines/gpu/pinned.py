"""Page-locked memory as the host sees it: bytes that are written and read whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.contracts import AnyArray, UInt8


class PinnedBytes:
    """Host memory [size] that ``release`` gives back."""

    def __init__(self, memory: UInt8, release: Callable[[], None]) -> None:
        self.memory, self.size = memory, memory.nbytes
        self._release = release

    @property
    def address(self) -> int:
        """Where it lies in the host's memory."""
        return int(self.memory.ctypes.data)

    def write(self, values: AnyArray, offset: int = 0) -> None:
        """Put the bytes of an array at a byte offset."""
        self.memory[offset : offset + values.nbytes] = bytes_of(values)

    def read(self, size: int, offset: int = 0) -> UInt8:
        """The bytes from an offset on, copied."""
        return self.memory[offset : offset + size].copy()

    def close(self) -> None:
        """Release the memory."""
        self._release()


def bytes_of(values: AnyArray) -> UInt8:
    """An array's bytes [nbytes] in its own order."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)

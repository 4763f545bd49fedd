"""What the checked device computes, in whatever memory it is let touch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from engines.contracts import UInt8
from engines.gpu.rows import Strip

if TYPE_CHECKING:
    from engines.gpu.device import Grid, Kernel
    from engines.gpu.hazards import Kind


class Touching(Protocol):
    """How work on a stream gets at memory."""

    def __call__(self, address: int, size: int, kind: Kind) -> UInt8:
        """The bytes at an address; raises Hazard where they may not be touched now."""
        ...


def filled(address: int, value: int, size: int, touch: Touching) -> None:
    """Set every byte to a value."""
    touch(address, size, "writes")[:] = value


def copied(target: int, source: int, size: int, touch: Touching) -> None:
    """Copy bytes from one address to another."""
    values = touch(source, size, "reads")
    touch(target, size, "writes")[:] = values


def moved(kernel: Kernel, grid: Grid, tensors: int, slots: int, touch: Touching) -> None:
    """Every strip's rows between its table and its batch."""
    _, size, count = grid
    width = len(Strip._fields)
    table = touch(tensors, count * width * 8, "reads").view(np.uint64).reshape(count, width)
    rows = touch(slots, size * 4, "reads").view(np.int32).tolist()
    for strip in (Strip(*fields) for fields in table.tolist()):
        for place, slot in enumerate(rows):
            in_batch = strip.batch + place * strip.pitch_bytes
            in_table = strip.table + (~slot if slot < 0 else slot) * strip.row_bytes
            if kernel == "gather_rows":
                copied(in_batch, in_table, strip.row_bytes, touch)
            elif slot >= 0:
                copied(in_table, in_batch, strip.row_bytes, touch)

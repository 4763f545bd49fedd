"""Rows that go between host and device through page-locked memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engines.contracts import AnyArray
from engines.gpu.executable import Port
from engines.gpu.rows import row_bytes

if TYPE_CHECKING:
    from engines.gpu.device import Device, Pinned, Stream
    from engines.gpu.lease import Lease


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """Rows of a port on both sides, enough for the largest bucket."""

    port: Port
    host: Pinned
    address: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return row_bytes(self.port.dtype, self.port.shape)

    def write(self, values: AnyArray) -> None:
        """Rows for the next call; rows beyond them keep what they held."""
        self.host.write(values)

    def read(self, count: int) -> AnyArray:
        """The first rows of the last call."""
        values = self.host.read(count * self.row_bytes)
        return values.view(self.port.dtype).reshape(count, *self.port.shape)

    def upload(self, device: Device, size: int, stream: Stream) -> None:
        """Queue the first rows to the device."""
        device.upload(self.address, self.host, size * self.row_bytes, stream)

    def download(self, device: Device, size: int, stream: Stream) -> None:
        """Queue the first rows to the host."""
        device.download(self.host, self.address, size * self.row_bytes, stream)


def column(lease: Lease, port: Port, widest: int, address: int) -> Column:
    """Page-locked rows beside device memory; zeros, which are valid inputs of every graph."""
    size = widest * row_bytes(port.dtype, port.shape)
    host = lease.pinned(size)
    host.write(np.zeros(size, np.uint8))
    return Column(port, host, address)


def new_column(lease: Lease, port: Port, widest: int) -> Column:
    """The same with device memory of its own."""
    size = widest * row_bytes(port.dtype, port.shape)
    return column(lease, port, widest, lease.memory(size))

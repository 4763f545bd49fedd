"""State rows on the device: one table per tensor, and rows that move to a batch and back.

One launch moves the rows of every tensor of a graph. Which tensors those are lies in device memory
as a table that never changes; which rows, as slots that the host sends with each call. A slot below
zero marks a row that only fills a batch up to its bucket: it reads row ``~slot`` and is written
nowhere, so a table holds what its own rows computed and nothing else.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from engines.contracts import AnyArray, BadBundle, Int32
from engines.gpu.device import THREADS, Grid, Kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.bundle import TensorSpec
    from engines.gpu.device import Device, Stream
    from engines.gpu.executable import Port
    from engines.gpu.lease import Lease

VECTOR = 16  # bytes that a thread moves at once
SHARES_MAX = 64  # blocks that share one row


class Strip(NamedTuple):
    """Rows of one tensor: ``struct Rows`` of rows.cu, field by field."""

    table: int  # address of row 0 in the state table
    batch: int  # address of row 0 in a batch
    row_bytes: int
    pitch_bytes: int  # from one row of the batch to the next


class Moves:
    """Strips whose rows move together, their table resident on the device."""

    def __init__(self, lease: Lease, strips: Sequence[Strip], stream: Stream) -> None:
        self._device = lease.device
        self._count = len(strips)
        self._shares = shares_of(max(strip.row_bytes for strip in strips))
        self._address = lease.memory(self._count * len(Strip._fields) * 8)
        send_once(lease.device, self._address, np.array(strips, np.uint64), stream)

    def queue(self, kernel: Kernel, size: int, slots: int, stream: Stream) -> None:
        """Move ``size`` rows of every strip; ``slots`` is the address of as many int32."""
        grid: Grid = (self._shares, size, self._count)
        self._device.launch(kernel, grid, self._address, slots, stream)


class StateTable:
    """``capacity`` rows of every state tensor; zeros until they are written."""

    def __init__(
        self, lease: Lease, tensors: Sequence[TensorSpec], capacity: int, stream: Stream
    ) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._addresses = {
            name: lease.zeroed(capacity * row_bytes(tensor.dtype, tensor.shape), stream)
            for name, tensor in self._tensors.items()
        }

    def strip(self, name: str, port: Port, batch: int, pitch_bytes: int | None = None) -> Strip:
        """A tensor's rows beside those of a port at ``batch``, dense unless a pitch is given.

        Rows move byte by byte: raises BadBundle for a port that is not what the manifest says.
        """
        tensor = self._tensors[name]
        if (port.dtype, tuple(port.shape)) != (tensor.dtype, tensor.shape):
            raise BadBundle(
                f"an engine has {name} as {port.dtype} {list(port.shape)}, the manifest as "
                f"{tensor.dtype} {list(tensor.shape)}; build it again"
            )
        size = row_bytes(tensor.dtype, tensor.shape)
        return Strip(self._addresses[name], batch, size, pitch_bytes or size)


def row_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of one row."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def shares_of(largest: int) -> int:
    """How many blocks share a row of so many bytes."""
    return int(np.clip(-(-largest // (VECTOR * THREADS)), 1, SHARES_MAX))


def padded_slots(slots: Sequence[int], size: int) -> Int32:
    """Slots [size]: those named, then the last one as a row that is written nowhere."""
    return np.array([*slots, *[~slots[-1]] * (size - len(slots))], np.int32)


def idle_slots(size: int) -> Int32:
    """Slots [size] that read row 0 and are written nowhere."""
    return np.full(size, ~0, np.int32)


def send_once(device: Device, address: int, values: AnyArray, stream: Stream) -> None:
    """Copy an array to the device and wait for it; for what is sent when a backend opens."""
    host = device.pinned(values.nbytes)
    try:
        host.write(values)
        device.upload(address, host, values.nbytes, stream)
        stream.synchronise()
    finally:
        host.close()


def ptx() -> bytes:
    """The kernels for the driver to compile, ending in a zero byte as it wants them."""
    return (files("engines.gpu") / "rows.ptx").read_bytes() + b"\0"

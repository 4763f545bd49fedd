"""One graph of a bundle on the device: its buffers, what goes in, and the little that comes back.

A call is a fixed sequence of copies, moves and the engine itself, the same for every call of a
bucket, so it can be captured as it stands. What it reads from the host lies in page-locked memory
that is written only while no call is under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.backend import PROGRESS, output_name
from engines.contracts import AnyArray, BadBundle, Int32
from engines.gpu.columns import Column, column, new_column
from engines.gpu.executable import Port
from engines.gpu.rows import Moves, Strip, row_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from engines.bundle import GraphName, GraphSpec
    from engines.gpu.device import Stream
    from engines.gpu.executable import Executable
    from engines.gpu.lease import Lease
    from engines.gpu.rows import StateTable

FRAMES = "image"  # the one input that comes by the ring
SLOT = Port("slots", "int32", ())
STAGES = ("copy in", "gather", "compute", "scatter", "copy out")
TOLD = Port("progress", "int32", (len(PROGRESS),))  # steps_left, plan, level
Ports = dict[str, Port]


class GraphRun:
    """An executable with its buffers bound, over the rows of a state table.

    ``frames``: address of the frames by slot, which a start gathers as others do rows of state.
    ``widest``: rows of the largest bucket, which all buffers hold. Raises BadBundle for an engine
    whose ports are not those of the manifest.
    """

    def __init__(
        self,
        lease: Lease,
        name: GraphName,
        executable: Executable,
        *,
        spec: GraphSpec,
        table: StateTable,
        frames: int,
        stream: Stream,
        widest: int,
    ) -> None:
        self._device, self._stream, self._executable = lease.device, stream, executable
        self._widest = widest
        self.inputs, outputs = named_ports(name, executable, spec)
        self._addresses = {
            port.name: bound(lease, executable, port, stream, widest)
            for port in (*self.inputs.values(), *outputs.values())
        }
        self._slots = new_column(lease, SLOT, widest)
        self._up: dict[str, Column] = {}
        self._before = self._after = self._telling = None
        if name == "start":
            self._up = self._columns(lease, self.inputs)
            size = self.frame_bytes
            self._before = Moves(
                lease, [Strip(frames, self._addresses[FRAMES], size, size)], stream
            )
        else:
            self._before = Moves(lease, self._strips(table, self.inputs), stream)
        if name == "finish":
            self._down = self._columns(lease, outputs)
        else:
            self._after = Moves(lease, self._strips(table, outputs), stream)
            told = new_column(lease, TOLD, widest)
            self._down = {TOLD.name: told}
            self._telling = Moves(lease, progress_strips(table, told.address), stream)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame; 0 where a graph takes none."""
        frames = self.inputs.get(FRAMES)
        return row_bytes(frames.dtype, frames.shape) if frames else 0

    def write(self, columns: Mapping[str, AnyArray]) -> None:
        """Rows of the inputs that the host sends with the next call."""
        for name, entry in self._up.items():
            entry.write(columns[name])

    def write_slots(self, slots: Int32) -> None:
        """Which rows of the table the next call is about."""
        self._slots.write(slots)

    def read(self, name: str, count: int) -> AnyArray:
        """Rows that came back from the last call, once it is done."""
        return self._down[name].read(count)

    def queue(self, size: int, mark: Callable[[], None] = lambda: None) -> None:
        """Queue one bucket; nothing waits. ``mark`` is called before, between and after stages."""
        device, stream, slots = self._device, self._stream, self._slots.address
        mark()
        for entry in (self._slots, *self._up.values()):
            entry.upload(device, size, stream)
        mark()
        if self._before is not None:
            self._before.queue("gather_rows", size, slots, stream)
        mark()
        self._executable.enqueue(size, stream.handle)
        mark()
        if self._after is not None:
            self._after.queue("scatter_rows", size, slots, stream)
        if self._telling is not None:
            self._telling.queue("gather_rows", size, slots, stream)
        mark()
        for entry in self._down.values():
            entry.download(device, size, stream)
        mark()

    def bytes_up(self, size: int) -> int:
        """Bytes that one bucket sends to the device, frames aside."""
        return size * sum(entry.row_bytes for entry in (self._slots, *self._up.values()))

    def bytes_down(self, size: int) -> int:
        """Bytes that come back from one bucket."""
        return size * sum(entry.row_bytes for entry in self._down.values())

    def _columns(self, lease: Lease, ports: Ports) -> dict[str, Column]:
        return {
            key: column(lease, port, self._widest, self._addresses[port.name])
            for key, port in ports.items()
            if key != FRAMES
        }

    def _strips(self, table: StateTable, ports: Ports) -> list[Strip]:
        return [table.strip(key, port, self._addresses[port.name]) for key, port in ports.items()]


def named_ports(name: GraphName, executable: Executable, spec: GraphSpec) -> tuple[Ports, Ports]:
    """Inputs and outputs by the manifest's names, in its order."""
    given = {port.name: port for port in executable.inputs}
    found = {port.name: port for port in executable.outputs}
    wanted = {output: output_name(name, output) for output in spec.outputs}
    if set(given) != set(spec.inputs) or set(found) != set(wanted.values()):
        raise BadBundle(
            f"the engine of {name} has other inputs or outputs than its manifest names; build again"
        )
    inputs = {key: given[key] for key in spec.inputs}
    return inputs, {key: found[port] for key, port in wanted.items()}


def progress_strips(table: StateTable, address: int) -> list[Strip]:
    """The three integers of a row side by side, so that one copy brings a batch's."""
    single, pitch = Port("", "int32", ()), row_bytes(TOLD.dtype, TOLD.shape)
    return [
        table.strip(key, single, address + 4 * place, pitch) for place, key in enumerate(PROGRESS)
    ]


def bound(lease: Lease, executable: Executable, port: Port, stream: Stream, widest: int) -> int:
    """Memory for a port; zeros, so that rows that only fill a batch up are valid ones."""
    address = lease.zeroed(widest * row_bytes(port.dtype, port.shape), stream)
    executable.bind(port.name, address)
    return address

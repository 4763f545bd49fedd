"""A compiled graph as the one who runs it sees it: ports, addresses, and one call per bucket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph; one row of it, without the batch dimension."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int, ...]


class Executable(Protocol):
    """One of a bundle's graphs on a device.

    Addresses are those of device memory that holds rows of the largest bucket; whoever binds them
    owns the memory. One thread uses an executable.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]  # named as in the ONNX file: what a graph replaces is ``next_<name>``

    def bind(self, name: str, address: int) -> None:
        """Use device memory at ``address`` for a port, for every bucket."""
        ...

    def enqueue(self, size: int, stream: int) -> None:
        """Queue one bucket of ``size`` rows on a CUDA stream; nothing waits for it.

        Raises EngineFault where the runtime refuses.
        """
        ...

    def close(self) -> None:
        """Release the engine."""
        ...

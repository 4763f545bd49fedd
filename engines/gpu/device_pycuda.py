"""The device by pycuda; graphs through cuda-bindings, which pycuda's streams are known to as well.

pycuda.autoprimaryctx takes the primary context at import and gives it back at exit. Here the thread
that opens the device takes it, so nothing happens at import, and closing gives it back.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from engines.contracts import EngineFault
from engines.gpu.cuda_driver import CudaDriver, CudaGraph, capture_graph, load_driver
from engines.gpu.device import KERNELS, THREADS, Grid, Kernel, Memory, Unavailable
from engines.gpu.faults import no_memory, refused
from engines.gpu.pinned import PinnedBytes
from engines.gpu.pycuda_parts import (
    PycudaEvent,
    PycudaLibrary,
    PycudaStream,
    first_line,
    raw_stream,
)
from engines.gpu.rows import ptx

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.gpu.device import Pinned, Stream


class PycudaDevice:
    """A GPU through pycuda."""

    def __init__(self, library: PycudaLibrary, graphs: CudaDriver | None, ordinal: int) -> None:
        self._library, self._graphs = library, graphs
        self.has_graphs = graphs is not None
        gpu = library.call("Device", ordinal)
        self.name = str(library.guard("name", gpu.name))
        major, minor = library.guard("compute_capability", gpu.compute_capability)
        self.compute_capability = (int(major), int(minor))
        self._context = library.guard("retain_primary_context", gpu.retain_primary_context)
        try:
            library.guard("push", self._context.push)
        except EngineFault:
            self._let_go(self._context.detach)
            raise
        self._memory: dict[int, Any] = {}  # pycuda frees what nobody names any more
        self._module: Any = None
        self._kernels: dict[str, Any] = {}
        try:
            self._module = library.call("module_from_buffer", ptx())
            self._kernels = {name: self._kernel(name) for name in KERNELS}
        except EngineFault:
            self.close()
            raise

    def memory(self) -> Memory:
        """What is free now."""
        free, total = self._library.call("mem_get_info")
        return Memory(int(free), int(total))

    def allocate(self, size: int) -> int:
        """Address of new device memory."""
        try:
            memory = self._library.driver.mem_alloc(size)
        except self._library.driver.MemoryError as error:
            raise no_memory(size) from error
        except self._library.driver.Error as error:
            raise refused("mem_alloc", first_line(error)) from error
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._library.guard("free", self._memory.pop(address).free)

    def pinned(self, size: int) -> PinnedBytes:
        """Page-locked host memory."""
        try:
            memory = self._library.driver.pagelocked_empty(size, "uint8")
        except self._library.driver.MemoryError as error:
            raise no_memory(size, "page-locked") from error
        except self._library.driver.Error as error:
            raise refused("pagelocked_empty", first_line(error)) from error
        return PinnedBytes(memory, partial(self._library.guard, "free", memory.base.free))

    def stream(self) -> PycudaStream:
        """A stream that waits for no other."""
        return PycudaStream(self._library)

    def event(self, *, timed: bool = False) -> PycudaEvent:
        """An event."""
        return PycudaEvent(self._library, timed=timed)

    def upload(
        self, address: int, source: Pinned, size: int, stream: Stream, *, offset: int = 0
    ) -> None:
        """Copy host to device."""
        part = memory_of(source)[offset : offset + size]
        self._library.call("memcpy_htod_async", address, part, raw_stream(stream))

    def download(
        self, target: Pinned, address: int, size: int, stream: Stream, *, offset: int = 0
    ) -> None:
        """Copy device to host."""
        part = memory_of(target)[offset : offset + size]
        self._library.call("memcpy_dtoh_async", part, address, raw_stream(stream))

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy within the device."""
        self._library.call("memcpy_dtod_async", target, source, size, raw_stream(stream))

    def fill(self, address: int, value: int, size: int, stream: Stream) -> None:
        """Set every byte."""
        self._library.call("memset_d8_async", address, value, size, raw_stream(stream))

    def launch(self, kernel: Kernel, grid: Grid, tensors: int, slots: int, stream: Stream) -> None:
        """Move rows."""
        call = self._kernels[kernel].prepared_async_call
        block = (THREADS, 1, 1)
        self._library.guard(kernel, call, grid, block, raw_stream(stream), tensors, slots)

    def capture(self, stream: Stream, queue: Callable[[], None]) -> CudaGraph:
        """What ``queue`` queues on the stream as a graph."""
        if self._graphs is None:
            raise EngineFault("pycuda captures no graphs; install cuda-bindings beside it")
        return capture_graph(self._graphs, stream, queue)

    def close(self) -> None:
        """Let go of the device; a lost one is let go of too."""
        kept = tuple(self._memory.values())
        self._memory, self._kernels, self._module = {}, {}, None
        self._let_go(*(memory.free for memory in kept), self._context.pop, self._context.detach)

    def _let_go(self, *calls: Callable[[], object]) -> None:
        """Whatever was not given back, then the context.

        pycuda pushes a primary context to release it and leaves it there, current and dead.
        """
        for call in calls:
            with suppress(EngineFault):
                self._library.guard("close", call)
        if self._graphs is not None:
            with suppress(EngineFault):
                if int(self._graphs("cuCtxGetCurrent")) == int(self._context.handle):
                    self._graphs("cuCtxPopCurrent")

    def _kernel(self, name: str) -> Any:  # noqa: ANN401 - pycuda ships no types
        function = self._library.guard("get_function", self._module.get_function, name)
        return function.prepare("PP")


def open_device(ordinal: int = 0) -> PycudaDevice:
    """Raises Unavailable where pycuda is not installed or finds no driver or no such GPU."""
    try:
        from pycuda import driver
    except ModuleNotFoundError as error:
        named = error.name if error.name and not error.name.startswith("pycuda") else None
        lack = f"pycuda lacks {named}" if named else "pycuda is not installed"
        raise Unavailable(lack) from error
    except ImportError as error:  # the driver's library is missing
        raise Unavailable("pycuda finds no NVIDIA driver on this machine") from error
    library = PycudaLibrary(driver)
    try:
        library.call("init")
        count = int(library.guard("count", driver.Device.count))
    except EngineFault as error:
        raise Unavailable(f"pycuda finds no GPU: {error}") from error
    if count <= ordinal:
        raise Unavailable(f"pycuda finds {count} GPUs and no number {ordinal}")
    return PycudaDevice(library, _graphs(), ordinal)


def _graphs() -> CudaDriver | None:
    """What captures graphs, or nothing where it is not installed."""
    try:
        return load_driver()
    except Unavailable:
        return None


def memory_of(memory: Pinned) -> Any:  # noqa: ANN401 - an array that pycuda made
    """The array [size] over page-locked memory."""
    assert isinstance(memory, PinnedBytes)  # noqa: S101 - as above
    return memory.memory

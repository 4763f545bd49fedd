"""The device by cuda-bindings alone, which needs no compiler to install.

The primary context is the one that TensorRT and torch use too; it is retained and pushed by the
thread that opens the device, and let go when the device is closed.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.contracts import EngineFault
from engines.gpu.cuda_driver import CudaDriver, CudaGraph, capture_graph, load_driver
from engines.gpu.device import KERNELS, THREADS, Grid, Kernel, Memory, Unavailable
from engines.gpu.faults import NoMemory, no_memory
from engines.gpu.pinned import PinnedBytes
from engines.gpu.rows import ptx

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.gpu.device import Event, Pinned, Stream

NON_BLOCKING, NO_TIMING = 1, 2  # CU_STREAM_NON_BLOCKING, CU_EVENT_DISABLE_TIMING
POINTERS = (ctypes.c_void_p, ctypes.c_void_p)


class CudaStream:
    """A stream of the driver."""

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self.handle = int(driver("cuStreamCreate", NON_BLOCKING))

    def wait(self, event: Event) -> None:
        """Let what is queued from now on wait."""
        self._driver("cuStreamWaitEvent", self.handle, handle_of(event), 0)

    def synchronise(self) -> None:
        """Wait for all that was queued."""
        self._driver("cuStreamSynchronize", self.handle)

    def close(self) -> None:
        """Release the stream."""
        self._driver("cuStreamDestroy", self.handle)


class CudaEvent:
    """An event of the driver."""

    def __init__(self, driver: CudaDriver, *, timed: bool) -> None:
        self._driver = driver
        self.handle = int(driver("cuEventCreate", 0 if timed else NO_TIMING))

    def record(self, stream: Stream) -> None:
        """Mark what is queued so far."""
        self._driver("cuEventRecord", self.handle, stream.handle)

    def synchronise(self) -> None:
        """Wait for what was marked."""
        self._driver("cuEventSynchronize", self.handle)

    def elapsed_ms(self, since: Event) -> float:
        """Time from another mark to this one."""
        return float(self._driver("cuEventElapsedTime", handle_of(since), self.handle))

    def close(self) -> None:
        """Release the event."""
        self._driver("cuEventDestroy", self.handle)


class CudaDevice:
    """A GPU through the driver's own interface."""

    has_graphs = True

    def __init__(self, driver: CudaDriver, ordinal: int) -> None:
        self._driver = driver
        self._gpu = driver("cuDeviceGet", ordinal)
        self.name = _text(driver("cuDeviceGetName", 256, self._gpu))
        self.compute_capability = compute_capability(driver, self._gpu)
        context = driver("cuDevicePrimaryCtxRetain", self._gpu)
        try:
            driver("cuCtxPushCurrent", context)
        except EngineFault:
            driver("cuDevicePrimaryCtxRelease", self._gpu)
            raise
        self._module: Any = None
        try:
            self._module = driver("cuModuleLoadData", ptx())
            self._kernels = {
                name: driver("cuModuleGetFunction", self._module, name.encode()) for name in KERNELS
            }
        except EngineFault:
            self.close()
            raise

    def memory(self) -> Memory:
        """What is free now."""
        return Memory(*(int(size) for size in self._driver("cuMemGetInfo")))

    def allocate(self, size: int) -> int:
        """Address of new device memory."""
        try:
            return int(self._driver("cuMemAlloc", size))
        except NoMemory as error:
            raise no_memory(size) from error

    def free(self, address: int) -> None:
        """Give memory back."""
        self._driver("cuMemFree", address)

    def pinned(self, size: int) -> PinnedBytes:
        """Page-locked host memory."""
        try:
            address = int(self._driver("cuMemHostAlloc", size, 0))
        except NoMemory as error:
            raise no_memory(size, "page-locked") from error
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return PinnedBytes(memory, lambda: self._driver("cuMemFreeHost", address))

    def stream(self) -> CudaStream:
        """A stream that waits for no other."""
        return CudaStream(self._driver)

    def event(self, *, timed: bool = False) -> CudaEvent:
        """An event."""
        return CudaEvent(self._driver, timed=timed)

    def upload(
        self, address: int, source: Pinned, size: int, stream: Stream, *, offset: int = 0
    ) -> None:
        """Copy host to device."""
        self._driver("cuMemcpyHtoDAsync", address, address_of(source) + offset, size, stream.handle)

    def download(
        self, target: Pinned, address: int, size: int, stream: Stream, *, offset: int = 0
    ) -> None:
        """Copy device to host."""
        self._driver("cuMemcpyDtoHAsync", address_of(target) + offset, address, size, stream.handle)

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Copy within the device."""
        self._driver("cuMemcpyDtoDAsync", target, source, size, stream.handle)

    def fill(self, address: int, value: int, size: int, stream: Stream) -> None:
        """Set every byte."""
        self._driver("cuMemsetD8Async", address, value, size, stream.handle)

    def launch(self, kernel: Kernel, grid: Grid, tensors: int, slots: int, stream: Stream) -> None:
        """Move rows."""
        self._driver(
            "cuLaunchKernel",
            self._kernels[kernel],
            *grid,
            *(THREADS, 1, 1, 0),
            stream.handle,
            ((tensors, slots), POINTERS),
            0,
        )

    def capture(self, stream: Stream, queue: Callable[[], None]) -> CudaGraph:
        """What ``queue`` queues on the stream as a graph."""
        return capture_graph(self._driver, stream, queue)

    def close(self) -> None:
        """Let go of the device; a lost one is let go of too."""
        if self._module is not None:
            with suppress(EngineFault):
                self._driver("cuModuleUnload", self._module)
        with suppress(EngineFault):
            self._driver("cuCtxPopCurrent")
        with suppress(EngineFault):
            self._driver("cuDevicePrimaryCtxRelease", self._gpu)


def open_device(ordinal: int = 0) -> CudaDevice:
    """Raises Unavailable where cuda-bindings finds no driver or no such GPU."""
    driver = load_driver()
    if (count := driver("cuDeviceGetCount")) <= ordinal:
        raise Unavailable(f"cuda-bindings finds {count} GPUs and no number {ordinal}")
    return CudaDevice(driver, ordinal)


def compute_capability(driver: CudaDriver, gpu: Any) -> tuple[int, int]:  # noqa: ANN401 - no types
    """Major and minor number."""
    names = driver.library.CUdevice_attribute
    prefix = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_"
    major, minor = (
        int(driver("cuDeviceGetAttribute", getattr(names, prefix + part), gpu))
        for part in ("MAJOR", "MINOR")
    )
    return major, minor


def handle_of(event: Event) -> int:
    """The driver's number of an event of this module."""
    assert isinstance(event, CudaEvent)  # noqa: S101 - events of two libraries are never mixed
    return event.handle


def address_of(memory: Pinned) -> int:
    """Host address of page-locked memory."""
    assert isinstance(memory, PinnedBytes)  # noqa: S101 - as above
    return memory.address


def _text(name: bytes) -> str:
    return name.split(b"\0")[0].decode(errors="replace")

"""The CUDA driver through cuda-bindings: an error is a sentence, a stream's work a graph."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from engines.contracts import EngineFault
from engines.gpu.device import Unavailable
from engines.gpu.faults import old_driver, refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.gpu.device import Stream

# Other threads may allocate while one captures; only this thread must not wait meanwhile.
CAPTURE = "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"
LACKING = "is not found"  # what cuda-bindings says of a call that the driver does not have


class CudaDriver:
    """Calls by name; what a call gives beside its error code comes back."""

    def __init__(self, library: Any) -> None:  # noqa: ANN401 - cuda-bindings ships no types
        self.library = library

    def __call__(self, name: str, *arguments: object) -> Any:  # noqa: ANN401 - no types
        """Raises EngineFault for anything but success, and RuntimeError without a driver."""
        try:
            code, *values = getattr(self.library, name)(*arguments)
        except RuntimeError as error:
            if LACKING not in str(error):
                raise
            raise old_driver(str(error)) from error
        if code != self.library.CUresult.CUDA_SUCCESS:
            raise refused(name, getattr(code, "name", str(code)))
        return values[0] if len(values) == 1 else tuple(values)


def load_driver() -> CudaDriver:
    """Raises Unavailable without the library, without a driver or without a GPU."""
    try:
        from cuda.bindings import driver as library
    except ImportError as error:
        raise Unavailable("cuda-bindings is not installed") from error
    driver = CudaDriver(library)
    try:
        driver("cuInit", 0)
    except EngineFault as error:
        raise Unavailable(f"cuda-bindings finds no GPU: {error}") from error
    except RuntimeError as error:  # the library that cuInit is in cannot be loaded
        raise Unavailable("cuda-bindings finds no NVIDIA driver on this machine") from error
    return driver


class CudaGraph:
    """An instantiated graph of the context that is current."""

    def __init__(self, driver: CudaDriver, executable: Any) -> None:  # noqa: ANN401 - no types
        self._driver, self._executable = driver, executable

    def launch(self, stream: Stream) -> None:
        """Queue it."""
        self._driver("cuGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Release the graph."""
        self._driver("cuGraphExecDestroy", self._executable)


def capture_graph(driver: CudaDriver, stream: Stream, queue: Callable[[], None]) -> CudaGraph:
    """What ``queue`` queues on a stream, not done yet; the stream is usable again after a failure.

    Works on a stream that another library made, since a capture is known to the driver.
    """
    mode = getattr(driver.library.CUstreamCaptureMode, CAPTURE)
    driver("cuStreamBeginCapture", stream.handle, mode)
    try:
        queue()
    except BaseException:
        with suppress(EngineFault):
            driver("cuGraphDestroy", driver("cuStreamEndCapture", stream.handle))
        raise
    graph = driver("cuStreamEndCapture", stream.handle)
    try:
        return CudaGraph(driver, driver("cuGraphInstantiate", graph, 0))
    finally:
        driver("cuGraphDestroy", graph)

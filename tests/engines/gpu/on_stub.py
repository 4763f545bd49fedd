"""Runs the GPU worker on the stub driver: ``python -m tests.engines.gpu.on_stub MODULE FOLDER``.

A process of its own, since a driver is loaded once. FOLDER holds a sketch's graphs, ``rows.npz``
with frames, slots and what the CPU found. Prints one JSON object of what a test asserts.
"""

from __future__ import annotations

import ctypes
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.backend_tensorrt import TensorRtBackend
from engines.bundle import GraphsSpec
from engines.contracts import EngineFault, Rows, UInt8
from tests.engines.gpu.host_engines import host_engines

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.gpu.checked_kernels import Touching
    from engines.gpu.hazards import Kind

CAPACITY, NO_MEMORY, LAUNCH_FAILED = 70, 2, 719
FAILING = {
    "cuMemAlloc_v2": (NO_MEMORY, 40),
    "cuMemHostAlloc": (NO_MEMORY, 10),
    "cuStreamCreate": (NO_MEMORY, 2),
    "cuEventCreate": (NO_MEMORY, 6),
    "cuModuleLoadData": (222, 1),  # a driver older than the PTX
    "cuCtxPushCurrent_v2": (LAUNCH_FAILED, 1),
}


class StubHost:
    """Work of a foreign library, in the order of the stub's streams."""

    def __init__(self) -> None:
        self.stub = ctypes.CDLL("libcuda.so.1")
        self.stub.stub_queue.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)
        self._work: list[Callable[[Touching], None]] = []
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_long)(self._run)

    def queue_foreign(self, handle: int, run: Callable[[Touching], None]) -> None:
        """Queue it, or keep it in a graph that is captured."""
        self._work.append(run)
        call = ctypes.cast(self._call, ctypes.c_void_p)
        if self.stub.stub_queue(handle, call, len(self._work) - 1):
            raise EngineFault("the stub refused a stream")

    def leaks(self) -> list[int]:
        """Memory and things alive, contexts retained and contexts pushed."""
        return [self.stub.stub_alive(), self.stub.stub_retained(), self.stub.stub_contexts()]

    def fail(self, call: str, nth: int, code: int) -> None:
        """Let the nth call of a name fail, and all after it."""
        self.stub.stub_fail(call.encode(), nth, code)

    def _run(self, number: int) -> None:
        self._work[number](memory_at)


def memory_at(address: int, size: int, kind: Kind) -> UInt8:
    """Bytes at an address."""
    del kind
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def opened(module: Any, host: StubHost, folder: Path) -> TensorRtBackend:  # noqa: ANN401 - a module
    """The worker on the device that a module opens."""
    spec = GraphsSpec.model_validate_json((folder / "spec.json").read_bytes())
    engines = host_engines(host, folder, spec)
    return TensorRtBackend(module.open_device(0), engines, spec, precision="f32", capacity=CAPACITY)


def compared(backend: TensorRtBackend, folder: Path) -> bool:
    """Whether rows are found as the CPU found them."""
    given = np.load(folder / "rows.npz")
    rows = Rows(given["image"], given["category"], given["seed"], given["plan"])
    slots = given["slots"].tolist()
    backend.start(rows, slots)
    left = backend.step(slots)
    found = backend.finish(slots[::-1])
    return bool(
        np.array_equal(left.steps_left, given["steps_left"])
        and np.array_equal(left.level, given["level"])
        and np.allclose(found.anomaly_score[::-1], given["score"], rtol=1e-5)
        and np.allclose(found.anomaly_map[::-1], given["map"], rtol=1e-4, atol=1e-6)
    )


def faults(module: Any, host: StubHost, folder: Path) -> dict[str, Any]:  # noqa: ANN401 - a module
    """What is said when opening fails at each call in turn, and what is left then."""
    told: set[str] = set()
    for call, (code, times) in FAILING.items():
        for nth in range(1, times + 1):
            host.fail(call, nth, code)
            try:
                opened(module, host, folder).close()
            except EngineFault as fault:
                told.add(str(fault))
            host.fail("", 0, 0)
    return {"told": sorted(told), "left": host.leaks()}


def lost(module: Any, host: StubHost, folder: Path) -> dict[str, Any]:  # noqa: ANN401 - a module
    """What is said when the device is lost in a call."""
    backend = opened(module, host, folder)
    backend.rehearse("step", 4)
    host.fail("cuLaunchKernel", 2, LAUNCH_FAILED)
    told = ""
    try:
        backend.rehearse("step", 8)
    except EngineFault as fault:
        told = str(fault)
    return {"told": told, "left": closed(backend, host)}


def closed(backend: TensorRtBackend, host: StubHost) -> list[int]:
    """Close and count."""
    backend.close()
    return host.leaks()


def main(name: str, folder: Path) -> dict[str, Any]:
    """Everything, on one driver."""
    module, host = import_module(name), StubHost()
    backend = opened(module, host, folder)
    device = backend._lease.device
    facts: dict[str, Any] = {
        "name": device.name,
        "capability": device.compute_capability,
        "memory": device.memory(),
        "agrees": [compared(backend, folder) for _ in range(3)],
        "captured": backend.captured,
        "not_captured": {str(k): v for k, v in backend.not_captured.items()},
        "left": closed(backend, host),
    }
    return facts | {"faults": faults(module, host, folder), "lost": lost(module, host, folder)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))

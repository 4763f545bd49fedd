"""Backends: runtimes that execute a bundle's three graphs, opened by name.

What they share is here: which inputs and outputs there are, and how any number of rows becomes
batches of a few fixed sizes, so that no shape is compiled while parts wait. Heavy imports happen
behind the name.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

from engines.contracts import (
    AnyArray,
    BadBundle,
    BadConfig,
    EngineFault,
    Evidence,
    InspectionError,
    Progress,
    Rows,
)
from engines.images import image_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from engines.bundle import Bundle, GraphName
    from engines.contracts import UInt8

BUCKETS = (1, 2, 4, 8, 16)
DEVICE_BUCKETS = (*BUCKETS, 32, 64)  # of a graphics processor, where many rows share a call
START_INPUTS = ("image", "category", "seed", "plan")
SEED_MASK = (1 << 24) - 1
PROGRESS = ("steps_left", "plan", "level")
GATED = frozenset({"openvino:bf16", "openvino:int8", "torch-cuda:bf16"})  # "auto" asks
Precision = str  # "auto", "f32", "bf16" or, of TensorRT, "fp16"
Answer = TypeVar("Answer", Progress, Evidence)
Anything = TypeVar("Anything")


class BatchedBackend(ABC):
    """Splits rows into buckets and states faults; a runtime adds what one batch means.

    ``_start``, ``_step`` and ``_finish`` are given at most ``buckets[-1]`` distinct slots.
    """

    key: str  # "<backend>:<precision>"
    buckets: tuple[int, ...] = BUCKETS  # the first of DEVICE_BUCKETS, ascending

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def start(self, rows: Rows, slots: list[int]) -> Progress:
        """Encode, choose the level, place each frame on it."""
        if len(rows) != len(slots):
            raise EngineFault(f"{len(rows)} rows were given for {len(slots)} slots")
        parts = self._batches(slots)
        return _joined(
            [self._guarded("start", self._start, _part(rows, p), slots[p]) for p in parts]
        )

    def step(self, slots: list[int]) -> Progress:
        """One denoiser call for every row named, each at its own level."""
        parts = self._batches(slots)
        return _joined([self._guarded("step", self._step, slots[p]) for p in parts])

    def finish(self, slots: list[int]) -> Evidence:
        """Anomaly maps and scores from the rows' estimates."""
        parts = self._batches(slots)
        return _joined([self._guarded("finish", self._finish, slots[p]) for p in parts])

    def rehearse(self, graph: GraphName, size: int) -> bool:  # noqa: ARG002 - for runtimes to use
        """Run one bucket of a graph on what its buffers hold; False where nothing is warmed so."""
        return False

    @property
    def beside(self) -> Sequence[BatchedBackend]:
        """Backends that may run at the same time as this one, each with rows of its own."""
        return ()

    def close(self) -> None:  # noqa: B027 - a runtime may hold nothing
        """Release the runtime."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abstractmethod
    def _start(self, rows: Rows, slots: list[int]) -> Progress: ...

    @abstractmethod
    def _step(self, slots: list[int]) -> Progress: ...

    @abstractmethod
    def _finish(self, slots: list[int]) -> Evidence: ...

    def _batches(self, slots: list[int]) -> list[slice]:
        """Slices no longer than the largest bucket; EngineFault for rows that are not there."""
        if not slots or min(slots) < 0 or max(slots) >= self.capacity:
            raise EngineFault(f"slots {slots} do not lie below the capacity of {self.capacity}")
        if len(set(slots)) < len(slots):
            raise EngineFault(f"slots {slots} name a row twice")
        width = self.buckets[-1]
        return [slice(first, first + width) for first in range(0, len(slots), width)]

    def _guarded(self, graph: GraphName, run: Callable[..., Anything], *args: object) -> Anything:
        """What a runtime raises becomes one sentence; errors that are sentences pass."""
        try:
            return run(*args)
        except InspectionError:
            raise
        except Exception as error:
            raise EngineFault(f"{self.key} could not run {graph}: {last_line(error)}") from error


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a backend is opened for."""

    bundle: Bundle
    precision: Precision | Mapping[str, Precision]
    capacity: int  # rows of state
    threads: int | None
    cache: Path | None  # of compiled graphs
    engines: int


def open_backend(
    bundle: Bundle,
    name: str = "openvino",
    precision: Precision | Mapping[str, Precision] = "auto",
    capacity: int = 32,
    *,
    threads: int | None = None,
    cache: Path | None = None,
    engines: int = 1,
) -> BatchedBackend:
    """Open a bundle on a runtime, with ``capacity`` rows of state in all its engines.

    ``precision`` is one for all graphs or one per graph; ``cache`` keeps compiled graphs. Of
    ``engines`` that share the processor and the rows this is one, and its ``beside`` the others; a
    runtime that has no use for several has none. Raises BadConfig for a name or precision that does
    not exist, BadBundle for graphs that do not load.
    """
    if name not in BACKENDS:
        raise BadConfig(f"there is no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name](_Asked(bundle, precision, capacity, threads, cache, engines))


def build_engine(
    bundle: Bundle,
    name: str = "openvino",
    precision: Precision | Mapping[str, Precision] = "auto",
    cache: Path | None = None,
) -> str:
    """Compile every graph ahead of time into the bundle's cache and return the backend's key."""
    if name == "tensorrt":  # opening builds nothing there
        from engines.gpu.building import build_engines

        return build_engines(bundle, precision, cache)
    with open_backend(bundle, name, precision, 1, cache=cache or engine_cache(bundle)) as backend:
        return backend.key


def engine_cache(bundle: Bundle) -> Path:
    """Where compiled graphs of a bundle lie: beside it, under its identity."""
    return bundle.folder.parent / f".{bundle.folder.name}-engines" / bundle.bundle_id


def usable_cores() -> int:
    """Cores of the processor that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; elsewhere a process has them all
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache  # there are few counts, and a scheduler asks many times a frame
def bucket_of(count: int) -> int:
    """The smallest batch size that holds ``count`` rows (at most ``DEVICE_BUCKETS[-1]``)."""
    return next(size for size in DEVICE_BUCKETS if size >= count)


def last_line(error: Exception) -> str:
    """What a runtime's many-line error comes down to."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def output_name(graph: GraphName, output: str) -> str:
    """Name of an output in an ONNX file: a state tensor that comes out is the next one."""
    return output if graph == "finish" else f"next_{output}"


def start_inputs(images: Sequence[UInt8], categories: Sequence[int], plans: Sequence[int]) -> Rows:
    """Rows for a start graph: images [h, w, 3] with their category ids and the plans asked for."""
    return Rows(
        image=np.stack(images),
        category=np.array(categories, np.int64),
        seed=np.array([image_seed(image) for image in images], np.int64),
        plan=np.array(plans, np.int32),
    )


def columns(rows: Rows) -> dict[str, AnyArray]:
    """The inputs of a start graph by name.

    Seeds keep 24 bits: OpenVINO computes the remainder of integers in single precision, so a larger
    seed would meet another row of the noise table there than elsewhere.
    """
    return {
        "image": rows.image,
        "category": rows.category,
        "seed": rows.seed & SEED_MASK,
        "plan": rows.plan,
    }


def _part(rows: Rows, part: slice) -> Rows:
    return Rows(rows.image[part], rows.category[part], rows.seed[part], rows.plan[part])


def _joined(parts: list[Answer]) -> Answer:
    """One answer from those of consecutive batches."""
    if len(parts) == 1:
        return parts[0]
    names = [field.name for field in fields(parts[0])]
    return type(parts[0])(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def precision_of(
    requested: Precision | Mapping[str, Precision],
    graph: GraphName,
    known: tuple[Precision, ...] = ("auto", "f32", "bf16"),
) -> Precision:
    """The precision asked for one graph; raises BadConfig for one that a backend does not know."""
    wanted = requested if isinstance(requested, str) else requested.get(graph, "auto")
    if wanted not in known:
        choice = f"{', '.join(known[:-1])} or {known[-1]}"
        raise BadConfig(f"there is no precision {wanted!r}; choose {choice}")
    return wanted


def _open_torch(asked: _Asked) -> BatchedBackend:
    # Torch's threads belong to the process, and nothing is compiled.
    from engines.backend_torch import TorchBackend
    from engines.export import load_method

    for graph in asked.bundle.manifest.spec.graphs:
        if precision_of(asked.precision, graph) == "bf16":
            raise BadConfig("the torch backend is the f32 reference; use precision f32 or auto")
    return TorchBackend(load_method(asked.bundle), asked.capacity)


def _open_torch_cuda(asked: _Asked) -> BatchedBackend:
    # The GPU computes, and its graphs are recorded anew in every process.
    from engines.backend_torch_device import TorchDeviceBackend
    from engines.export import load_method
    from engines.torch_device import has_bf16, open_device

    wanted, device = precision_of(asked.precision, "step"), open_device("cuda")
    if wanted == "auto":
        is_offered = has_bf16(device) and "torch-cuda:bf16" not in _refused(asked.bundle)
        wanted = "bf16" if is_offered else "f32"
    return TorchDeviceBackend(load_method(asked.bundle), asked.capacity, device.type, wanted)


def _open_openvino(asked: _Asked) -> BatchedBackend:
    from engines.backend_openvino import OpenVinoBackend
    from engines.quantised import load_quantised, offered_int8

    bundle, precision = asked.bundle, asked.precision
    pins = bundle.manifest.configuration.get("precision", {})
    if not isinstance(pins, dict):
        raise BadBundle(f"bundle {bundle.folder}: precision is no table of graph names")
    built, quantised = engine_cache(bundle), None
    if precision == "auto":
        refused = _refused(bundle)
        other = "f32" if "openvino:bf16" in refused else "auto"
        quantised = None if "openvino:int8" in refused else offered_int8(bundle, other)
        precision = "int8" if quantised else other
    elif "int8" in (precision if isinstance(precision, str) else precision.values()):
        quantised = load_quantised(bundle)
    return OpenVinoBackend(
        bundle.folder,
        bundle.manifest.spec,
        precision=precision,
        pins=pins,
        capacity=asked.capacity,
        threads=asked.threads,
        cache=asked.cache or (built if built.is_dir() else None),
        quantised=quantised,
        engines=asked.engines,
    )


def _open_tensorrt(asked: _Asked) -> BatchedBackend:
    # The GPU computes, and engines are built ahead, beside the bundle: no line compiles its own.
    from engines.backend_tensorrt import open_tensorrt

    return open_tensorrt(asked.bundle, asked.precision, asked.capacity)


def _open_stub(asked: _Asked) -> BatchedBackend:
    from engines.backend_stub import open_stub

    return open_stub(asked.bundle, asked.capacity, asked.engines)  # nothing is computed


def _refused(bundle: Bundle) -> frozenset[str]:
    """Engines that failed the parity gate: other ones have thresholds, they have none."""
    calibration = bundle.calibration()
    if calibration is None or not calibration.entries:
        return frozenset()
    return GATED - calibration.entries.keys()


BACKENDS = {
    "openvino": _open_openvino,
    "torch": _open_torch,
    "torch-cuda": _open_torch_cuda,
    "tensorrt": _open_tensorrt,
    "stub": _open_stub,
}

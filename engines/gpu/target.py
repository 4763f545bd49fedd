"""For what engines are built: library, compute capabilities, batch sizes, and how that is said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.backend import DEVICE_BUCKETS
from engines.contracts import BadConfig
from engines.gpu.engine_file import write_whole
from engines.gpu.libraries import Library, load_library

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FP8_FROM = 89  # compute capability
WORKSPACE_BYTES = 4 << 30  # that a kernel may ask for; the GPU holds state rows and contexts too


@dataclass(frozen=True, slots=True)
class Target:
    """For what engines are built."""

    library: Library
    compute: tuple[str, ...]  # SM86, ...; empty = whatever the library builds for by itself
    buckets: tuple[int, ...] = DEVICE_BUCKETS

    def require_fp8(self) -> None:
        """Raise BadConfig unless every GPU computes in fp8."""
        without = [name for name in self.compute if int(name[2:]) < FP8_FROM]
        if without or not self.compute:
            told = f"{', '.join(without)} has none" if without else "name them"
            raise BadConfig(
                f"fp8 needs GPUs from SM{FP8_FROM} on, {told}: build with --compute SM{FP8_FROM}, "
                "or in int8"
            )

    def config(self, builder: Any, network: Any) -> Any:  # noqa: ANN401 - TensorRT ships no types
        """The builder's settings for a network; each bucket is a profile of fixed shapes."""
        api, config = self.library.api, builder.create_builder_config()
        # On by default, and it would round what must stay f32 to the ten bits of fp16.
        config.clear_flag(api.BuilderFlag.TF32)
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        if self.library.names_capabilities and self.compute:
            config.num_compute_capabilities = len(self.compute)
            for place, name in enumerate(self.compute):
                config.set_compute_capability(getattr(api.ComputeCapability, name), place)
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        for size in self.buckets:
            profile = builder.create_optimization_profile()
            for port in inputs:
                shape = (size, *tuple(port.shape)[1:])
                profile.set_shape(port.name, shape, shape, shape)
            config.add_optimization_profile(profile)
        return config


def find_target(
    compute: Sequence[str] = (),
    buckets: Sequence[int] = DEVICE_BUCKETS,
    library: Library | None = None,
) -> Target:
    """Named capabilities need RTX; without a name TensorRT builds for the GPU of this machine.

    Raises BadConfig for a library or capability that is not there.
    """
    if library is None:
        library = load_library("tensorrt_rtx" if compute else None)
    if library.names_capabilities:
        known = [name for name in library.api.ComputeCapability.__members__ if name[:2] == "SM"]
        for name in compute:
            if name not in known:
                raise BadConfig(
                    f"{library} builds nothing for {name}; choose among {', '.join(known)}"
                )
        return Target(library, tuple(compute), tuple(buckets))
    if compute:
        raise BadConfig(
            f"{library} builds for the GPU of this machine alone; leave --compute out, or "
            "pip install 'assayline[gpu-rtx]'"
        )
    return Target(library, (_capability_here(),), tuple(buckets))


def capability_name(capability: tuple[int, int]) -> str:
    """(8, 6) -> SM86."""
    return f"SM{capability[0]}{capability[1]}"


class Timings:
    """What TensorRT measured of its kernels, kept for the next build; RTX measures nothing."""

    def __init__(self, library: Library, config: Any, folder: Path) -> None:  # noqa: ANN401
        self._path = folder / f"timings-{library.version}.cache"
        self._cache: Any = None
        if not library.names_capabilities:
            known = self._path.read_bytes() if self._path.is_file() else b""
            self._cache = config.create_timing_cache(known)
            # Measured on another GPU they are of no use: refused, and measured again.
            if not config.set_timing_cache(self._cache, ignore_mismatch=False):
                self._cache = config.create_timing_cache(b"")
                config.set_timing_cache(self._cache, ignore_mismatch=False)

    def keep(self) -> None:
        """Write them down, those of earlier builds included."""
        if self._cache is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, memoryview(self._cache.serialize()))


def _capability_here() -> str:
    from engines.gpu.device import open_device

    device = open_device()
    try:
        return capability_name(device.compute_capability)
    finally:
        device.close()

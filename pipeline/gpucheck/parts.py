"""The parts of a check in their order, and how long each may take."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from engines.gpu.precision import EIGHT_BITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.gpucheck.outcome import Asked, Found

SPECIMENS = ("DeCo-Diff", "D3AD", "DRDC-style", "GLAD", "balanced", "full")
TORCH = ("torch-cuda:f32", "torch-cuda:bf16")
TENSORRT = ("f32", "fp16", "bf16")
LIBRARIES = ("pycuda", "cuda")  # the worker takes the first that opens a GPU
GPU = "gpu"


@dataclass(frozen=True, slots=True)
class Part:
    """One part: ``<module>.<function>`` below this package, and what it is given."""

    where: str
    told: tuple[str, ...] = ()
    limit_s: float = 300
    needs_gpu: bool = True
    makes_specimens: bool = False  # left out where bundles are given
    needs: str = ""  # a part without which this one has nothing to try

    def run(self, asked: Asked) -> Found:
        """What the part finds; its libraries are loaded now."""
        module, _, name = self.where.rpartition(".")
        function = getattr(import_module(f"pipeline.gpucheck.{module}"), name)
        found: Found = function(*self.told, asked)
        return found


def _parts() -> dict[str, Part]:
    engines = [tuple(key.split(":")) for key in TORCH] + [("tensorrt", p) for p in TENSORRT]
    eight = [("tensorrt", precision) for precision in EIGHT_BITS]
    parts = {
        GPU: Part("machine.gpu", limit_s=60, needs_gpu=False),
        "libraries": Part("machine.libraries", limit_s=180, needs_gpu=False),
        "rates": Part("stages.rates", limit_s=120),
    }
    for library in LIBRARIES:
        parts[f"device:{library}"] = Part("devices.device", (library,), 180)
    for name in SPECIMENS:
        limit_s = 600 if name == "full" else 300
        parts[f"bundle:{name}"] = Part("bundles.make", (name,), limit_s, makes_specimens=True)
    for precision in TENSORRT:
        parts[f"engines:{precision}"] = Part("agreement.build", (precision,), 1800)
    parts["tests"] = Part("trials.trials", limit_s=900)
    parts |= _tried(engines)
    # Eight bits last: they are calibrated on the CPU, and many bundles refuse them.
    for precision in EIGHT_BITS:
        parts[f"engines:{precision}"] = Part("agreement.build", (precision,), 1200)
    return parts | _tried(eight)


def _tried(engines: Sequence[tuple[str, ...]]) -> dict[str, Part]:
    """What is done with each engine, once it is built."""
    parts = {}
    for kind, where, limit_s in (
        ("parity", "agreement.agree", 1200),
        ("speed", "speed.speed", 900),
        ("in-flight", "speed.in_flight", 900),
        ("stages", "stages.stages", 900),
    ):
        for engine in engines:
            built = f"engines:{engine[1]}" if engine[0] == "tensorrt" else ""
            parts[f"{kind}:{':'.join(engine)}"] = Part(where, engine, limit_s, needs=built)
    return parts


PARTS = _parts()

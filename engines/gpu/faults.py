"""Sentences for what a device refuses: the same whichever library said so."""

from __future__ import annotations

from typing import Literal

from engines.contracts import EngineFault

MIB = 1 << 20
NO_MEMORY = ("OUT_OF_MEMORY", "out of memory")
# What a call may be told without the device being lost.
HARMLESS = (
    *("INVALID_VALUE", "invalid argument", "CAPTURE", "captur"),
    *("NOT_SUPPORTED", "not supported"),
)
# What a machine lacks, and how to mend it. Answers are told apart by their name in the driver,
# which cuda-bindings gives, or by their text, which pycuda gives.
OLD = "the NVIDIA driver is too old ({}); install a newer one"
NO_GPU = "the NVIDIA driver lists no GPU ({}); let this process see one (nvidia-smi must list it)"
NO_FABRIC = "the GPU is not ready ({}); start nvidia-fabricmanager and see that it runs"
NO_COMPILER = (
    "the NVIDIA driver lacks its compiler ({}); install all of the driver, and give a container "
    "the capability compute"
)
LACKING = {
    ("UNSUPPORTED_PTX_VERSION", "unsupported toolchain"): OLD,
    ("SYSTEM_DRIVER_MISMATCH", "driver combination"): OLD,
    ("NO_DEVICE", "no CUDA-capable device"): NO_GPU,
    ("SYSTEM_NOT_READY", "system not yet initialized"): NO_FABRIC,
    ("JIT_COMPILER_NOT_FOUND", "JIT compiler library not found"): NO_COMPILER,
}
Where = Literal["device", "page-locked"]


class NoMemory(EngineFault):
    """Nothing was allocated; the device still works."""


class DeviceLost(EngineFault):
    """The device answers nothing any more in this process."""


def no_memory(size: int, where: Where = "device") -> NoMemory:
    """An allocation of so many bytes that failed."""
    mib = -(-size // MIB)
    if where == "page-locked":
        return NoMemory(f"the system gives no {mib} MiB of page-locked memory; raise its limit")
    return NoMemory(
        f"the GPU has no {mib} MiB of memory left; choose fewer slots or end what else uses it"
    )


def refused(call: str, answer: str) -> EngineFault:
    """A call that the driver answered with an error, by its name or its text."""
    if _says(answer, NO_MEMORY):
        return NoMemory(f"the GPU has no memory left ({call}); choose fewer slots")
    for words, sentence in LACKING.items():
        if _says(answer, words):
            return EngineFault(sentence.format(f"{call}: {answer}"))
    if _says(answer, HARMLESS):
        return EngineFault(f"the GPU refused a call ({call}: {answer})")
    return DeviceLost(f"the GPU failed ({call}: {answer}); start this process again")


def old_driver(told: str) -> EngineFault:
    """A driver that cannot do what a call asks."""
    return EngineFault(OLD.format(told))


def _says(answer: str, words: tuple[str, ...]) -> bool:
    return any(word in answer for word in words)

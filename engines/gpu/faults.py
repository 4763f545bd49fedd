"""Sentences for what a device refuses: the same whichever library said so."""

from __future__ import annotations

from typing import Literal

from engines.contracts import EngineFault

MIB = 1 << 20
NO_MEMORY = ("OUT_OF_MEMORY", "out of memory")
OLD_DRIVER = ("UNSUPPORTED_PTX_VERSION", "SYSTEM_DRIVER_MISMATCH")
# What a call may be told without the device being lost: by name of the driver, by text of pycuda.
HARMLESS = ("INVALID_VALUE", "invalid argument", "CAPTURE", "captur", "NOT_SUPPORTED")
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
    if _says(answer, OLD_DRIVER):
        return EngineFault(f"the NVIDIA driver is too old ({call}: {answer}); install a newer one")
    if _says(answer, HARMLESS):
        return EngineFault(f"the GPU refused a call ({call}: {answer})")
    return DeviceLost(f"the GPU failed ({call}: {answer}); start this process again")


def _says(answer: str, words: tuple[str, ...]) -> bool:
    return any(word in answer for word in words)

"""What a driver answers, as a sentence: what is lost, what is missing, and what mends it."""

from __future__ import annotations

import pytest

from engines.contracts import EngineFault
from engines.gpu.faults import DeviceLost, NoMemory, refused


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("CUDA_ERROR_OUT_OF_MEMORY", NoMemory),
        ("cuMemAlloc failed: out of memory", NoMemory),
        ("CUDA_ERROR_LAUNCH_FAILED", DeviceLost),
        ("CUDA_ERROR_ECC_UNCORRECTABLE", DeviceLost),
        ("cuEventSynchronize failed: an illegal memory access was encountered", DeviceLost),
    ],
)
def test_an_answer_says_what_happens_next(answer: str, kind: type[EngineFault]) -> None:
    """Memory that is missing leaves the device usable; most else does not."""
    assert type(refused("call", answer)) is kind


@pytest.mark.parametrize(
    "answer",
    [
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        "operation not permitted when stream is capturing",
        "CUDA_ERROR_INVALID_VALUE",
        "operation not supported",
    ],
)
def test_a_refused_call_is_no_lost_device(answer: str) -> None:
    """The device is asked again."""
    assert type(refused("call", answer)) is EngineFault


@pytest.mark.parametrize(
    ("name", "text", "mend"),
    [
        (
            "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
            "the provided PTX was compiled with an unsupported toolchain.",
            "install a newer one",
        ),
        (
            "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
            "system has unsupported display driver / cuda driver combination",
            "install a newer one",
        ),
        ("CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected", "nvidia-smi must list it"),
        ("CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized", "start nvidia-fabricmanager"),
        (
            "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
            "PTX JIT compiler library not found",
            "give a container the capability compute",
        ),
    ],
)
def test_what_a_new_machine_lacks_is_said_by_either_library(
    name: str, text: str, mend: str
) -> None:
    """cuda-bindings gives the name of an answer, pycuda its text; the sentence is the same."""
    for answer in (name, f"cuModuleLoadDataEx failed: {text}"):
        fault = refused("call", answer)
        assert type(fault) is EngineFault
        assert mend in str(fault)

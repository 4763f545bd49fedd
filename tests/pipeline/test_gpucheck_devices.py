"""What gpu-check asks of the device itself, on its double and on a GPU where there is one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engines.contracts import EngineFault
from engines.gpu import device_checked
from engines.gpu.checked_kernels import moved
from engines.gpu.device import Device, Grid, Kernel, Unavailable
from engines.gpu.device_checked import CheckedDevice
from engines.gpu.lease import Lease
from pipeline.gpucheck import Asked, NotHere, devices
from pipeline.gpucheck.devices import Rows, require_refusal
from pipeline.gpucheck.parts import LIBRARIES

NARROW = (4, 12, 100)


def opening(monkeypatch: pytest.MonkeyPatch, made: Device | Unavailable) -> None:
    """Let any library open this device, or say why it cannot."""

    def opened() -> Device:
        if isinstance(made, Unavailable):
            raise made
        return made

    monkeypatch.setattr(devices, "import_module", lambda _: SimpleNamespace(open_device=opened))
    monkeypatch.setattr(devices, "WIDTHS", NARROW)


@pytest.mark.parametrize("has_graphs", [True, False])
def test_a_device_that_keeps_its_word_is_timed(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, *, has_graphs: bool
) -> None:
    """Every access is in an order that a GPU keeps, and all is given back."""
    double = CheckedDevice(has_graphs=has_graphs)
    opening(monkeypatch, double)
    found = devices.device("cuda", asked)
    names = ["upload", "download", "gather", "scatter", *(["graph"] if has_graphs else [])]
    assert [result.name for result in found.results] == [f"device.{n}.cuda" for n in names]
    assert all(result.value > 0 and result.ratio > 0 for result in found.results)
    assert ("graphs captured" if has_graphs else "without graphs") in found.sentence
    assert not double.hazards


def test_a_library_that_is_not_installed_is_not_here(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other library may do, so this is no failure."""
    opening(monkeypatch, Unavailable("pycuda is not installed"))
    with pytest.raises(NotHere, match="pycuda is not installed"):
        devices.device("pycuda", asked)


@pytest.mark.parametrize("broken", ["gather_rows", "scatter_rows"])
def test_a_kernel_that_leaves_rows_behind_is_found(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Bytes are compared, not only calls: here those of the last tensor stay where they were."""

    def wrong(kernel: Kernel, grid: Grid, *rest: Any) -> None:  # noqa: ANN401 - passed on
        shares, size, count = grid
        moved(kernel, (shares, size, count - (kernel == broken)), *rest)

    monkeypatch.setattr(device_checked, "moved", wrong)
    rows = Rows(Lease(CheckedDevice()), NARROW)
    with pytest.raises(EngineFault, match=f"{broken} brings other bytes .* in rows of 100"):
        rows.require_moves()


def test_a_graph_that_keeps_old_slots_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured reads where its slots lie, not what they were."""
    rows = Rows(Lease(CheckedDevice()), NARROW)
    rows.require_moves()
    monkeypatch.setattr(rows, "_queued", rows.gather)
    with pytest.raises(EngineFault, match="gather_rows brings other bytes than it was given"):
        rows.require_graph()


def test_memory_without_end_is_a_fault() -> None:
    """A device must refuse what it does not have, and go on."""
    require_refusal(CheckedDevice(1 << 22))

    class Endless(CheckedDevice):
        def allocate(self, size: int) -> int:
            return super().allocate(min(size, 16))

    with pytest.raises(EngineFault, match="gives more memory than it has"):
        require_refusal(Endless(1 << 22))


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_gpu_keeps_its_word(asked: Asked, library: str) -> None:
    """Rows, copies, graphs and refusals, by each library that is installed."""
    try:
        found = devices.device(library, asked)
    except NotHere as reason:
        pytest.skip(str(reason))
    assert all(result.value > 0 for result in found.results)

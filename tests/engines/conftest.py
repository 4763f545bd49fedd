"""Fixtures of the GPU worker's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engines.backend_openvino import OpenVinoBackend
from engines.gpu.device_checked import CheckedDevice
from tests.engines.exported import Exported, exported
from tests.engines.sketches import GladSketch


@pytest.fixture(scope="module")
def glad(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The method that reads every input of a start graph."""
    return exported(GladSketch.name, tmp_path_factory)


@pytest.fixture(scope="module")
def theirs(glad: Exported) -> OpenVinoBackend:
    """The CPU's answers."""
    return glad.openvino(capacity=150)


@pytest.fixture
def device() -> Iterator[CheckedDevice]:
    """Nothing may ever touch memory in an order that a GPU would not keep."""
    device = CheckedDevice()
    yield device
    assert not device.hazards

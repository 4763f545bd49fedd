"""Fixtures of every test: a real server, and a name of one's own on it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from engines.contracts import EngineFault
from engines.gpu.device import open_device
from pipeline.server import embedded_server

# Before anybody imports torch: tests run side by side, and threads of one would only wait for a
# core that another holds (a small training then took twenty times as long).
os.environ.setdefault("OMP_NUM_THREADS", "1")

# For tests of tests: that a law is broken says enough, its shortest example may take minutes.
settings.register_profile("no-shrink", phases=[Phase.explicit, Phase.generate])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with a slow test first: at the end nobody waits for the last of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an embedded server that lives as long as this test process."""
    folder: Path = tmp_path_factory.mktemp("redis")
    with embedded_server(folder) as url:
        yield url


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def gpu() -> None:
    """Skips, with the reason, where there is no GPU."""
    try:
        open_device().close()
    except EngineFault as reason:
        pytest.skip(str(reason))

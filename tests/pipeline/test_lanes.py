"""Laws of threads that are watched."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from pipeline.lanes import Lane


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a thread's name")
def test_the_system_knows_a_thread_by_the_name_of_its_lane() -> None:
    """Cut to what the system keeps; threads that it starts bear it too, as an engine's do."""
    names: list[str] = []

    def tell() -> None:
        names.append(Path("/proc/thread-self/comm").read_text().strip())

    def work(_: threading.Event) -> None:
        tell()
        helper = threading.Thread(target=tell)
        helper.start()
        helper.join()

    with Lane("inspect and something more", work):
        pass
    assert names == ["inspect and som"] * 2


def test_what_ends_a_thread_is_raised_where_its_block_ends() -> None:
    """Nobody takes a dead thread for one that has nothing to do."""

    def fail(_: threading.Event) -> None:
        raise ValueError("no disk")

    with pytest.raises(ValueError, match="no disk"), Lane("output", fail):
        pass

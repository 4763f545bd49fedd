"""One process at a time, and never longer than it says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from engines.contracts import BadConfig
from pipeline.alone import alone


def test_a_second_holder_is_refused_while_the_first_holds(tmp_path: Path) -> None:
    """One sentence for whoever comes second; free again at the end."""
    path = tmp_path / "a" / "lock"
    with alone(path, "busy"), pytest.raises(BadConfig, match="busy"), alone(path, "busy"):
        pass
    with alone(path, "busy"):
        pass


def test_a_process_started_meanwhile_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A child has a copy of every open file until it runs its own program."""
    with alone(tmp_path / "lock", "busy"):
        [copy] = _files_open_on(tmp_path / "lock")
        child = subprocess.Popen(["sleep", "60"], pass_fds=[copy])
    try:
        with alone(tmp_path / "lock", "busy"):
            pass
    finally:
        child.kill()
        child.wait()


def _files_open_on(path: Path) -> list[int]:
    """This process's descriptors of a file."""
    links = Path("/proc/self/fd").iterdir()
    return [int(link.name) for link in links if link.exists() and link.resolve() == path]

"""The disk of the run folder is full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import StubLine
from tests.faults.invariants import acted_on
from tests.faults.servers import HurtServer
from tests.faults.standing import standing


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes; skips where nothing may be mounted."""
    folder = tmp_path / "run"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("this user may mount no file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_no_verdict(
    stub_line: StubLine, hurt: HurtServer, small_disk: Path
) -> None:
    """Frames flow and are answered while nothing can be written, and are written again after."""
    with standing(stub_line(), hurt) as here:
        here.wait_acted(20)
        ballast = small_disk / "ballast"
        _fill(ballast)
        answered = here.stream.ledger("left").passed
        here.wait_for(lambda: here.stream.ledger("left").passed > answered + 40)
        ballast.unlink()
        here.wait_acted(20)
        here.finish()
        verdicts = acted_on(small_disk)
        ledger = here.ledgers["left"]
    assert (ledger.residual, ledger.open) == (0, 0)
    assert len({v.frame_id for v in verdicts}) == len(verdicts) < ledger.captured
    assert not ledger.undecided


def _fill(ballast: Path) -> None:
    """Leave no byte of the disk."""
    with ballast.open("wb", buffering=0) as file:
        while True:
            try:
                taken = file.write(bytes(4096))
            except OSError:
                return
            if taken < 4096:
                return

"""A file replaced many times a second: whole for every reader, and no heap of deleted ones."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path

import pytest

from pipeline.outputs import replaced
from pipeline.outputs.replaced import Replaced

LENGTHS = (9000, 20, 12_000, 1)


def written(turn: int) -> bytes:
    """One writing, of one letter, so that a mixture is seen."""
    return bytes([ord("a") + turn % 26]) * LENGTHS[turn % len(LENGTHS)]


def write_all(file: Replaced, turns: int) -> None:
    """So many writings, one after the other."""
    for turn in range(turns):
        file.write(written(turn))


def test_who_opens_it_reads_one_writing(tmp_path: Path) -> None:
    """A reader who takes their time finds what stood there when they opened it."""
    file = Replaced(tmp_path / "file")
    file.write(written(0))
    for turn in range(1, 12):
        with file.path.open("rb", buffering=0) as reader:
            before = reader.read(5)
            file.write(written(turn))
            file.write(written(turn + 1))
            file.write(written(turn))
            assert before + reader.read() == written(turn - 1)
        assert file.path.read_bytes() == written(turn)


def test_readers_beside_the_writer_never_find_a_mixture(tmp_path: Path) -> None:
    """However readers and writings fall together, all bytes are of one of them."""
    file, ended = Replaced(tmp_path / "file"), threading.Event()
    file.write(written(0))
    found: list[bytes] = []

    def read() -> None:
        while not ended.is_set():
            found.append(file.path.read_bytes())

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    write_all(file, 3000)
    ended.set()
    for reader in readers:
        reader.join()
    assert set(found) <= {written(turn) for turn in range(104)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the step is one of Linux")
def test_nothing_is_made_or_deleted_while_nobody_reads(tmp_path: Path) -> None:
    """Two files take turns."""
    file = Replaced(tmp_path / "file")
    write_all(file, 2)
    two = {path.stat().st_ino for path in tmp_path.iterdir()}
    assert len(two) == 2
    write_all(file, 9)
    assert {path.stat().st_ino for path in tmp_path.iterdir()} == two


def test_without_the_step_it_is_replaced_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that knows neither leases nor exchanges gets a new file each time."""
    monkeypatch.setattr(replaced, "_is_leased", lambda _: False)
    monkeypatch.setattr(replaced, "_exchanged", lambda *_: False)
    file = Replaced(tmp_path / "file")
    write_all(file, 5)
    assert file.path.read_bytes() == written(4)
    assert list(tmp_path.iterdir()) == [file.path]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """Half a writing is seen by nobody, and the next one that fits is whole."""
    file = Replaced(tmp_path / "file")
    write_all(file, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="part of the file"):
            file.write(written(0))
        assert file.path.read_bytes() == written(2)
        file.write(written(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.path.read_bytes() == written(1)

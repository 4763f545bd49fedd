"""Full exposures stay a while, whole, within their bytes, and leave nothing behind."""

from __future__ import annotations

import errno
import itertools
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.contracts import BadConfig, UInt8
from pipeline.originals import HEADER, Originals, original_of, originals_folder, write_whole
from pipeline.shared import remove_shared
from pipeline.telemetry import facts

ONE = HEADER.size + 30 * 40 * 3


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run folder whose shared memory is gone afterwards."""
    yield tmp_path
    remove_shared(tmp_path)


def exposure(seed: int, size: tuple[int, int] = (30, 40)) -> UInt8:
    """Any exposure."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def kept(run_dir: Path, numbers: range) -> list[int]:
    """Which of these frames have an original."""
    return [n for n in numbers if original_of(run_dir, f"left/1-{n}") is not None]


def missed(reason: str) -> float:
    """How many originals of camera ``left`` were missed for a reason."""
    labels = {"camera": "left", "reason": reason}
    return facts.registry.get_sample_value("assayline_originals_missed_total", labels) or 0.0


def test_an_original_comes_back_as_it_was(run_dir: Path) -> None:
    """Whatever its size, and as a view of a larger image too."""
    with Originals(run_dir, "left", 1_000_000) as originals:
        images = [exposure(1), exposure(2, (1, 7)), exposure(3, (64, 64))[3:40, 5:9]]
        for number, image in enumerate(images):
            originals.keep(f"left/1-{number}", image)
        for number, image in enumerate(images):
            np.testing.assert_array_equal(original_of(run_dir, f"left/1-{number}"), image)


def test_the_oldest_makes_room(run_dir: Path) -> None:
    """The bytes stay below the limit, after a killed start too, and the newest are there."""
    killed = Originals(run_dir, "left", 3 * ONE)
    for number in range(5):
        killed.keep(f"left/1-{number}", exposure(number))
    killed.close()  # as the kernel does for a process that dies
    (originals_folder(run_dir, "left") / "fresh").write_bytes(b"torn")
    assert kept(run_dir, range(9)) == [2, 3, 4]
    with Originals(run_dir, "left", 3 * ONE) as originals:
        originals.keep("left/1-5", exposure(5))
        assert kept(run_dir, range(9)) == [3, 4, 5]
        assert sum(p.stat().st_size for p in originals_folder(run_dir, "left").iterdir()) == 3 * ONE


def test_a_reader_never_gets_the_exposure_of_another_frame(run_dir: Path) -> None:
    """While another thread writes over the oldest, an original is its own or gone."""
    size = (400, 500)
    stop, newest, outcomes = threading.Event(), [0], {True: 0, False: 0}
    with Originals(run_dir, "left", 2 * (HEADER.size + 400 * 500 * 3)) as originals:

        def write() -> None:
            for number in itertools.count(1):
                if stop.is_set():
                    return
                originals.keep(f"left/1-{number}", np.full((*size, 3), number % 251, np.uint8))
                newest[0] = number

        writer = threading.Thread(target=write)
        writer.start()
        until = time.monotonic() + 30
        while min(outcomes.values()) < 20 and time.monotonic() < until:
            number = newest[0] - 1  # the one that is written over next
            image = original_of(run_dir, f"left/1-{number}") if number > 0 else None
            outcomes[image is not None] += 1
            assert image is None or (image == number % 251).all()
        stop.set()
        writer.join()
    assert min(outcomes.values()) >= 20


def test_an_exposure_beyond_the_limit_is_counted(run_dir: Path) -> None:
    """It is not kept, and costs the others nothing."""
    before = missed("large")
    with Originals(run_dir, "left", ONE) as originals:
        originals.keep("left/1-1", exposure(1))
        originals.keep("left/1-2", exposure(2, (60, 80)))
        assert kept(run_dir, range(9)) == [1]
    assert missed("large") == before + 1


def test_full_memory_is_counted(run_dir: Path) -> None:
    """No half original stays, and the camera goes on."""
    before = missed("full")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Originals(run_dir, "left", 1_000_000) as originals:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ONE - 1, hard))
        try:
            originals.keep("left/1-1", exposure(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        originals.keep("left/1-2", exposure(2))
        assert kept(run_dir, range(9)) == [2]
        assert len(list(originals_folder(run_dir, "left").iterdir())) == 1
    assert missed("full") == before + 1


def test_memory_that_others_have_filled_holds_the_newest(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where less is free than the limit allows, the oldest makes room; without any none stays."""
    room, before = [2 * ONE + 10], missed("full")
    folder = originals_folder(run_dir, "left")

    def write(path: Path, *pieces: bytes | memoryview) -> None:
        others = sum(other.stat().st_size for other in folder.iterdir() if other != path)
        if others + sum(len(memoryview(piece).cast("B")) for piece in pieces) > room[0]:
            path.write_bytes(b"torn")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_whole(path, *pieces)

    monkeypatch.setattr("pipeline.originals.write_whole", write)
    with Originals(run_dir, "left", 100 * ONE) as originals:
        for number in range(5):
            originals.keep(f"left/1-{number}", exposure(number))
        assert kept(run_dir, range(9)) == [3, 4]
        np.testing.assert_array_equal(original_of(run_dir, "left/1-4"), exposure(4))
        originals.keep("left/1-5", exposure(5, (29, 40)))
        assert kept(run_dir, range(9)) == [4, 5]
        assert missed("full") == before
        room[0] = 5
        originals.keep("left/1-6", exposure(6))
        assert list(folder.iterdir()) == []
    assert missed("full") == before + 1


def test_a_limit_beyond_the_memory_is_said_at_the_start(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The camera starts all the same, and keeps what there is room for."""
    facts.speak_as("assayline", "warning")  # whatever a test before this one has set
    with Originals(run_dir, "left", 10**15) as originals:
        originals.keep("left/1-1", exposure(1))
        assert kept(run_dir, range(9)) == [1]
    assert "originals_short" in capsys.readouterr().err


def test_an_orderly_end_leaves_nothing(run_dir: Path) -> None:
    """Folder and files are gone, and asking for one says so."""
    with Originals(run_dir, "left", 1_000_000) as originals:
        originals.keep("left/1-1", exposure(1))
    assert not originals_folder(run_dir, "left").exists()
    assert original_of(run_dir, "left/1-1") is None


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * ONE, bytes(ONE)])
def test_what_is_no_original_is_none(run_dir: Path, content: bytes) -> None:
    """Any bytes at its name give nothing rather than a wrong image."""
    with Originals(run_dir, "left", 1_000_000):
        (originals_folder(run_dir, "left") / "1-1.rgb").write_bytes(content)
        assert original_of(run_dir, "left/1-1") is None


def test_a_folder_of_somebody_else_is_refused(run_dir: Path) -> None:
    """A link at the folder's name is neither written to nor read from."""
    elsewhere = run_dir / "elsewhere"
    elsewhere.mkdir()
    originals_folder(run_dir, "left").symlink_to(elsewhere)
    with pytest.raises(BadConfig, match="cannot be had"):
        Originals(run_dir, "left", 1_000_000)
    assert original_of(run_dir, "left/1-1") is None


def test_two_writers_of_one_camera_are_refused(run_dir: Path) -> None:
    """The originals of a living camera are neither written to nor removed by another."""
    with Originals(run_dir, "left", 1_000_000) as originals:
        originals.keep("left/1-1", exposure(1))
        with pytest.raises(BadConfig, match="stop the other ingest"):
            Originals(run_dir, "left", 1_000_000)
        remove_shared(run_dir)
        assert kept(run_dir, range(9)) == [1]
    assert not originals_folder(run_dir, "left").exists()

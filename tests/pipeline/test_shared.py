"""An image in shared memory arrives as it was or not at all, and nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.bundle import open_bundle
from engines.contracts import BadConfig, BadFrame, Reason, UInt8
from engines.inspector import Part
from pipeline.config import WorkerSettings
from pipeline.originals import Originals
from pipeline.pulse import Pulse
from pipeline.reading import FrameReader
from pipeline.seats import Seat
from pipeline.shared import (
    FRAMES,
    REFERENCE,
    FrameRing,
    FrameRings,
    LostImage,
    checksum,
    remove_shared,
    shared_path,
    shared_paths,
)
from pipeline.stream import open_stream
from pipeline.telemetry import facts
from pipeline.wire import FrameEntry
from tests.tiny_line import good_part, seat_of, shared_bundle

SIZE = (48, 32)
IMAGE_BYTES = 48 * 32 * 3
WRITER = """
import sys
import numpy as np
from pathlib import Path
from pipeline.shared import FrameRing
path, slots, size = Path(sys.argv[1]), int(sys.argv[2]), (int(sys.argv[3]), int(sys.argv[4]), 3)
ring = FrameRing(path, slots, size[0] * size[1] * 3)
number = 0
while True:
    ring.release_all_but([])
    for _ in range(slots):
        number += 1
        image = np.full(size, number % 251, np.uint8)
        print(f"left/1-{number}", ring.put(f"left/1-{number}", image).hex(), flush=True)
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A run folder whose shared memory is gone afterwards."""
    yield tmp_path
    remove_shared(tmp_path)


def ring_of(run_dir: Path, slots: int = 4, slot_bytes: int = IMAGE_BYTES) -> FrameRing:
    """The ring of camera ``left``, with every slot free."""
    ring = FrameRing(shared_path(run_dir, "left", FRAMES), slots, slot_bytes)
    ring.release_all_but([])
    return ring


def picture(seed: int, size: tuple[int, int] = SIZE) -> UInt8:
    """Any image."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def sent(ring: FrameRing, number: int) -> bytes:
    """The reference of ``picture(number)``, which has to find a slot."""
    reference = ring.put(f"left/1-{number}", picture(number))
    assert reference is not None
    return reference


def test_an_image_arrives_as_it_was(run_dir: Path) -> None:
    """Every slot brings its own image, any number of times, as a copy of the reader's own."""
    with ring_of(run_dir) as ring:
        rings = FrameRings(run_dir, ["left"])
        references = {number: sent(ring, number) for number in range(4)}
        for number, reference in [*references.items()] * 2:
            image = rings.fetch(f"left/1-{number}", reference, SIZE)
            np.testing.assert_array_equal(image, picture(number))
            image[:] = 0


def test_a_full_ring_overwrites_nothing(run_dir: Path) -> None:
    """Where every slot has an open frame the next image finds no place, and all stay readable."""
    with ring_of(run_dir, slots=2) as ring:
        references = {number: sent(ring, number) for number in (1, 2)}
        ring.release_all_but(["left/1-1", "left/1-2"])
        assert ring.put("left/1-3", picture(3)) is None
        ring.release_all_but(["left/1-2"])
        sent(ring, 3)
        image = FrameRings(run_dir, ["left"]).fetch("left/1-2", references[2], SIZE)
        np.testing.assert_array_equal(image, picture(2))


def test_a_slot_written_again_is_a_lost_image(run_dir: Path) -> None:
    """The generation tells the frame that was answered from the one that took its place."""
    with ring_of(run_dir, slots=1) as ring:
        before = sent(ring, 1)
        ring.release_all_but([])
        sent(ring, 2)
        with pytest.raises(LostImage):
            FrameRings(run_dir, ["left"]).fetch("left/1-1", before, SIZE)


def test_a_slot_being_written_is_a_lost_image(run_dir: Path) -> None:
    """An odd generation belongs to no frame, even if an entry names it."""
    with ring_of(run_dir) as ring:
        nonce, slot, generation, expected = REFERENCE.unpack(sent(ring, 1))
        ring._table[slot, 0] = generation + 1
        for told in (generation, generation + 2):
            torn = REFERENCE.pack(nonce, slot, told, expected)
            with pytest.raises(LostImage):
                FrameRings(run_dir, ["left"]).fetch("left/1-1", torn, SIZE)


def test_a_changed_byte_is_a_lost_image(run_dir: Path) -> None:
    """The checksum covers every byte of the image."""
    with ring_of(run_dir) as ring:
        rings = FrameRings(run_dir, ["left"])
        reference = sent(ring, 1)
        for at in (0, IMAGE_BYTES // 2, IMAGE_BYTES - 1):
            ring._pixels[0, at] ^= 1
            with pytest.raises(LostImage):
                rings.fetch("left/1-1", reference, SIZE)
            ring._pixels[0, at] ^= 1
        rings.fetch("left/1-1", reference, SIZE)


def test_one_frame_never_gets_the_image_of_another(run_dir: Path) -> None:
    """A slot says whose it is: a valid reference in the wrong entry brings nothing."""
    with ring_of(run_dir) as ring:
        reference = sent(ring, 1)
        with pytest.raises(LostImage):
            FrameRings(run_dir, ["left"]).fetch("left/1-2", reference, SIZE)


@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "garbage", "link", "renewed"])
def test_a_ring_that_is_not_there_is_a_lost_image(run_dir: Path, fault: str) -> None:
    """Whatever lies at the ring's name is judged before it is believed."""
    path = shared_path(run_dir, "left", FRAMES)
    with ring_of(run_dir) as ring:
        reference = sent(ring, 1)
        content = path.read_bytes()
    match fault:
        case "empty":
            path.touch()
        case "cut":
            path.write_bytes(content[:-1])
        case "garbage":
            path.write_bytes(b"\xff" * len(content))
        case "link":
            (run_dir / "elsewhere").write_bytes(content)
            path.symlink_to(run_dir / "elsewhere")
        case "renewed":
            ring_of(run_dir, slots=3).close()
    with pytest.raises(LostImage):
        FrameRings(run_dir, ["left"]).fetch("left/1-1", reference, SIZE)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40) | st.binary(min_size=REFERENCE.size, max_size=REFERENCE.size))
def test_any_bytes_give_an_image_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, reference: bytes
) -> None:
    """A hostile reference is a BadFrame or a LostImage and nothing else."""
    run_dir = tmp_path_factory.mktemp("hostile")
    with ring_of(run_dir) as ring:
        sent(ring, 1)
        with pytest.raises((BadFrame, LostImage)):
            FrameRings(run_dir, ["left"]).fetch("left/1-1", reference, SIZE)


def test_only_cameras_that_share_memory_are_looked_for(run_dir: Path) -> None:
    """An entry cannot send a worker to memory that the configuration does not name."""
    with ring_of(run_dir) as ring, pytest.raises(BadFrame, match="no place"):
        FrameRings(run_dir, ["right"]).fetch("left/1-1", sent(ring, 1), SIZE)


def test_an_image_larger_than_a_slot_is_a_bad_frame(run_dir: Path) -> None:
    """It is refused by the writer; a reader asked for more than a slot holds finds nothing."""
    with ring_of(run_dir, slot_bytes=IMAGE_BYTES) as ring:
        with pytest.raises(BadFrame, match="do not fit"):
            ring.put("left/1-1", picture(1, (64, 64)))
        with pytest.raises(LostImage):
            FrameRings(run_dir, ["left"]).fetch("left/1-1", sent(ring, 1), (640, 640))


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=70_000), st.data())
def test_a_checksum_sees_every_byte(content: bytes, data: st.DataObject) -> None:
    """Any one byte that differs, in rows or in what is left over, gives another checksum."""
    before = np.frombuffer(content, np.uint8)
    after = before.copy()
    after[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    assert checksum(before) != checksum(after)


def test_a_checksum_sees_the_order_of_rows() -> None:
    """Halves of two exposures exchanged are not the same image."""
    image = picture(1, (256, 256)).reshape(-1)
    assert checksum(image) != checksum(np.roll(image, image.size // 2))


# -- real processes ----------------------------------------------------------------------------


def writer(run_dir: Path, slots: int, size: tuple[int, int]) -> subprocess.Popen[str]:
    """A process that fills the ring of camera ``left`` over and over."""
    path = shared_path(run_dir, "left", FRAMES)
    told = [str(part) for part in (path, slots, *size)]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *told], stdout=subprocess.PIPE, text=True
    )


def test_a_reader_never_sees_a_torn_image(run_dir: Path) -> None:
    """While another process writes the same two slots, an image is whole and its own, or lost."""
    size = (512, 512)
    rings = FrameRings(run_dir, ["left"])
    outcomes = {"whole": 0, "lost": 0}
    with writer(run_dir, 2, size) as process:
        newest: deque[str] = deque(maxlen=1)  # of what the writer has said
        listener = threading.Thread(target=newest.extend, args=(process.stdout,))
        listener.start()
        until = time.monotonic() + 30
        while min(outcomes.values()) < 20 and time.monotonic() < until:
            frame_id, reference = (newest[0] if newest else "left/1-0 00").split()
            try:
                image = rings.fetch(frame_id, bytes.fromhex(reference), size)
            except (LostImage, BadFrame):
                outcomes["lost"] += 1
                continue
            assert (image == int(frame_id.rpartition("-")[2]) % 251).all()
            outcomes["whole"] += 1
        process.kill()
        listener.join()
    assert min(outcomes.values()) >= 20


def test_a_killed_writer_leaves_whole_images_to_read(run_dir: Path) -> None:
    """After SIGKILL each reference brings its image or is lost; the next start goes on with both.

    What is open keeps its slot, and what the dead process was writing is free.
    """
    size = (256, 256)
    rings = FrameRings(run_dir, ["left"])
    with writer(run_dir, 8, size) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(40)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    told = [line.split() for line in lines if line.endswith("\n")]
    readable = {}
    for frame_id, reference in told:
        try:
            image = rings.fetch(frame_id, bytes.fromhex(reference), size)
        except LostImage:
            continue
        readable[frame_id] = reference
        assert (image == int(frame_id.rpartition("-")[2]) % 251).all()
    assert 7 <= len(readable) <= 8
    with FrameRing(shared_path(run_dir, "left", FRAMES), 8, 256 * 256 * 3) as ring:
        kept = dict(list(readable.items())[-3:])
        ring.release_all_but(kept)
        news = [ring.put(f"left/2-{number}", picture(number, size)) for number in range(6)]
        assert [news.index(None), len(news)] == [5, 6]
        for frame_id, reference in kept.items():
            rings.fetch(frame_id, bytes.fromhex(reference), size)
        assert news[0] is not None
        np.testing.assert_array_equal(rings.fetch("left/2-0", news[0], size), picture(0, size))


def test_two_writers_of_one_camera_are_refused(run_dir: Path) -> None:
    """The ring is locked as long as its writer lives."""
    with writer(run_dir, 2, SIZE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(BadConfig, match="stop the other ingest"):
            ring_of(run_dir)
        process.kill()
        process.stdout.read()
        process.wait()
        with ring_of(run_dir):
            pass


def test_a_frame_whose_image_is_lost_is_undecided(
    run_dir: Path, tmp_path_factory: pytest.TempPathFactory, redis_url: str, namespace: str
) -> None:
    """A worker answers it UNDECIDED(transport) at once, counts it, and goes on with the next."""
    before = images_lost()
    bundle = open_bundle(shared_bundle(tmp_path_factory.getbasetemp()))
    stop = threading.Event()
    with (
        open_stream(redis_url, namespace) as stream,
        closing(Pulse(redis_url, namespace)) as pulse,
        ring_of(run_dir) as ring,
        FrameReader(
            stream,
            ["left"],
            "worker",
            pulse=pulse,
            settings=WorkerSettings(),
            stop=stop,
            fetch=FrameRings(run_dir, ["left"]).fetch,
        ) as frames,
    ):
        for number in (1, 2):
            now_ns = stream.now_ns()
            image = good_part(number, bundle.manifest.image_size)
            entry = FrameEntry(f"left/1-{number}", "left", now_ns, now_ns + 60 * 10**9, image)
            slot = ring.put(entry.frame_id, image)
            assert slot is not None
            ring._pixels[0, 0] = 255  # of the first frame, behind its reference
            stream.admit(entry, slot=slot)
        seat = seat_of(bundle)
        frames.turn_to(seat)
        parts = list(_taken(frames, seat))
        stop.set()
        [lost] = stream.tail_verdicts("left", 10)
    assert [part.frame_id for part in parts] == ["left/1-2"]
    np.testing.assert_array_equal(parts[0].image, good_part(2, bundle.manifest.image_size))
    assert (lost.verdict.frame_id, lost.verdict.reason) == ("left/1-1", Reason.TRANSPORT)
    assert images_lost() == before + 1


def images_lost() -> float:
    """How many images of camera ``left`` were lost."""
    return facts.registry.get_sample_value("assayline_images_lost_total", {"camera": "left"}) or 0.0


def _taken(frames: FrameReader, seat: Seat) -> Iterator[Part]:
    """Parts, until the first ones have come."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if found := frames.take(seat, 8, 0.05):
            yield from found
            return


# -- what stays --------------------------------------------------------------------------------


def test_a_ring_ends_with_its_camera(run_dir: Path) -> None:
    """An orderly end leaves no file; an error leaves the open frames to the next start."""
    with pytest.raises(RuntimeError), ring_of(run_dir):
        raise RuntimeError
    assert shared_paths(run_dir)
    with ring_of(run_dir):
        pass
    assert not shared_paths(run_dir)


def test_a_line_removes_what_its_processes_left(run_dir: Path, tmp_path: Path) -> None:
    """Rings and originals of every camera go, those of another line stay."""
    other = tmp_path / "other"
    for name in ("left", "left.2"):
        with pytest.raises(RuntimeError), FrameRing(shared_path(run_dir, name, FRAMES), 1, 9):
            raise RuntimeError
    originals = Originals(run_dir, "left", 1_000_000)
    originals.keep("left/1-1", picture(1))
    originals.close()
    with FrameRing(shared_path(other, "left", FRAMES), 1, 9):
        remove_shared(run_dir)
        assert (len(shared_paths(run_dir)), len(shared_paths(other))) == (0, 1)


def open_files() -> int:
    """How many files this process holds; what a test before left in a cycle is let go first."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_living_camera_keeps_its_ring(run_dir: Path) -> None:
    """A line that ends removes nothing that another process is still writing."""
    with ring_of(run_dir) as ring:
        reference = sent(ring, 1)
        remove_shared(run_dir)
        image = FrameRings(run_dir, ["left"]).fetch("left/1-1", reference, SIZE)
        np.testing.assert_array_equal(image, picture(1))
    assert not shared_paths(run_dir)


def test_a_lock_on_what_was_removed_is_tried_again(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner that ends between the opening and the locking leaves its successor a ring."""
    ended = ring_of(run_dir)
    flock = fcntl.flock

    def end_first(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        ended.__exit__(None)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", end_first)
    with ring_of(run_dir) as ring:
        reference = sent(ring, 1)
        FrameRings(run_dir, ["left"]).fetch("left/1-1", reference, SIZE)
        with pytest.raises(BadConfig):
            ring_of(run_dir)
    assert not shared_paths(run_dir)


def test_a_refused_lock_leaves_no_descriptor(run_dir: Path) -> None:
    """However often a start is refused, the process holds as many files as before."""
    with ring_of(run_dir):
        before = open_files()
        with pytest.raises(BadConfig):
            ring_of(run_dir)
        assert open_files() == before


@pytest.mark.parametrize("kind", ["foreign", "folder", "fifo", "link"])
def test_what_else_lies_at_the_name_is_one_sentence(run_dir: Path, kind: str) -> None:
    """A writer is refused, a reader finds its image lost, neither waits, and it stays as it was."""
    path = shared_path(run_dir, "left", FRAMES)
    with ring_of(run_dir) as ring:
        reference = sent(ring, 1)
    match kind:
        case "foreign":
            if os.getuid():
                pytest.skip("only root can give a file away")
            path.write_bytes(b"theirs")
            os.chown(path, 12_345, 12_345)
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case _:
            path.symlink_to(run_dir / "elsewhere")
    with pytest.raises(BadConfig, match="cannot be had"):
        ring_of(run_dir)
    with pytest.raises(LostImage):
        FrameRings(run_dir, ["left"]).fetch("left/1-1", reference, SIZE)
    if kind == "foreign":
        remove_shared(run_dir)
        assert path.read_bytes() == b"theirs"
        path.unlink()


@pytest.mark.parametrize("call", ["pread", "mmap", "unlink"])
def test_memory_that_fails_is_one_sentence(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whatever the system refuses is the writer's BadConfig and the reader's LostImage."""
    left = ring_of(run_dir)
    reference = sent(left, 1)
    left.close()

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    target = {"pread": os, "mmap": mmap, "unlink": Path}[call]
    with monkeypatch.context() as failing:
        failing.setattr(target, call, fail)
        before = open_files()
        with pytest.raises(BadConfig, match="Input/output error"):
            ring_of(run_dir, slots=5)
        assert open_files() == before
        if call != "unlink":
            with pytest.raises(LostImage):
                FrameRings(run_dir, ["left"]).fetch("left/1-1", reference, SIZE)


def test_memory_that_is_not_there_is_one_sentence(run_dir: Path) -> None:
    """It is missed at the start, not as a bus error in the middle of a frame."""
    with pytest.raises(BadConfig, match="do not fit into"):
        ring_of(run_dir, slots=1024, slot_bytes=2**40)
    assert not shared_paths(run_dir)

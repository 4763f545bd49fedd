"""Recordings: what goes in comes out exactly, whatever happens to the process or the file."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import settings as laws
from hypothesis import strategies as st
from mcap.data_stream import RecordBuilder
from mcap.reader import make_reader
from mcap.records import Chunk
from mcap.stream_reader import StreamReader
from mcap.writer import MCAP0_MAGIC

from engines.contracts import BadData, Decision, Frame, Reason, UInt8, Verdict
from engines.images import decode_image, encode_png
from pipeline.recording import (
    Recorder,
    read_exposures,
    read_frames,
    read_verdicts,
)
from pipeline.sources import BadExposure, Exposure, open_source
from pipeline.sources.replay import ReplaySource
from pipeline.sources.settings import ReplaySettings

START_NS = 1_700_000_000_000_000_000
texts = st.text(max_size=12)


def noise(seed: int, height: int = 48, width: int = 64) -> UInt8:
    """A random image."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def frame(number: int, camera: str = "top") -> Frame:
    """A frame with everything set, one each 10 ms."""
    return Frame(
        frame_id=f"{camera}/3-{number}",
        camera=camera,
        captured_ns=START_NS + number * 10_000_000,
        image=noise(number),
        category="nut",
        recipe="r7",
        part_id=f"p{number}",
        lot="monday",
        source_frame_id=f"{camera}/1-{number}",
    )


def verdict(number: int, decision: Decision = Decision.PASS) -> Verdict:
    """A verdict on frame ``number``."""
    name, now_ns = f"top/3-{number}", START_NS
    one = Verdict(frame_id=name, camera="top", decision=decision, captured_ns=0, decided_ns=now_ns)
    return one.model_copy(update={"latency_ms": {"total": 4.5}})


def is_same(one: Exposure, other: Exposure) -> bool:
    """Whether two exposures agree in every field, images by their pixels."""
    if isinstance(one, Frame) and isinstance(other, Frame):
        same_pixels = np.array_equal(one.image, other.image)
        return same_pixels and all(
            getattr(one, key) == getattr(other, key) for key in Frame.__slots__ if key != "image"
        )
    return one == other


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A finished recording of six frames of two cameras."""
    path = tmp_path / "run.mcap"
    with Recorder(path) as recorder:
        for number in range(3):
            assert recorder.frame(frame(number))
            assert recorder.frame(frame(number, "side"))
    return path


@given(
    about=st.tuples(texts, texts, texts, texts, texts, texts),
    stamp=st.integers(0, 2**62),
    camera=st.text("abc-_/ä", min_size=1, max_size=8),
)
@laws(max_examples=25, deadline=None)
def test_a_frame_comes_back_exactly(about: tuple[str, ...], stamp: int, camera: str) -> None:
    """Every pixel and every field of a frame survives, whatever the texts hold."""
    frame_id, *rest = about
    kept = Frame(frame_id, camera, stamp, noise(1), *rest)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.mcap"
        with Recorder(path) as recorder:
            recorder.frame(kept)
        (back,) = read_frames(path)
    assert is_same(back, kept)


def test_order_and_cameras_are_kept(recorded: Path) -> None:
    """Frames come in recorded order; one camera may be asked for."""
    assert [one.frame_id for one in read_frames(recorded)] == [
        f"{camera}/3-{number}" for number in range(3) for camera in ("top", "side")
    ]
    assert [one.frame_id for one in read_frames(recorded, "side")] == [
        f"side/3-{number}" for number in range(3)
    ]


def test_a_bad_exposure_is_kept_too(tmp_path: Path) -> None:
    """An exposure without an image is recorded, so a replay answers for it again."""
    bad = BadExposure("top", START_NS, "b.png is damaged: copy it again.", part_id="b")
    stamped = replace(bad, frame_id="top/3-9", reason=Reason.OVERRUN)
    with Recorder(tmp_path / "run.mcap") as recorder:
        recorder.frame(frame(0))
        recorder.frame(stamped)
    assert recorder.frames == 2
    assert list(read_exposures(tmp_path / "run.mcap"))[1] == stamped
    assert len(list(read_frames(tmp_path / "run.mcap"))) == 1


def test_foxglove_finds_what_it_knows(tmp_path: Path) -> None:
    """The file has a summary, image channels carry Foxglove's schema name, and data is a PNG."""
    path, mask = tmp_path / "run.mcap", noise(0)[..., 0] > 127
    with Recorder(path) as recorder:
        recorder.frame(frame(0))
        recorder.verdict(verdict(0), encode_png(mask))
    with path.open("rb") as file:
        reader = make_reader(file)
        found = {
            channel.topic: (schema, message) for schema, channel, message in reader.iter_messages()
        }
        summary = reader.get_summary()
    assert summary is not None
    assert summary.statistics is not None
    assert summary.statistics.message_count == 5
    kinds = ("frame", "mask", "verdict", "annotations", "log")
    assert set(found) == {f"/top/{kind}" for kind in kinds}
    for topic, pixels in (("/top/frame", noise(0)), ("/top/mask", None)):
        schema, message = found[topic]
        assert schema is not None
        assert (schema.name, schema.encoding) == ("foxglove.CompressedImage", "jsonschema")
        body = json.loads(message.data)
        assert set(json.loads(schema.data)["required"]) <= set(body)
        image = decode_image(base64.b64decode(body["data"]))
        assert np.array_equal(image, pixels) if pixels is not None else (image[..., 0] > 0).sum()
    sent = found["/top/frame"][1]
    assert sent.log_time == START_NS
    assert json.loads(sent.data)["timestamp"] == {"sec": START_NS // 10**9, "nsec": 0}


def test_verdicts_come_back(tmp_path: Path) -> None:
    """Verdicts survive in a recording, and a file with one per line is read alike."""
    given_verdicts = [verdict(0), verdict(1, Decision.FAIL)]
    with Recorder(tmp_path / "run.mcap") as recorder:
        for one in given_verdicts:
            recorder.verdict(one)
    lines = "\n".join(one.model_dump_json() for one in given_verdicts)
    (tmp_path / "run.jsonl").write_text(lines + "\n\n")
    assert list(read_verdicts(tmp_path / "run.mcap")) == given_verdicts
    assert list(read_verdicts(tmp_path / "run.jsonl")) == given_verdicts
    assert recorder.verdicts == 2


def test_what_is_no_recording_is_told(tmp_path: Path, recorded: Path) -> None:
    """A foreign file, a missing one and a file already there are one sentence each."""
    (tmp_path / "text.mcap").write_text("see you at lunch")
    with pytest.raises(BadData, match="is not a recording"):
        list(read_frames(tmp_path / "text.mcap"))
    with pytest.raises(BadData, match="no verdict"):
        list(read_verdicts(tmp_path / "text.mcap"))
    with pytest.raises(BadData, match="cannot be read"):
        ReplaySource(tmp_path / "gone.mcap")
    with pytest.raises(BadData, match="exists already"):
        Recorder(recorded)
    assert len(list(read_frames(recorded))) == 6


@pytest.fixture(scope="module")
def finished() -> Iterator[tuple[bytes, list[Frame]]]:
    """Bytes of a finished recording, and the frames in it; large enough for several chunks."""
    frames = [replace(frame(number), image=noise(number, 160, 160)) for number in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.mcap"
        with Recorder(path) as recorder:
            for one in frames:
                recorder.frame(one)
        yield path.read_bytes(), frames


@given(share=st.floats(0, 1))
@laws(max_examples=40, deadline=None)
def test_a_cut_recording_gives_what_is_whole(
    finished: tuple[bytes, list[Frame]], share: float
) -> None:
    """Wherever the file ends, its first frames come back exactly and nothing half comes after."""
    data, frames = finished
    kept = 8 + int(share * (len(data) - 8))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cut.mcap"
        path.write_bytes(data[:kept])
        back = list(read_frames(path))
    assert all(is_same(one, other) for one, other in zip(back, frames, strict=False))
    assert len(back) >= 4 * kept // len(data) - 1


@given(place=st.floats(0, 1), value=st.integers(1, 255))
@laws(max_examples=40, deadline=None)
def test_a_flipped_byte_never_gives_a_wrong_frame(
    finished: tuple[bytes, list[Frame]], place: float, value: int
) -> None:
    """A damaged file gives true frames, fewer of them, or BadData; never altered pixels."""
    data, frames = bytearray(finished[0]), finished[1]
    data[8 + int(place * (len(data) - 9))] ^= value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flipped.mcap"
        path.write_bytes(data)
        try:
            back = list(read_frames(path))
        except BadData:
            return
    ids = {one.frame_id: one for one in frames}
    assert all(is_same(one, ids[one.frame_id]) for one in back)


@pytest.mark.parametrize(("told", "expected"), [(b"top/3-1", 1), (b"top/8-1", 0)])
def test_an_altered_part_is_not_believed(tmp_path: Path, told: bytes, expected: int) -> None:
    """A frame whose id was altered in its chunk does not come back under the other name."""
    path = tmp_path / "run.mcap"
    with Recorder(path) as recorder:
        recorder.frame(frame(1))
    with path.open("rb") as file:
        records = list(StreamReader(file, emit_chunks=True).records)
    (chunk,) = (record for record in records if isinstance(record, Chunk))
    altered = zstandard.decompress(chunk.data).replace(b"top/3-1", told)
    rebuilt = RecordBuilder()
    records[0].write(rebuilt)
    replace(chunk, data=zstandard.compress(altered)).write(rebuilt)
    path.write_bytes(MCAP0_MAGIC + rebuilt.end())  # type: ignore[no-untyped-call]
    assert len(list(read_frames(path))) == expected


CHILD = """
import sys, time
import numpy as np
from engines.contracts import Frame
from pipeline.recording import Recorder, read_frames
with Recorder(sys.argv[1]) as recorder:
    for number in range(3):
        image = np.full((32, 32, 3), number, np.uint8)
        recorder.frame(Frame(f"top/1-{number}", "top", number, image))
    while len(list(read_frames(sys.argv[1]))) < 3:
        time.sleep(0.01)
    print("recorded", flush=True)
    time.sleep(600)
"""


def test_a_killed_recorder_leaves_a_recording(tmp_path: Path) -> None:
    """After SIGKILL the file holds every frame that was handed to the system."""
    path = tmp_path / "run.mcap"
    arguments = [sys.executable, "-c", CHILD, str(path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"recorded\n"
        child.send_signal(signal.SIGKILL)
    assert [one.frame_id for one in read_frames(path)] == ["top/1-0", "top/1-1", "top/1-2"]


def test_what_the_disk_cannot_take_is_counted(tmp_path: Path) -> None:
    """A burst from several threads: each frame is recorded or counted as an overrun."""
    image = noise(0, 256, 256)

    def offer(camera: str) -> None:
        taken.extend(recorder.frame(Frame(f"{camera}/1-{n}", camera, n, image)) for n in range(40))

    taken: list[bool] = []
    with Recorder(tmp_path / "run.mcap") as recorder:
        threads = [threading.Thread(target=offer, args=(camera,)) for camera in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert recorder.overruns > 0
    assert recorder.frames + recorder.overruns == 80
    assert sum(taken) == recorder.frames == len(list(read_frames(tmp_path / "run.mcap")))
    assert not recorder.frame(frame(0))  # closed: refused and counted, not lost in silence
    assert recorder.overruns + recorder.frames == 81


FULL_DISK = """
import resource, sys
import numpy as np
from engines.contracts import BadData, Frame
from pipeline.recording import Recorder
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
try:
    with Recorder(sys.argv[1]) as recorder:
        for number in range(20):
            recorder.frame(Frame(f"top/1-{number}", "top", number, image))
except BadData as error:
    print(recorder.frames + recorder.overruns, error)
"""


def test_a_full_disk_does_not_stop_the_line(tmp_path: Path) -> None:
    """When writing fails the rest is counted, leaving says so, and what was written is readable."""
    path = tmp_path / "run.mcap"
    arguments = [sys.executable, "-c", FULL_DISK, str(path)]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert told.startswith("20 ")
    assert "make room" in told
    assert list(read_frames(path))


def test_replay_keeps_ids_and_restamps(recorded: Path) -> None:
    """A replay's frames are its own camera's, stamped now, with the recorded ids as source."""
    settings = ReplaySettings(kind="replay", path=recorded, speed="max", camera="side")
    with open_source(settings, "again") as source:
        frames = list(source.frames(threading.Event()))
    assert [one.source_frame_id for one in frames] == [f"side/3-{number}" for number in range(3)]
    assert {one.camera for one in frames} == {"again"}
    assert [one.part_id for one in frames] == ["p0", "p1", "p2"]
    assert all(one.captured_ns > START_NS + 10**15 for one in frames)
    assert isinstance(frames[2], Frame)
    assert np.array_equal(frames[2].image, noise(2))


def test_replay_keeps_the_pace(recorded: Path) -> None:
    """At speed 0.5 a replay takes at least twice the recorded time; a stop ends it."""
    began_ns = time.time_ns()
    frames = list(ReplaySource(recorded, 0.5, recorded_camera="top").frames(threading.Event()))
    assert frames[2].captured_ns - began_ns >= 2 * 20_000_000
    stop = threading.Event()
    slow = ReplaySource(recorded, 1e-6).frames(stop)
    next(slow)
    stop.set()
    assert list(slow) == []

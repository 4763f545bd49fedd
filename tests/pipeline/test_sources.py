"""Sources: every file, picture and overrun is an exposure, and none is swallowed."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as laws
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr, TypeAdapter, ValidationError

from engines.contracts import Frame, Reason, SourceLost
from engines.images import encode_png
from pipeline.sources import BadExposure, SourceSettings
from pipeline.sources.camera import address_of
from pipeline.sources.mailbox import EXPOSURES_MAX, Mailbox
from pipeline.sources.settings import (
    CameraSettings,
    FolderSettings,
    SimulatorSettings,
    VideoSettings,
)
from pipeline.sources.source import Pace
from tests.pipeline.exposing import exposures, grey

SETTINGS: TypeAdapter[SourceSettings] = TypeAdapter(SourceSettings)
SIZE_WH = (64, 48)


# --- settings


def test_settings_are_told_apart_by_kind() -> None:
    """Each kind has its own keys; unknown kinds and keys are refused."""
    one = SETTINGS.validate_python({"kind": "folder", "path": "x", "rate_hz": 2})
    assert isinstance(one, FolderSettings)
    for wrong in ({"kind": "folder"}, {"kind": "drum"}, {"kind": "folder", "path": "x", "hz": 2}):
        with pytest.raises(ValidationError):
            SETTINGS.validate_python(wrong)


def test_a_camera_has_one_address() -> None:
    """A camera is named by an index or by a URL, never by both or neither."""
    for wrong in ({}, {"index": 0, "url": "rtsp://x/"}):
        with pytest.raises(ValidationError, match="either an index or a url"):
            SETTINGS.validate_python({"kind": "camera", **wrong})


@given(
    secret=st.text("abcXYZ123%", min_size=6),
    host=st.sampled_from(["10.0.0.7", "cam.plant", "[::1]"]),
)
@laws(max_examples=40, deadline=None)
def test_a_password_is_never_shown(secret: str, host: str) -> None:
    """Neither the settings nor the shown address hold what may be a password."""
    url = f"rtsp://user:{secret}@{host}:554/s?pass={secret}"
    camera = CameraSettings(kind="camera", url=SecretStr(url))
    assert secret not in repr(camera) + str(camera.model_dump())
    shown = address_of(camera)
    assert shown.startswith("rtsp://")
    assert shown.endswith(":554")
    assert "user" not in shown
    assert "?" not in shown


# --- folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files in name order, the middle one damaged, one below."""
    (tmp_path / "a.png").write_bytes(encode_png(grey(10)))
    (tmp_path / "b.png").write_bytes(encode_png(grey(20))[:60])
    (tmp_path / "late").mkdir()
    (tmp_path / "late/c.png").write_bytes(encode_png(grey(30)))
    return tmp_path


def test_every_file_of_a_folder_is_a_part(folder: Path) -> None:
    """A damaged file comes out as a bad exposure in its place, with its name in the sentence."""
    first, second, third = exposures(FolderSettings(kind="folder", path=folder, category="nut"))
    assert isinstance(first, Frame)
    assert isinstance(second, BadExposure)
    assert isinstance(third, Frame)
    assert [one.part_id for one in (first, second, third)] == ["a", "b", "late/c"]
    assert {one.category for one in (first, second, third)} == {"nut"}
    assert (first.image == 10).all()
    assert (third.image == 30).all()
    assert "b.png is damaged" in second.sentence
    assert second.reason is Reason.BAD_FRAME
    assert first.captured_ns <= second.captured_ns <= third.captured_ns


def test_a_folder_may_go_round(folder: Path) -> None:
    """With ``loop`` the files come again in the same order until the stop."""
    looped = FolderSettings(kind="folder", path=folder, loop=True, rate_hz=500)
    assert [one.part_id for one in exposures(looped, 7)] == ["a", "b", "late/c"] * 2 + ["a"]


def test_a_folder_without_images_is_lost(tmp_path: Path) -> None:
    """An empty or missing folder is one sentence at the start, not an endless wait."""
    for path, told in ((tmp_path, "holds no images"), (tmp_path / "gone", "is not a folder")):
        with pytest.raises(SourceLost, match=told):
            exposures(FolderSettings(kind="folder", path=path))


# --- video


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A real MP4 of twelve pictures that get lighter."""
    path = tmp_path / "belt.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 50, SIZE_WH)
    for number in range(12):
        writer.write(grey(20 * number))
    writer.release()
    return path


@pytest.mark.parametrize("speed", [2.0, "max"])
def test_every_picture_of_a_video_is_a_part(video: Path, speed: float | str) -> None:
    """All pictures come once, in order, numbered, whether paced or flat out."""
    settings = SETTINGS.validate_python({"kind": "video", "path": video, "speed": speed})
    frames = [one for one in exposures(settings) if isinstance(one, Frame)]
    levels = [float(frame.image.mean()) for frame in frames]
    assert np.allclose(levels, range(0, 240, 20), atol=4)
    assert [frame.part_id for frame in frames] == [f"belt-{i:06d}" for i in range(12)]


def test_a_video_may_go_round(video: Path) -> None:
    """A looped video starts again and goes on numbering its parts."""
    settings = VideoSettings(kind="video", path=video, speed="max", loop=True)
    assert exposures(settings, 20)[-1].part_id == "belt-000019"


def test_an_animated_gif_is_a_video(tmp_path: Path) -> None:
    """A GIF yields each of its pictures in RGB."""
    pictures = [Image.new("RGB", SIZE_WH, (200, 10 * i, 0)) for i in range(5)]
    path = tmp_path / "belt.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40)
    frames = exposures(VideoSettings(kind="video", path=path, speed="max"))
    assert len(frames) == 5
    assert isinstance(frames[4], Frame)
    assert np.allclose(frames[4].image.mean((0, 1)), (200, 40, 0), atol=6)


def test_what_is_no_video_is_lost(tmp_path: Path, video: Path) -> None:
    """A missing file, a text and half a video are one sentence each."""
    (tmp_path / "text.mp4").write_text("see you at lunch")
    (tmp_path / "half.mp4").write_bytes(video.read_bytes()[:300])
    for name, told in (
        ("gone.mp4", "is not a file"),
        ("text.mp4", "damaged or no video"),
        ("half.mp4", "damaged or no video"),
    ):
        with pytest.raises(SourceLost, match=told):
            exposures(VideoSettings(kind="video", path=tmp_path / name))


# --- mailbox and pace


@given(takes=st.lists(st.booleans(), max_size=60))
@laws(max_examples=60, deadline=None)
def test_nothing_put_into_a_mailbox_is_lost(takes: list[bool]) -> None:
    """However puts and takes mix, every frame comes out once, in order, as itself or as overrun."""
    mailbox, out, image = Mailbox(), [], grey(0)
    puts = 0
    for is_take in takes:
        if is_take:
            out.append(mailbox.take(0))
        else:
            mailbox.put(Frame("", "cam", puts, image))
            puts += 1
    mailbox.end()
    while not mailbox.is_exhausted:
        out.append(mailbox.take(0))
    came = [one for one in out if one is not None]
    assert [one.captured_ns for one in came] == list(range(puts))
    overruns = [one for one in came if isinstance(one, BadExposure)]
    assert len(overruns) == mailbox.overruns
    assert {one.reason for one in overruns} <= {Reason.OVERRUN}


def test_a_mailbox_nobody_reads_stays_small() -> None:
    """A line that stands still costs two images and a bounded list; every overrun is counted."""
    mailbox, image = Mailbox(), grey(0)
    for number in range(EXPOSURES_MAX + 500):
        mailbox.put(Frame("", "cam", number, image))
    mailbox.end()
    kept = []
    while not mailbox.is_exhausted:
        kept.append(mailbox.take(0))
    assert len(kept) <= EXPOSURES_MAX + 1
    assert mailbox.overruns == EXPOSURES_MAX + 498
    assert [isinstance(one, Frame) for one in kept[-3:]] == [False, True, True]


def test_pace_waits_and_obeys_stop() -> None:
    """The clock waits at least until the due moment, and not at all once stopped."""
    pace, stop, began = Pace(), threading.Event(), time.monotonic()
    assert pace.wait_until(7.0, stop)  # the first moment is now, whatever its number
    assert pace.wait_until(7.05, stop)
    assert 0.05 <= time.monotonic() - began < 7
    stop.set()
    assert not pace.wait_until(3600, stop)


# --- simulator


def test_the_simulator_is_a_source() -> None:
    """A simulated line yields its number of frames, the same for the same seed."""
    settings = SETTINGS.validate_python(
        {
            "kind": "simulator",
            "frames": 2,
            "rate_hz": 0,
            "faults": [{"kind": "black", "first": 1, "last": 1}],
        }
    )
    assert isinstance(settings, SimulatorSettings)
    first, second = exposures(settings), exposures(settings)
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, Frame)
        assert isinstance(other, Frame)
        assert np.array_equal(one.image, other.image)
    assert isinstance(first[1], Frame)
    assert not first[1].image.any()

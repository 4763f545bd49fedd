"""Sources: no exposure is swallowed, and a camera that is gone is told in bounded time."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
import viva_genicam
from hypothesis import given
from hypothesis import settings as laws
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr, TypeAdapter, ValidationError
from viva_genicam.testing import FakeGigeCamera, FakeU3vCamera

from engines.contracts import Frame, Reason, SourceLost
from engines.images import encode_png
from pipeline.sources import BadExposure, Exposure, SourceSettings, open_source
from pipeline.sources.camera import address_of
from pipeline.sources.gige import GigeSession, fault_of
from pipeline.sources.mailbox import EXPOSURES_MAX, Mailbox
from pipeline.sources.settings import (
    CameraSettings,
    FolderSettings,
    GigeSettings,
    SimulatorSettings,
    VideoSettings,
)
from pipeline.sources.source import Pace

SETTINGS: TypeAdapter[SourceSettings] = TypeAdapter(SourceSettings)
SIZE_WH = (64, 48)


def grey(level: int) -> np.ndarray:
    """A flat picture [48, 64, 3]."""
    return np.full((48, 64, 3), level, np.uint8)


def exposures(settings: SourceSettings, count: int | None = None) -> list[Exposure]:
    """The first ``count`` exposures of a source, or all; the source is closed again."""
    stop = threading.Event()
    with open_source(settings, "cam") as source:
        taken = source.frames(stop)
        found = list(itertools.islice(taken, count))
        stop.set()
        assert list(itertools.islice(taken, 1)) == []  # a stopped source ends
    return found


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


# --- network camera


class Stream(BaseHTTPRequestHandler):
    """An MJPEG camera whose pictures all have its server's level of grey."""

    def do_GET(self) -> None:
        """Send pictures until the server is switched off."""
        server = self.server
        assert isinstance(server, MjpegCamera)
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        head = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(
            server.jpeg
        )
        with contextlib.suppress(OSError):
            while not server.off.wait(0.01):
                self.wfile.write(head + server.jpeg + b"\r\n")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class MjpegCamera(ThreadingHTTPServer):
    """A network camera that can be switched off and on at one address."""

    daemon_threads = True

    def __init__(self, level: int, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Stream)
        self.jpeg = cv2.imencode(".jpg", grey(level))[1].tobytes()
        self.off = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def switch_off(self) -> None:
        """End every stream and stop listening."""
        self.off.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


def camera_at(port: int, **limits: float) -> CameraSettings:
    """Settings of a local network camera with a password in its URL."""
    url = f"http://user:secret@127.0.0.1:{port}/live.mjpg?token=secret"
    settings = CameraSettings(kind="camera", url=SecretStr(url), category="nut")
    return settings.model_copy(update=limits)


def test_a_network_camera_delivers() -> None:
    """Pictures of a URL come as RGB frames with rising stamps."""
    camera = MjpegCamera(120)
    try:
        frames = exposures(camera_at(camera.server_port), 5)
    finally:
        camera.switch_off()
    assert all(isinstance(one, Frame) and abs(one.image.mean() - 120) < 3 for one in frames)
    stamps = [one.captured_ns for one in frames]
    assert stamps == sorted(stamps)
    assert time.time_ns() - stamps[0] < 60e9
    assert frames[0].category == "nut"


def test_a_network_camera_comes_back() -> None:
    """After an outage the frames go on by themselves, from the same address."""
    stop = threading.Event()
    camera = MjpegCamera(50)
    port = camera.server_port
    with open_source(camera_at(port, give_up_s=60, read_timeout_s=2), "cam") as source:
        frames = source.frames(stop)
        assert isinstance(next(frames), Frame)
        camera.switch_off()
        returns = threading.Timer(0.3, lambda: cameras.append(MjpegCamera(200, port)))
        cameras: list[MjpegCamera] = []
        returns.start()
        try:
            later = (one for one in frames if isinstance(one, Frame) and one.image.mean() > 190)
            assert isinstance(next(later), Frame)
        finally:
            stop.set()
            returns.join()
            cameras[0].switch_off()
        assert list(frames) == []


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_silent_camera_is_lost_in_bounded_time(
    silent_port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """A URL that accepts and never answers ends with SourceLost, and no password is printed."""
    settings = camera_at(silent_port, open_timeout_s=0.3, read_timeout_s=0.3, give_up_s=0.5)
    began = time.monotonic()
    with pytest.raises(SourceLost, match=f"http://127.0.0.1:{silent_port}"):
        exposures(settings)
    assert time.monotonic() - began < 30
    with pytest.raises(SourceLost) as caught:
        exposures(settings.model_copy(update={"give_up_s": 0.0}))
    assert "secret" not in "".join(capfd.readouterr()) + str(caught.value) + repr(caught.value)


def test_a_dead_camera_is_lost() -> None:
    """A port nobody listens on and a camera index nobody has are SourceLost."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = camera_at(unused.getsockname()[1], give_up_s=0)
        with pytest.raises(SourceLost, match="gives no frames"):
            exposures(dead)
    with pytest.raises(SourceLost, match="index 97"):
        exposures(CameraSettings(kind="camera", index=97, give_up_s=0))


def test_stop_ends_an_outage(silent_port: int) -> None:
    """A stop during an outage ends the source quietly instead of at ``give_up_s``."""
    settings = camera_at(silent_port, open_timeout_s=0.2, read_timeout_s=0.2, give_up_s=3600)
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    with open_source(settings, "cam") as source:
        assert list(source.frames(stop)) == []
    timer.join()


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


# --- industrial cameras


@pytest.fixture
def only_gige_test() -> Iterator[None]:
    """GigE Vision has one fixed port, so one such test runs at a time on a computer."""
    with socket.socket(socket.AF_UNIX) as turn:
        while True:
            try:
                turn.bind("\0assayline-gige-tests")  # leaves no file, ends with the process
                break
            except OSError:
                time.sleep(0.05)
        yield


GIGE = GigeSettings(kind="gige", discovery_s=0.2, read_timeout_s=0.5, category="nut")


@pytest.mark.usefixtures("only_gige_test")
def test_a_gige_camera_answers_for_lost_packets() -> None:
    """A frame without all its packets and a frame that never came are bad exposures in order."""
    lost = [(3, 2), *((5, packet) for packet in range(100))]
    with FakeGigeCamera(160, 120, fps=60, packet_resend=False, drop_packets=lost):
        found = exposures(GIGE, 8)
    assert [isinstance(one, Frame) for one in found] == [
        True,
        True,
        False,
        True,
        False,
        *[True] * 3,
    ]
    incomplete, gone = found[2], found[4]
    assert isinstance(incomplete, BadExposure)
    assert isinstance(gone, BadExposure)
    assert "1 packets lost" in incomplete.sentence
    assert (incomplete.reason, gone.reason) == (Reason.BAD_FRAME, Reason.CAMERA_FAULT)
    first = found[0]
    assert isinstance(first, Frame)
    assert first.image.shape == (120, 160, 3)
    assert first.category == "nut"
    assert abs(time.time_ns() - first.captured_ns) < 60e9


@pytest.mark.usefixtures("only_gige_test")
def test_a_gige_camera_comes_back_and_is_let_go() -> None:
    """After a power cycle the frames go on; a stopped source leaves the camera free."""
    stop = threading.Event()
    first = FakeGigeCamera(64, 48, fps=60)
    first.start()
    with open_source(GIGE, "cam") as source:
        frames = source.frames(stop)
        assert isinstance(next(frames), Frame)
        first.stop()
        with FakeGigeCamera(128, 96, fps=60, pixel_format="BayerRG8") as second:
            again = (one for one in frames if isinstance(one, Frame) and len(one.image) == 96)
            assert next(again).image.shape == (96, 128, 3)
            stop.set()
            assert list(frames) == []
            assert second.controller() is None


@pytest.mark.usefixtures("only_gige_test")
def test_a_camera_that_waits_for_its_trigger_is_not_lost() -> None:
    """Silence longer than the limit is no outage while the camera answers its control channel."""
    with FakeGigeCamera(64, 48, fps=30) as fake:
        features: dict[str, str | int | float | bool] = {
            "TriggerSelector": "FrameStart",
            "TriggerSource": "Software",
            "TriggerMode": "On",
        }
        waiting = GIGE.model_copy(update={"features": features, "read_timeout_s": 0.2})
        session = GigeSession(viva_genicam.connect_gige(fake.device_info()), waiting, "cam")
        stop = threading.Event()
        timer = threading.Timer(1.0, stop.set)
        timer.start()
        found = list(session.exposures(stop))
        session.close()
        timer.join()
    assert len(found) <= 1


@pytest.mark.usefixtures("only_gige_test")
def test_a_gige_camera_is_chosen_by_name() -> None:
    """A MAC in any case of letters is found; a wrong address is SourceLost that names it."""
    with FakeGigeCamera(64, 48, fps=30):
        mac = GIGE.model_copy(update={"mac": FakeGigeCamera.MAC.lower()})
        assert isinstance(exposures(mac, 1)[0], Frame)
        elsewhere = GIGE.model_copy(update={"ip": "10.9.8.7", "give_up_s": 0.0})
        with pytest.raises(SourceLost, match=r"10\.9\.8\.7"):
            exposures(elsewhere)


@pytest.mark.parametrize("pixel_format", ["Mono8", "RGB8", "BayerRG8", "Mono12"])
def test_a_usb3_vision_camera_delivers_rgb(pixel_format: str) -> None:
    """Grey, colour, mosaic and 12-bit formats all become [H, W, 3] uint8."""
    settings = GigeSettings(kind="gige", serial="any")
    session = GigeSession(FakeU3vCamera(64, 48, pixel_format).connect(), settings, "cam")
    try:
        frame = next(session.exposures(threading.Event()))
    finally:
        session.close()
    assert isinstance(frame, Frame)
    assert frame.image.shape == (48, 64, 3)
    assert frame.image.dtype == np.uint8


def test_a_region_too_small_to_inspect_is_a_fault() -> None:
    """A frame of a few pixels is told with the mend instead of being stretched."""
    frame = viva_genicam.Frame.from_bytes(bytes(64), 8, 8, "Mono8")
    assert "8x8" in fault_of(frame)


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

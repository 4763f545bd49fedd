"""Live cameras: they come back by themselves, and one that stays away is told in bounded time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import viva_genicam
from pydantic import SecretStr
from viva_genicam.testing import FakeGigeCamera, FakeU3vCamera

from engines.contracts import Frame, Reason, SourceLost
from pipeline.sources import BadExposure, open_source
from pipeline.sources.gige import GigeSession, fault_of
from pipeline.sources.settings import (
    CameraSettings,
    GigeSettings,
)
from tests.pipeline.exposing import exposures, grey

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
    pictures = [one.image for one in frames if isinstance(one, Frame)]
    assert pictures
    assert all(abs(picture.mean() - 120) < 3 for picture in pictures)
    assert all(one.reason is Reason.OVERRUN for one in frames if isinstance(one, BadExposure))
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
        next(frames)  # a busy machine may begin with an overrun, told as such
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
    with FakeGigeCamera(160, 120, fps=20, packet_resend=False, drop_packets=lost):
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
        next(frames)  # on a busy machine it may have lost packets
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

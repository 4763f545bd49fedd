"""A GigE Vision or USB3 Vision camera, by viva-genicam.

An incomplete frame (lost packets) is a BadExposure: its image has black stripes that would look
like a defect. A gap in the camera's own block numbers is one BadExposure for each block that never
came. Silence is no outage while the camera still answers its control channel: with a trigger and
no parts there is nothing to send.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import viva_genicam
from viva_genicam import (
    Camera,
    ControlState,
    DeviceInfo,
    FrameStatus,
    FrameStream,
    GenicamError,
    GigeDeviceInfo,
    TransportError,
)

from engines.contracts import Frame, Reason, SourceLost
from engines.images import MAX_PIXELS, MIN_SIDE
from pipeline.sources.live import reconnecting
from pipeline.sources.settings import GigeSettings
from pipeline.sources.source import BadExposure, Exposure

POLL_MS = 250  # how often a waiting reader looks at its stop event
GAP_MAX = 1000  # a wider gap is a restarted counter, not lost blocks
CLOCK_EVERY_S = 20.0  # a camera clock that drifts by 50 ppm is then 1 ms off at most
TRANSIT_MAX_NS = 1_000_000_000  # a stamp older than this, or from the future, is not believed
VERSION_REGISTER = 0x0000  # every GigE and USB3 Vision camera has one there
NETWORK_MEND = "use jumbo frames, a larger receive buffer or a link of its own."


class GigeSource:
    """An industrial camera that reconnects by itself until an outage lasts ``give_up_s``."""

    def __init__(self, settings: GigeSettings, camera: str) -> None:
        self._settings = settings
        self._camera = camera

    def frames(self, stop: threading.Event) -> Iterator[Exposure]:
        """Exposures as they come; raises SourceLost when the camera stays away too long."""
        return reconnecting(self._connect, self._camera, self._settings.give_up_s, stop)

    def _connect(self) -> GigeSession:
        device = find_device(self._settings)
        try:
            return GigeSession(connect(device, self._settings), self._settings, self._camera)
        except GenicamError as error:
            raise SourceLost(
                f"camera {self._camera} ({name_of(device)}) refuses to start ({error}): "
                "end any other program that controls it, and check its features."
            ) from None


class GigeSession:
    """One controlled camera with its acquisition running."""

    def __init__(self, device: Camera, settings: GigeSettings, camera: str) -> None:
        self._device = device
        self._settings = settings
        self._camera = camera
        self._clock_due = 0.0
        self._open = contextlib.ExitStack()
        self._open.callback(device.close)
        try:
            self._stream = self._start()
        except GenicamError:
            self.close()
            raise

    def exposures(self, stop: threading.Event) -> Iterator[Exposure]:
        """Exposures until ``stop``; raises SourceLost when the camera answers no more."""
        last_block = 0
        heard = time.monotonic()
        while not stop.is_set():
            frame = self._next()
            if frame is not None:
                yield from self._missing(last_block, frame.block_id)
                yield self._exposure(frame)
                last_block, heard = frame.block_id, time.monotonic()
            elif time.monotonic() - heard > self._settings.read_timeout_s:
                self._ask_alive()
                heard = time.monotonic()

    def close(self) -> None:
        """Stop the acquisition and give control back; a camera that is gone cannot object."""
        with contextlib.suppress(GenicamError):
            self._open.close()

    def _start(self) -> FrameStream:
        for name, value in self._settings.features.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            self._device.set(name, text)
        self._read_clock()
        stream = self._device.stream(
            iface=self._settings.interface or None,
            resend=self._settings.resend,
            deliver_incomplete=True,
        )
        return self._open.enter_context(stream)

    def _next(self) -> viva_genicam.Frame | None:
        """The next frame, or None where none came in a moment."""
        if time.monotonic() > self._clock_due:
            self._read_clock()
        try:
            return self._stream.next_frame(POLL_MS)
        except TransportError:
            return None

    def _read_clock(self) -> None:
        """Fit the camera's clock to ours; without a fit, frames are stamped on arrival."""
        self._clock_due = time.monotonic() + CLOCK_EVERY_S
        if self._device.transport == "gige":
            with contextlib.suppress(GenicamError):
                self._device.time_calibrate(samples=4, interval_ms=5)

    def _ask_alive(self) -> None:
        """Read a register: a camera that only waits for its trigger answers."""
        with contextlib.suppress(GenicamError):
            self._device.read_register(VERSION_REGISTER)
            if self._device.transport != "gige" or self._device.control_state == ControlState.HELD:
                return
        raise SourceLost(f"camera {self._camera} answers no more: check its power and cable.")

    def _exposure(self, frame: viva_genicam.Frame) -> Exposure:
        captured_ns = self._captured_ns(frame)
        fault = fault_of(frame)
        if fault:
            return self._bad(captured_ns, f"sent {fault}", Reason.BAD_FRAME)
        return Frame("", self._camera, captured_ns, frame.to_rgb8(), self._settings.category)

    def _captured_ns(self, frame: viva_genicam.Frame) -> int:
        arrived_ns = time.time_ns()
        stamp_s = None if frame.ts_dev is None else self._device.map_dev_ts(frame.ts_dev)
        exposed_ns = arrived_ns if stamp_s is None else round(stamp_s * 1e9)
        is_likely = arrived_ns - TRANSIT_MAX_NS < exposed_ns <= arrived_ns
        return exposed_ns if is_likely else arrived_ns

    def _missing(self, last_block: int, block: int) -> Iterator[Exposure]:
        """One bad exposure for each block between two that came."""
        gap = block - last_block - 1 if last_block else 0
        for lost in range(last_block + 1, block) if 0 < gap <= GAP_MAX else ():
            text = f"lost frame {lost} on the way: {NETWORK_MEND}"
            yield self._bad(time.time_ns(), text, Reason.CAMERA_FAULT)

    def _bad(self, captured_ns: int, text: str, reason: Reason) -> BadExposure:
        sentence = f"camera {self._camera} {text}"
        category = self._settings.category
        return BadExposure(self._camera, captured_ns, sentence, category, reason=reason)


def find_device(settings: GigeSettings) -> DeviceInfo:
    """The camera that ip, mac or serial name, or the only one there is; raises SourceLost."""
    found = [device for device in _devices(settings) if _is_meant(device, settings)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise SourceLost(
            f"no GigE or USB3 Vision camera answers{_asked(settings)}: "
            "check power, cable and that its address is in this computer's network."
        )
    names = ", ".join(name_of(device) for device in found)
    raise SourceLost(f"several cameras answer ({names}): name one by ip, mac or serial.")


def connect(device: DeviceInfo, settings: GigeSettings) -> Camera:
    """Take control of a camera; raises GenicamError while another program has it."""
    if isinstance(device, GigeDeviceInfo):
        return viva_genicam.connect_gige(device, iface=settings.interface or None)
    return viva_genicam.connect_u3v(device)


def name_of(device: DeviceInfo) -> str:
    """Model and address of a camera, for people."""
    where = device.ip if isinstance(device, GigeDeviceInfo) else f"serial {device.serial}"
    return f"{device.model or 'camera'} at {where}"


def fault_of(frame: viva_genicam.Frame) -> str:
    """Why a frame cannot be inspected, with the mend; "" where it can."""
    if frame.status is FrameStatus.DEVICE_STATUS:
        return f"the error status {frame.device_status}: look it up in the camera's manual."
    if not frame.is_complete:
        missing = frame.missing_packets or "some"
        return f"an incomplete frame ({missing} packets lost): {NETWORK_MEND}"
    if min(frame.width, frame.height) < MIN_SIDE or frame.width * frame.height > MAX_PIXELS:
        return f"a frame of {frame.width}x{frame.height}: set a region of interest that fits."
    return ""


def _devices(settings: GigeSettings) -> list[DeviceInfo]:
    interface = settings.interface or None
    devices: list[DeviceInfo] = []
    with contextlib.suppress(GenicamError):  # a computer without that network has none
        devices += viva_genicam.discover(
            round(settings.discovery_s * 1000), iface=interface, all=interface is None
        )
    with contextlib.suppress(GenicamError):  # a computer without USB has none
        devices += viva_genicam.discover_u3v()
    return devices


def _is_meant(device: DeviceInfo, settings: GigeSettings) -> bool:
    if isinstance(device, GigeDeviceInfo):
        is_address = settings.ip in ("", device.ip)
        return (
            is_address and settings.mac.upper() in ("", device.mac.upper()) and not settings.serial
        )
    return settings.serial in ("", device.serial) and not settings.ip and not settings.mac


def _asked(settings: GigeSettings) -> str:
    asked = {"ip": settings.ip, "mac": settings.mac, "serial": settings.serial}
    named = [f"{key} {value}" for key, value in asked.items() if value]
    return f" at {', '.join(named)}" if named else ""

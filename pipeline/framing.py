"""What an exposure of one camera is to the line: a frame to admit, or a part without an image."""

from __future__ import annotations

import time
from typing import Any

from engines.contracts import BadFrame, UInt8
from engines.images import to_model_input
from pipeline.config import CameraSettings
from pipeline.sight import Sight
from pipeline.sources import BadExposure
from pipeline.sources.source import Exposure
from pipeline.stream import Stream
from pipeline.telemetry import facts
from pipeline.wire import FrameEntry, FrameHead

CLEAR_MS = 5.0  # a clock known less well than this shortens the gate


class Framing:
    """Stamps an exposure by the server's clock, crops it and brings it to the model's size."""

    def __init__(self, stream: Stream, camera: CameraSettings, size: tuple[int, int]) -> None:
        self._stream = stream
        self._camera = camera
        self._size = size  # (h, w) of a frame on the stream
        self.sight = Sight(camera.name)

    def frame(self, exposure: Exposure, frame_id: str) -> FrameEntry | FrameHead:
        """The frame to admit, or the head of one that has no usable image."""
        known = self._known(exposure, frame_id)
        if isinstance(exposure, BadExposure):
            return _unusable(known, exposure.sentence)
        try:
            image = to_model_input(_cropped(exposure.image, self._camera.crop), self._size)
        except BadFrame as error:
            return _unusable(known, str(error))
        self.sight.see(image)
        height, width = exposure.image.shape[:2]
        crop = self._camera.crop or (0, 0, width, height)
        return FrameEntry(image=image, frame_size=(height, width), crop=crop, **known)

    def _known(self, exposure: Exposure, frame_id: str) -> dict[str, Any]:
        """What an entry and a head say alike."""
        camera = self._camera
        # No part was exposed later than now, whatever its camera's clock or ours has done since:
        # its gate would be kept too late.
        age_ns = max(0, time.time_ns() - exposure.captured_ns)
        captured_ns = self._stream.now_ns() - age_ns
        unclear_ms = self._stream.clock_uncertainty_ms
        gate_ms = camera.gate_ms - (unclear_ms if unclear_ms > CLEAR_MS else 0)
        return {
            "frame_id": frame_id,
            "camera": camera.name,
            "captured_ns": captured_ns,
            "deadline_ns": captured_ns + int(gate_ms * 1e6),
            "category": exposure.category or camera.category,
            "recipe": exposure.recipe or camera.recipe,
            "part_id": exposure.part_id,
            "lot": exposure.lot or camera.lot,
            "source_frame_id": exposure.source_frame_id,
            "replayed": bool(exposure.source_frame_id),
        }


def _unusable(known: dict[str, Any], sentence: str) -> FrameHead:
    facts.event("bad_frame", level="warning", frame_id=known["frame_id"], sentence=sentence)
    return FrameHead(**known)


def _cropped(image: UInt8, crop: tuple[int, int, int, int] | None) -> UInt8:
    """The part of an image [H, W, 3] inside ``crop`` = (x, y, w, h)."""
    if crop is None:
        return image
    x, y, width, height = crop
    if y + height > image.shape[0] or x + width > image.shape[1]:
        raise BadFrame(
            f"the crop {crop} reaches beyond a frame of {image.shape[1]} x {image.shape[0]}; "
            "correct it in the line's configuration"
        )
    return image[y : y + height, x : x + width]

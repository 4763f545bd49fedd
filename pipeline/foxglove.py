"""Messages of a recording: Foxglove's image, drawing and log, and our own where it has none.

Field names and types follow Foxglove's published schemas, JSON encoding. The image has one field
more, ``frame``, with the provenance: readers of the plain schema pass over it.

One timeline: frame, mask, drawing and verdict of a part are logged at its exposure, so whoever
stops there sees what belongs together; the log says what happened when it happened.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from engines.contracts import Frame, Reason, Verdict
from engines.images import decode_image
from pipeline.sources.source import BadExposure, Exposure

_Schema = dict[str, Any]

TEXT_MAX = 256  # characters, as on the wire
PROVENANCE = ("frame_id", "category", "recipe", "part_id", "lot", "source_frame_id")

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_TIME: _Schema = {
    "title": "time",
    "type": "object",
    "properties": {
        "sec": {"type": "integer", "minimum": 0},
        "nsec": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    },
}
_FRAME: _Schema = {
    "type": "object",
    "properties": dict.fromkeys(PROVENANCE, _TEXT) | {"captured_ns": {"type": "integer"}},
}
_IMAGE: _Schema = {
    "title": "foxglove.CompressedImage",
    "type": "object",
    "properties": {
        "timestamp": _TIME,
        "frame_id": _TEXT,  # Foxglove's frame of reference: here the camera
        "data": {"type": "string", "contentEncoding": "base64"},
        "format": _TEXT,
        "frame": _FRAME,
    },
    "required": ["timestamp", "frame_id", "data", "format"],
}
_BAD: _Schema = {
    "title": "assayline.BadExposure",
    "type": "object",
    "properties": {**_FRAME["properties"], "sentence": _TEXT, "reason": _TEXT},
}
_POINT: _Schema = {
    "title": "foxglove.Point2",
    "type": "object",
    "properties": dict.fromkeys("xy", _NUMBER),
}
_COLOUR: _Schema = {
    "title": "foxglove.Color",
    "type": "object",
    "properties": dict.fromkeys("rgba", _NUMBER),
}
_LINE: _Schema = {
    "title": "foxglove.PointsAnnotation",
    "type": "object",
    "properties": {
        "timestamp": _TIME,
        "type": {"type": "integer"},
        "points": {"type": "array", "items": _POINT},
        "outline_color": _COLOUR,
        "outline_colors": {"type": "array", "items": _COLOUR},
        "fill_color": _COLOUR,
        "thickness": _NUMBER,
    },
}
_LABEL: _Schema = {
    "title": "foxglove.TextAnnotation",
    "type": "object",
    "properties": {
        "timestamp": _TIME,
        "position": _POINT,
        "text": _TEXT,
        "font_size": _NUMBER,
        "text_color": _COLOUR,
        "background_color": _COLOUR,
    },
}
_ANNOTATIONS: _Schema = {
    "title": "foxglove.ImageAnnotations",
    "type": "object",
    "properties": {
        "timestamp": _TIME,
        "circles": {"type": "array", "items": {"type": "object"}},
        "points": {"type": "array", "items": _LINE},
        "texts": {"type": "array", "items": _LABEL},
    },
    "required": ["circles", "points", "texts"],
}
_LOG: _Schema = {
    "title": "foxglove.Log",
    "type": "object",
    "properties": {
        "timestamp": _TIME,
        "level": {"type": "integer"},
        "message": _TEXT,
        "name": _TEXT,
        "file": _TEXT,
        "line": {"type": "integer", "minimum": 0},
    },
    "required": ["timestamp", "level", "message", "name", "file", "line"],
}
SCHEMAS: dict[str, _Schema] = {
    "foxglove.CompressedImage": _IMAGE,
    "foxglove.ImageAnnotations": _ANNOTATIONS,
    "foxglove.Log": _LOG,
    "assayline.Verdict": Verdict.model_json_schema(),
    "assayline.BadExposure": _BAD,
}
CHANNELS = {
    "frame": "foxglove.CompressedImage",
    "mask": "foxglove.CompressedImage",
    "annotations": "foxglove.ImageAnnotations",
    "log": "foxglove.Log",
    "verdict": "assayline.Verdict",
    "bad_exposure": "assayline.BadExposure",
}


def stamp(time_ns: int) -> dict[str, int]:
    """A time as Foxglove has it."""
    return {"sec": time_ns // 10**9, "nsec": time_ns % 10**9}


def picture(camera: str, time_ns: int, png: bytes) -> dict[str, Any]:
    """A foxglove.CompressedImage of PNG bytes."""
    return {
        "timestamp": stamp(time_ns),
        "frame_id": camera,
        "format": "png",
        "data": base64.b64encode(png).decode(),
    }


def provenance(exposure: Exposure) -> dict[str, Any]:
    """What a replay needs to know of an exposure besides its image."""
    known = {key: getattr(exposure, key) for key in PROVENANCE}
    return known | {"captured_ns": exposure.captured_ns}


def frame_from(camera: str, data: bytes) -> Frame:
    """The frame in a message; raises ValueError, KeyError, TypeError or BadFrame."""
    message = json.loads(data)
    about = message["frame"]
    image = decode_image(base64.b64decode(message["data"], validate=True), about["frame_id"])
    return Frame(camera=camera, image=image, **_described(about))


def bad_exposure_from(camera: str, data: bytes) -> BadExposure:
    """The bad exposure in a message; raises ValueError, KeyError or TypeError."""
    about = json.loads(data)
    sentence, reason = str(about["sentence"]), Reason(about["reason"])
    return BadExposure(camera=camera, sentence=sentence, reason=reason, **_described(about))


def _described(about: dict[str, Any]) -> dict[str, Any]:
    texts = {key: str(about[key]) for key in PROVENANCE}
    captured_ns = int(about["captured_ns"])
    if not 0 <= captured_ns < 2**63 or max(map(len, texts.values())) > TEXT_MAX:
        raise ValueError("a stamp or a text of it is beyond any")
    return texts | {"captured_ns": captured_ns}

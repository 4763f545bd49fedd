"""Frames and verdicts as fields of a Redis stream entry, and back.

A frame is two fields: ``head`` (JSON, what is known about the part) and one of ``image`` (raw
uint8, the model input), ``lz4`` (the same, packed) and ``slot`` (where it lies in shared memory).
A verdict is four: ``verdict`` (JSON), ``mask``, ``picture`` and ``map`` (PNG or empty). Sizes are
checked before anything is parsed, so any bytes give a value or :class:`BadFrame`.

Whether packing pays depends on the link and on the camera's noise, so each camera says (``codec``),
and what packing does not make smaller is sent as it is. At 256 x 256 pixels (196 kB;
one core, milliseconds to pack + to unpack, share of the size that is left):

    lz4, public photographs of parts that compress well (grey, or of few tones)
                                .06-.35 + .02-.08     .05-.6
    lz4, one whose noise does not (cookies in colour)
                                .17 + .02             .9
    on simulated frames (disc, board, fabric):
    lz4                         .02-.22 + .01-.04     .93-1.0
    zstd 1                      .14-.41 + .12-.16     .83-.90
    zstd 1, rows' differences   .15-.46 + .22-.27     .59-.79
    PNG 1                       3.8-4.1 + 1.7         .58-.70

A link of 1 Gbit/s takes 1.57 ms for such a frame: lz4 at .5 makes that 1.2 ms in all, and at .1 a
sixth. A socket of the host costs less than any codec, so ``none`` is the default. ``bench
transport`` measures the row of lz4 on simulated frames anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Annotated, Any, Literal, Self

import lz4.block
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.contracts import ADAPTIVE, VERDICT_SCHEMA, BadFrame, Decision, Reason, UInt8, Verdict

FRAME_SCHEMA = 1
MAX_HEAD_BYTES = 16_384
MAX_IMAGE_BYTES = 64_000_000
MAX_VERDICT_BYTES = 4_000_000
MAX_PICTURE_BYTES = 64_000_000  # of a mask, picture or map that comes with a verdict
LZ4_RATIO_MAX = 255  # nothing becomes more than so many times smaller
CAMERA_NAME = r"[A-Za-z0-9_.-]{1,64}"
ENTRY_ID = r"[0-9]{1,15}-[0-9]{1,15}"  # below 2^53, so that scripts compare it exactly
FRAME_ID = re.compile(f"({CAMERA_NAME})/({ENTRY_ID})", re.ASCII)

Text = Annotated[str, Field(max_length=256)]
Side = Annotated[int, Field(ge=1, le=65_536)]
Length = Annotated[int, Field(ge=0, le=65_536)]
Stamp = Annotated[int, Field(ge=0, lt=2**63)]  # nanoseconds of an epoch
Codec = Literal["none", "lz4"]  # how images travel in the stream
# The image [h, w, 3] of a frame id at a place in shared memory; see pipeline.shared.
Fetch = Callable[[str, bytes, tuple[int, int]], UInt8]


@dataclass(frozen=True, slots=True, eq=False)
class FrameEntry:
    """One frame as it travels to an inspector: its model input and what is known about its part."""

    frame_id: str  # "<camera>/<epoch>-<counter>"
    camera: str
    captured_ns: int  # server clock, epoch nanoseconds
    deadline_ns: int  # server clock; the gate acts then
    image: UInt8  # [h, w, 3] RGB model input
    category: str = ""  # "" = unknown
    recipe: str = ""
    part_id: str = ""
    lot: str = ""
    source_frame_id: str = ""
    plan: int = ADAPTIVE
    frame_size: tuple[int, int] = (0, 0)  # (H, W) of the full frame; (0, 0) = not told
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)  # (x, y, w, h) in the full frame
    replayed: bool = False


class FrameHead(BaseModel):
    """A frame without its image: kept while it is open, so that anyone can answer for the part."""

    # Strings of frames never come again: nobody need keep the newest 16,384 of them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", from_attributes=True, cache_strings="keys"
    )
    schema_version: int = FRAME_SCHEMA
    frame_id: str
    camera: str = Field(pattern=f"^{CAMERA_NAME}$")
    captured_ns: Stamp
    deadline_ns: Stamp
    category: Text = ""
    recipe: Text = ""
    part_id: Text = ""
    lot: Text = ""
    source_frame_id: Text = ""
    plan: Annotated[int, Field(ge=-(2**31), lt=2**31)] = ADAPTIVE
    frame_size: tuple[Length, Length] = (0, 0)
    crop: tuple[Length, Length, Length, Length] = (0, 0, 0, 0)
    replayed: bool = False
    image_size: tuple[Side, Side] | None = None  # (h, w); None where no image was ever sent

    @cached_property
    def written(self) -> bytes:
        """Its JSON, made once for the journal and the server."""
        return self.model_dump_json(exclude_defaults=True).encode()

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        if self.schema_version != FRAME_SCHEMA:
            raise ValueError(f"it has schema version {self.schema_version}, not {FRAME_SCHEMA}")
        if split_frame_id(self.frame_id)[0] != self.camera:
            raise ValueError(f"{self.frame_id!r} is not a frame of camera {self.camera!r}")
        return self


def split_frame_id(frame_id: str) -> tuple[str, str]:
    """Camera and entry id of ``<camera>/<epoch>-<counter>``; ``ValueError`` if it is none."""
    if not (found := FRAME_ID.fullmatch(frame_id)):
        raise ValueError(f"{frame_id!r} is not a frame id: <camera>/<epoch>-<counter> is expected")
    return found[1], found[2]


def head_of(frame: FrameEntry | Verdict) -> FrameHead:
    """What is known about the part, from its frame or from its verdict (whose deadline is past)."""
    if isinstance(frame, FrameEntry):
        known = _shared_of(frame)
        known["image_size"] = frame.image.shape[:2]
    else:
        known = {name: getattr(frame, name) for name in _SHARED if name in Verdict.model_fields}
        known["plan"] = ADAPTIVE if frame.plan is None else frame.plan
        known["deadline_ns"] = frame.decided_ns
    try:
        return FrameHead(**known)
    except ValidationError as error:
        raise BadFrame(f"{frame.frame_id} cannot be sent: {_first(error)}.") from None


def to_fields(
    entry: FrameEntry, slot: bytes = b"", codec: Codec = "none", head: FrameHead | None = None
) -> dict[str, bytes | memoryview]:
    """Stream fields of a frame; the image is a view of the entry's own array if contiguous.

    With ``slot`` the image lies in shared memory already, and only its place travels. A ``codec``
    is used where it makes the image smaller. ``head`` is the entry's, where there is one already.
    """
    image = np.ascontiguousarray(entry.image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise BadFrame(
            f"{entry.frame_id}: a model input is uint8 [h, w, 3], not {image.dtype} {image.shape}."
        )
    if not 0 < image.nbytes <= MAX_IMAGE_BYTES:
        raise BadFrame(f"{entry.frame_id}: an image of {image.nbytes} bytes cannot be sent.")
    payload = {"slot": slot} if slot else _packed(image.reshape(-1).data, codec)
    return {"head": head_bytes(head or head_of(entry)), **payload}


def _packed(pixels: memoryview, codec: Codec) -> dict[str, memoryview]:
    if codec == "lz4":
        packed = lz4.block.compress(pixels, store_size=False)
        if len(packed) < len(pixels):
            return {"lz4": memoryview(packed)}
    return {"image": pixels}


def _unpacked(packed: bytes, size: int) -> bytes:
    """So many bytes, or ValueError; what cannot be as many is not even tried."""
    if not len(packed) < size <= len(packed) * LZ4_RATIO_MAX:
        raise ValueError("its length is impossible")
    try:
        pixels: bytes = lz4.block.decompress(packed, uncompressed_size=size)
    except lz4.block.LZ4BlockError as error:
        raise ValueError(str(error)) from None
    return pixels


def entry_from(fields: Mapping[bytes, bytes], fetch: Fetch | None = None) -> FrameEntry:
    """The frame in a stream entry; its image is a read-only view of the bytes received.

    An image in shared memory is what ``fetch`` brings, which may raise errors of its own.
    """
    head = head_from(fields.get(b"head", b""))
    h, w = head.image_size or (0, 0)
    if not 0 < h * w * 3 <= MAX_IMAGE_BYTES:
        raise BadFrame(f"{head.frame_id}: the entry holds no usable image.")
    slot = fields.get(b"slot", b"")
    if slot and fetch is not None:
        image = fetch(head.frame_id, slot, (h, w))
    else:
        image = _image_in(fields, head.frame_id, (h, w))
    return FrameEntry(image=image, **_shared_of(head))


def _image_in(fields: Mapping[bytes, bytes], frame_id: str, size: tuple[int, int]) -> UInt8:
    """The image [h, w, 3] that an entry carries itself, or BadFrame."""
    h, w = size
    packed = fields.get(b"lz4", b"")
    try:
        pixels = _unpacked(packed, h * w * 3) if packed else fields.get(b"image", b"")
    except ValueError as error:
        raise BadFrame(f"{frame_id}: {len(packed)} bytes of lz4 are no image: {error}.") from None
    if len(pixels) != h * w * 3:
        raise BadFrame(f"{frame_id}: {len(pixels)} image bytes are not {h} x {w} x 3.")
    return np.frombuffer(pixels, np.uint8).reshape(h, w, 3)


def head_bytes(head: FrameHead) -> bytes:
    """JSON of a head; BadFrame when its texts do not fit."""
    data = head.written
    if len(data) > MAX_HEAD_BYTES:
        raise BadFrame(f"{head.frame_id}: its description is longer than {MAX_HEAD_BYTES} bytes.")
    return data


def head_from(data: bytes) -> FrameHead:
    """The head in JSON bytes, or BadFrame."""
    if not 0 < len(data) <= MAX_HEAD_BYTES:
        raise BadFrame(f"An entry with a head of {len(data)} bytes is no frame.")
    try:
        return FrameHead.model_validate_json(data)
    except ValidationError as error:
        raise BadFrame(f"An entry is no frame: {_first(error)}.") from None


def verdict_fields(
    verdict: Verdict, mask_png: bytes = b"", picture_png: bytes = b"", map_png: bytes = b""
) -> dict[str, bytes]:
    """Stream fields of a verdict with its mask, picture and anomaly map (PNG, or empty)."""
    data = verdict.model_dump_json().encode()
    return {"verdict": data, "mask": mask_png, "picture": picture_png, "map": map_png}


def verdict_from(fields: Mapping[bytes, bytes]) -> tuple[Verdict, bytes, bytes, bytes]:
    """The verdict in a stream entry with its mask, picture and map, or BadFrame."""
    data = fields.get(b"verdict", b"")
    if not 0 < len(data) <= MAX_VERDICT_BYTES:
        raise BadFrame(f"An entry with a record of {len(data)} bytes is no verdict.")
    try:
        verdict = Verdict.model_validate_json(data)
    except ValidationError as error:
        raise BadFrame(f"An entry is no verdict: {_first(error)}.") from None
    if verdict.schema_version != VERDICT_SCHEMA:
        raise BadFrame(f"Verdict schema {verdict.schema_version} is not {VERDICT_SCHEMA}.")
    mask, picture, anomaly_map = (fields.get(name, b"") for name in (b"mask", b"picture", b"map"))
    if max(map(len, (mask, picture, anomaly_map))) > MAX_PICTURE_BYTES:
        raise BadFrame(f"{verdict.frame_id}: a picture of it is too large to be one.")
    return verdict, mask, picture, anomaly_map


def undecided(part: FrameEntry | FrameHead, reason: Reason, decided_ns: int) -> Verdict:
    """The verdict on a part that nobody could judge, for ``reason``."""
    return Verdict(
        frame_id=part.frame_id,
        source_frame_id=part.source_frame_id,
        camera=part.camera,
        part_id=part.part_id,
        lot=part.lot,
        recipe=part.recipe,
        category=part.category,
        decision=Decision.UNDECIDED,
        reason=reason,
        captured_ns=part.captured_ns,
        decided_ns=decided_ns,
        latency_ms={"total": max(0, decided_ns - part.captured_ns) / 1e6},
        replayed=part.replayed,
    )


def _first(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(step) for step in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])


_SHARED = tuple(
    name for name in FrameHead.model_fields if name not in ("schema_version", "image_size")
)
_SHARED_BY = attrgetter(*_SHARED)


def _shared_of(frame: FrameEntry | FrameHead) -> dict[str, Any]:
    """What a frame and its head say alike."""
    return dict(zip(_SHARED, _SHARED_BY(frame), strict=True))

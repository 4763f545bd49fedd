"""The vocabulary every room speaks: frames, findings, verdicts, and the error tree.

Numpy and pydantic only. Arrays make ``==`` ambiguous, so types that hold arrays compare by
identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Int32 = NDArray[np.int32]
AnyArray = NDArray[Any]

VERDICT_SCHEMA = 1
ADAPTIVE = -1  # the plan number that lets the start graph choose
BY_PATH = "path:"  # before a folder or a hub id, in the place of a network's name


def at_most(plan: int) -> int:
    """The plan number that lets the start graph choose any plan up to this one."""
    return -2 - plan


class Decision(StrEnum):
    """What the line is told about a part. UNDECIDED is rejected by default."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    FAIL = "FAIL"
    UNDECIDED = "UNDECIDED"


class Reason(StrEnum):
    """Why a verdict is UNDECIDED; every loss is counted under one of these."""

    DEADLINE = "deadline"
    OVERRUN = "overrun"
    BAD_FRAME = "bad_frame"
    NO_EVIDENCE = "no_evidence"
    ENGINE_FAULT = "engine_fault"
    TRANSPORT = "transport"
    TRANSPORT_RESTART = "transport_restart"
    CAMERA_FAULT = "camera_fault"
    SHUTDOWN = "shutdown"


class ExitCode(IntEnum):
    """What a process tells its shell; documented in the README."""

    OK = 0
    FAULT = 1
    USAGE = 2
    BAD_DATA = 3
    BAD_BUNDLE = 4
    BAD_CONFIG = 5
    NO_SERVER = 6
    NO_SOURCE = 7
    PARITY = 8
    DIFFERENT = 9


class InspectionError(Exception):
    """Root of everything this project raises; its text is one sentence for people."""

    exit_code: ExitCode = ExitCode.FAULT


class BadFrame(InspectionError):
    """This frame only: quarantine it, answer UNDECIDED."""

    exit_code = ExitCode.BAD_DATA


class BadData(InspectionError):
    """A folder or file of images cannot serve; nothing was written."""

    exit_code = ExitCode.BAD_DATA


class BadBundle(InspectionError):
    """The bundle is damaged, foreign or incomplete; it is not loaded."""

    exit_code = ExitCode.BAD_BUNDLE


class BadConfig(InspectionError):
    """The configuration names something that does not exist or cannot be."""

    exit_code = ExitCode.BAD_CONFIG


class StreamLost(InspectionError):
    """The network: back off, reconnect, resume."""

    exit_code = ExitCode.NO_SERVER


class StreamFull(StreamLost):
    """The server has no room for an image; it changed nothing, and small answers still pass."""


class SourceLost(InspectionError):
    """The camera or file gives no frames: reconnect where it can come back, else end."""

    exit_code = ExitCode.NO_SOURCE


class EngineFault(InspectionError):
    """This process: exit, the supervisor restarts it."""


class ParityError(InspectionError):
    """A compiled engine disagrees with the parity set; it is not used."""

    exit_code = ExitCode.PARITY


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One exposure with its provenance, as a source yields it and a recording keeps it."""

    frame_id: str  # "<camera>/<epoch>-<counter>"; "" until ingest stamps it
    camera: str
    captured_ns: int  # epoch nanoseconds
    image: UInt8  # [H, W, 3] RGB
    category: str = ""  # "" = unknown
    recipe: str = ""
    part_id: str = ""
    lot: str = ""
    source_frame_id: str = ""  # the frame_id in the recording this one was replayed from


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Inputs of a start graph, one row per frame."""

    image: UInt8  # [B, H, W, 3] RGB, the model input
    category: Int64  # [B]
    seed: Int64  # [B] picks the row of the constant noise table
    plan: Int32  # [B] ADAPTIVE, at_most(...) or a row of the plan table

    def __len__(self) -> int:
        return len(self.category)


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """The few numbers that come back from a backend after start and step."""

    steps_left: Int32  # [B] denoiser calls still to make
    plan: Int32  # [B] the plan taken
    level: Int32  # [B] the noise level chosen so far; final once steps_left is 0


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What a finish graph says of a batch."""

    anomaly_map: Float32  # [B, h', w']
    anomaly_score: Float32  # [B]


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """What was measured on one frame, or on one tile of it; not yet judged.

    Of a frame in tiles the score, plan, level and steps are those of its most surprising tile.
    """

    frame_id: str
    category: str
    anomaly_map: Float32  # [h', w'], of the whole frame
    anomaly_score: float  # NaN = no evidence
    plan: int
    level: int
    steps: int  # denoiser calls made
    steps_planned: int
    reason: Reason | None = None  # why there is no evidence, or none of some tile
    other_calls: int = 0  # made for the other tiles of the frame

    @property
    def calls(self) -> int:
        """Denoiser calls made for the whole frame."""
        return self.steps + self.other_calls


class Backend(Protocol):
    """A runtime that executes a bundle's three graphs over state rows that it owns.

    ``slots`` are row numbers below ``capacity``; a row lives from ``start`` until it is
    overwritten. One thread opens, uses and closes a backend.
    """

    capacity: int
    key: str  # "<backend>:<precision>", what a calibration is keyed by

    def start(self, rows: Rows, slots: list[int]) -> Progress:
        """Encode, choose the level, place each frame on it."""
        ...

    def step(self, slots: list[int]) -> Progress:
        """One denoiser call for every row named, each at its own level."""
        ...

    def finish(self, slots: list[int]) -> Evidence:
        """Anomaly maps and scores from the rows' estimates."""
        ...

    def close(self) -> None:
        """Release the runtime."""
        ...


Stamp = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # epoch nanoseconds


class Region(BaseModel):
    """One connected patch of the mask, in frame pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    x: NonNegativeInt
    y: NonNegativeInt
    w: NonNegativeInt
    h: NonNegativeInt
    area_px: NonNegativeInt
    peak: float


class Verdict(BaseModel):
    """The product's public record of one frame (schema version 1).

    The mask (PNG, 8 bit, 0 or 255, frame geometry) and, for parts not passed, the picture the model
    saw (PNG) travel beside this record, not in it. Where a bundle cuts frames into tiles, score,
    surprise, level, plan and steps are those of the most surprising tile, which decides; regions
    and mask are of the whole frame.
    """

    # Most of its strings never come again: nobody need keep the newest 16,384 of them.
    model_config = ConfigDict(frozen=True, extra="forbid", cache_strings="keys")
    schema_version: int = VERDICT_SCHEMA
    frame_id: str
    source_frame_id: str = ""
    camera: str
    part_id: str = ""
    lot: str = ""
    recipe: str = ""
    category: str = ""
    decision: Decision
    reason: Reason | None = None  # set exactly when UNDECIDED
    anomaly_score: float | None = None  # raw, unclamped
    surprise: float | None = None  # -log10 tail probability among good parts
    threshold: float | None = None  # of the surprise
    regions: tuple[Region, ...] = ()
    level: int | None = None
    plan: int | None = None
    steps: NonNegativeInt = 0
    steps_planned: NonNegativeInt = 0
    captured_ns: Stamp
    decided_ns: Stamp
    latency_ms: dict[str, NonNegativeFloat] = {}
    bundle_id: str = ""
    backend: str = ""
    calibration_id: str = ""
    replayed: bool = False

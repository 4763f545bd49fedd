"""What the page *Line* shows at one moment: plain values, no web framework and no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from pipeline.outputs.archive import stem_of_frame
from pipeline.sight import CameraState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.contracts import Verdict

SILENT_S = 5.0  # a camera without frames for longer is starving


class Totals(Protocol):
    """The ledger of one camera, as the stream reports it."""

    @property
    def captured(self) -> int: ...  # noqa: D102 - counts named by the ledger
    @property
    def passed(self) -> int: ...  # noqa: D102
    @property
    def failed(self) -> int: ...  # noqa: D102
    @property
    def undecided(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def open(self) -> int: ...  # noqa: D102


class LineState(StrEnum):
    """One word for the whole line, worst first."""

    NO_SERVER = "NO SERVER"  # said by whoever reads, the numbers cannot know
    UNACCOUNTED = "PARTS UNACCOUNTED"
    NO_FRAMES = "NO FRAMES"
    CAMERA_DOWN = "CAMERA DOWN"
    CAMERA_FROZEN = "CAMERA FROZEN"
    CAMERA_STARVING = "CAMERA STARVING"
    LATE = "LATE"
    WAITING = "WAITING"
    RUNNING = "RUNNING"


@dataclass(frozen=True, slots=True)
class CameraRow:
    """One camera's line of the table."""

    camera: str
    captured: int
    passed: int
    failed: int
    undecided: int
    open: int
    backlog: int
    frame_age_s: float | None  # None before its first frame
    state: CameraState = CameraState.RUNNING

    @property
    def is_silent(self) -> bool:
        """True when frames came before and have stopped."""
        return self.frame_age_s is not None and self.frame_age_s > SILENT_S


def camera_state(told: CameraState, frame_age_s: float | None) -> CameraState:
    """How a camera is: what its process says, and whether frames come."""
    if told is not CameraState.RUNNING:
        return told
    is_silent = frame_age_s is None or frame_age_s > SILENT_S
    return CameraState.STARVING if is_silent else CameraState.RUNNING


@dataclass(frozen=True, slots=True, eq=False)
class Reject:
    """A part that was not passed, with what people need to see of it."""

    key: str  # names its picture on the page; says nothing of the part
    verdict: Verdict
    picture_png: bytes
    mask_png: bytes
    map_png: bytes = b""  # see engines.images.encode_map

    @property
    def stem(self) -> str:
        """Its name in the archive and in addresses; "" for a foreign frame id."""
        try:
            return stem_of_frame(self.verdict.frame_id)
        except ValueError:
            return ""


@dataclass(frozen=True, slots=True)
class RatePoint:
    """Parts per minute by decision at one moment."""

    at_ns: int
    passed: float
    failed: float
    undecided: float


@dataclass(frozen=True, slots=True, eq=False)
class LineView:
    """Everything on the page at one moment."""

    line: str
    at_ns: int
    state: LineState
    captured: int = 0
    passed: int = 0
    failed: int = 0
    undecided: Mapping[str, int] = field(default_factory=dict)
    open: int = 0
    residual: int = 0  # captured - answered - open: 0, or a part has no answer and no deadline
    backlog: int = 0
    parts_per_minute: float = 0.0
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    gate_ms: float | None = None  # the shortest gate of the line
    depth: tuple[tuple[int, int], ...] = ()  # (steps, frames), every step count up to the deepest
    rates: tuple[RatePoint, ...] = ()
    cameras: tuple[CameraRow, ...] = ()
    rejects: tuple[Reject, ...] = ()  # newest first

    @property
    def answered(self) -> int:
        """Parts with a verdict."""
        return self.passed + self.failed + sum(self.undecided.values())

    @property
    def yield_fraction(self) -> float | None:
        """Passed of answered, in [0, 1]; None before the first answer."""
        return self.passed / self.answered if self.answered else None


def state_of(view: LineView) -> LineState:
    """The worst thing that the numbers say of the line now."""
    ages = [row for row in view.cameras if row.frame_age_s is not None]
    states = {row.state for row in view.cameras}
    is_late = bool(view.gate_ms and view.latency_p99_ms and view.latency_p99_ms > view.gate_ms)
    claims = (
        (view.residual != 0, LineState.UNACCOUNTED),
        (not ages, LineState.WAITING),
        (CameraState.DOWN in states, LineState.CAMERA_DOWN),
        (CameraState.FROZEN in states, LineState.CAMERA_FROZEN),
        (all(row.is_silent for row in ages), LineState.NO_FRAMES),
        (CameraState.STARVING in states, LineState.CAMERA_STARVING),
        (is_late, LineState.LATE),
    )
    return next((state for holds, state in claims if holds), LineState.RUNNING)

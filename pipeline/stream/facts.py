"""What the stream hands out, and the names of its keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from engines.contracts import BadConfig, Decision, Verdict
from pipeline.wire import CAMERA_NAME

UNDECIDED_FIELD = "undecided:"
OUTCOMES = {Decision.PASS.lower(), Decision.FAIL.lower()}


class Keys:
    """Keys of one camera. They share its hash tag, so a cluster keeps a camera on one shard."""

    __slots__ = (
        "epoch",
        "frames",
        "heads",
        "lateness",
        "ledger",
        "open",
        "quarantine",
        "unacted",
        "verdicts",
    )

    def __init__(self, namespace: str, camera: str) -> None:
        if not re.fullmatch(CAMERA_NAME, camera, re.ASCII):
            raise BadConfig(
                f"{camera!r} cannot name a camera: use up to 64 letters, digits, '.', '_' or '-'."
            )
        for name in self.__slots__:
            setattr(self, name, f"{namespace}:{{{camera}}}:{name}")

    frames: str  # stream: model inputs that wait for a verdict
    open: str  # sorted set: entry id by deadline (microseconds), what has no verdict yet
    heads: str  # hash: entry id -> what is known about the part, as long as it is open
    ledger: str  # hash: counts, and the highest entry id ever taken
    verdicts: str  # stream: one entry per frame
    unacted: str  # hash: entry id -> ledger field, what is answered and no sink has acted on
    quarantine: str  # stream: the last few entries that no inspector could read
    epoch: str
    lateness: str  # milliseconds: how late the looks of the gate keeper may be just now


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A frame entry handed to one consumer. ``deliveries`` is the token its answer is fenced by."""

    camera: str
    entry_id: str
    deliveries: int
    fields: Mapping[bytes, bytes]

    @property
    def frame_id(self) -> str:
        """The name the frame goes by everywhere else."""
        return f"{self.camera}/{self.entry_id}"


@dataclass(frozen=True, slots=True, eq=False)
class VerdictDelivery:
    """A verdict read from the stream. ``entry_id`` ends in a gapless number per camera."""

    camera: str
    entry_id: str
    verdict: Verdict
    mask_png: bytes
    picture_png: bytes
    map_png: bytes = b""  # see engines.images.encode_map


@dataclass(frozen=True, slots=True)
class Ledger:
    """Counts of one camera, over a server that was lost too; ``residual`` is 0 at rest."""

    captured: int
    passed: int
    failed: int
    undecided: dict[str, int]  # by reason
    open: int

    @property
    def residual(self) -> int:
        """Frames captured that have no verdict."""
        return self.captured - self.passed - self.failed - sum(self.undecided.values())


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the frames of one camera stand, at one instant."""

    open: Set[str]  # frame ids without a verdict
    unacted: Mapping[str, str]  # frame_id -> ledger field, answered and not acted on by a sink
    acted: Mapping[str, int]  # ledger field -> frames that are dealt with
    has_sink: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes the server uses and may use (0 = no limit)."""

    used_bytes: int
    limit_bytes: int


LOWER = {decision: decision.lower() for decision in Decision}


def ledger_field(verdict: Verdict) -> str:
    """The count that a verdict adds to."""
    if verdict.decision is Decision.UNDECIDED:
        return f"{UNDECIDED_FIELD}{verdict.reason or 'unknown'}"
    return LOWER[verdict.decision]


def ledger_from(counts: Mapping[bytes, bytes], still_open: int) -> Ledger:
    """The ledger in a camera's hash of counts."""
    numbers = {name.decode(): value for name, value in counts.items()}
    undecided = {
        name.removeprefix(UNDECIDED_FIELD): int(value)
        for name, value in numbers.items()
        if name.startswith(UNDECIDED_FIELD) and int(value)
    }
    captured, passed, failed = (int(numbers.get(name, 0)) for name in ("captured", "pass", "fail"))
    return Ledger(captured, passed, failed, undecided, still_open)


def standing_from(
    camera: str, still_open: Sequence[bytes], unacted: Sequence[bytes], counts: Sequence[bytes]
) -> tuple[Set[str], Mapping[str, str], Mapping[str, int]]:
    """The open, the unacted and the count of the acted, of one camera's keys."""
    waiting = {f"{camera}/{frame.decode()}": field.decode() for frame, field in _pairs(unacted)}
    answered = {
        name: int(value)
        for raw, value in _pairs(counts)
        if (name := raw.decode()) in OUTCOMES or name.startswith(UNDECIDED_FIELD)
    }
    acted = Counter(answered)
    acted.subtract(Counter(waiting.values()))
    return {f"{camera}/{entry_id.decode()}" for entry_id in still_open}, waiting, +acted


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)

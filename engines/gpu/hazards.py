"""Who may touch which bytes when: what a device that computes at once must check to be believed.

The host and every stream are actors with a vector clock (Mattern 1989): a clock knows, for each
actor, how much of its work happened before. Waiting for an event or a stream joins clocks, and so
does queueing, since what the host did before it queued happened before. Two touches of the same
bytes, one of them a write, are a hazard unless one happened before the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from engines.contracts import UInt8

HOST = 0
Clock = dict[int, int]  # actor -> ticks known to have happened before
Kind = Literal["reads", "writes"]


class Hazard(Exception):
    """An order that a real device would not keep, or memory that is not there."""


def join(clock: Clock, other: Clock) -> None:
    """Let a clock know all that another one knows."""
    for actor, ticks in other.items():
        clock[actor] = max(clock.get(actor, 0), ticks)


@dataclass(frozen=True, slots=True)
class Touch:
    """An access that others have to be ordered with."""

    first: int  # byte
    past: int  # one after the last byte
    actor: int
    kind: Kind
    tick: int
    what: str

    def meets(self, other: Touch) -> bool:
        """Whether two touches concern the same bytes and one of them writes."""
        return (
            self.first < other.past
            and other.first < self.past
            and "writes" in (self.kind, other.kind)
        )


@dataclass(slots=True, eq=False)
class Region:
    """One allocation: its bytes, which of them were ever written, and who touched them last."""

    name: str
    memory: UInt8
    is_pinned: bool
    is_live: bool = True
    address: int = field(init=False)  # of its first byte
    written: np.ndarray[tuple[int], np.dtype[np.bool_]] = field(init=False)
    _touches: dict[tuple[int, int, int, Kind], Touch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.address = int(self.memory.ctypes.data)
        self.written = np.zeros(self.memory.nbytes, bool)

    def touch(self, span: tuple[int, int], kind: Kind, actor: int, clock: Clock, what: str) -> None:
        """Note an access by an actor whose clock includes it; raises Hazard for a disorder."""
        new = Touch(*span, actor, kind, clock[actor], what)
        if not self.is_live:
            raise Hazard(f"{what} {kind} {self.name}, which was freed")
        if new.first < 0 or new.past > self.memory.nbytes:
            raise Hazard(f"{what} {kind} beyond the end of {self.name}")
        for old in self._touches.values():
            if new.meets(old) and old.tick > clock.get(old.actor, 0):
                raise Hazard(f"{what} {kind} {self.name} while {old.what} may be under way")
        if kind == "reads" and not self.written[new.first : new.past].all():
            raise Hazard(f"{what} reads {self.name} before anything was written there")
        self._note(new)

    def quiet_for(self, clock: Clock) -> bool:
        """Whether all touches happened before."""
        return all(old.tick <= clock.get(old.actor, 0) for old in self._touches.values())

    def _note(self, new: Touch) -> None:
        """Whatever a write covers was ordered before it, so the write alone is enough to know."""
        if new.kind == "writes":
            self.written[new.first : new.past] = True
            covered = [
                key
                for key, old in self._touches.items()
                if new.first <= old.first and old.past <= new.past
            ]
            for key in covered:
                del self._touches[key]
        key = (new.first, new.past, new.actor, new.kind)
        self._touches.pop(key, None)
        self._touches[key] = new

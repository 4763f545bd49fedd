"""What a check is asked for, and what became of one of its parts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from engines.contracts import BadData, InspectionError
from pipeline.bench.report import Result

ASKED, PARTS = "asked.json", "parts"
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class NotHere(InspectionError):
    """This part cannot run on this machine; the text says why."""


class State(StrEnum):
    """How a part ended."""

    DONE = "done"
    NOT_HERE = "not here"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Found:
    """What a part that ran has to say."""

    sentence: str
    results: tuple[Result, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


class Partly(InspectionError):
    """A part failed on the way; ``found`` says how, and what was found all the same."""

    def __init__(self, found: Found) -> None:
        super().__init__(found.sentence)
        self.found = found


@dataclass(frozen=True, slots=True)
class Outcome:
    """A part after it ended; what is kept of it, and printed."""

    part: str
    state: State
    sentence: str
    seconds: float = 0.0
    results: tuple[Result, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the keys of the fields."""
        return asdict(self) | {"state": self.state.value}

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Outcome:
        """The outcome that was kept."""
        known = content | {
            "state": State(content["state"]),
            "results": tuple(Result(**result) for result in content["results"]),
        }
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Asked:
    """What every part is told; it travels as JSON to the process that runs the part."""

    out: Path
    bundles: tuple[Path, ...] = ()  # empty: the demo bundle and specimens made on the spot
    batches: tuple[int, ...] = BATCHES
    rounds: int = 5  # that a figure is the median of
    frames: int = 256  # through the scheduler, at least

    def write(self) -> None:
        """Keep what is asked where the parts look for it; BadData where nothing can be kept."""
        content = asdict(self) | {
            "out": str(self.out),
            "bundles": [str(path.resolve()) for path in self.bundles],
        }
        try:
            (self.out / PARTS).mkdir(parents=True, exist_ok=True)
            (self.out / ASKED).write_text(json.dumps(content), "utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise BadData(
                f"{self.out} cannot be written ({reason}): name another folder"
            ) from error

    @classmethod
    def read(cls, out: Path) -> Asked:
        """What was asked of the check that writes to ``out``."""
        content = json.loads((out / ASKED).read_text("utf-8"))
        bundles = tuple(Path(path) for path in content.pop("bundles"))
        batches = tuple(content.pop("batches"))
        return cls(Path(content["out"]), bundles, batches, content["rounds"], content["frames"])

    def place_of(self, part: str) -> Path:
        """Where the outcome of a part is kept."""
        return self.out / PARTS / f"{part.replace(':', '-')}.json"

    def keep(self, outcome: Outcome) -> None:
        """Write an outcome down; a later part may take the machine with it."""
        text = json.dumps(outcome.as_json(), indent=1, default=str)
        self.place_of(outcome.part).write_text(text, "utf-8")

    def kept(self, part: str) -> Outcome | None:
        """The outcome of a part, of this run or of an earlier one to the same folder."""
        place = self.place_of(part)
        return Outcome.of_json(json.loads(place.read_text("utf-8"))) if place.exists() else None

"""Which bundle a line is to run: a file in its run folder, which outlives every process.

Without it the line's own configuration says so. It also names the bundle that the configuration
named when it was written: one whose ``bundle`` was changed since then wins, so that nobody who
edits the line is overruled by a swap of last month.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from engines.bundle import Bundle, open_bundle
from engines.calibration import Calibration
from engines.contracts import BadBundle, BadConfig

if TYPE_CHECKING:
    from pipeline.config import LineSettings

FOLDER = "swap"
FILE = "wanted.json"


class Choice(BaseModel):
    """One bundle with one calibration, at a place."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bundle: Path
    bundle_id: str
    calibration_id: str

    @classmethod
    def of(cls, path: Path, bundle: Bundle, calibration: Calibration) -> Self:
        """That of an opened bundle."""
        return cls(
            bundle=path.absolute(),
            bundle_id=bundle.bundle_id,
            calibration_id=calibration.calibration_id,
        )

    def __str__(self) -> str:
        return f"bundle {self.bundle_id} with calibration {self.calibration_id}"


class Wanted(BaseModel):
    """What a line is to run from now on; ``number`` ascends with every change of mind."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: NonNegativeInt
    configured: Path  # what the line's configuration named
    chosen: Choice
    before: Choice | None = None  # to roll back to
    keeps: bool = True  # the one before stays loaded


def wanted_of(settings: LineSettings) -> Wanted | None:
    """What a swap has chosen for a line; None where its configuration says it all."""
    wanted = _written(settings)
    is_current = wanted is not None and wanted.configured == settings.bundle.absolute()
    return wanted if is_current else None


def last_number(settings: LineSettings) -> int:
    """The number of the newest order, one that its configuration has overtaken included."""
    wanted = _written(settings)
    return wanted.number if wanted else 0


def _written(settings: LineSettings) -> Wanted | None:
    path = settings.run_dir / FOLDER / FILE
    try:
        return Wanted.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadConfig(f"{path} cannot be read ({error.strerror}): give us the right") from error
    except ValidationError as error:
        raise BadConfig(f"{path} is damaged: remove it, then swap again") from error


def write_wanted(settings: LineSettings, wanted: Wanted) -> None:
    """Say what is to run; whoever looks sees the whole of it or what was there before."""
    folder = settings.run_dir / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".{FILE}.{os.getpid()}"
        with fresh.open("w") as file:
            file.write(wanted.model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / FILE)
    except OSError as error:
        raise BadConfig(f"{folder} cannot be written: {error.strerror}") from error


def bundle_in_force(settings: LineSettings) -> Path:
    """Where the bundle lies that a line runs: the one that was swapped in, or its own."""
    wanted = wanted_of(settings)
    return settings.bundle if wanted is None else wanted.chosen.bundle


def open_choice(choice: Choice) -> Bundle:
    """Open a chosen bundle; BadBundle where another lies there by now."""
    bundle = open_bundle(choice.bundle)
    if bundle.bundle_id != choice.bundle_id:
        raise BadBundle(
            f"{choice.bundle} holds bundle {bundle.bundle_id}, but {choice.bundle_id} was chosen; "
            "put that one back, or run assayline swap again"
        )
    return bundle

"""Thresholds that people have applied to a running line, and who did so, when and why.

The bundle stays as it was shipped. The changed calibration lies in the run folder and names the one
it was made from: where the bundle has another by now, it counts no more. Nothing takes effect that
is not in the audit log: its line is on the disk before the calibration is put in its place, whole,
by one rename. Workers look at the file's stamp between turns; every verdict names its calibration.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.calibration import Calibration
from engines.contracts import BadConfig, Stamp
from engines.retuning import with_threshold
from pipeline.review import append_line
from pipeline.telemetry import facts

if TYPE_CHECKING:
    from engines.bundle import Bundle

FOLDER = "thresholds"
FILE = "applied.json"
AUDIT = "audit.jsonl"
LOOK_S = 0.1  # between looks at the file's stamp
MAX_BYTES = 64 << 20
Text = Annotated[str, Field(max_length=512)]
_Seen = tuple[int, int, int] | None  # what tells one file from the next


class Applied(BaseModel):
    """A calibration in the place of a bundle's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    based_on: str  # calibration_id of the bundle's own
    calibration: Calibration


class Change(BaseModel):
    """One line of the audit log."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    at_ns: Stamp
    who: Annotated[str, Field(min_length=1, max_length=256)]
    why: Annotated[str, Field(min_length=1, max_length=512)]
    backend: Text
    category: Text
    old: float
    new: float
    bundle_id: str
    old_calibration_id: str
    calibration_id: str


class AppliedThresholds:
    """The thresholds in force for one bundle on a line."""

    def __init__(self, run_dir: Path, bundle: Bundle, own: Calibration) -> None:
        self._path = run_dir / FOLDER / FILE
        self._bundle_id = bundle.bundle_id
        self._own = own
        self._own_id = own.calibration_id
        self._seen: _Seen = None
        self._looked_s = -LOOK_S
        self.now = own

    def changed(self) -> bool:
        """Whether others are in force since this was asked last; looks at the disk now and then."""
        if time.monotonic() - self._looked_s < LOOK_S:
            return False
        self._looked_s = time.monotonic()
        seen = _stamp(self._path)
        if seen == self._seen:
            return False
        self._seen, before = seen, self.now
        self.now = self._own if seen is None else self._read()
        return self.now is not before and self.now != before

    def _read(self) -> Calibration:
        """What lies there; the bundle's own where that was made for another, or is damaged."""
        try:
            with self._path.open("rb") as file:
                applied = Applied.model_validate_json(file.read(MAX_BYTES))
        except FileNotFoundError:
            return self._own
        except (OSError, ValidationError):
            facts.event("thresholds_unreadable", level="error", path=str(self._path))
            return self.now
        is_ours = applied.calibration.bundle_id == self._bundle_id
        if not is_ours or applied.based_on != self._own_id:
            facts.event("thresholds_outdated", level="warning", based_on=applied.based_on)
            return self._own
        return applied.calibration


def apply_threshold(
    run_dir: Path,
    bundle: Bundle,
    own: Calibration,
    *,
    backend_key: str,
    category: str,
    threshold: float,
    who: str,
    why: str,
) -> Change:
    """Put another threshold in force; BadConfig where a name or a reason lacks, or the disk."""
    in_force = AppliedThresholds(run_dir, bundle, own)
    in_force.changed()
    changed = with_threshold(in_force.now, backend_key, category, threshold)
    try:
        change = Change(
            at_ns=time.time_ns(),
            who=who.strip(),
            why=why.strip(),
            backend=backend_key,
            category=category,
            old=in_force.now.entries[backend_key][category].threshold,
            new=threshold,
            bundle_id=bundle.bundle_id,
            old_calibration_id=in_force.now.calibration_id,
            calibration_id=changed.calibration_id,
        )
    except ValidationError as error:
        named = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BadConfig(f"say {named}, in at most a few sentences") from None
    applied = Applied(based_on=own.calibration_id, calibration=changed)
    fresh = _written(run_dir / FOLDER, applied.model_dump_json(indent=1) + "\n")
    append_line(run_dir / FOLDER / AUDIT, change.model_dump_json())
    fresh.replace(run_dir / FOLDER / FILE)
    return change


def changes(run_dir: Path) -> list[Change]:
    """The audit log, newest first; a line that is none is passed over."""
    try:
        lines = (run_dir / FOLDER / AUDIT).read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in reversed(lines):
        try:
            found.append(Change.model_validate_json(line))
        except ValidationError:
            continue
    return found


def _written(folder: Path, text: str) -> Path:
    """A file with this text, on the disk under a name of its own."""
    fresh = folder / f".{FILE}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise BadConfig(f"{fresh} cannot be written: {error.strerror or error}") from error
    return fresh


def _stamp(path: Path) -> _Seen:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino

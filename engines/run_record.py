"""What a training run was started with, so that ``--resume`` goes on with nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

from engines.contracts import BadData
from engines.images import fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from engines.recipe import GoodParts, TrainSettings

RECORD = "run.json"


def open_run(
    folder: Path,
    settings: TrainSettings,
    parts: Sequence[GoodParts],
    based_on: str,
    *,
    resume: bool,
) -> None:
    """Make the folder of a run and write its record there; without ``resume`` it starts empty.

    ``based_on``: id of the bundle it builds on, or "". Raises BadData where the run to resume was
    started with other settings, images or bundle; nothing is then changed.
    """
    record = {
        "settings": settings.model_dump(mode="json"),
        "images": images_digest(parts),
        "based_on": based_on,
    }
    path = folder / RECORD
    if not resume and folder.exists():
        shutil.rmtree(folder)
    if path.exists() and (told := _difference(_read(path), _flat(record))):
        raise BadData(f"{folder} was started with {told}; use that again or train without --resume")
    folder.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{RECORD}.partial")
    scratch.write_text(json.dumps(record, indent=1) + "\n")
    scratch.replace(path)


def images_digest(parts: Sequence[GoodParts]) -> str:
    """Short hash of every image, what it is used for, and its category."""
    used = [
        (part.category, *(sorted(map(fingerprint, side)) for side in (part.train, part.held_out)))
        for part in parts
    ]
    return hashlib.sha256(json.dumps(used).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    """The record of a run, flat; raises BadData where it is damaged."""
    try:
        return _flat(json.loads(path.read_bytes()))
    except (ValueError, LookupError, TypeError) as error:
        raise BadData(f"{path} is damaged; train without --resume") from error


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    return {"images": record["images"], "based_on": record["based_on"], **record["settings"]}


def _difference(held: dict[str, Any], asked: dict[str, Any]) -> str:
    """What a run was started with and is not asked for now; empty where they agree."""
    if unknown := [key for key in asked if key not in held]:
        return f"an older version, which had no {', '.join(unknown)}"
    differing = [key for key in asked if held[key] != asked[key]]
    # Settings first: some of them decide which images are trained on.
    if settings := [key for key in differing if key not in ("images", "based_on")]:
        return ", ".join(f"{key} {json.dumps(held[key])}" for key in settings)
    if "based_on" in differing:
        return f"--from bundle {held['based_on']}" if held["based_on"] else "no --from"
    return "other images" if differing else ""

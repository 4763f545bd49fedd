"""Labels of people as images in the MVTec layout, for ``calibrate`` and ``train``.

A false reject is a good part: its picture, which is what the model saw, goes to
``CATEGORY/train/good``. A FAIL that people agree with goes to ``CATEGORY/test/reject``, to evaluate
on. What nobody is sure of goes nowhere. Rejects are no fair sample of good parts: they belong
beside the good images that a bundle was made from, never in their place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.contracts import BadConfig, BadData, BadFrame, Decision
from engines.images import decode_image
from pipeline.outputs.archive import SUFFIXES, stem_of_frame
from pipeline.review import ReviewLabel, ReviewLabels

if TYPE_CHECKING:
    from pipeline.config import LineSettings

PICTURE = SUFFIXES[0]
PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
NAMELESS = "unknown"  # the folder of parts whose category is no name of a folder


@dataclass(frozen=True, slots=True)
class Exported:
    """How many pictures went where."""

    good: int
    rejects: int
    unsure: int  # left out: nobody knows
    gone: int  # the archive has forgotten them, or their picture is damaged


def export_labels(settings: LineSettings, folder: Path) -> Exported:
    """Write the labelled parts of a line's archive; BadData where ``folder`` holds something."""
    archive = settings.sinks.archive
    if archive is None:
        raise BadConfig(f"line {settings.line} keeps no pictures: set sinks.archive")
    if folder.exists() and any(folder.iterdir()):
        raise BadData(f"{folder} is not empty: name a folder that is, or does not exist")
    labels = ReviewLabels(settings.run_dir).newest().values()
    place = archive.folder or settings.run_dir / "archive"
    written = [_export(label, place, folder) for label in labels]
    return Exported(
        good=written.count("good"),
        rejects=written.count("reject"),
        unsure=written.count("unsure"),
        gone=written.count("gone"),
    )


def _export(label: ReviewLabel, archive: Path, folder: Path) -> str:
    kind = _kind(label)
    if kind == "unsure":
        return kind
    try:
        stem = stem_of_frame(label.frame_id)
        picture = (archive / f"{stem}{PICTURE}").read_bytes()
        decode_image(picture, stem)
    except (OSError, ValueError, BadFrame):
        return "gone"
    category = label.category if PLAIN.fullmatch(label.category) else NAMELESS
    below = ("train", "good") if kind == "good" else ("test", "reject")
    target = folder.joinpath(category, *below, f"{stem.replace('/', '-')}.png")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(picture)
    except OSError as error:
        raise BadData(f"{target} cannot be written: {error.strerror or error}") from error
    return kind


def _kind(label: ReviewLabel) -> str:
    if label.answer == "false_reject":
        return "good"
    return "reject" if label.answer == "agree" and label.decision is Decision.FAIL else "unsure"

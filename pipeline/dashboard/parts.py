"""The rejected parts that can still be looked at: those in the archive, and the newest of the feed.

The archive's folder is the queue: it outlives every process, and what is in it is whole. It is
looked through once a second on a thread of its own; names are read, and only new ones in full.
Names in addresses are matched against those found there, so no address reaches another file.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from engines.contracts import Verdict
from pipeline.dashboard.view import Reject
from pipeline.outputs.archive import SUFFIXES

LOOK_S = 1.0
SETTLED_NS = 2_000_000_000  # a folder's stamp is coarse: one that is younger may not be the last
RECORD = SUFFIXES[-1]
PICTURE, MASK, MAP, _, ORIGINAL, _ = SUFFIXES


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One rejected part with what is kept of it (bytes of PNG files, empty where there is none)."""

    stem: str  # <camera>/<epoch>-<counter>, its name in addresses and in the archive
    verdict: Verdict
    picture_png: bytes
    mask_png: bytes
    map_png: bytes
    has_original: bool = False


class Parts:
    """Finds parts by their name; ``stems`` lists the archived, newest first."""

    def __init__(
        self, archive: Path | None, recent: Callable[[str], Reject | None] = lambda _: None
    ) -> None:
        self._archive = archive
        self._recent = recent
        self._seen: dict[str, dict[str, int]] = {}  # camera's folder -> name -> time of writing
        self._changed_ns: dict[str, int] = {}  # camera's folder -> when it was changed
        self._places: dict[str, int] = {}
        self.stems: tuple[str, ...] = ()

    @property
    def keeps(self) -> bool:
        """Whether the line has an archive at all."""
        return self._archive is not None

    def run(self, stop: threading.Event) -> None:
        """Look until told to end."""
        while not stop.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """Bring the list up to what the archive holds now."""
        if self._archive is None:
            return
        try:
            folders = [entry for entry in os.scandir(self._archive) if entry.is_dir()]
            changed = [folder for folder in folders if self._has_changed(folder)]
        except OSError:  # not made yet, or its disk is gone
            return
        for folder in changed:
            self._seen[folder.name] = _records(folder.path, self._seen.get(folder.name, {}))
        gone = self._seen.keys() - {folder.name for folder in folders}
        for name in gone:
            del self._seen[name]
        if changed or gone:
            self._arrange()

    def place(self, stem: str) -> int | None:
        """Where a part stands in ``stems``; None where it is not archived."""
        return self._places.get(stem)

    def find(self, stem: str) -> Part | None:
        """A part, from the archive or else from the newest of the feed; None where it is gone."""
        if self.place(stem) is not None:
            return self._archived(stem)
        reject = self._recent(stem)
        if reject is None:
            return None
        return Part(stem, reject.verdict, reject.picture_png, reject.mask_png, reject.map_png)

    def original(self, stem: str) -> bytes:
        """The full exposure of an archived part (PNG); empty where none is kept."""
        return self._read(stem, ORIGINAL) if self.place(stem) is not None else b""

    def _has_changed(self, folder: os.DirEntry[str]) -> bool:
        changed_ns = folder.stat().st_mtime_ns
        if self._changed_ns.get(folder.name) == changed_ns and folder.name in self._seen:
            return False
        is_settled = time.time_ns() - changed_ns > SETTLED_NS
        self._changed_ns[folder.name] = changed_ns if is_settled else 0
        return True

    def _arrange(self) -> None:
        found = [
            (written_ns, f"{camera}/{name}")
            for camera, names in self._seen.items()
            for name, written_ns in names.items()
        ]
        stems = tuple(stem for _, stem in sorted(found, reverse=True))
        self._places = {stem: place for place, stem in enumerate(stems)}
        self.stems = stems

    def _archived(self, stem: str) -> Part | None:
        try:
            verdict = Verdict.model_validate_json(self._read(stem, RECORD))
        except ValidationError:  # it was forgotten just now, or somebody wrote into the archive
            return None
        picture, mask, heat = (self._read(stem, suffix) for suffix in (PICTURE, MASK, MAP))
        has_original = self._path(stem, ORIGINAL).exists()
        return Part(stem, verdict, picture, mask, heat, has_original)

    def _path(self, stem: str, suffix: str) -> Path:
        assert self._archive is not None  # noqa: S101 - only archived parts have paths
        return self._archive / f"{stem}{suffix}"

    def _read(self, stem: str, suffix: str) -> bytes:
        try:
            return self._path(stem, suffix).read_bytes()
        except OSError:
            return b""


def _records(folder: str, before: Mapping[str, int]) -> dict[str, int]:
    """Names of complete parts in a camera's folder, with the time of writing."""
    found: dict[str, int] = {}
    try:
        for entry in os.scandir(folder):
            if entry.name.endswith(RECORD):
                name = entry.name.removesuffix(RECORD)
                found[name] = before.get(name) or entry.stat().st_mtime_ns
    except OSError:  # parts are forgotten while we look
        return {**before, **found}
    return found

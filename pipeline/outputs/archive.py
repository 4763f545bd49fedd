"""Picture, mask, map and exposure of every part that did not pass, in a bounded folder.

What people want to see drawn into the picture is drawn when somebody looks, by the page Reject.
The full exposure comes from the memory of the host's cameras, where they keep originals; one that
is gone by then is counted, and the rest is kept without it.

Names come from the camera and the ids that this system gave, sanitised; nothing a frame says ever
becomes a path. The oldest parts make room for new ones.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ValidationError

from engines.contracts import BadConfig, Decision, Reason, UInt8, Verdict
from engines.images import encode_png
from pipeline.evidence.lots import Lots
from pipeline.stream import VerdictDelivery
from pipeline.telemetry import facts
from pipeline.wire import split_frame_id

Fetch = Callable[[str], UInt8 | None]  # the full exposure of a frame id
# The last one says: complete. Overlays are those of earlier versions.
SUFFIXES = (".picture.png", ".mask.png", ".map.png", ".overlay.jpg", ".original.png", ".json")
MISSING_CAMERA = "camera"


class Archive:
    """Keeps parts as ``<camera>/<epoch>-<counter>.<what>``; at most ``max_bytes`` in all.

    ``originals`` brings full exposures of those cameras that keep them; ``lots`` are the chains of
    evidence in which what is kept and what is forgotten is noted.
    """

    name = "archive"

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        originals: Mapping[str, Fetch] | None = None,
        lots: Lots | None = None,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._originals = originals or {}
        self._lots = lots
        self._bytes = 0
        self._parts: OrderedDict[str, int] = OrderedDict()  # stem -> bytes, oldest first
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadConfig(f"the archive {folder} cannot be made: {error}") from error
        self._count_existing()

    @staticmethod
    def keeps(verdict: Verdict) -> bool:
        """Whether a part with this verdict is kept."""
        return verdict.decision is not Decision.PASS

    def act(self, delivery: VerdictDelivery, closing: threading.Event) -> None:  # noqa: ARG002 - Output
        """Keep one part; a full archive forgets its oldest, a full disk raises OSError."""
        if not self.keeps(delivery.verdict):
            return
        stem = stem_of(delivery)
        if stem in self._parts:
            self._note_kept(delivery.verdict, stem)
            return
        contents = self._contents(delivery)
        size = sum(len(content) for content in contents.values())
        self._make_room(size)
        try:
            self._write(stem, contents)
        except OSError:
            self._remove(stem)
            raise
        self._enter(stem, size)
        self._note(delivery.verdict, stem, contents)

    def _note(self, verdict: Verdict, stem: str, contents: Mapping[str, bytes]) -> None:
        if self._lots is not None:
            self._lots.archived(verdict, stem, contents)

    def _note_kept(self, verdict: Verdict, stem: str) -> None:
        """A part that was kept when its sink died, before it was noted."""
        if self._lots is not None and not self._lots.has_archived(verdict):
            paths = {suffix: self._folder / f"{stem}{suffix}" for suffix in SUFFIXES}
            there = {suffix: path for suffix, path in paths.items() if path.exists()}
            self._note(verdict, stem, {name: path.read_bytes() for name, path in there.items()})

    def _note_forgotten(self, stem: str) -> None:
        if self._lots is None:
            return
        try:
            record = (self._folder / f"{stem}{SUFFIXES[-1]}").read_bytes()
            self._lots.forgotten(Verdict.model_validate_json(record), stem)
        except (OSError, ValidationError):  # verify will miss it, and be right
            return

    def rest(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Nothing is held open."""

    def _contents(self, delivery: VerdictDelivery) -> dict[str, bytes]:
        picture, mask, heat, _, original, record = SUFFIXES
        pictures = {picture: delivery.picture_png, mask: delivery.mask_png, heat: delivery.map_png}
        pictures[original] = self._original(delivery)
        kept = {suffix: content for suffix, content in pictures.items() if content}
        return {**kept, record: delivery.verdict.model_dump_json(indent=1).encode()}

    def _original(self, delivery: VerdictDelivery) -> bytes:
        fetch = self._originals.get(delivery.camera)
        image = fetch(delivery.verdict.frame_id) if fetch else None
        if image is not None:
            return encode_png(image)
        if fetch and delivery.verdict.reason is not Reason.BAD_FRAME:  # which may have had no image
            facts.count("originals_missed_total", camera=delivery.camera, reason="gone")
        return b""

    def _make_room(self, size: int) -> None:
        while self._parts and self._bytes + size > self._max_bytes:
            stem, freed = self._parts.popitem(last=False)
            self._note_forgotten(stem)
            self._remove(stem)
            self._bytes -= freed

    def _write(self, stem: str, contents: Mapping[str, bytes]) -> None:
        (self._folder / stem).parent.mkdir(exist_ok=True)
        for suffix, content in contents.items():
            (self._folder / f"{stem}{suffix}").write_bytes(content)

    def _remove(self, stem: str) -> None:
        for suffix in reversed(SUFFIXES):
            (self._folder / f"{stem}{suffix}").unlink(missing_ok=True)

    def _enter(self, stem: str, size: int) -> None:
        self._parts[stem] = size
        self._bytes += size
        facts.gauge("archive_bytes", self._bytes)

    def _count_existing(self) -> None:
        """Take stock of a former run; parts it did not complete are removed."""
        found: dict[str, int] = {}
        for path in sorted(self._folder.glob("*/*"), key=lambda path: path.stat().st_mtime_ns):
            suffix = next((s for s in SUFFIXES if path.name.endswith(s)), "")
            if suffix:
                stem = f"{path.parent.name}/{path.name.removesuffix(suffix)}"
                found[stem] = found.get(stem, 0) + path.stat().st_size
        for stem, size in found.items():
            if (self._folder / f"{stem}{SUFFIXES[-1]}").exists():
                self._enter(stem, size)
            else:
                self._remove(stem)


def stem_of(delivery: VerdictDelivery) -> str:
    """Where a part is kept, below the archive's folder; ValueError for a foreign frame id."""
    return stem_of_frame(delivery.verdict.frame_id)


def stem_of_frame(frame_id: str) -> str:
    """As ``stem_of``, from the frame's id."""
    camera, entry_id = split_frame_id(frame_id)
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", camera) or MISSING_CAMERA
    return f"{safe}/{entry_id}"

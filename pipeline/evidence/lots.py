"""The chains of a line: one file per lot, of what was decided and of what the archive kept.

Entries are of four kinds. ``verdict``: the verdict, and the hashes of the pictures that came with
it. ``archived``: hashes of the files that the archive keeps of a part. ``forgotten``: the archive
has made room, so that a part which is gone is told from one that was taken away. ``break``: see
``pipeline.evidence.chain``.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from engines.contracts import BadConfig, Verdict
from pipeline.evidence.chain import REMEMBERED, Chain
from pipeline.stream import VerdictDelivery
from pipeline.telemetry import facts

FOLDER = "lots.evidence"  # below the archive's; no camera's folder has a dot
OPEN_MAX = 8  # lots whose files are held open
SYNC_S = 1.0
NO_LOT = "no-lot"
Kind = Literal["verdict", "archived", "forgotten"]


def chain_name(lot: str) -> str:
    """File name of a lot's chain: the lot itself, or what is left of it with a hash."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", lot)[:64]
    if safe == lot and lot != NO_LOT:
        return f"{lot or NO_LOT}.jsonl"
    return f"{safe}.{hashlib.sha256(lot.encode()).hexdigest()[:8]}.jsonl"


class Lots:
    """Appends to the chains of a folder; safe from every thread, for one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Lot] = OrderedDict()
        self._sync_at = time.monotonic() + SYNC_S
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._alone = (folder / ".lock").open("w")
        except OSError as error:
            raise BadConfig(f"the evidence {folder} cannot be written: {error}") from error
        try:
            fcntl.flock(self._alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._alone.close()
            raise BadConfig(f"another sink writes to {folder}: give each its own") from None

    def verdict(self, delivery: VerdictDelivery) -> None:
        """Chain a verdict, once."""
        pictures = {
            "mask": delivery.mask_png,
            "picture": delivery.picture_png,
            "map": delivery.map_png,
        }
        told = {"entry_id": delivery.entry_id, "pictures": _hashes(pictures)}
        record = delivery.verdict.model_dump_json().encode()
        self._append("verdict", delivery.verdict, told, record)

    def archived(self, verdict: Verdict, stem: str, files: Mapping[str, bytes]) -> None:
        """Chain what the archive has just kept of a part: its contents by their suffixes."""
        self._append("archived", verdict, {"part": stem, "files": _hashes(files)})

    def forgotten(self, verdict: Verdict, stem: str) -> None:
        """Chain that the archive has made room of a part."""
        self._append("forgotten", verdict, {"part": stem})

    def has_archived(self, verdict: Verdict) -> bool:
        """Whether the files of a part are chained."""
        with self._lock:
            return ("archived", verdict.frame_id) in self._of(verdict.lot).known

    def sync(self) -> None:
        """Let entries reach the disk, once a second."""
        with self._lock:
            if time.monotonic() >= self._sync_at:
                self._sync_at = time.monotonic() + SYNC_S
                for lot in self._open.values():
                    lot.chain.sync()

    def close(self) -> None:
        """Let everything reach the disk, and let others write."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].chain.close()
            self._alone.close()

    def _append(
        self, kind: Kind, verdict: Verdict, told: dict[str, Any], record: bytes = b""
    ) -> None:
        key = (kind, verdict.frame_id)
        with self._lock:
            lot = self._of(verdict.lot)
            if key in lot.known:
                return
            named = {} if record else {"frame_id": verdict.frame_id}
            lot.chain.append({"kind": kind, "lot": verdict.lot, **named, **told}, record)
            lot.remember(key)

    def _of(self, name: str) -> _Lot:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if len(self._open) >= OPEN_MAX:
            self._open.popitem(last=False)[1].chain.close()
        path = self._folder / chain_name(name)
        chain = Chain(path, name)
        if chain.broken:
            facts.event("evidence_broken", level="error", path=str(path), sentence=chain.broken)
        self._open[name] = _Lot(chain)
        return self._open[name]


class _Lot:
    """An open chain, and what it holds already."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.known: OrderedDict[tuple[str, str], None] = OrderedDict.fromkeys(
            (name.kind, name.frame_id) for name in chain.tail
        )

    def remember(self, key: tuple[str, str]) -> None:
        self.known[key] = None
        if len(self.known) > REMEMBERED:
            self.known.popitem(last=False)


def _hashes(contents: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items() if data}

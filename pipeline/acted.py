"""The newest frame ids that a sink has dealt with, on disk: nothing is acted on twice.

The stream delivers a verdict again after a crash, and a frame may be answered twice when its server
was lost in between. Bounded: the file is written anew when it holds twice what is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from engines.contracts import BadConfig

REMEMBERED = 20_000


class Acted:
    """Frame ids dealt with; ``in`` asks, ``add`` remembers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: OrderedDict[str, None] = OrderedDict()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                known = path.read_text("utf-8", errors="replace").splitlines()
                self._ids.update(dict.fromkeys(known[-REMEMBERED:]))
            self._compact()
        except OSError as error:
            raise BadConfig(f"the sink's record {path} cannot be written: {error}") from error

    def __contains__(self, frame_id: str) -> bool:
        return frame_id in self._ids

    def add(self, frame_ids: Iterable[str]) -> None:
        """Remember; where the disk is full, in memory only."""
        fresh = [frame_id for frame_id in frame_ids if frame_id not in self._ids]
        self._ids.update(dict.fromkeys(fresh))
        while len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
        try:
            self._file.write("".join(f"{frame_id}\n" for frame_id in fresh).encode())
            self._lines += len(fresh)
            if self._lines > 2 * REMEMBERED:
                self._file.close()
                self._compact()
        except OSError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _compact(self) -> None:
        fresh = self._path.with_suffix(".new")
        fresh.write_text("".join(f"{frame_id}\n" for frame_id in self._ids))
        fresh.replace(self._path)
        self._file = self._path.open("ab", buffering=0)
        self._lines = len(self._ids)

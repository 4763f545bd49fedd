"""The newest frames that a sink has dealt with, and how, on disk: nothing is acted on twice.

The stream delivers a verdict again after a crash, and a frame may be answered twice when its server
was lost in between. Bounded: the file is written anew when it holds twice what is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from engines.contracts import BadConfig

REMEMBERED = 20_000


class Acted:
    """Frames dealt with, each with its ledger field; ``in`` asks, ``add`` remembers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: OrderedDict[str, str] = OrderedDict()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                known = path.read_text("utf-8", errors="replace").splitlines()
                self._ids.update(_frame_and_field(line) for line in known[-REMEMBERED:])
            self._compact()
        except OSError as error:
            raise BadConfig(f"the sink's record {path} cannot be written: {error}") from error

    def __contains__(self, frame_id: str) -> bool:
        return frame_id in self._ids

    def field(self, frame_id: str) -> str:
        """The ledger field of the verdict that was acted on; "" where it is not remembered."""
        return self._ids.get(frame_id, "")

    def add(self, acted: Mapping[str, str]) -> None:
        """Remember ledger fields by frame id; where the disk is full, in memory only."""
        fresh = {frame_id: field for frame_id, field in acted.items() if frame_id not in self._ids}
        self._ids.update(fresh)
        while len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
        try:
            self._file.write("".join(map(_line, fresh.items())).encode())
            self._lines += len(fresh)
            if self._lines > 2 * REMEMBERED:
                old = self._file
                self._compact()
                old.close()
        except OSError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _compact(self) -> None:
        fresh = self._path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, self._ids.items()))  # not one text of all: it is a megabyte
        fresh.replace(self._path)
        self._file = self._path.open("ab", buffering=0)
        self._lines = len(self._ids)


def _line(entry: tuple[str, str]) -> str:
    return f"{entry[0]} {entry[1]}\n"


def _frame_and_field(line: str) -> tuple[str, str]:
    frame_id, _, field = line.partition(" ")
    return frame_id, field

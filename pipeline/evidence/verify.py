"""Is a lot's record as it was written, and are the archive's pictures those that were seen?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.contracts import BadData
from pipeline.evidence.chain import Link, Tampered, link_in, read_chain
from pipeline.evidence.lots import FOLDER, chain_name

if TYPE_CHECKING:
    from pipeline.config import LineSettings


@dataclass(frozen=True, slots=True)
class Verified:
    """What was proven of one lot."""

    lot: str
    path: str
    verdicts: int
    pictures: int  # files of the archive that agree
    forgotten: int  # parts that the archive has made room of
    head: str  # keep it elsewhere, and give it to --head

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.lot or 'parts without a lot'}: {self.verdicts} verdicts and {self.pictures} "
            f"files as they were written, {self.forgotten} parts no longer kept, head {self.head}"
        )


def verify(what: str, archives: list[Path], head: str = "") -> list[Verified]:
    """Prove a chain, all chains of a folder, or a lot of one of the archives.

    Tampered, which names the first place that is not as it was written; BadData where there is no
    such record. With ``head`` an entry of that hash must be in every one of them.
    """
    return [_verified(path, head) for path in _chains(what, archives)]


def archives_of(line: LineSettings | None) -> list[Path]:
    """Where a line keeps its archive; without one, those of all runs below the working folder."""
    if line is None:
        return sorted(Path("runs").glob("*/archive"))
    archive = line.sinks.archive
    return [(archive.folder if archive else None) or line.run_dir / "archive"]


def _chains(what: str, archives: list[Path]) -> list[Path]:
    path = Path(what)
    if path.is_file():
        return [path]
    folder = path if path.name == FOLDER else path / FOLDER
    if path.is_dir() and folder.is_dir():
        found = sorted(folder.glob("*.jsonl"))
        missing = {one.with_suffix(".jsonl") for one in folder.glob("*.head")} - set(found)
        if missing:
            raise Tampered(f"{min(missing)} is gone, its head is there")
    else:
        places = [archive / FOLDER / chain_name(what) for archive in archives]
        found = [place for place in places if place.exists()]
    if not found:
        looked = ", ".join(map(str, archives)) or "no archive"
        raise BadData(f"there is no record of {what!r} in {looked}: name --line, or a file")
    return found


def _verified(path: Path, head: str) -> Verified:
    lot = _lot_of(path)
    told, has_head = _Told(), not head
    for link in read_chain(path, lot):
        has_head = has_head or link.hash == head
        told.add(link)
    if not has_head:
        raise Tampered(f"no entry of {path} has the hash {head}: it is another record")
    told.check_pictures(path)
    files = sum(_check_part(path.parent.parent, *part) for part in told.kept.items())
    return Verified(lot, str(path), told.verdicts, files, told.forgotten, told.last)


class _Told:
    """What the entries of a chain say, read to their end: output threads write side by side."""

    def __init__(self) -> None:
        self.verdicts = 0
        self.forgotten = 0
        self.last = ""
        self.kept: dict[str, dict[str, str]] = {}  # part -> suffix -> hash
        self._came: dict[str, dict[str, str]] = {}  # frame_id -> picture -> hash
        self._files: dict[str, dict[str, str]] = {}  # frame_id -> suffix -> hash

    def add(self, link: Link) -> None:
        """Take one entry in."""
        entry, self.last = link.entry, link.hash
        match entry.get("kind"):
            case "verdict":
                self.verdicts += 1
                if entry["pictures"]:
                    self._came[entry["verdict"]["frame_id"]] = entry["pictures"]
            case "archived":
                self.kept[entry["part"]] = self._files[entry["frame_id"]] = entry["files"]
            case "forgotten":
                self.forgotten += self.kept.pop(entry["part"], None) is not None

    def check_pictures(self, path: Path) -> None:
        """What the archive kept is what came with the verdict."""
        for frame_id, files in self._files.items():
            came = self._came.get(frame_id, {})
            for name in ("picture", "mask"):
                kept = files.get(f".{name}.png")
                if name in came and kept not in (None, came[name]):
                    raise Tampered(f"{path} keeps another {name} of {frame_id} than was seen")


def _lot_of(path: Path) -> str:
    """The lot that a chain says it is of, which its name and all of its hashes must bear out."""
    link = next(_first(path), None)
    if link is None:
        raise Tampered(f"line 1 of {path} is not as it was written")
    lot = str(link.entry.get("lot", ""))
    if chain_name(lot) != path.name:
        raise Tampered(f"{path} holds the record of another lot, {lot!r}")
    return lot


def _first(path: Path) -> Iterator[Link]:
    with path.open("rb") as file:
        link = link_in(file.readline())
        if link is not None:
            yield link


def _check_part(archive: Path, part: str, files: dict[str, str]) -> int:
    for suffix, expected in files.items():
        path = archive / f"{part}{suffix}"
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise Tampered(f"{path} was kept and is gone ({error.strerror})") from None
        if found != expected:
            raise Tampered(f"{path} is not as it was written")
    return len(files)

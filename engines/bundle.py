"""What is shipped to a line: a folder or ``.zip`` of graphs, weights and a manifest. Never pickle.

``manifest.json`` names every other file with its SHA-256, and the bundle's id is the hash of the
manifest, so a verdict that names its bundle names every byte that took part. ``calibration.json``
is not in the manifest: thresholds change without touching the graphs, and carry an id of their own.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import struct
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.contracts import BadBundle
from engines.tiles import Tiling

if TYPE_CHECKING:
    from engines.calibration import Calibration

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CALIBRATION = "calibration.json"
WEIGHTS = "weights.safetensors"
MAX_BYTES = 8 << 30  # of an unpacked bundle
MAX_MEMBERS = 4096  # files of one
MAX_GROWTH = 200  # times that a zip's contents are larger than it is; weights hardly shrink
SMALL_BYTES = 64 << 20  # what a zip of any size may unpack to
MAX_RECORD_BYTES = 64 << 20  # of manifest.json and of calibration.json
MAX_ELEMENTS = 1 << 28  # of one tensor of the state, for one frame
DAMAGED_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    LookupError,  # a member without a name
    OverflowError,
    RuntimeError,  # a password, or NotImplementedError: a compression that nobody knows
)

GraphName = Literal["start", "step", "finish"]
GRAPHS: tuple[GraphName, ...] = ("start", "step", "finish")


Side = Annotated[int, Field(ge=1, le=65_536)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class TensorSpec(BaseModel):
    """One named tensor of the state, without its batch dimension."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    dtype: str  # numpy's name
    shape: Annotated[tuple[Count, ...], Field(max_length=8)]

    @model_validator(mode="after")
    def _fits_a_machine(self) -> Self:
        if math.prod(self.shape) > MAX_ELEMENTS:
            raise ValueError(f"{self.name} has more than {MAX_ELEMENTS} elements")
        return self


class GraphSpec(BaseModel):
    """Inputs and outputs of one graph, in the order of the ONNX file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class GraphsSpec(BaseModel):
    """The state and the three graphs over it; all that a backend must know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    state: tuple[TensorSpec, ...]
    graphs: dict[GraphName, GraphSpec]
    map_size: tuple[Side, Side]


class PlanSpec(BaseModel):
    """One row of the plan table (see ``engines.methods.method.Plan``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    start_level: int
    levels: Annotated[tuple[int, ...], Field(max_length=10_000)]


class Manifest(BaseModel):
    """The bundle's public record (schema version 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    method: str
    categories: tuple[str, ...]  # index = id; one more id stands for "unknown"
    image_size: tuple[Side, Side]  # H, W
    plans: Annotated[tuple[PlanSpec, ...], Field(max_length=MAX_MEMBERS)]
    steps_min: Count
    steps_unit: Count
    spec: GraphsSpec
    configuration: dict[str, Any]  # what build_method needs
    substitutions: tuple[str, ...] = ()  # where this is not the published configuration
    training: dict[str, Any] = {}
    files: Annotated[dict[str, str], Field(max_length=MAX_MEMBERS)]  # name -> sha256


@dataclass(frozen=True)  # without slots: what is asked for each frame is worked out once
class Bundle:
    """An opened bundle whose every file has the hash that its manifest names."""

    folder: Path
    manifest: Manifest
    bundle_id: str

    def path(self, name: str) -> Path:
        """Where one of the bundle's files lies."""
        return self.folder / name

    @cached_property
    def tiling(self) -> Tiling:
        """How frames are cut into model inputs."""
        return Tiling.of(self.manifest.configuration, self.manifest.image_size)

    @cached_property
    def frame_size(self) -> tuple[int, int]:
        """(H, W) of a frame on the stream: the model input's, unless it is cut into several."""
        return self.tiling.frame_size

    def category_id(self, name: str) -> int:
        """Row of the category table; names it does not know share the row "unknown"."""
        known = self.manifest.categories
        return known.index(name) if name in known else len(known)

    def category_name(self, name: str) -> str:
        """The name that calibrations are keyed by: the category itself, or "unknown"."""
        return name if name in self.manifest.categories else "unknown"

    def calibration(self) -> Calibration | None:
        """The thresholds beside the graphs, or None where there are none yet."""
        from engines.calibration import load_calibration

        path = self.folder / CALIBRATION
        return load_calibration(path) if path.exists() else None


def open_bundle(path: Path | str) -> Bundle:
    """Open a bundle and verify every hash; a ``.zip`` is unpacked beside itself once.

    Raises BadBundle, in one sentence, for whatever is missing, damaged or foreign.
    """
    folder = _unpacked(Path(path)) if str(path).endswith(".zip") else Path(path)
    manifest, digest = _read_manifest(folder)
    for name, expected in manifest.files.items():
        _check_file(folder, name, expected)
    missing = [f"{g}.onnx" for g in GRAPHS if f"{g}.onnx" not in manifest.files]
    if missing:
        raise BadBundle(f"bundle {folder} lacks {', '.join(missing)}; export it again")
    return Bundle(folder, manifest, digest[:12])


def seal(folder: Path, fields: dict[str, Any]) -> Bundle:
    """Write ``manifest.json`` over the files that lie in a folder, and open the result."""
    files = {
        str(p.relative_to(folder)): sha256(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in {MANIFEST, CALIBRATION}
    }
    manifest = Manifest(files=files, **fields)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")
    return open_bundle(folder)


def sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_of(path: Path) -> bytes:
    """The bytes of a bundle's JSON file; BadBundle for none, or for more than any is long."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise BadBundle(f"{path} is no file; copy the bundle again")
        with path.open("rb") as file:
            told = file.read(MAX_RECORD_BYTES + 1)
    except OSError as error:
        raise BadBundle(f"{path} cannot be read: {error.strerror}") from error
    if len(told) > MAX_RECORD_BYTES:
        raise BadBundle(f"{path} is longer than {MAX_RECORD_BYTES >> 20} MiB")
    return told


def _read_manifest(folder: Path) -> tuple[Manifest, str]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BadBundle(f"{folder} is no bundle: it holds no {MANIFEST}")
    text = record_of(path)
    try:
        version = json.loads(text).get("schema_version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadBundle(f"{path} is not valid JSON; copy the bundle again") from error
    if version != SCHEMA_VERSION:
        raise BadBundle(
            f"bundle {folder} has schema version {version!r}, this release reads {SCHEMA_VERSION}; "
            "export it again with this release"
        )
    try:
        return Manifest.model_validate_json(text), hashlib.sha256(text).hexdigest()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadBundle(f"{path}: {where}: {first['msg']}; export the bundle again") from error


def _check_file(folder: Path, name: str, expected: str) -> None:
    try:
        path = (folder / name.replace("\0", "")).resolve()
        if not path.is_relative_to(folder.resolve()) or "\0" in name:
            raise BadBundle(f"bundle {folder} names a file outside itself: {name!r}")
        if not path.is_file():
            raise BadBundle(f"bundle {folder} lacks {name}; copy the bundle again")
        found = sha256(path)
    except (OSError, RuntimeError, UnicodeError) as error:  # a loop of links, a name of no file
        raise BadBundle(f"{name[:80]!r} of bundle {folder} cannot be read") from error
    if found != expected:
        raise BadBundle(f"{path} does not have the bytes its manifest names; copy the bundle again")


def _unpacked(archive: Path) -> Path:
    """Unpack a zip to a folder named after its hash; members cannot leave that folder."""
    if not archive.is_file():
        raise BadBundle(f"there is no bundle at {archive}")
    target = archive.with_suffix("").with_name(f".{archive.stem}-{sha256(archive)[:12]}")
    if target.is_dir():
        return target
    try:
        with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
            _extract(archive, Path(scratch) / "bundle")
            (Path(scratch) / "bundle").rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was first
            reason = error.strerror or error
            raise BadBundle(f"{archive} cannot be unpacked beside itself: {reason}") from error
    return target


def _extract(archive: Path, folder: Path) -> None:
    """Unpack; a zip that is cut or altered fails in as many ways as it has parts."""
    try:
        with zipfile.ZipFile(archive) as content:
            _check_members(archive, content.infolist())
            content.extractall(folder)  # drops "..", roots and links, and stops at each file's size
    except DAMAGED_ZIP as error:
        raise BadBundle(f"{archive} is not a valid zip; copy the bundle again") from error


def _check_members(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    """BadBundle for a zip that is no bundle by what it says of itself; nothing is unpacked yet."""
    if len(members) > MAX_MEMBERS:
        raise BadBundle(f"{archive} holds {len(members)} files, more than any bundle")
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise BadBundle(f"{archive} unpacks to more than {MAX_BYTES >> 30} GiB")
    if total > max(SMALL_BYTES, MAX_GROWTH * archive.stat().st_size):
        raise BadBundle(f"{archive} unpacks to {total >> 20} MiB, too much for its size")

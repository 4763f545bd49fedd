"""Engines beside a bundle: the bytes of each, and a key that says what they were built from.

Both are written whole or not at all. An engine is loaded only where its key fits and its bytes have
the hash that the key names; anything else is refused with the reason, never built again, because
that would take minutes while parts wait.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.bundle import GraphName, sha256
from engines.contracts import BadBundle
from engines.gpu.executable import Port
from engines.gpu.libraries import LibraryName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.bundle import Bundle

SCHEMA_VERSION = 1


class EngineKey(BaseModel):
    """What an engine was built from and for (schema version 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    bundle_id: str
    graph: GraphName
    library: LibraryName
    library_version: str
    compute: tuple[str, ...]  # SM86, ...; empty = whatever the library builds for by itself
    precision: str
    buckets: tuple[int, ...]  # batch sizes, one optimisation profile each
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    sha256: str  # of the engine's bytes


def engine_folder(folder: Path, summary: str) -> Path:
    """Where the engines of one precision lie, below the cache of a bundle."""
    return folder / f"tensorrt-{summary}"


def write_engine(folder: Path, graph: GraphName, data: memoryview, key: EngineKey) -> None:
    """Write the bytes, then the key; a key never stands beside bytes that are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    key_path(folder, graph).unlink(missing_ok=True)
    write_whole(engine_path(folder, graph), data)
    write_whole(key_path(folder, graph), f"{key.model_dump_json(indent=1)}\n".encode())


def read_key(folder: Path, graph: GraphName, build: str) -> EngineKey:
    """The key of an engine; BadBundle where there is none, with the command that makes it."""
    path = key_path(folder, graph)
    try:
        return EngineKey.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BadBundle(f"there is no engine of {graph} in {folder}; run {build}") from None
    except (OSError, ValidationError) as error:
        raise BadBundle(f"{path} is no key of an engine; run {build}") from error


def check_key(key: EngineKey, wanted: Mapping[str, object], build: str) -> None:
    """Raise BadBundle where a key is not what is wanted, naming the first field that differs."""
    for name, expected in wanted.items():
        found = getattr(key, name)
        if found != expected:
            raise BadBundle(
                f"the engine of {key.graph} was built for {name.replace('_', ' ')} "
                f"{_told(found)}, not {_told(expected)}; run {build}"
            )


def read_engine(folder: Path, graph: GraphName, key: EngineKey, build: str) -> bytes:
    """The bytes of an engine, if they are those that its key names."""
    path = engine_path(folder, graph)
    if not path.is_file():
        raise BadBundle(f"{path} is missing beside its key; run {build}")
    if sha256(path) != key.sha256:
        raise BadBundle(f"{path} does not have the bytes that its key names; run {build}")
    return path.read_bytes()


def build_command(bundle: Bundle, summary: str) -> str:
    """What makes the engines of a bundle."""
    return f"assayline build {bundle.folder} --backend tensorrt --precision {summary}"


def engine_path(folder: Path, graph: GraphName) -> Path:
    """Where an engine's bytes lie."""
    return folder / f"{graph}.engine"


def key_path(folder: Path, graph: GraphName) -> Path:
    """Where an engine's key lies."""
    return folder / f"{graph}.json"


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Put a file in its place in one move, so that nobody reads half of it."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        scratch.chmod(0o644)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _told(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

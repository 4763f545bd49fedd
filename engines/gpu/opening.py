"""Opens the engines that were built beside a bundle; builds none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.backend import DEVICE_BUCKETS, engine_cache
from engines.contracts import BadBundle
from engines.gpu.engine import TensorRtExecutable
from engines.gpu.engine_file import (
    EngineKey,
    build_command,
    check_key,
    engine_folder,
    read_engine,
    read_key,
)
from engines.gpu.libraries import load_library
from engines.gpu.ports import check_ports, ports_of
from engines.gpu.precision import precisions_of, summary_of
from engines.gpu.target import capability_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from engines.bundle import Bundle, GraphName
    from engines.gpu.executable import Executable

Capability = tuple[int, int]  # major, minor
Checked = dict["GraphName", tuple[EngineKey, bytes]]


def open_executables(
    bundle: Bundle,
    precision: str | Mapping[str, str] = "auto",
    folder: Path | None = None,
    *,
    capability: Capability | None = None,
    buckets: Sequence[int] = DEVICE_BUCKETS,
) -> dict[GraphName, Executable]:
    """The engines of a bundle on the current CUDA context, from its cache or ``folder``.

    ``capability``: of the GPU here, where it is known. Everything is checked before anything is
    loaded. Raises BadBundle, in one sentence, for engines that are missing, damaged or of another
    bundle, library, GPU or precision; EngineFault where TensorRT cannot load them.
    """
    found = checked_engines(bundle, precision, folder, capability=capability, buckets=buckets)
    opened: dict[GraphName, Executable] = {}
    try:
        for graph, (key, data) in found.items():
            library = load_library(key.library)
            opened[graph] = TensorRtExecutable(library, graph, data, key)
    except BaseException:
        for executable in opened.values():
            executable.close()
        raise
    return opened


def checked_engines(
    bundle: Bundle,
    precision: str | Mapping[str, str] = "auto",
    folder: Path | None = None,
    *,
    capability: Capability | None = None,
    buckets: Sequence[int] = DEVICE_BUCKETS,
) -> Checked:
    """Keys and bytes of a bundle's engines, if they are what is wanted; no GPU is asked.

    Raises BadBundle as ``open_executables`` does.
    """
    place = engine_folder(folder or engine_cache(bundle), summary_of(precision))
    build = build_command(bundle, summary_of(precision))
    found: Checked = {}
    for graph, kind in precisions_of(bundle, precision).items():
        key = read_key(place, graph, build)
        wanted = {"bundle_id": bundle.bundle_id, "graph": graph, "precision": kind}
        _check(bundle, key, {**wanted, "buckets": tuple(buckets)}, capability, build)
        found[graph] = key, read_engine(place, graph, key, build)
    return found


def _check(
    bundle: Bundle,
    key: EngineKey,
    expected: Mapping[str, object],
    capability: Capability | None,
    build: str,
) -> None:
    """Whether an engine belongs to this bundle, library and GPU, and has the manifest's ports."""
    library = load_library(key.library)
    check_key(key, {**expected, "library_version": library.version}, build)
    graph = key.graph
    check_ports(graph, (key.inputs, key.outputs), ports_of(bundle.manifest, graph))
    here = None if capability is None else capability_name(capability)
    if here is not None and key.compute and here not in key.compute:
        raise BadBundle(
            f"the engine of {graph} was built for {', '.join(key.compute)}, this GPU is {here}; "
            f"run {build}"
        )

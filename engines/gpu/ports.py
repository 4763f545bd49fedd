"""What goes into a bundle's graphs and comes out of them, by the manifest alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.backend import output_name
from engines.contracts import BadBundle
from engines.gpu.executable import Port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.bundle import GraphName, Manifest

Ports = tuple[tuple[Port, ...], tuple[Port, ...]]  # inputs, outputs


def ports_of(manifest: Manifest, graph: GraphName) -> Ports:
    """Inputs and outputs of a graph in the order of its ONNX file."""
    spec = manifest.spec.graphs[graph]
    rows = _start_rows(manifest) if graph == "start" else _state_rows(manifest)
    found = _evidence(manifest) if graph == "finish" else _state_rows(manifest)
    inputs = tuple(Port(name, *rows[name]) for name in spec.inputs)
    return inputs, tuple(Port(output_name(graph, name), *found[name]) for name in spec.outputs)


def check_ports(graph: GraphName, found: Ports, expected: Ports) -> None:
    """Raise BadBundle where an engine is not what the manifest says, naming the first port."""
    for kind, ours, theirs in zip(("inputs", "outputs"), found, expected, strict=True):
        if ours != theirs:
            raise BadBundle(
                f"{graph} has other {kind} than its manifest names ({_differing(ours, theirs)}); "
                "export the bundle again"
            )


def _differing(found: Sequence[Port], expected: Sequence[Port]) -> str:
    pairs = zip(found, expected, strict=False)
    one, other = next((p for p in pairs if p[0] != p[1]), (None, None))
    if one is None or other is None:
        return f"{len(found)} instead of {len(expected)}"
    return f"{_told(one)} instead of {_told(other)}"


def _told(port: Port) -> str:
    return f"{port.name} {port.dtype} {list(port.shape)}"


Row = tuple[str, tuple[int, ...]]  # dtype and shape of one row


def _start_rows(manifest: Manifest) -> dict[str, Row]:
    image = ("uint8", (*manifest.image_size, 3))
    return {"image": image, "category": ("int64", ()), "seed": ("int64", ()), "plan": ("int32", ())}


def _state_rows(manifest: Manifest) -> dict[str, Row]:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in manifest.spec.state}


def _evidence(manifest: Manifest) -> dict[str, Row]:
    return {
        "anomaly_map": ("float32", manifest.spec.map_size),
        "anomaly_score": ("float32", ()),
    }

"""From an exported f32 graph to one whose networks compute in half precision, strongly typed.

TensorRT no longer chooses precision by itself: it computes each node in the types that the file
gives. So a rule says here which nodes go half, and Casts stand where the types meet:

* half is for the inside of networks: convolutions and matrix products with learned weights, except
  the last of a chain, whose result is what the method reckons with;
* what merely lies between two of them (activations, residual sums, reshapes, attention) goes along;
* normalisations, softmax and averages there read and give half, but compute in f32;
* everything else stays f32: whatever is subtracted, divided, summed, compared or looked up. That
  covers noise tables and levels, standardisation, the search and the distance of a severity bank,
  whitening, blurs, maps, scores, and every discrete choice (bins, argmin, tests, top-k).

Inputs, outputs and so all tensors of the state keep their types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from engines.contracts import BadBundle
from engines.gpu.half_casts import rewrite
from engines.gpu.half_graph import Nodes, standard_opset

if TYPE_CHECKING:
    from collections.abc import Set

    from onnx import NodeProto

Half = Literal["fp16", "bf16"]
TYPES: dict[Half, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
LARGEST: dict[Half, float] = {"fp16": 65504.0, "bf16": 3.38e38}

NEWEST_OPSET = 20  # what this release exports
PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
LEARNED_MIN = 256  # values; what is smaller saves nothing, and may be a table
FITTED = "codec.projection"  # found on good parts, like a standardisation; no layer of a network
BETWEEN = {
    *("Add", "Mul", "Clip", "Relu", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish"),
    *("Tanh", "Gelu", "Erf", "Elu", "MatMul", "Identity", "Reshape", "Transpose", "Concat"),
    *("Split", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Pad", "Gather", "MaxPool"),
    *("Resize", "DepthToSpace", "SpaceToDepth"),
}
AVERAGING = {
    *("InstanceNormalization", "GroupNormalization", "LayerNormalization", "BatchNormalization"),
    *("Softmax", "AveragePool", "GlobalAveragePool"),
}
OF_NETWORKS = PRODUCTS | BETWEEN | AVERAGING


@dataclass(frozen=True)
class Chosen:
    """Positions of the nodes that compute in half, and of those among them that average in f32."""

    half: Set[int]
    averaging: Set[int]


def read_graph(data: bytes) -> ModelProto:
    """The model in an ONNX file.

    Raises BadBundle for what onnx cannot read, and for operators of a later set than is exported:
    TensorRT takes any number there, and reads what changed since as if it had not.
    """
    try:
        model: ModelProto = onnx.load_model_from_string(data)
        opset = standard_opset(model)
    except Exception as error:  # protobuf raises many kinds for what it cannot read
        reason = " ".join(str(error).split())[:200]
        raise BadBundle(f"onnx cannot read it ({reason}); export the bundle again") from error
    if opset > NEWEST_OPSET:
        raise BadBundle(
            f"it uses ONNX opset {opset}, this release builds up to {NEWEST_OPSET}; "
            "export the bundle again with this release"
        )
    return model


def halved(data: bytes, kind: Half) -> bytes:
    """The same ONNX file with its networks in half precision; raises BadBundle as above."""
    model = read_graph(data)
    nodes = Nodes(model)
    rewrite(model, nodes, chosen_nodes(nodes, kind).half, TYPES[kind], f"_{kind}")
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def chosen_nodes(nodes: Nodes, kind: Half) -> Chosen:
    """Apply the rule: learned products that lead to another one, and what lies between them."""
    products = {i for i, node in enumerate(nodes) if _is_learned(nodes, node, kind)}
    inner = {i for i in products if nodes.leads_to(i, products, OF_NETWORKS)}
    others = {i for i, n in enumerate(nodes) if n.op_type in BETWEEN | AVERAGING} - products
    inside = _fed_by(nodes, inner, {i for i in others if _fits(nodes, nodes[i], kind)})
    inside = _leading_to(nodes, inner, inside)
    averaging = {i for i in inside if nodes[i].op_type in AVERAGING}
    return Chosen(inner | inside - averaging, averaging)


def _is_learned(nodes: Nodes, node: NodeProto, kind: Half) -> bool:
    """Whether a product has weights that training made.

    A filter without a negative value is an average (a blur), and belongs to the maps.
    """
    if node.op_type not in PRODUCTS or not _fits(nodes, node, kind):
        return False
    tables = [(name, nodes.constant(name)) for name in node.input[:2]]
    return any(
        values is not None
        and values.size >= LEARNED_MIN
        and values.min() < 0
        and not name.endswith(FITTED)
        for name, values in tables
    )


def _fits(nodes: Nodes, node: NodeProto, kind: Half) -> bool:
    """Whether a node works on f32, and the half type reaches as far as its constants do."""
    named = nodes.typed_inputs(node)
    return all(nodes.is_f32(name) and _reaches(nodes, name, kind) for name in named)


def _reaches(nodes: Nodes, name: str, kind: Half) -> bool:
    """Whether a tensor is no constant, or one whose finite values the half type can hold."""
    values = nodes.constant(name)
    if values is None or not values.size:
        return True
    sizes = np.abs(values[np.isfinite(values)])
    return float(sizes.max(initial=0)) <= LARGEST[kind]


def _fed_by(nodes: Nodes, inner: Set[int], candidates: Set[int]) -> set[int]:
    """Candidates whose every input comes from the inside (in the order of the file)."""
    inside: set[int] = set()
    for i in sorted(candidates):
        given = [n for n in nodes.typed_inputs(nodes[i]) if nodes.source(n) is None]
        if given and all(nodes.maker.get(n) in inner | inside for n in given):
            inside.add(i)
    return inside


def _leading_to(nodes: Nodes, inner: Set[int], candidates: Set[int]) -> set[int]:
    """Candidates whose result some node of the inside takes (against the order of the file)."""
    inside: set[int] = set()
    for i in sorted(candidates, reverse=True):
        takers = {taker for name in nodes[i].output for taker in nodes.takers(name)}
        if takers & (inner | inside):
            inside.add(i)
    return inside

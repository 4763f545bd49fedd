"""Explicit quantisation: an ONNX graph in fp16 whose learned layers take eight-bit numbers.

TensorRT computes a layer in int8 or fp8 (e4m3) where both of its factors come out of a
DequantizeLinear. Activations have one scale for the whole tensor, weights one per output channel;
zero stays zero. Biases, and what lies between such layers, stay as they were, in fp16 or f32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from engines.gpu.half import PRODUCTS, chosen_nodes, halved, read_graph
from engines.gpu.half_graph import Nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import ModelProto, NodeProto

    from engines.contracts import AnyArray
    from engines.nncf_layers import Choice

Eight = Literal["int8", "fp8"]
LARGEST: dict[str, float] = {"int8": 127.0, "fp8": 448.0}
TYPES: dict[str, int] = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
KINDS: dict[Choice, set[str]] = {"convolutions": {"Conv"}, "learned": PRODUCTS - {"ConvTranspose"}}


def learned_layers(data: bytes, choice: Choice) -> dict[str, str]:
    """Layers that may take eight bits, by name, with the tensor that flows into each.

    They are among those that may compute in half: inside networks, not their last one.
    """
    nodes = Nodes(read_graph(data))
    half = (nodes[i] for i in sorted(chosen_nodes(nodes, "fp16").half))
    return {
        node.name: node.input[0]
        for node in half
        if node.op_type in KINDS[choice] and nodes.source(node.input[1]) is not None
    }


def quantised(data: bytes, kind: Eight, ranges: Mapping[str, float]) -> bytes:
    """The graph in fp16, its layers in ``ranges`` in eight bits.

    ``ranges``: the largest magnitude that flows into a layer, by the layer's name.
    """
    model = read_graph(halved(data, "fp16"))
    writing = _Writing(model, kind)
    written = [
        made for node in model.graph.node for made in writing.nodes_for(node, ranges.get(node.name))
    ]
    del model.graph.node[:]
    model.graph.node.extend(written)
    _replace_constants(model, writing)
    result: bytes = model.SerializeToString(deterministic=True)
    return result


class _Writing:
    """Writes the nodes in their order; a tensor that was quantised once is not quantised again."""

    def __init__(self, model: ModelProto, kind: Eight) -> None:
        self._kind, self._stored = kind, {tensor.name: tensor for tensor in model.graph.initializer}
        self.constants: dict[str, TensorProto] = {}
        self._wide: dict[str, str] = {}  # tensor or weights -> what came back from eight bits

    def nodes_for(self, node: NodeProto, largest: float | None) -> list[NodeProto]:
        """What stands in the place of one node; ``largest`` of a layer that takes eight bits."""
        if largest is None:
            return [node]
        weights = numpy_helper.to_array(self._stored[node.input[1]])
        made = self._activations(node.input[0], largest, weights.dtype)
        made += self._weights(node.input[1], weights, _channel_axis(node, weights.ndim))
        for place in (0, 1):
            node.input[place] = self._wide[node.input[place]]
        return [*made, node]

    def _activations(
        self, name: str, largest: float, dtype: np.dtype[np.floating]
    ) -> list[NodeProto]:
        if name in self._wide:
            return []
        narrow, wide = self._names(name)
        scale = _scales(np.array(largest), self._kind, dtype)
        given = [self._keep(numpy_helper.from_array(scale, f"{narrow}_scale"))]
        given.append(self._keep(helper.make_tensor(f"{narrow}_zero", TYPES[self._kind], [], [0])))
        return [
            helper.make_node("QuantizeLinear", [name, *given], [narrow]),
            helper.make_node("DequantizeLinear", [narrow, *given], [wide]),
        ]

    def _weights(self, name: str, values: AnyArray, axis: int) -> list[NodeProto]:
        if name in self._wide:
            return []
        narrow, wide = self._names(name)
        others = tuple(i for i in range(values.ndim) if i != axis)
        scales = _scales(np.abs(values).max(others), self._kind, values.dtype)  # [channels]
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        shares = values.astype(np.float32) / scales.astype(np.float32).reshape(shape)
        self._keep(numpy_helper.from_array(_narrow(shares, self._kind), narrow))
        given = [narrow, self._keep(numpy_helper.from_array(scales, f"{narrow}_scale"))]
        return [helper.make_node("DequantizeLinear", given, [wide], axis=axis)]

    def _names(self, name: str) -> tuple[str, str]:
        narrow, wide = f"{name}_{self._kind}", f"{name}_{self._kind}_wide"
        self._wide[name] = wide
        return narrow, wide

    def _keep(self, tensor: TensorProto) -> str:
        self.constants[tensor.name] = tensor
        return str(tensor.name)


def _scales(largest: AnyArray, kind: Eight, dtype: np.dtype[np.floating]) -> AnyArray:
    """What one is worth, in the layer's type: that of zeros is the smallest normal number."""
    scales: AnyArray = np.asarray(largest, np.float32) / LARGEST[kind]
    return np.asarray(np.maximum(scales, np.finfo(dtype).tiny), dtype)


def _narrow(shares: AnyArray, kind: Eight) -> AnyArray:
    """Values in units of their scale, rounded to eight bits."""
    held = np.clip(shares, -LARGEST[kind], LARGEST[kind])
    rounded = np.rint(held) if kind == "int8" else held
    narrow: AnyArray = rounded.astype(helper.tensor_dtype_to_np_dtype(TYPES[kind]))
    return narrow


def _channel_axis(node: NodeProto, ndim: int) -> int:
    """The axis of a layer's weights that counts its outputs."""
    if node.op_type == "Gemm":
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        return 0 if turned else 1
    return 0 if node.op_type == "Conv" else ndim - 1


def _replace_constants(model: ModelProto, writing: _Writing) -> None:
    """Store what was made; drop what no node takes any more."""
    taken = {name for node in model.graph.node for name in node.input}
    taken |= {output.name for output in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in taken]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *writing.constants.values()])

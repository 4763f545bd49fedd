"""How many multiply-adds a graph makes: its convolutions and matrix products, nearly all of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from engines.openvino_graphs import openvino_core

if TYPE_CHECKING:
    from pathlib import Path


def graph_operations(path: Path, batch: int) -> int:
    """Operations (2 per multiply-add) of one call of an ONNX graph at ``batch`` rows."""
    return model_operations(openvino_core().read_model(path), batch)


def model_operations(model: Any, batch: int) -> int:  # noqa: ANN401 - openvino ships no types
    """The same of a model in memory, whose batch is fixed by this."""
    model.reshape({port.get_any_name(): _with_batch(port, batch) for port in model.inputs})
    return sum(_operations(node) for node in model.get_ordered_ops())


def _with_batch(port: Any, batch: int) -> Any:  # noqa: ANN401 - openvino ships no types
    shape = port.get_partial_shape()
    shape[0] = batch
    return shape


def _operations(node: Any) -> int:  # noqa: ANN401
    """2 x multiply-adds of one node; 0 for everything that is not a product of matrices."""
    kind = node.get_type_name()
    if kind not in _COUNTS or any(port.get_partial_shape().is_dynamic for port in node.outputs()):
        return 0
    return 2 * _COUNTS[kind](node)


def _shape(node: Any, port: int) -> list[int]:  # noqa: ANN401
    return list(node.input(port).get_shape())


def _made(node: Any) -> int:  # noqa: ANN401
    return math.prod(node.output(0).get_shape())


def _convolution(node: Any) -> int:  # noqa: ANN401
    return _made(node) * math.prod(_shape(node, 1)[1:])  # [out, in, *kernel]


def _grouped(node: Any) -> int:  # noqa: ANN401
    return _made(node) * math.prod(_shape(node, 1)[2:])  # [group, out, in, *kernel]


def _transposed(node: Any) -> int:  # noqa: ANN401
    weights = _shape(node, 1)  # [in, out, *kernel]: every input pixel meets out x kernel
    return math.prod(_shape(node, 0)) * math.prod(weights[1:])


def _product(node: Any) -> int:  # noqa: ANN401
    left = _shape(node, 0)
    inner = left[-2] if len(left) > 1 and node.get_attributes()["transpose_a"] else left[-1]
    return _made(node) * int(inner)


def _attention(node: Any) -> int:  # noqa: ANN401
    query, key, value = (_shape(node, port) for port in range(3))
    scores = math.prod(query[:-1]) * key[-2]
    return int(scores * (query[-1] + value[-1]))


_COUNTS = {
    "Convolution": _convolution,
    "GroupConvolution": _grouped,
    "ConvolutionBackpropData": _transposed,
    "MatMul": _product,
    "ScaledDotProductAttention": _attention,
}

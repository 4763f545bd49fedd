"""An ONNX graph as one asks about it: who makes and takes a tensor, of which type, from what."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper, shape_inference
from onnx.defs import OpSchema, get_schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set

    from engines.contracts import AnyArray

STANDARD = {"", "ai.onnx"}


class Nodes:
    """The nodes of a graph by their position in the file, which is an order of computation.

    Raises whatever onnx raises for a model that it cannot read.
    """

    def __init__(self, model: ModelProto) -> None:
        self._opset = standard_opset(model)
        self._nodes: Sequence[NodeProto] = list(model.graph.node)
        self.results = {output.name for output in model.graph.output}
        self.stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._types = _types_of(model)
        self._schemas: dict[str, OpSchema] = {}
        self.maker: dict[str, int] = {}
        self._takers: dict[str, set[int]] = defaultdict(set)
        self._sources: dict[str, str] = {name: name for name in self.stored}
        for i, node in enumerate(self._nodes):
            self._enter(i, node)

    def __len__(self) -> int:
        return len(self._nodes)

    def __getitem__(self, position: int) -> NodeProto:
        return self._nodes[position]

    def __iter__(self) -> Iterator[NodeProto]:
        return iter(self._nodes)

    def source(self, name: str) -> TensorProto | None:
        """The constant behind a tensor, through the Cast that widens a stored half; or None."""
        found = self._sources.get(name)
        return None if found is None else self.stored[found]

    def constant(self, name: str) -> AnyArray | None:
        """Its values, as they are stored."""
        found = self.source(name)
        return None if found is None else numpy_helper.to_array(found)

    def takers(self, name: str) -> Set[int]:
        """Nodes that use a tensor, within nested graphs too."""
        return self._takers.get(name, set())

    def is_f32(self, name: str) -> bool:
        """Whether a tensor is known to be in single precision."""
        return self._types.get(name) == TensorProto.FLOAT

    def typed_inputs(self, node: NodeProto) -> list[str]:
        """Inputs that share the type of the first: not its shapes, axes, indices or scales."""
        return [node.input[i] for i in self.typed(node) if node.input[i]]

    def typed(self, node: NodeProto) -> list[int]:
        """Positions of those inputs."""
        formal = self._schema(node).inputs
        last = len(formal) - 1
        letters = [formal[min(i, last)].type_str for i in range(len(node.input))]
        return [i for i, letter in enumerate(letters) if letter == formal[0].type_str]

    def leads_to(self, start: int, goals: Set[int], through: Set[str]) -> bool:
        """Whether a path from a node reaches one of the others by nodes of certain kinds alone."""
        seen, waiting = {start}, [start]
        while waiting:
            position = waiting.pop()
            for taker in {t for name in self[position].output for t in self.takers(name)} - seen:
                if taker in goals:
                    return True
                seen.add(taker)
                if self[taker].op_type in through:
                    waiting.append(taker)
        return False

    def _enter(self, position: int, node: NodeProto) -> None:
        for name in node.output:
            self.maker[name] = position
        for name in used_names(node):
            self._takers[name].add(position)
        if node.op_type == "Cast" and node.input[0] in self.stored and self.is_f32(node.output[0]):
            self._sources[node.output[0]] = node.input[0]

    def _schema(self, node: NodeProto) -> OpSchema:
        if node.op_type not in self._schemas:
            self._schemas[node.op_type] = get_schema(node.op_type, self._opset, node.domain)
        return self._schemas[node.op_type]


def standard_opset(model: ModelProto) -> int:
    """The version of ONNX's own operators that a model uses."""
    return int(next(e.version for e in model.opset_import if e.domain in STANDARD))


def _types_of(model: ModelProto) -> dict[str, int]:
    """ONNX's number of each tensor's type, where it can be inferred."""
    graph = shape_inference.infer_shapes(model, strict_mode=False).graph
    named = (*graph.input, *graph.output, *graph.value_info)
    types = {entry.name: entry.type.tensor_type.elem_type for entry in named}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def used_names(node: NodeProto) -> Iterator[str]:
    """Names that a node uses, those of its nested graphs (If, Loop) too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield from used_names(inner)
            yield from (output.name for output in attribute.g.output)

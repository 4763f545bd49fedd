"""Rewrites an ONNX graph so that some of its nodes compute in another type, with Casts around them.

A tensor keeps its name in f32; in half it is the name with a suffix. So nodes that stay as they are
need no change, and a Cast is written only where both kinds meet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import TensorProto, helper, numpy_helper

from engines.gpu.half_graph import used_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Set

    from onnx import ModelProto, NodeProto

    from engines.gpu.half_graph import Nodes

ANY_TYPE = {"Shape", "Size"}  # they ask a tensor nothing that depends on its type


def rewrite(model: ModelProto, nodes: Nodes, half: Set[int], kind: int, suffix: str) -> None:
    """Let the nodes at these positions compute in type ``kind`` (ONNX's number), in place."""
    rewriting = _Rewriting(nodes, half, kind, suffix)
    written = [node for i in range(len(nodes)) for node in rewriting.nodes_for(i)]
    del model.graph.node[:]
    model.graph.node.extend(_used_casts(written, nodes.results))
    model.graph.initializer.extend(rewriting.constants.values())
    _drop_unused_constants(model)
    del model.graph.value_info[:]


class _Rewriting:
    """Writes the nodes in their order; what was cast or stored once is not cast or stored again."""

    def __init__(self, nodes: Nodes, half: Set[int], kind: int, suffix: str) -> None:
        self._nodes, self._half, self._kind, self._suffix = nodes, half, kind, suffix
        self.constants: dict[str, TensorProto] = {}
        self._narrowed: set[str] = set()  # tensors that exist in half already

    def nodes_for(self, position: int) -> list[NodeProto]:
        """What stands in the place of one node."""
        node = self._nodes[position]
        if position not in self._half:
            if node.op_type in ANY_TYPE and node.input[0] in self._narrowed:
                node.input[0] += self._suffix
            return [node]
        casts = [c for i in self._nodes.typed(node) for c in self._narrow(node, i)]
        return [*casts, node, *self._widened(node)]

    def _narrow(self, node: NodeProto, place: int) -> list[NodeProto]:
        """Give a node one input in half; the Cast that this takes, if any."""
        name = node.input[place]
        if not name:
            return []
        if self._nodes.source(name) is not None:
            node.input[place] = self._constant(name)
            return []
        node.input[place] = f"{name}{self._suffix}"
        if name in self._narrowed:
            return []
        self._narrowed.add(name)
        return [helper.make_node("Cast", [name], [f"{name}{self._suffix}"], to=self._kind)]

    def _constant(self, name: str) -> str:
        """Name of a constant in half: the stored one where it is that already."""
        source = self._nodes.source(name)
        assert source is not None  # noqa: S101 - asked for constants alone
        if source.data_type == self._kind:
            return str(source.name)
        narrow = f"{name}{self._suffix}"
        if narrow not in self.constants:
            values = numpy_helper.to_array(source).astype(
                helper.tensor_dtype_to_np_dtype(self._kind)
            )
            self.constants[narrow] = numpy_helper.from_array(values, narrow)
        return narrow

    def _widened(self, node: NodeProto) -> list[NodeProto]:
        """Rename a node's outputs to their half names; Casts back for whoever takes f32."""
        casts = []
        for place, name in enumerate(node.output):
            if not name:
                continue
            node.output[place] = f"{name}{self._suffix}"
            self._narrowed.add(name)
            if name in self._nodes.results or not self._all_narrow(self._nodes.takers(name)):
                to = TensorProto.FLOAT
                casts.append(helper.make_node("Cast", [node.output[place]], [name], to=to))
        return casts

    def _all_narrow(self, takers: Iterable[int]) -> bool:
        return all(t in self._half or self._nodes[t].op_type in ANY_TYPE for t in takers)


def _used_casts(nodes: list[NodeProto], results: Set[str]) -> list[NodeProto]:
    """The nodes without Casts whose result nobody takes any more."""
    taken = {name for node in nodes for name in used_names(node)} | results
    return [n for n in nodes if n.op_type != "Cast" or n.output[0] in taken]


def _drop_unused_constants(model: ModelProto) -> None:
    taken = {name for node in model.graph.node for name in used_names(node)}
    taken |= {output.name for output in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in taken]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)

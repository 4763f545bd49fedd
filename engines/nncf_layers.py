"""One graph in int8 by NNCF, OpenVINO's own quantiser: which layers, and what comes of it.

Only layers with learned weights are quantised, per channel: convolutions and matrix products of a
network. Everything else keeps single precision, and with it every discrete choice: the bank's
search and distances, the codec's projection and standardisation, whitening, tables looked up by
index, norms, attention between activations, scores. The codec's projection is a convolution too;
unlike those of a network it has no bias.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from engines.contracts import BadConfig
from engines.openvino_graphs import load_openvino, openvino_core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.openvino_graphs import Named, openvino_core
    from engines.quantised import Model

Choice = Literal["convolutions", "learned"]  # of a network; and its matrix products besides
CONVOLUTIONS = ("Convolution", "GroupConvolution")
BESIDE_DATA = ("Constant", "Parameter", "Result")
FOLDED = ("Convert", "Reshape", "Transpose", "Multiply")  # between a constant and its layer


def quantised_graph(path: Path, choice: Choice, samples: Sequence[Named]) -> tuple[Model, int]:
    """A graph's int8 form and how many of its layers are int8; 0 where none was chosen.

    ``samples`` are what it was given, one row each, by input name. Activations are asymmetric, as
    half of a network's are SiLU's; raises BadConfig where NNCF is not installed.
    """
    nncf = load_nncf()
    model = openvino_core().read_model(str(path))
    layers = {op.get_friendly_name() for op in model.get_ops() if is_chosen(op, choice)}
    if not layers:
        return model_bytes(model), 0
    others = [
        op.get_friendly_name()
        for op in model.get_ops()
        if op.get_friendly_name() not in layers and op.get_type_name() not in BESIDE_DATA
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # NNCF's own progress bars
        made = nncf.quantize(
            model,
            nncf.Dataset(list(samples)),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=others, validate=False),
        )
    return model_bytes(made), len(layers)


def is_chosen(op: Any, choice: Choice) -> bool:  # noqa: ANN401 - openvino ships no types
    """Whether a layer of a network is quantised: its weights are constants, and it has a bias."""
    kind = op.get_type_name()
    if kind == "MatMul":
        return choice == "learned" and _is_constant(op.input_value(1).get_node())
    return kind in CONVOLUTIONS and _is_constant(op.input_value(1).get_node()) and _has_bias(op)


def load_nncf() -> Any:  # noqa: ANN401 - nncf's types pull in torch's and are not worth it
    """Import NNCF quietly and without OpenVINO's telemetry; BadConfig where it is absent."""
    load_openvino()
    try:
        import nncf
    except ImportError as error:
        raise BadConfig("int8 is made by NNCF: pip install 'assayline[train]'") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def _is_constant(node: Any) -> bool:  # noqa: ANN401
    """Whether a value is stored in the graph; weights may be widened and shaped on their way."""
    while node.get_type_name() in FOLDED:
        if node.get_type_name() == "Multiply" and not _is_constant(node.input_value(1).get_node()):
            return False
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _has_bias(op: Any) -> bool:  # noqa: ANN401
    """Whether a constant is added to what the layer gives, and nothing else is."""
    users = [target.get_node() for target in op.output(0).get_target_inputs()]
    return any(
        user.get_type_name() == "Add"
        and any(_is_constant(user.input_value(side).get_node()) for side in (0, 1))
        for user in users
    )


def model_bytes(model: Any) -> Model:  # noqa: ANN401
    """The two files of a model, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.xml"
        load_openvino().save_model(model, str(path), compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()

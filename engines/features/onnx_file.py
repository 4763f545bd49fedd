"""Feature networks from an ONNX file.

Torch cannot run such a file, so training runs it with OpenVINO; an exported graph first names it
in one node, in whose place ``splice_networks`` then puts the file's own nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines.contracts import BadConfig, BadData
from engines.features.file import FileNetwork, FileSettings, Size
from engines.openvino_graphs import openvino_core

DOMAIN, NODE = "assayline", "OnnxFile"


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file compiled for one size of image and any number of rows."""

    compiled: Any  # openvino.CompiledModel
    channels_last: bool
    shapes: tuple[tuple[int, ...], ...]  # of the outputs, without the batch


class OnnxNetwork(FileNetwork):
    """The outputs of an ONNX file with one image input f32 [B, 3, H, W] or [B, H, W, 3]."""

    last_only = False

    def __init__(self, settings: FileSettings) -> None:
        super().__init__(settings)
        self.file = Path(settings.path).expanduser()
        self.freeze()

    def outputs(self, pixels: Tensor) -> list[Tensor]:
        """The file's outputs; in an export one node that names the file."""
        opened = _opened(self.file, self.file.stat().st_mtime_ns, tuple(pixels.shape[2:]))
        shapes = [(pixels.shape[0], *shape) for shape in opened.shapes]
        if pixels.is_meta:
            return [pixels.new_empty(shape) for shape in shapes]
        if opened.channels_last:
            pixels = pixels.permute(0, 2, 3, 1)
        if torch.onnx.is_in_onnx_export():
            return list(
                torch.onnx.ops.symbolic_multi_out(
                    f"{DOMAIN}::{NODE}",
                    [pixels],
                    {"path": str(self.file)},
                    dtypes=[torch.float32] * len(shapes),
                    shapes=shapes,
                    version=1,
                )
            )
        results = opened.compiled([pixels.detach().cpu().contiguous().numpy()])
        return [torch.from_numpy(results[i].copy()).to(pixels) for i in range(len(shapes))]


def open_onnx(settings: FileSettings) -> OnnxNetwork:
    """The network of an ONNX file.

    Raises BadConfig for a file that does not exist or does not fit, BadData for a damaged one.
    """
    network = OnnxNetwork(settings)
    if not network.file.is_file():
        raise BadConfig(f"{settings.path} does not exist; name an ONNX file")
    network.measure()
    return network


@lru_cache(maxsize=8)
def _opened(file: Path, stamp: int, size: Size) -> _Opened:
    """Compiled in single precision, as training is; a changed file has another time stamp."""
    del stamp
    core = openvino_core()
    try:
        model = core.read_model(str(file))
    except RuntimeError as error:
        raise BadData(f"{file} cannot be read as ONNX; export it again") from error
    channels_last = _is_channels_last(file, model.inputs)
    model.reshape([-1, *size, 3] if channels_last else [-1, 3, *size])
    shapes = []
    for output in model.outputs:
        batch, *shape = output.get_partial_shape()
        if batch.is_static or any(side.is_dynamic for side in shape):
            raise BadConfig(f"{file} has an output of fixed batch; export it with a dynamic one")
        shapes.append(tuple(side.get_length() for side in shape))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return _Opened(compiled, channels_last, tuple(shapes))


def _is_channels_last(file: Path, inputs: Any) -> bool:  # noqa: ANN401 - openvino ships no types
    """Raises BadConfig for anything but one RGB image of floats."""
    kind = inputs[0].get_element_type().get_type_name()
    shape = inputs[0].get_partial_shape()
    if len(inputs) == 1 and kind == "f32" and shape.rank.get_length() == 4:
        if shape[1].is_dynamic or shape[1].get_length() == 3:
            return False
        if shape[3].is_static and shape[3].get_length() == 3:
            return True
    raise BadConfig(
        f"{file} reads {len(inputs)} inputs, the first {kind} {shape}; a feature network reads one "
        "image, float32 [B, 3, H, W]"
    )

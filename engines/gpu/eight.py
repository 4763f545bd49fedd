"""A bundle's graphs in int8 or fp8 for TensorRT: calibrated and tried before any engine is built.

Which layers take eight bits is the parity gate's to say, as for OpenVINO: choices are tried, the
fastest first, by computing the very file that TensorRT will be given on the CPU. That needs no GPU;
whether the engine keeps to it is gated once more on one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from engines.backend_openvino import OpenVinoBackend
from engines.dataset import evenly
from engines.gpu.precision import EightBits
from engines.gpu.qdq import LARGEST, learned_layers, quantised
from engines.nncf_layers import model_bytes
from engines.openvino_graphs import openvino_core
from engines.parity_set import load_frames
from engines.quantisation import IMAGES, agreeing, sampled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from engines.bundle import Bundle, GraphName
    from engines.contracts import UInt8
    from engines.gpu.qdq import Eight
    from engines.nncf_layers import Choice
    from engines.openvino_graphs import Named
    from engines.quantisation import Told
    from engines.quantised import Model


@dataclass(frozen=True, slots=True, eq=False)
class EightBitGraphs:
    """ONNX files by graph; one that is not here takes no eight bits."""

    files: dict[GraphName, bytes]
    told: EightBits


def eight_bit_graphs(
    bundle: Bundle,
    kinds: Mapping[GraphName, str],
    images: Mapping[str, Sequence[UInt8]] | None = None,
    told: Told = lambda *_: None,
) -> EightBitGraphs:
    """The graphs of a bundle that are asked for in int8 or fp8.

    images: good model inputs [H, W, 3] by category to calibrate on; None: the parity frames. Raises
    ParityError where no choice of layers agrees with single precision.
    """
    frames = load_frames(bundle)
    pairs = [(name, image) for name, some in (images or {}).items() for image in some]
    pairs = pairs or list(zip(frames.categories, frames.images, strict=True))
    files: dict[tuple[GraphName, Choice], bytes] = {}
    with OpenVinoBackend(bundle.folder, bundle.manifest.spec, precision="f32") as reference:
        samples = sampled(bundle, reference, pairs[evenly(len(pairs), IMAGES)])

        @functools.cache
        def ranges_in(name: GraphName) -> dict[str, float]:
            path = bundle.path(f"{name}.onnx")
            layers = learned_layers(path.read_bytes(), "learned")
            return measured_ranges(path, layers, samples[name])

        @functools.cache
        def graph_of(name: GraphName, choice: Choice) -> tuple[Model, int]:
            data, kind = bundle.path(f"{name}.onnx").read_bytes(), kinds[name]
            layers = learned_layers(data, choice) if kind in LARGEST else {}
            ranges = {layer: ranges_in(name)[layer] for layer in layers}
            files[name, choice] = quantised(data, cast("Eight", kind), ranges) if layers else data
            return _as_model(files[name, choice]), len(layers)

        label = ", ".join(sorted(set(kinds.values()) & LARGEST.keys()))
        made = agreeing(bundle, reference, graph_of, told, label)
    return EightBitGraphs(
        {name: files[name, made.rung.choices[name]] for name in made.models},
        EightBits(
            layers=made.rung.told,
            counts=made.layers,
            calibrated_on=f"{len(samples['start'])} {'good images' if images else 'parity frames'}",
            on_cpu=made.report.model_copy(update={"backend": f"tensorrt's {label} on the CPU"}),
        ),
    )


def measured_ranges(
    path: Path, layers: Mapping[str, str], samples: Sequence[Named]
) -> dict[str, float]:
    """The largest magnitude that flows into each layer over all samples, computed in f32."""
    core = openvino_core()
    model = core.read_model(str(path))
    tensors = sorted(set(layers.values()))
    model.add_outputs(tensors)
    request = core.compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    ).create_infer_request()
    largest = dict.fromkeys(tensors, 0.0)
    for sample in samples:
        request.infer(sample)
        for name in tensors:
            largest[name] = max(largest[name], float(np.abs(request.get_tensor(name).data).max()))
    return {layer: largest[name] for layer, name in layers.items()}


def _as_model(data: bytes) -> Model:
    """An ONNX file as OpenVINO keeps one."""
    return model_bytes(openvino_core().read_model(data))

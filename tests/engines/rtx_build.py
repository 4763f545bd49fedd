"""Build an ONNX graph with TensorRT-RTX ahead of time, which needs no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPUTE_CAPABILITIES = ("SM86", "SM89")
BATCHES = (1, 4, 16)  # one optimisation profile each


@dataclass(frozen=True)
class Port:
    """One input or output of a built engine; the batch dimension is -1."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Built:
    """What came of a graph."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    size: int  # bytes of the serialised engine


def build(path: Path, capabilities: Sequence[str] = COMPUTE_CAPABILITIES) -> Built:
    """Parse and build one graph; raises RuntimeError naming what TensorRT refused."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise RuntimeError(f"{path.name}: {reasons}")
    engine = builder.build_serialized_network(network, _config(builder, network, capabilities))
    if engine is None:
        raise RuntimeError(f"{path.name}: TensorRT built nothing")
    return Built(
        tuple(_port(network.get_input(i)) for i in range(network.num_inputs)),
        tuple(_port(network.get_output(i)) for i in range(network.num_outputs)),
        int(engine.nbytes),
    )


def _config(builder: Any, network: Any, capabilities: Sequence[str]) -> Any:  # noqa: ANN401 - TensorRT ships no types
    import tensorrt_rtx as trt

    config = builder.create_builder_config()
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    for batch in BATCHES:
        profile = builder.create_optimization_profile()
        for port in (network.get_input(i) for i in range(network.num_inputs)):
            shape = (batch, *tuple(port.shape)[1:])
            profile.set_shape(port.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    return config


def _port(tensor: Any) -> Port:  # noqa: ANN401 - TensorRT ships no types
    import tensorrt_rtx as trt

    return Port(tensor.name, trt.nptype(tensor.dtype).__name__, tuple(tensor.shape))

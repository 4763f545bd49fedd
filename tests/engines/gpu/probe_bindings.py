"""Run in a process of its own over stub libraries: what the code asks of TensorRT, it has.

``tensorrt`` here is the real bindings. Doubles made from their classes refuse whatever the classes
do not have, and the code runs over them from ONNX bytes to an enqueued batch.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import tensorrt_bindings

sys.modules["tensorrt"] = tensorrt_bindings
for module in ("engines.gpu.libraries", "engines.gpu.target", "engines.gpu.engine"):
    importlib.import_module(module)

from engines.contracts import EngineFault  # noqa: E402 - after the stand-in for tensorrt
from engines.gpu.engine import TensorRtExecutable  # noqa: E402
from engines.gpu.engine_file import EngineKey  # noqa: E402
from engines.gpu.executable import Port  # noqa: E402
from engines.gpu.libraries import Library, load_library  # noqa: E402
from engines.gpu.target import Target, Timings  # noqa: E402

trt: Any = tensorrt_bindings


def double(name: str) -> Any:  # noqa: ANN401 - a double of any class
    """An object with the attributes of a class of the bindings, and no others."""
    return create_autospec(getattr(trt, name), instance=True, spec_set=True)


def refusals() -> list[str]:
    """What the code says where the library answers nothing."""
    library, said = load_library("tensorrt"), []
    for make in (library.builder, library.runtime):
        try:
            make()
        except EngineFault as error:
            said.append(str(error))
    return said


class Api:
    """The real module, but for the classes that cannot be made over empty libraries."""

    def __init__(self, **doubles: object) -> None:
        self.__dict__.update(doubles)

    def __getattr__(self, name: str) -> object:
        return getattr(trt, name)


def build(folder: Path) -> list[str]:
    """Parse, configure and build over doubles: profiles, memory, timings, no TF32."""
    builder, config, network, parser = map(
        double, ("Builder", "IBuilderConfig", "INetworkDefinition", "OnnxParser")
    )
    port, profile = double("ITensor"), double("IOptimizationProfile")
    port.name, port.shape = "latent", (-1, 8, 4, 4)
    network.num_inputs, network.get_input.return_value = 1, port
    builder.create_network.return_value = network
    builder.create_builder_config.return_value = config
    builder.create_optimization_profile.return_value = profile
    config.set_timing_cache.return_value = True
    config.create_timing_cache.return_value = double("ITimingCache")
    config.create_timing_cache.return_value.serialize.return_value = b"timings"
    real = load_library("tensorrt")
    api = Api(OnnxParser=lambda *_: parser)
    library = Library("tensorrt", api, real.version, real.words)
    assert library.network(builder, b"onnx", "step.onnx") is network
    Target(library, ("SM90",), (1, 4)).config(builder, network)
    Timings(library, config, folder).keep()
    config.clear_flag.assert_called_once_with(trt.BuilderFlag.TF32)
    shape = (4, 8, 4, 4)
    profile.set_shape.assert_called_with("latent", shape, shape, shape)
    return [path.name for path in folder.iterdir()]


def run() -> list[str]:
    """Load, bind and enqueue over doubles."""
    runtime, engine, context = map(double, ("Runtime", "ICudaEngine", "IExecutionContext"))
    runtime.deserialize_cuda_engine.return_value = engine
    engine.create_execution_context.return_value = context
    engine.num_io_tensors, engine.num_optimization_profiles = 2, 2
    engine.get_tensor_name.side_effect = ["latent", "next_latent"].__getitem__
    modes = {"latent": trt.TensorIOMode.INPUT, "next_latent": trt.TensorIOMode.OUTPUT}
    engine.get_tensor_mode.side_effect = modes.__getitem__
    engine.get_tensor_dtype.return_value = trt.DataType.FLOAT
    engine.get_tensor_shape.return_value = (-1, 8)
    engine.get_tensor_profile_shape.side_effect = lambda _, place: [((1, 4)[place], 8)] * 3
    real = load_library("tensorrt")
    library = Library("tensorrt", Api(Runtime=lambda _: runtime), real.version, real.words)
    executable = TensorRtExecutable(library, "step", b"engine", key())
    executable.bind("latent", 4096)
    executable.bind("next_latent", 8192)
    executable.enqueue(4, 7)
    executable.enqueue(4, 7)
    context.set_optimization_profile_async.assert_called_once_with(1, 7)
    context.set_input_shape.assert_called_once_with("latent", (4, 8))
    context.set_tensor_address.assert_any_call("next_latent", 8192)
    kind = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    engine.create_execution_context.assert_called_with(kind)
    return [str(call) for call in context.execute_async_v3.call_args_list]


def key() -> EngineKey:
    """Of an engine for batches of 1 and 4."""
    return EngineKey(
        bundle_id="b",
        graph="step",
        library="tensorrt",
        library_version=trt.__version__,
        compute=("SM90",),
        precision="fp16",
        buckets=(1, 4),
        inputs=(Port("latent", "float32", (8,)),),
        outputs=(Port("next_latent", "float32", (8,)),),
        sha256="",
    )


def signatures() -> dict[str, str]:
    """What the bindings say of the calls that carry numbers."""
    calls = {
        "IExecutionContext": ("execute_async_v3", "set_tensor_address", "set_input_shape"),
        "IBuilderConfig": ("set_timing_cache", "set_memory_pool_limit"),
        "ParserError": ("node_operator", "node_name", "desc"),
    }
    return {
        name: str(getattr(getattr(trt, kind), name).__doc__)
        for kind, names in calls.items()
        for name in names
    }


if __name__ == "__main__":
    told = {
        "version": load_library("tensorrt").version,
        "refusals": refusals(),
        "written": build(Path(sys.argv[1])),
        "enqueued": run(),
        "signatures": signatures(),
    }
    print(json.dumps(told))

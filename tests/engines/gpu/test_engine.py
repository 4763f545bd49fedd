"""A loaded engine: what it refuses, and when a profile is chosen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, call

import pytest

from engines.contracts import BadBundle, EngineFault
from engines.gpu.engine import TensorRtExecutable
from engines.gpu.engine_file import EngineKey
from engines.gpu.executable import Port
from engines.gpu.libraries import Library

INPUT, OUTPUT = Port("latent", "float32", (8,)), Port("next_latent", "float32", (8,))
KEY = EngineKey(
    bundle_id="b",
    graph="step",
    library="tensorrt",
    library_version="11",
    compute=(),
    precision="fp16",
    buckets=(1, 4),
    inputs=(INPUT,),
    outputs=(OUTPUT,),
    sha256="",
)


class Engine:
    """A double of TensorRT around one engine of two ports; its calls are recorded per bucket."""

    def __init__(self) -> None:
        self.contexts = [MagicMock() for _ in KEY.buckets]
        self.engine = MagicMock(num_io_tensors=2, num_optimization_profiles=2)
        names = [INPUT.name, OUTPUT.name]
        self.engine.get_tensor_name.side_effect = names.__getitem__
        self.engine.get_tensor_mode.side_effect = lambda name: "in" if name == names[0] else "out"
        self.engine.get_tensor_dtype.return_value = SimpleNamespace(name="FLOAT")
        self.engine.get_tensor_shape.return_value = (-1, 8)
        self.engine.get_tensor_profile_shape.side_effect = lambda _, i: [(KEY.buckets[i], 8)] * 3
        self.engine.create_execution_context.side_effect = self.contexts
        self.runtime = MagicMock()
        self.runtime.deserialize_cuda_engine.return_value = self.engine
        self.words = MagicMock(last="it said so")

    def open(self, key: EngineKey = KEY) -> TensorRtExecutable:
        """Load it."""
        api: Any = MagicMock(TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"))
        api.Runtime.return_value = self.runtime
        return TensorRtExecutable(Library("tensorrt", api, "11", self.words), "step", b"", key)


def test_nothing_loaded_is_one_sentence() -> None:
    """TensorRT answers None where it cannot load an engine."""
    double = Engine()
    double.runtime.deserialize_cuda_engine.return_value = None
    with pytest.raises(EngineFault, match="tensorrt 11 could not load the engine of step: it said"):
        double.open()


def test_an_engine_must_have_the_ports_of_its_key() -> None:
    """Names, types and shapes, before any address is taken."""
    double = Engine()
    double.engine.get_tensor_dtype.return_value = SimpleNamespace(name="HALF")
    with pytest.raises(BadBundle, match=r"latent HALF \[8\] instead of latent float32 \[8\]"):
        double.open()


def test_an_engine_must_have_the_profiles_of_its_key() -> None:
    """One for each bucket, in their order."""
    double = Engine()
    double.engine.get_tensor_profile_shape.side_effect = lambda *_: [(2, 8)] * 3
    with pytest.raises(BadBundle, match=r"other profiles than its key names \(1, 4\)"):
        double.open()


def test_no_room_for_a_context_names_the_bucket() -> None:
    """Memory of the GPU ends at the largest batch first."""
    double = Engine()
    double.engine.create_execution_context.side_effect = [MagicMock(), None]
    with pytest.raises(EngineFault, match="no room for batches of 4 of step: it said so"):
        double.open()


def test_a_bucket_is_prepared_once_on_the_stream_of_its_first_call() -> None:
    """Profile, shapes and addresses in that order; later calls only enqueue."""
    double = Engine()
    executable, context = double.open(), double.contexts[1]
    executable.bind("latent", 64)
    executable.bind("next_latent", 128)
    for _ in range(2):
        executable.enqueue(4, 7)
    assert [one for one in context.mock_calls if one[0] and "__" not in one[0]] == [
        call.set_optimization_profile_async(1, 7),
        call.set_input_shape("latent", (4, 8)),
        call.set_tensor_address("latent", 64),
        call.set_tensor_address("next_latent", 128),
        call.execute_async_v3(7),
        call.execute_async_v3(7),
    ]
    assert not [one for one in double.contexts[0].mock_calls if one[0] and "__" not in one[0]]


def test_a_new_address_reaches_buckets_that_are_ready() -> None:
    """Memory may move between calls."""
    double = Engine()
    executable = double.open()
    executable.bind("latent", 64)
    executable.enqueue(1, 7)
    executable.bind("latent", 96)
    double.contexts[0].set_tensor_address.assert_called_with("latent", 96)


@pytest.mark.parametrize(
    ("refusing", "said"),
    [
        ("execute_async_v3", "could not run step: it said so"),
        ("set_tensor_address", "could not bind step"),
        ("set_input_shape", "could not size step"),
        ("set_optimization_profile_async", "could not choose a profile of step"),
    ],
)
def test_a_refused_call_is_an_engine_fault(refusing: str, said: str) -> None:
    """TensorRT answers False and tells its logger why."""
    double = Engine()
    executable = double.open()
    executable.bind("latent", 64)
    getattr(double.contexts[0], refusing).return_value = False
    with pytest.raises(EngineFault, match=said):
        executable.enqueue(1, 7)


def test_other_sizes_and_ports_are_refused() -> None:
    """What the engine was built for is in the sentence."""
    executable = Engine().open()
    with pytest.raises(EngineFault, match="step was built for batches of 1, 4, not 3"):
        executable.enqueue(3, 7)
    with pytest.raises(EngineFault, match="step has no port 'image'"):
        executable.bind("image", 64)


def test_a_closed_engine_holds_nothing() -> None:
    """Contexts first, then the engine, then the runtime."""
    executable = Engine().open()
    executable.close()
    with pytest.raises(EngineFault):
        executable.enqueue(1, 7)
    executable.close()

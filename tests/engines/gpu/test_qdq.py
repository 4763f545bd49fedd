"""Explicit quantisation: which layers take eight bits, what they compute, and engines of them."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.bundle import GRAPHS, open_bundle, seal
from engines.contracts import BadConfig, EngineFault, ParityError
from engines.gpu.building import build_engines, build_graph
from engines.gpu.eight import eight_bit_graphs, measured_ranges
from engines.gpu.engine_file import engine_folder, read_engine, read_key
from engines.gpu.gate import build_and_gate
from engines.gpu.precision import precisions_of
from engines.gpu.qdq import LARGEST, Eight, learned_layers, quantised
from engines.gpu.target import find_target
from engines.openvino_graphs import openvino_core
from engines.parity_set import ParitySet, save_frames
from engines.quantisation import RUNGS
from engines.specimens import pictures
from tests.engines.gpu.real_bundles import write_bundle

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from pathlib import Path

    from engines.bundle import Bundle, GraphName
    from engines.gpu.eight import EightBitGraphs

FRAMES, CHANNELS = 4, 16
KINDS: tuple[Eight, ...] = ("int8", "fp8")
with_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A method whose ``start`` is a real network, with a few parity frames."""
    bundle = write_bundle("DeCo-Diff", tmp_path_factory.mktemp("eight") / "bundle")
    images = np.asarray(pictures(FRAMES, bundle.manifest.image_size, seed=4))
    names = tuple(bundle.manifest.categories[i % 2] for i in range(FRAMES))
    save_frames(ParitySet(images, names, near=(False,) * FRAMES), bundle.folder)
    return seal(bundle.folder, bundle.manifest.model_dump(exclude={"files", "schema_version"}))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Eight:
    """Both kinds of eight bits."""
    found: Eight = request.param
    return found


@pytest.fixture(scope="module")
def made(bundle: Bundle, kind: Eight) -> EightBitGraphs:
    """The first choice of layers; the gate has its own test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engines.parity.EPSILON", 1e6)
        return eight_bit_graphs(bundle, precisions_of(bundle, kind))


def chain() -> bytes:
    """Three convolutions in a row over [B, 16, 8, 8]; the last one's result leaves the network."""
    draw = np.random.default_rng(0)
    names = ("image", "first", "second", "third")
    weights = [
        numpy_helper.from_array(
            draw.normal(size=(CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 12, f"w{i}"
        )
        for i in range(3)
    ]
    nodes = [
        helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], f"conv{i}", pads=[1] * 4)
        for i in range(3)
    ]
    shape = ["B", CHANNELS, 8, 8]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in ("image", "third")]
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def computed(data: bytes, image: np.ndarray) -> np.ndarray:
    """What OpenVINO makes of a graph."""
    core = openvino_core()
    compiled = core.compile_model(core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found: np.ndarray = compiled([image])[0]
    return found


def test_the_last_layer_of_a_network_keeps_its_precision() -> None:
    """What the method reckons with is never rounded to eight bits."""
    assert learned_layers(chain(), "learned") == {"conv0": "image", "conv1": "first"}


def test_ranges_are_the_largest_magnitudes_of_all_samples(tmp_path: Path) -> None:
    """Each layer has that of the tensor which flows into it."""
    path = tmp_path / "chain.onnx"
    path.write_bytes(chain())
    draw = np.random.default_rng(1)
    images = [draw.normal(size=(1, CHANNELS, 8, 8)).astype(np.float32) for _ in range(3)]
    ranges = measured_ranges(
        path, learned_layers(chain(), "learned"), [{"image": i} for i in images]
    )
    assert ranges["conv0"] == pytest.approx(max(float(np.abs(i).max()) for i in images))
    assert 0 < ranges["conv1"] != ranges["conv0"]


def test_eight_bits_are_close_to_single_precision(kind: Eight) -> None:
    """Both factors of a layer come out of a DequantizeLinear, and the result is near."""
    image = np.random.default_rng(2).normal(size=(2, CHANNELS, 8, 8)).astype(np.float32)
    data = quantised(chain(), kind, {"conv0": float(np.abs(image).max()), "conv1": 4.0})
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model)
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv":
            narrow = {makers.get(name) == "DequantizeLinear" for name in node.input[:2]}
            assert narrow == {node.name != "conv2"}
    exact = computed(chain(), image)
    error = np.abs(computed(data, image) - exact).max() / np.abs(exact).max()
    assert 1e-4 < error < (0.03 if kind == "int8" else 0.12)


def test_weights_are_stored_in_eight_bits(kind: Eight) -> None:
    """With a scale per output channel; an image beyond the range is clipped, not wrapped."""
    model = onnx.load_model_from_string(quantised(chain(), kind, {"conv0": 1.0}))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert stored[f"w0_fp16_{kind}_scale"].shape == (CHANNELS,)
    assert stored[f"w0_fp16_{kind}"].itemsize == 1
    assert not stored.keys() & {"w0", "w0_fp16"}
    largest = np.abs(stored[f"w0_fp16_{kind}"].astype(np.float32)).max(axis=(1, 2, 3))
    np.testing.assert_allclose(largest, LARGEST[kind], rtol=0.01)
    image = np.full((1, CHANNELS, 8, 8), 3, np.float32)
    ones = computed(model.SerializeToString(), np.ones_like(image))
    np.testing.assert_array_equal(computed(model.SerializeToString(), image), ones)


def test_layers_of_both_networks_take_eight_bits(made: EightBitGraphs, kind: Eight) -> None:
    """The file of a graph holds as many rounded layers as are told, whatever else it holds."""
    assert set(made.files) == {"start", "step"}
    assert made.told.layers == RUNGS[0].told
    for graph, data in made.files.items():
        model = onnx.load_model_from_string(data)
        narrow = [t for t in model.graph.initializer if t.name.endswith(f"_{kind}")]
        assert len(narrow) == made.told.counts[graph] > 0
    assert f"calibrated on {FRAMES} parity frames: tensorrt's {kind} on the CPU" in (
        made.told.sentence()
    )


def test_a_gate_that_refuses_names_every_choice(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is built of a bundle whose findings eight bits change."""
    monkeypatch.setattr("engines.parity.EPSILON", 1e-12)
    with pytest.raises(ParityError, match=r"int8 is not offered.*network of step") as refusal:
        build_engines(bundle, "int8", tmp_path, target=find_target(("SM89",), (1,)))
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


@with_rtx
def test_engines_in_eight_bits_are_built(
    bundle: Bundle, made: EightBitGraphs, kind: Eight, tmp_path: Path
) -> None:
    """All graphs for GPUs that have them: int8 before fp8 came, fp8 from SM89 on."""
    compute = ("SM86", "SM89") if kind == "int8" else ("SM89",)
    target = find_target(compute, (1, 4))
    assert build_engines(bundle, kind, tmp_path, target=target, eight=made) == f"tensorrt:{kind}"
    place = engine_folder(tmp_path, kind)
    for graph in GRAPHS:
        key = read_key(place, graph, "")
        assert (key.precision, key.compute) == (kind, compute)
        assert len(read_engine(place, graph, key, "")) > 10_000


@with_rtx
@pytest.mark.parametrize("graph", ["start", "step"])
def test_the_library_itself_has_no_fp8_before_sm89(
    bundle: Bundle, graph: GraphName, tmp_path: Path
) -> None:
    """Its own words; a build says so earlier and shorter."""
    data = bundle.path(f"{graph}.onnx").read_bytes()
    file = quantised(data, "fp8", dict.fromkeys(learned_layers(data, "learned"), 4.0))
    with pytest.raises(EngineFault, match=r"could not build .* HW-specific datatypes: fp8_e4m3"):
        build_graph(bundle, graph, file, find_target(("SM86",), (1,)), tmp_path)


@with_rtx
@pytest.mark.parametrize(
    ("compute", "said"), [(("SM86", "SM89"), "SM86 has none"), ((), "name them")]
)
def test_fp8_is_refused_before_anything_is_calibrated(
    bundle: Bundle, compute: tuple[str, ...], said: str
) -> None:
    """One sentence names the GPU that lacks it."""
    with pytest.raises(BadConfig, match=f"fp8 needs GPUs from SM89 on, {said}"):
        build_and_gate(open_bundle(bundle.folder), "fp8", compute)


def test_a_bundle_that_holds_a_graph_at_f32_keeps_it(bundle: Bundle) -> None:
    """Eight bits are no way around the bundle's wish."""
    wish = {**bundle.manifest.configuration, "precision": {"start": "f32"}}
    manifest = bundle.manifest.model_copy(update={"configuration": wish})
    held = type(bundle)(bundle.folder, manifest, bundle.bundle_id)
    assert precisions_of(held, "int8") == {"start": "f32", "step": "int8", "finish": "int8"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engines.parity.EPSILON", 1e6)
        made = eight_bit_graphs(held, precisions_of(held, "int8"))
    assert set(made.files) == {"step"}
    assert made.told.layers == RUNGS[1].told

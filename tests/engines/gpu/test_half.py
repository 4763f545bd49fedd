"""Networks go half, everything that a method reckons with stays f32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from engines.backend import columns
from engines.bundle import GRAPHS
from engines.contracts import AnyArray, BadBundle
from engines.gpu.half import AVERAGING, BETWEEN, FITTED, PRODUCTS, TYPES, Half, chosen_nodes, halved
from engines.gpu.half_graph import Nodes
from engines.openvino_graphs import openvino_core
from tests.engines.exported import Exported, draw_parts, exported, rows_of
from tests.engines.sketches import SKETCHES

# Four exports took 93 s on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
DEMO = Path(__file__).parents[3] / "configs" / "bundles" / "demo"
BOUNDS: dict[Half, float] = {"fp16": 2e-3, "bf16": 1.6e-2}  # two roundings, of the largest value


@pytest.fixture(scope="module", params=SKETCHES)
def sketch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Each of the four methods, exported."""
    return exported(request.param, tmp_path_factory)


def small(weight: AnyArray, tail: list[onnx.NodeProto], constants: dict[str, AnyArray]) -> bytes:
    """x -> a convolution with 8 channels, some nodes from y to z, a second convolution, a third."""
    kept = {"w": weight, "last": np.float32(np.random.default_rng(1).normal(size=(8, 8, 3, 3)))}
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], name="first", pads=pads),
        *tail,
        helper.make_node("Conv", ["z", "last"], ["v"], name="second", pads=pads),
        helper.make_node("Conv", ["v", "last"], ["out"], name="third", pads=pads),
    ]
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 8, 4, 4]) for n in ("x", "out")
    ]
    stored = [numpy_helper.from_array(v, n) for n, v in (kept | constants).items()]
    graph = helper.make_graph(nodes, "small", ports[:1], ports[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    data: bytes = model.SerializeToString()
    return data


WEIGHT = np.float32(np.random.default_rng(0).normal(size=(8, 8, 3, 3)))
RELU = [helper.make_node("Relu", ["y"], ["z"], name="between")]


def chosen(data: bytes, kind: Half = "fp16") -> set[str]:
    """Names of the nodes that go half."""
    nodes = Nodes(onnx.load_model_from_string(data))
    return {nodes[i].name for i in chosen_nodes(nodes, kind).half}


def test_the_last_layer_of_a_network_stays_single() -> None:
    """What a method reckons with is not rounded; what lies between two layers goes along."""
    assert chosen(small(WEIGHT, RELU, {})) == {"first", "between", "second"}


def test_averages_between_layers_are_computed_in_single() -> None:
    """Sums over many cells may leave the range of fp16."""
    norm = [helper.make_node("InstanceNormalization", ["y", "s", "s"], ["n"], name="norm")]
    after = [helper.make_node("Mul", ["n", "n"], ["z"], name="after")]
    data = small(WEIGHT, [*norm, *after], {"s": np.ones(8, np.float32)})
    assert chosen(data) == {"first", "after", "second"}
    types = {v.name: v for v in onnx.load_model_from_string(halved(data, "fp16")).graph.node}
    assert types["norm"].input[0] == "y"
    assert types["after"].input[0] == "n_fp16"


@pytest.mark.parametrize("operator", ["Sub", "Div"])
def test_what_is_subtracted_or_divided_stays_single(operator: str) -> None:
    """A standardisation loses its digits in half, wherever it stands."""
    node = [helper.make_node(operator, ["y", "c"], ["z"], name="between")]
    assert chosen(small(WEIGHT, node, {"c": np.ones((8, 1, 1), np.float32)})) == {"second"}


def test_a_fitted_projection_is_no_layer() -> None:
    """Components of features stay single, like the standardisation that follows them."""
    data = small(WEIGHT, RELU, {})
    model = onnx.load_model_from_string(data)
    model.graph.initializer[0].name = model.graph.node[0].input[1] = f"method.{FITTED}"
    assert chosen(model.SerializeToString()) == {"second"}


@pytest.mark.parametrize("weight", [np.abs(WEIGHT), WEIGHT[:, :1, :1, :1].copy() * 1e5])
def test_averages_and_what_half_cannot_hold_are_no_layers(weight: AnyArray) -> None:
    """A blur has no negative taps; a weight beyond the range would become infinite."""
    assert "first" not in chosen(small(np.broadcast_to(weight, (8, 8, 3, 3)).copy(), RELU, {}))


def test_a_constant_out_of_range_keeps_its_node_single() -> None:
    """bf16 reaches as far as f32, fp16 does not."""
    node = [helper.make_node("Add", ["y", "c"], ["z"], name="between")]
    data = small(WEIGHT, node, {"c": np.full((8, 1, 1), -1e9, np.float32)})
    assert "between" not in chosen(data, "fp16")
    assert "between" in chosen(data, "bf16")


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_ports_keep_their_names_and_types(graph: str, kind: Half) -> None:
    """The shipped bundle's state is the same in every precision, and the files are valid."""
    data = (DEMO / f"{graph}.onnx").read_bytes()
    before, after = (onnx.load_model_from_string(d) for d in (data, halved(data, kind)))
    if kind == "fp16":  # ONNX lists bf16 for convolutions two sets later; TensorRT takes it
        onnx.checker.check_model(after, full_check=True)
    for ports in ("input", "output"):
        given, kept = (list(getattr(model.graph, ports)) for model in (before, after))
        assert [port.SerializeToString() for port in given] == [p.SerializeToString() for p in kept]
    assert halved(data, kind) == halved(data, kind)


def test_only_networks_see_half(sketch: Exported) -> None:
    """No comparison, search, sum, quotient or table look-up reads a half, in any graph."""
    allowed = PRODUCTS | BETWEEN | {"Cast", "Shape"}
    seen = 0
    for graph in GRAPHS:
        model = onnx.load_model_from_string(halved(_data(sketch, graph), "fp16"))
        inferred = onnx.shape_inference.infer_shapes(model).graph
        half = {
            v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TYPES["fp16"]
        }
        readers = {n.op_type for n in model.graph.node if half & set(n.input)}
        seen += len(half)
        assert not readers - allowed
        assert not readers & AVERAGING
    assert seen


def test_the_demos_bank_and_projection_stay_single() -> None:
    """The search, the distance and the components that are compared; its U-Net all but one goes."""
    nodes = Nodes(onnx.load(DEMO / "start.onnx"))
    half = chosen_nodes(nodes, "fp16").half
    single = [n for i, n in enumerate(nodes) if n.op_type in PRODUCTS and i not in half]
    assert [n.op_type for n in single].count("MatMul") == 1
    assert any(n.input[1].endswith(FITTED) for n in single)
    assert len([i for i in half if nodes[i].op_type == "Conv"]) >= 30
    unet = Nodes(onnx.load(DEMO / "step.onnx"))
    half = chosen_nodes(unet, "fp16").half
    products = [i for i, n in enumerate(unet) if n.op_type in PRODUCTS]
    assert [unet[i].input[1] for i in products if i not in half] == [
        "method.denoiser.unet.conv_out.weight"
    ]


@pytest.mark.parametrize("kind", TYPES)
def test_a_real_step_agrees_with_single(kind: Half) -> None:
    """The demo's denoiser in half, computed half by half, beside OpenVINO in f32."""
    data = (DEMO / "step.onnx").read_bytes()
    rng = np.random.default_rng(2)
    rows = {"steps_left": [1, 2], "plan": [2, 3]}
    given: dict[str, AnyArray] = {n: np.array(v, np.int32) for n, v in rows.items()}
    given["category"] = np.array([0, 1])
    given["latent"] = rng.normal(size=(2, 48, 32, 32)).astype(np.float32)
    assert_agree(data, given, kind)


def test_four_methods_walk_alike_in_half(sketch: Exported) -> None:
    """Every plan, level and count of every row is the same after start and after each step."""
    given = columns_of(sketch)
    state = dict(assert_agree(_data(sketch, "start"), given, "fp16"))
    for _ in range(3):
        wanted = sketch.spec.graphs["step"].inputs
        state |= assert_agree(_data(sketch, "step"), {n: state[n] for n in wanted}, "fp16")
    wanted = sketch.spec.graphs["finish"].inputs
    assert_agree(_data(sketch, "finish"), {n: state[n] for n in wanted}, "fp16")


def test_what_is_no_graph_is_one_sentence() -> None:
    """Bytes of something else."""
    with pytest.raises(BadBundle, match="onnx cannot read it"):
        halved(b"\x00 nothing", "fp16")


def assert_agree(data: bytes, given: dict[str, AnyArray], kind: Half) -> dict[str, AnyArray]:
    """Compare both precisions, integers exactly; the f32 outputs by the names of the state."""
    core = openvino_core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(data, b""), "CPU", settings)
    names = [output.name for output in onnx.load_model_from_string(data).graph.output]
    single = dict(zip(names, compiled(given).to_tuple(), strict=True))
    half = ReferenceEvaluator(onnx.load_model_from_string(halved(data, kind))).run(None, given)
    for name, found in zip(names, half, strict=True):
        expected = single[name]
        assert found.dtype == expected.dtype
        if found.dtype == np.float32:
            size = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
            np.testing.assert_allclose(found, expected, rtol=0, atol=BOUNDS[kind] * size)
        else:
            np.testing.assert_array_equal(found, expected)
    return {name.removeprefix("next_"): values for name, values in single.items()}


def columns_of(sketch: Exported) -> dict[str, AnyArray]:
    """Inputs of a start graph for frames of every plan, those that it takes."""
    given = columns(rows_of(draw_parts(sketch.method, 9, seed=8)))
    return {name: given[name] for name in sketch.spec.graphs["start"].inputs}


def _data(sketch: Exported, graph: str) -> bytes:
    return (sketch.folder / f"{graph}.onnx").read_bytes()

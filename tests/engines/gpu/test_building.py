"""Engines of every graph of every method, built for real, and every way in which they are refused.

TensorRT-RTX builds without a GPU; what it builds cannot be loaded here, which is one of the laws.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from engines.backend import build_engine, output_name
from engines.bundle import GRAPHS, Bundle, GraphName, open_bundle
from engines.contracts import BadBundle, BadConfig, EngineFault
from engines.gpu.building import build_engines, build_graph, typed_graph
from engines.gpu.engine_file import EngineKey, engine_path, key_path
from engines.gpu.gate import build_and_gate
from engines.gpu.half import NEWEST_OPSET
from engines.gpu.opening import open_executables
from engines.gpu.precision import precisions_of, summary_of
from engines.gpu.target import Target, find_target
from engines.graphs import OPSET
from tests.engines.gpu.real_bundles import NAMES, write_bundle

COMPUTE = ("SM86", "SM89")
BUCKETS = (1, 4)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
    ),
    pytest.mark.timeout(600),  # to export and build a method took 120 s on a busy machine
]


def has_driver() -> bool:
    """Whether there may be a GPU here."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


without_gpu = pytest.mark.skipif(has_driver(), reason="here is an NVIDIA driver")


@pytest.fixture(scope="module")
def target() -> Target:
    """Two kinds of GPU that are not here, two batch sizes."""
    return find_target(COMPUTE, BUCKETS)


@pytest.fixture(scope="module", params=NAMES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Each of the four methods."""
    return write_bundle(request.param, tmp_path_factory.mktemp("real") / request.param)


@pytest.fixture
def built(bundle: Bundle, engines: Path, tmp_path: Path) -> tuple[Bundle, Path]:
    """A bundle with engines that a test may damage."""
    return bundle, Path(shutil.copytree(engines, tmp_path / "engines"))


@pytest.fixture(scope="module")
def engines(bundle: Bundle, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engines of a bundle in fp16; not to be changed."""
    folder = tmp_path_factory.mktemp("engines")
    told: list[str] = []
    key = build_engines(
        bundle, "fp16", folder, target=target, progress=lambda _, what: told.append(what)
    )
    assert key == "tensorrt:fp16"
    assert [what.split()[0] for what in told if what] == list(GRAPHS)
    return folder


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_graph_is_built_as_its_manifest_says(
    bundle: Bundle, engines: Path, graph: GraphName
) -> None:
    """Names, dtypes and shapes of all ports, one profile per bucket, and the hash of the bytes."""
    place = engines / "tensorrt-fp16"
    key = EngineKey.model_validate_json(key_path(place, graph).read_bytes())
    spec = bundle.manifest.spec
    state = {tensor.name: (tensor.dtype, tensor.shape) for tensor in spec.state}
    assert [port.name for port in key.inputs] == list(spec.graphs[graph].inputs)
    names = [output_name(graph, name) for name in spec.graphs[graph].outputs]
    assert [port.name for port in key.outputs] == names
    inputs = {port.name: (port.dtype, port.shape) for port in key.inputs}
    if graph == "start":
        assert inputs["image"] == ("uint8", (64, 64, 3))
        assert {inputs[n][0] for n in inputs if n in ("category", "seed")} == {"int64"}
        assert inputs["plan"] == ("int32", ())
    else:
        assert inputs == {name: state[name] for name in inputs}
    outputs = {port.name.removeprefix("next_"): (port.dtype, port.shape) for port in key.outputs}
    evidence = {"anomaly_map": ("float32", (16, 16)), "anomaly_score": ("float32", ())}
    assert outputs == (evidence if graph == "finish" else {n: state[n] for n in outputs})
    assert (key.compute, key.buckets, key.precision) == (COMPUTE, BUCKETS, "fp16")
    assert (key.bundle_id, key.library) == (bundle.bundle_id, "tensorrt_rtx")
    assert engine_path(place, graph).stat().st_size > 10_000


@without_gpu
def test_without_a_driver_engines_are_not_loaded(bundle: Bundle, engines: Path) -> None:
    """The library answers nothing; the sentence says which engine, and what the library said."""
    with pytest.raises(EngineFault, match=r"could not load the engine of start: .*driver"):
        open_executables(bundle, "fp16", engines, buckets=BUCKETS)


@pytest.mark.parametrize("bundle", ["D3AD"], indirect=True)
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_flipped_byte_is_found_before_anything_is_loaded(
    built: tuple[Bundle, Path], graph: GraphName
) -> None:
    """No library sees bytes that are not those of the key."""
    bundle, folder = built
    path = engine_path(folder / "tensorrt-fp16", graph)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadBundle, match=rf"{graph}.engine does not have the bytes .* run assay"):
        open_executables(bundle, "fp16", folder, buckets=BUCKETS)


@pytest.mark.parametrize("bundle", ["D3AD"], indirect=True)
@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("bundle_id", "0123456789ab", "built for bundle id 0123456789ab, not "),
        ("library_version", "1.6.0", r"built for library version 1.6.0, not 1\."),
        ("precision", "bf16", "built for precision bf16, not fp16"),
        ("buckets", [1, 2], "built for buckets 1, 2, not 1, 4"),
        ("graph", "finish", "built for graph finish, not step"),
        ("compute", ["SM120"], "built for SM120, this GPU is SM89"),
        ("inputs", [], "step has other inputs than its manifest names"),
        ("sha256", "00", "does not have the bytes that its key names"),
        ("library", "tensorflow", "is no key of an engine"),
        ("mood", "good", "is no key of an engine"),
    ],
)
def test_a_wrong_key_is_refused_with_what_differs(
    built: tuple[Bundle, Path], field: str, value: object, said: str
) -> None:
    """One sentence names the field, both values and the command; nothing is built again."""
    bundle, folder = built
    path = key_path(folder / "tensorrt-fp16", "step")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(BadBundle, match=said) as refusal:
        open_executables(bundle, "fp16", folder, buckets=BUCKETS, capability=(8, 9))
    assert "\n" not in str(refusal.value)
    assert json.loads(path.read_text())[field] == value


@pytest.mark.parametrize("bundle", ["D3AD"], indirect=True)
def test_bf16_is_built_too(bundle: Bundle, tmp_path: Path) -> None:
    """TensorRT takes bf16 convolutions in an opset that does not list them."""
    data = typed_graph(bundle, "step", "bf16")
    engine, _ = build_graph(bundle, "step", data, find_target(COMPUTE[:1], (1,)), tmp_path)
    assert len(engine) > 10_000


@pytest.mark.parametrize("bundle", ["D3AD"], indirect=True)
def test_engines_that_were_not_built_are_named_with_the_command(
    built: tuple[Bundle, Path],
) -> None:
    """Another precision, a lost key, lost bytes."""
    bundle, folder = built
    with pytest.raises(BadBundle, match=r"no engine of start .*--precision bf16"):
        open_executables(bundle, "bf16", folder, buckets=BUCKETS)
    engine_path(folder / "tensorrt-fp16", "finish").unlink()
    with pytest.raises(BadBundle, match=r"finish.engine is missing beside its key"):
        open_executables(bundle, "fp16", folder, buckets=BUCKETS)


@pytest.fixture(scope="module")
def demo() -> Bundle:
    """The bundle that is shipped."""
    return open_bundle(Path(__file__).parents[3] / "configs" / "bundles" / "demo")


def altered(demo: Bundle, folder: Path, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    """The demo bundle with another finish.onnx, whatever its manifest says."""
    copy = Path(shutil.copytree(demo.folder, folder / "demo"))
    model = onnx.load(copy / "finish.onnx")
    change(model)
    (copy / "finish.onnx").write_bytes(model.SerializeToString())
    return Bundle(copy, demo.manifest, demo.bundle_id)


@pytest.mark.parametrize("precision", ["f32", "fp16"])
def test_an_opset_of_the_future_is_refused(demo: Bundle, tmp_path: Path, precision: str) -> None:
    """TensorRT would read it as if nothing had changed since."""

    def change(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = 99

    with pytest.raises(BadBundle, match=r"finish.onnx: it uses ONNX opset 99, .* up to 20"):
        typed_graph(altered(demo, tmp_path, change), "finish", precision)


def test_what_is_exported_can_be_built() -> None:
    """The newest opset read is the one that is written."""
    assert NEWEST_OPSET == OPSET


def test_an_operator_that_nobody_knows_is_refused(
    demo: Bundle, target: Target, tmp_path: Path
) -> None:
    """TensorRT's reason, in one line, with the file."""

    def change(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Abs").op_type = "Absolutely"

    bundle = altered(demo, tmp_path, change)
    data = typed_graph(bundle, "finish", "f32")
    with pytest.raises(BadBundle, match=r"cannot read finish.onnx: .*Absolutely") as refusal:
        build_graph(bundle, "finish", data, target, tmp_path)
    assert "\n" not in str(refusal.value)


def test_what_is_no_graph_is_refused(demo: Bundle, tmp_path: Path) -> None:
    """A file of something else is one sentence."""
    copy = Path(shutil.copytree(demo.folder, tmp_path / "demo"))
    (copy / "step.onnx").write_bytes(b"\x00 no graph")
    with pytest.raises(BadBundle, match=r"step.onnx: onnx cannot read it"):
        typed_graph(Bundle(copy, demo.manifest, demo.bundle_id), "step", "fp16")


def test_a_graph_that_is_not_its_manifests_is_refused(
    demo: Bundle, target: Target, tmp_path: Path
) -> None:
    """Nothing is built where a port has another name or type."""
    data = demo.path("step.onnx").read_bytes()
    with pytest.raises(BadBundle, match="finish has other inputs than its manifest names"):
        build_graph(demo, "finish", data, target, tmp_path)


def test_a_bundle_holds_a_graph_at_f32(demo: Bundle) -> None:
    """The demo's start has a severity bank; only who names the graph gets it in half."""
    assert list(precisions_of(demo, "fp16").values()) == ["f32", "fp16", "fp16"]
    named = {"start": "fp16", "step": "bf16", "finish": "f32"}
    assert precisions_of(demo, named) == named
    assert (summary_of("auto"), summary_of(dict.fromkeys(GRAPHS, "bf16"))) == ("fp16", "bf16")
    assert summary_of(named) == "start=fp16,step=bf16,finish=f32"


@without_gpu
def test_a_gpu_that_is_not_here_must_be_named(demo: Bundle, tmp_path: Path) -> None:
    """A build for GPUs that do not exist, or none that the library knows, is refused at once."""
    with pytest.raises(BadConfig, match="builds nothing for SM90; choose among SM75, SM80"):
        find_target(("SM90",))
    assert find_target().compute == ()
    with pytest.raises(BadConfig, match="no precision 'fp4' for tensorrt; choose auto, f32, fp16"):
        build_engine(demo, "tensorrt", "fp4", tmp_path)
    assert not list(tmp_path.iterdir())


@without_gpu
def test_a_build_says_that_nothing_was_compared(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines stay, and one sentence says for what they are and why the gate did not run."""
    monkeypatch.setattr("engines.gpu.gate.build_engines", lambda *_, **__: "tensorrt:fp16")
    report = build_and_gate(demo, "fp16", COMPUTE)
    assert report.parity is None
    assert report.sentence().startswith("tensorrt:fp16 is built for SM86, SM89 by tensorrt_rtx 1.")
    assert "but the parity gate could not run here: there is no GPU" in report.sentence()

"""int8 graphs: what is quantised, what the gate lets through, and what is refused when loaded."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engines import quantisation
from engines.backend import build_engine, open_backend
from engines.bundle import open_bundle, seal
from engines.calibration_fit import Wanted, fit_calibration
from engines.contracts import BadBundle, BadConfig, ParityError
from engines.nncf_layers import is_chosen
from engines.openvino_graphs import openvino_core
from engines.parity_set import ParitySet, save_frames
from engines.quantisation import RUNGS, quantise
from engines.quantised import KEY, RECORD, Quantised, quantised_folder, read_record
from tests.engines.exported import Exported, draw_parts, exported, sealed
from tests.engines.sketches import DecoDiffSketch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from engines.bundle import Bundle
    from engines.calibration import Calibration
    from engines.contracts import UInt8

FRAMES = 6
SLOTS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def sketch(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One method is enough: quantising knows none."""
    return exported(DecoDiffSketch.name, tmp_path_factory)


def shipped(sketch: Exported, folder: Path) -> Bundle:
    """The sketch with a few parity frames."""
    bundle = sealed(sketch, folder)
    parts = draw_parts(sketch.method, FRAMES, seed=21)
    images = np.stack([part.image for part in parts])
    names = tuple(part.category for part in parts)
    save_frames(ParitySet(images, names, near=(False,) * FRAMES), folder)
    fields = bundle.manifest.model_dump(exclude={"files", "schema_version"})
    return seal(folder, fields)


@pytest.fixture(scope="module")
def bundle(sketch: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Quantised by whatever rung is first: the gate has its own test."""
    bundle = shipped(sketch, tmp_path_factory.mktemp("int8") / "sketch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engines.parity.EPSILON", 1e6)
        quantise(bundle)
    return bundle


@pytest.fixture
def record(bundle: Bundle) -> Iterator[Path]:
    """The record of the int8 graphs, put back afterwards."""
    path = quantised_folder(bundle) / RECORD
    held = path.read_bytes()
    yield path
    path.write_bytes(held)


@pytest.fixture(scope="module")
def thresholds(bundle: Bundle, sketch: Exported) -> Calibration:
    """Of single precision."""
    good = {name: images_of(sketch, 60) for name in bundle.manifest.categories}
    with open_backend(bundle, "openvino", "f32", capacity=8, threads=1) as engine:
        return fit_calibration(bundle, engine, good, Wanted(0.2, 0.8))


def images_of(sketch: Exported, count: int) -> list[UInt8]:
    """Model inputs like those of good parts."""
    return [part.image for part in draw_parts(sketch.method, count, seed=5)]


def test_only_layers_of_networks_are_chosen(sketch: Exported) -> None:
    """Weights are constants; the search of the bank, tables, norms and scores are never chosen."""
    core = openvino_core()
    for graph in sketch.spec.graphs:
        model = core.read_model(str(sketch.folder / f"{graph}.onnx"))
        kinds = {op.get_type_name() for op in model.get_ops() if is_chosen(op, "learned")}
        assert kinds <= {"Convolution", "GroupConvolution", "MatMul"}
        narrow = [op for op in model.get_ops() if is_chosen(op, "convolutions")]
        assert all(is_chosen(op, "learned") for op in narrow)


def test_int8_runs_beside_single_precision(bundle: Bundle, sketch: Exported) -> None:
    """The backend opens as openvino:int8, computes in int8 where the record says, and is close."""
    known = read_record(bundle)
    assert known is not None
    assert all(graph.layers for graph in known.graphs.values())
    parts = draw_parts(sketch.method, 4, seed=3)
    rows = quantisation.start_inputs([p.image for p in parts], [0] * 4, [1] * 4)
    found = []
    for precision in ("int8", "f32"):
        with open_backend(bundle, "openvino", precision, capacity=4, threads=1) as backend:
            assert backend.key == f"openvino:{precision}"
            left = backend.start(rows, SLOTS).steps_left.max()
            for _ in range(left):
                backend.step(SLOTS)
            found.append(backend.finish(SLOTS).anomaly_score)
    assert not np.array_equal(*found)
    np.testing.assert_allclose(*found, rtol=0.2)


def test_a_gate_that_refuses_leaves_nothing(
    sketch: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every choice of layers is tried and named with its error; no file appears."""
    bundle = shipped(sketch, tmp_path / "sketch")
    monkeypatch.setattr("engines.parity.EPSILON", 1e-12)
    with pytest.raises(ParityError, match="int8 is not offered") as caught:
        quantise(bundle)
    assert RUNGS[1].told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not quantised_folder(bundle).exists()


def test_what_was_not_built_is_refused(sketch: Exported, tmp_path: Path) -> None:
    """The sentence names the command that makes it."""
    bundle = shipped(sketch, tmp_path / "sketch")
    with pytest.raises(BadConfig, match=r"no int8 graphs; run assayline build .* --precision int8"):
        open_backend(bundle, "openvino", "int8")


def test_a_flipped_byte_is_refused(bundle: Bundle) -> None:
    """Every file of every int8 graph is verified before it is loaded."""
    files = [p for p in quantised_folder(bundle).iterdir() if p.name != RECORD]
    assert files
    for path in files:
        held = path.read_bytes()
        path.write_bytes(held[:-9] + bytes([held[-9] ^ 1]) + held[-8:])
        with pytest.raises(BadBundle, match=f"{path.name} does not have the bytes"):
            open_backend(bundle, "openvino", "int8")
        path.write_bytes(held)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("bundle_id", "ffffffffffff", "int8 graphs of bundle ffffffffffff, not of"),
        ("openvino", "2025.1.0", "quantised by OpenVINO 2025.1.0"),
        ("graphs", 3, "damaged"),
    ],
)
def test_foreign_graphs_are_refused(
    bundle: Bundle, record: Path, key: str, value: object, told: str
) -> None:
    """Those of another bundle or another OpenVINO, and a record that cannot be read."""
    record.write_text(json.dumps(json.loads(record.read_bytes()) | {key: value}))
    with pytest.raises(BadBundle, match=told) as caught:
        open_backend(bundle, "openvino", "int8")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("proven", list(itertools.product((True, False), repeat=3)))
def test_auto_takes_int8_where_it_is_proven_and_pays(
    bundle: Bundle,
    thresholds: Calibration,
    record: Path,
    proven: tuple[bool, bool, bool],
) -> None:
    """Only with thresholds of its own, where it was faster, and whole; else what it took before."""
    calibrated, fast, damaged = proven
    known = json.loads(record.read_bytes())
    known["row_ms"] = {"int8": 1.0 if fast else 9.0, "f32": 5.0, "bf16": 5.0}
    known["bundle_id"] = "ffffffffffff" if damaged else bundle.bundle_id
    record.write_text(json.dumps(known))
    entries = thresholds.entries["openvino:f32"]
    keys = ["openvino:f32", *([KEY] if calibrated else [])]
    path = bundle.path("calibration.json")
    thresholds.model_copy(update={"entries": dict.fromkeys(keys, entries)}).save(path)
    with open_backend(bundle, "openvino", "auto", capacity=1, threads=1) as backend:
        expected = "int8" if calibrated and fast and not damaged else "f32"
        assert backend.key == f"openvino:{expected}"
    path.unlink()


def test_new_graphs_void_the_thresholds_of_older_ones(
    sketch: Exported, thresholds: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thresholds of other precisions stay."""
    fresh = shipped(sketch, tmp_path / "sketch")
    entries = thresholds.entries["openvino:f32"]
    both = thresholds.model_copy(update={"entries": {"openvino:f32": entries, KEY: entries}})
    both.save(fresh.path("calibration.json"))
    monkeypatch.setattr("engines.parity.EPSILON", 1e6)
    made = quantise(open_bundle(fresh.folder), {"part-0": images_of(sketch, 3)})
    assert made.calibrated_on == "3 good images"
    kept = fresh.calibration()
    assert kept is not None
    assert list(kept.entries) == ["openvino:f32"]
    assert build_engine(fresh, "openvino", "int8") == KEY


def test_int8_belongs_to_openvino(bundle: Bundle) -> None:
    """Another backend says what it has instead."""
    with pytest.raises(BadConfig, match="no precision 'int8'"):
        open_backend(bundle, "torch", "int8")


def test_a_record_knows_where_it_pays() -> None:
    """A precision that was not measured is none to be faster than."""
    record = Quantised(
        bundle_id="",
        openvino="",
        nncf="",
        layers="",
        calibrated_on="",
        graphs={},
        row_ms={"int8": 2.0, "f32": 4.0},
    )
    assert record.pays_beside("f32")
    assert not record.pays_beside("bf16")

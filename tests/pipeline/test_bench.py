"""Laws of the benches: structure and arithmetic. How fast a machine is, is no law."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from engines.contracts import BadConfig, BadData, EngineFault
from pipeline.bench import Asked, Report, Result, print_bench, run_bench
from pipeline.bench.machine import machine_facts, matmul_peak
from pipeline.bench.operations import graph_operations
from pipeline.bench.transport import bench_transport


@pytest.fixture(scope="module")
def transport() -> Report:
    """A transport bench of few and tiny frames."""
    return bench_transport(frames=12, rounds=2, side=16, large=(32, 32))


def is_sound(report: Report) -> bool:
    """Every figure is a finite, positive number with a name for what it stands against."""
    return all(
        math.isfinite(one.value) and one.value > 0 and one.ratio > 0 and one.against and one.unit
        for one in report.results
    )


def test_transport_gives_ratios_with_machine_facts(transport: Report) -> None:
    """Inline and shared, by names that carry the frame size, each against what it must match."""
    against = {one.name: one.against for one in transport.results}
    assert {"transport.inline_0kB", "transport.inline_0kB.cpu", "transport.shared_0kB"} <= set(
        against
    )
    assert against["transport.shared_0MP"] == "a memcpy of the same bytes"
    assert {"transport.codec.lz4", "transport.codec.lz4.cost"} <= set(against)
    assert is_sound(transport)
    assert {"processor", "cores", "memory_gib", "python", "libraries"} <= set(transport.machine)


def test_transport_leaves_no_process_behind(transport: Report) -> None:
    """Producer and consumer are gone when the figures are there."""
    assert transport.results
    assert multiprocessing.active_children() == []


def test_json_has_the_public_keys(transport: Report, tmp_path: Path) -> None:
    """``machine`` and ``results``, each result with its five keys, in a file that reads back."""
    written = json.loads(transport.write(tmp_path / "runs" / "transport.json").read_text())
    assert set(written) == {"machine", "results"}
    assert all(
        set(one) == {"name", "value", "unit", "against", "ratio"} for one in written["results"]
    )


def test_a_report_without_a_place_is_one_sentence(transport: Report, tmp_path: Path) -> None:
    """Where a folder should be is a file: no traceback after minutes of measuring."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(BadData, match="cannot be written"):
        transport.write(tmp_path / "runs" / "transport.json")


def test_two_reports_add_and_print() -> None:
    """``bench all`` is one table of all results."""
    one, two = (Report({name: 1}, (Result(name, 2.0, "u", "x", 3.0),)) for name in ("a", "b"))
    both = one + two
    assert set(both.machine) == {"a", "b"}
    console = Console(width=100)
    with console.capture() as caught:
        print_bench(both, console)
    assert all(word in caught.get() for word in ("a", "b", "3.00"))


def test_an_unknown_bench_is_one_sentence() -> None:
    """The names that exist are named."""
    with pytest.raises(BadConfig, match=r"transport, engine, .*all"):
        run_bench("speed", Asked(Path("none")))


def test_every_bench_keeps_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file each below the folder, and one of all of them together."""
    made = {
        name: lambda _, name=name: Report({name: 1}, (Result(name, 2.0, "u", "x", 3.0),))
        for name in ("one", "two")
    }
    monkeypatch.setattr("pipeline.bench.BENCHES", made)
    both = run_bench("all", Asked(Path("none"), folder=tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"one.json", "two.json", "all.json"}
    assert json.loads((tmp_path / "all.json").read_text()) == both.as_json()


def test_what_was_measured_outlives_a_bench_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reports of earlier benches are kept when a late one gives up."""

    def fails(_: Asked) -> Report:
        raise EngineFault("the line answered too few frames")

    made = {"one": lambda _: Report({}, (Result("one", 2.0, "u", "x", 3.0),)), "two": fails}
    monkeypatch.setattr("pipeline.bench.BENCHES", made)
    with pytest.raises(EngineFault, match="too few"):
        run_bench("all", Asked(Path("none"), folder=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]


def test_machine_facts_are_plain_and_tell_no_names() -> None:
    """What is published with a ratio is JSON, and holds no host or user."""
    assert "host" not in json.dumps(machine_facts()).lower()


def test_the_peak_is_a_rate() -> None:
    """A small product gives a finite, positive number of operations per second."""
    assert matmul_peak("f32", side=64, rounds=2) > 0


# -- operations -------------------------------------------------------------------------------


def graph(path: Path, kind: str, weights: list[int], made: list[int], **attributes: Any) -> Path:  # noqa: ANN401 - as ONNX has them
    """An ONNX graph of one node over an input [B, 8, 6, 6] (or [B, 4, 8] for a product)."""
    onnx = pytest.importorskip("onnx", reason="the extra 'train' is not installed")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    given = ["B", 4, 8] if kind == "MatMul" else ["B", 8, 6, 6]
    constant = numpy_helper.from_array(np.ones(weights, np.float32), "w")
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(kind, ["x", "w"], ["y"], **attributes)],
            "one",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, given)],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["B", *made])],
            [constant],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("kind", "weights", "made", "attributes", "expected"),
    [
        ("Conv", [5, 8, 3, 3], [5, 6, 6], {"pads": [1, 1, 1, 1]}, 5 * 36 * 8 * 9),
        ("Conv", [8, 1, 3, 3], [8, 6, 6], {"pads": [1, 1, 1, 1], "group": 8}, 8 * 36 * 9),
        ("ConvTranspose", [8, 5, 2, 2], [5, 12, 12], {"strides": [2, 2]}, 8 * 36 * 5 * 4),
        ("MatMul", [8, 7], [4, 7], {}, 4 * 7 * 8),
    ],
)
def test_operations_are_twice_the_multiply_adds(  # noqa: PLR0917 - one per column
    tmp_path: Path, batch: int, kind: str, weights: list[int], made: list[int],
    attributes: dict[str, Any], expected: int,
) -> None:  # fmt: skip
    """Each kind of product is counted as on paper, in proportion to the batch."""
    path = graph(tmp_path / "one.onnx", kind, weights, made, **attributes)
    assert graph_operations(path, batch) == 2 * expected * batch

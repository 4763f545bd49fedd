"""Exported graphs: small, anonymous, the same bytes each time; misfits are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from engines.bundle import GRAPHS
from engines.contracts import BadBundle
from engines.graphs import OPSET, export_graphs
from engines.methods.method import Method, Plan, State
from tests.engines.exported import Exported, exported
from tests.engines.sketches import GladSketch


class Plain(Method):
    """The least that is a method: the picture fades by a half each step."""

    name: ClassVar[str] = "plain"
    plans = (Plan(3, (3, 2)), Plan(5, (5, 3, 1)))
    steps_min, steps_unit = 1, 1
    image_size = (16, 24)

    def start(self, image: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """The grey picture; a forced plan has plan + 2 steps, the graph's own has three."""
        del seed
        grey = image.permute(0, 3, 1, 2).float().mean(1)
        plan = torch.where(plan >= 0, plan, 1)
        return {
            "steps_left": plan + 2,
            "plan": plan,
            "level": 2 * plan + 3,
            "category": category,
            "latent": grey,
            "estimate": grey.clone(),
        }

    def step(self, state: State) -> State:
        """Half of it; returns everything, changed or not."""
        half = state["latent"] / 2
        return state | {"latent": half, "estimate": half, "steps_left": state["steps_left"] - 1}

    def finish(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The picture is its own map."""
        return state["estimate"], state["estimate"].amax((1, 2))


@pytest.fixture(scope="module")
def glad(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The sketch with a noise table."""
    return exported(GladSketch.name, tmp_path_factory)


def test_the_same_method_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two exports agree byte for byte, and the manifest states only what a step changes."""
    folders = [tmp_path / "one", tmp_path / "two"]
    specs = []
    for folder in folders:
        folder.mkdir()
        specs.append(export_graphs(Plain(), folder))
    assert specs[0] == specs[1]
    assert specs[0].map_size == (16, 24)
    assert specs[0].graphs["start"].inputs == ("image", "category", "plan")
    assert specs[0].graphs["step"].outputs == ("steps_left", "latent", "estimate")
    for graph in GRAPHS:
        one, two = ((folder / f"{graph}.onnx").read_bytes() for folder in folders)
        assert one == two
    assert sorted(p.name for p in folders[0].iterdir()) == sorted(f"{g}.onnx" for g in GRAPHS)


@pytest.mark.parametrize("graph", GRAPHS)
def test_files_name_no_machine(glad: Exported, graph: str) -> None:
    """No path, stack trace or data beside the file; opset and batch dimension are as stated."""
    path = glad.folder / f"{graph}.onnx"
    content = path.read_bytes()
    for trace in (b".py", b"site-packages", b"stack_trace", str(Path.cwd()).encode()):
        assert trace not in content
    model = onnx.load_from_string(content)
    assert [o.version for o in model.opset_import if not o.domain] == [OPSET]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param


def test_half_precision_storage_loses_nothing(glad: Exported) -> None:
    """Constants that fp16 holds are stored so; others keep every bit."""
    constants = {
        name: [numpy_helper.to_array(c) for c in _constants(glad.folder / f"{name}.onnx")]
        for name in ("start", "step")
    }
    table = glad.method.get_buffer("noise_table").numpy()
    (stored,) = [c for c in constants["start"] if c.shape == table.shape]
    assert stored.dtype == np.float16
    assert np.array_equal(stored.astype(np.float32), table)
    weights = glad.method.get_parameter("denoiser.first.weight").detach().numpy()
    (kept,) = [c for c in constants["step"] if c.shape == weights.shape]
    assert kept.dtype == np.float32
    assert np.array_equal(kept, weights)


def test_bytes_become_floats_at_the_edge(glad: Exported) -> None:
    """Only a Cast takes the image, because TensorRT moves no bytes."""
    graph = onnx.load(glad.folder / "start.onnx").graph
    assert [node.op_type for node in graph.node if "image" in node.input] == ["Cast"]


def _constants(path: Path) -> list[TensorProto]:
    return list(onnx.load(path).graph.initializer)


def _without_level(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "level"}


@pytest.mark.parametrize(
    ("spoil_start", "spoil_step", "sentence"),
    [
        (_without_level, dict, "lacks level"),
        (lambda state: state | {"open": state["plan"] > 0}, dict, "'open' of plain is torch.bool"),
        (lambda state: state | {"sum": state["latent"].sum()}, dict, "one row per frame"),
        (dict, lambda state: state | {"heat": state["latent"]}, "step gives 'heat'"),
        (dict, lambda state: state | {"level": state["level"].long()}, "dtype of 'level'"),
    ],
)
def test_functions_that_do_not_fit_are_refused(
    tmp_path: Path,
    spoil_start: Callable[[State], State],
    spoil_step: Callable[[State], State],
    sentence: str,
) -> None:
    """A state that no backend could keep is named before anything is written."""

    class Spoilt(Plain):
        def start(self, image: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
            return spoil_start(super().start(image, category, seed, plan))

        def step(self, state: State) -> State:
            return spoil_step(super().step(state))

    with pytest.raises(BadBundle, match=sentence):
        export_graphs(Spoilt(), tmp_path)
    assert not list(tmp_path.iterdir())

"""Specimens: methods made from a seed, whose every choice falls either way."""

from __future__ import annotations

import pytest
import torch

from engines.contracts import BadConfig
from engines.methods import METHODS
from engines.roof import Roof, Work, work_of
from engines.specimens import (
    SPECIMENS,
    build_specimen,
    pictures,
    specimen_configuration,
    specimen_settings,
)


@pytest.mark.parametrize("name", METHODS)
def test_a_specimen_chooses_among_its_plans(name: str) -> None:
    """Random pictures take several plans, and both kinds of evidence reach the score."""
    method = build_specimen(name)
    images, category = pictures(24, method.image_size, seed=9), torch.arange(24) % 2
    asked = torch.full((24,), -1, dtype=torch.int32)
    deepest = len(method.plans) - 1
    with torch.no_grad():
        state = method.start(images, category, category, asked)
        assert len(state["plan"].unique()) > 2
        state = method.start(images, category, category, torch.full_like(asked, deepest))
        before = method.finish(state)[1]
        after = method.finish(method.walked(state, deepest))[1]
    assert bool(torch.isfinite(after).all())
    assert not torch.allclose(before, after)


def test_a_seed_makes_the_same_specimen() -> None:
    """Two machines compare the same weights and the same pictures."""
    one, other = (build_specimen("DeCo-Diff", seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert torch.equal(pictures(2, (64, 64), 1), pictures(2, (64, 64), 1))


def test_names_are_methods_presets_and_the_published_shape() -> None:
    """Each has a configuration that can be built; another name is refused."""
    for name in SPECIMENS:
        assert specimen_configuration(name)["method"] in METHODS
    with pytest.raises(BadConfig, match="choose one of DeCo-Diff, "):
        specimen_settings("huge")


def test_work_grows_with_the_batch_but_for_the_weights() -> None:
    """Operations are a row's times the rows; weights are read once, and in bf16 they are half."""
    configuration = specimen_configuration("DeCo-Diff")
    alone, many = (work_of(configuration, "f32", batch) for batch in (1, 8))
    lowered = work_of(configuration, "bf16", 8)
    for graph, work in many.items():
        assert work.operations == 8 * alone[graph].operations
        assert alone[graph].bytes_moved <= work.bytes_moved <= 8 * alone[graph].bytes_moved
    assert many["step"].bytes_moved < 8 * alone["step"].bytes_moved
    assert lowered["step"].bytes_moved < 0.6 * many["step"].bytes_moved
    assert lowered["start"] == many["start"]


def test_a_roof_is_the_longer_of_two_times() -> None:
    """A call cannot be faster than its arithmetic, nor than its memory."""
    work = Work(operations=100, bytes_moved=10)
    assert work.roof_s(Roof(operations_s=100.0, bytes_s=1000.0)) == 1.0
    assert work.roof_s(Roof(operations_s=1000.0, bytes_s=1.0)) == 10.0

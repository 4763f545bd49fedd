"""Laws of the detector that the engine is timed against."""

from __future__ import annotations

import numpy as np
import pytest

from engines.openvino_graphs import openvino_core
from pipeline.bench.efficientad import efficientad_s
from pipeline.bench.operations import model_operations


@pytest.mark.parametrize(("padded", "gflop"), [(True, 93.27), (False, 75.89)])
def test_it_makes_the_operations_of_the_published_tables(padded: bool, gflop: float) -> None:
    """Two operations per multiply-add, counted layer by layer on paper for 256 px."""
    model = efficientad_s((256, 256), padded=padded)
    assert model_operations(model, 1) / 1e9 == pytest.approx(gflop, abs=0.01)


@pytest.mark.parametrize(("padded", "side"), [(True, 64), (False, 56)])
def test_descriptors_have_the_published_grid(padded: bool, side: int) -> None:
    """A quarter of the image with padding, 56 x 56 without."""
    made = efficientad_s((256, 256), padded=padded).get_ordered_ops()
    grids = [tuple(op.output(0).get_partial_shape())[1:] for op in made if _is_convolution(op)]
    assert {grid[0].get_length() for grid in grids if grid[1] == side} >= {384, 768}


def test_a_frame_gets_a_map_of_its_size_and_a_score() -> None:
    """From uint8 to a finite map of the image's size, whose maximum is the score."""
    compiled = openvino_core().compile_model(efficientad_s((256, 320)), "CPU")
    image = np.random.default_rng(0).integers(0, 256, (2, 256, 320, 3), np.uint8)
    anomaly_map, score = compiled([image]).values()
    assert anomaly_map.shape == (2, 256, 320)
    assert np.isfinite(anomaly_map).all()
    assert np.allclose(anomaly_map.max((1, 2)), score)


def _is_convolution(op: object) -> bool:
    return str(op.get_type_name()) == "Convolution"  # type: ignore[attr-defined] # openvino ships no types

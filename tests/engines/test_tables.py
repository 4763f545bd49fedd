"""Laws of measured rows: maps of several depths are compared, wherever their scales begin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.calibration import Calibration
from engines.calibration_fit import Wanted, fit_entry
from engines.contracts import Finding
from engines.dataset import GOOD, Item
from engines.images import decode_map, encode_map
from engines.tables import Measured
from engines.trajectories import Walked

KEY = "numpy:f32"
GOOD_SCORES = np.linspace(1.0, 3.0, 80)
SCALES = {0: (1.0, 0.0), 1: (4.0, 0.0), 2: (0.5, -9.0)}  # plan -> factor and offset of its scores


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Three plans that see the same; the last one's scores are all below zero."""
    is_good = np.ones(len(GOOD_SCORES), np.bool_)
    walks = {p: Walked((a * GOOD_SCORES + b)[:, None], is_good) for p, (a, b) in SCALES.items()}
    entry = fit_entry(walks, [0] * len(GOOD_SCORES), Wanted(0.1, 0.9))
    return Calibration(bundle_id="b", entries={KEY: {"nut": entry}})


def seen(calibration: Calibration, plan: int, values: np.ndarray) -> Measured:
    """A part whose map at plan 0 would hold these values."""
    factor, offset = SCALES[plan]
    anomaly_map = (factor * values + offset).astype(np.float32)
    finding = Finding("0", "nut", anomaly_map, float(anomaly_map.max()), plan, 0, 0, 0)
    judgement = calibration.judge(finding, KEY)
    return Measured(Item(Path("0.png"), "nut", GOOD), None, finding, judgement)


@pytest.mark.parametrize("plan", [1, 2])
def test_maps_of_all_plans_are_on_one_scale(calibration: Calibration, plan: int) -> None:
    """The median good part peaks at 0, a part fails above 1; factor and offset leave no trace."""
    values = np.linspace(0.0, 9.0, 64, dtype=np.float32).reshape(8, 8)
    reference = seen(calibration, 0, values)
    found = seen(calibration, plan, values)
    np.testing.assert_allclose(found.pixels((8, 8)), reference.pixels((8, 8)), atol=2e-3)
    assert reference.judgement is not None
    limit = reference.judgement.pixel_limit
    assert limit is not None
    ends = reference.judgement.relative(np.array([np.median(GOOD_SCORES), limit], np.float32))
    assert ends is not None
    np.testing.assert_allclose(ends, [0, 1], atol=2e-2)


def test_a_map_survives_its_file(calibration: Calibration) -> None:
    """To a thousandth of the way to the limit, what lies below the median good part as well."""
    values = np.linspace(-5.0, 9.0, 64, dtype=np.float32).reshape(8, 8)
    relative = seen(calibration, 2, values).pixels((8, 8))
    assert relative.min() < -1
    np.testing.assert_allclose(decode_map(encode_map(relative)), relative, atol=1e-3)


def test_without_a_calibration_a_map_is_as_it_was_found() -> None:
    """Nothing says where its limit is."""
    anomaly_map = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    finding = Finding("0", "nut", anomaly_map, 1.0, 0, 0, 0, 0)
    found = Measured(Item(Path("0.png"), "nut", GOOD), None, finding, None)
    assert np.array_equal(found.pixels((4, 4)), anomaly_map)

"""Camera faults, each against what a sound camera would have seen."""

from __future__ import annotations

import numpy as np
import pytest

from engines.contracts import BadConfig, UInt8
from pipeline.simulator import FAULTS, Fault
from pipeline.simulator.faults import exposed


def scene(index: int) -> UInt8:
    """A sharp, bright picture, different for every frame."""
    return np.random.default_rng(index).integers(60, 250, (40, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_hold_only_between_first_and_last(kind: str) -> None:
    """Frames before and after are untouched; those between differ."""
    fault = Fault(kind, 3, 5, 0.8)
    changed = [not np.array_equal(exposed(i, [fault], scene), scene(i)) for i in range(8)]
    assert changed == [3 <= i <= 5 for i in range(8)]


def test_black_and_lamp_take_light() -> None:
    """Full black is black; a drifting lamp dims more with every frame, blue most."""
    assert not exposed(3, [Fault("black", 3, 3)], scene).any()
    shares = [exposed(i, [Fault("lamp", 0, 3)], scene).mean() / scene(i).mean() for i in range(4)]
    assert shares == sorted(shares, reverse=True)
    red, _, blue = exposed(3, [Fault("lamp", 0, 3)], scene).reshape(-1, 3).mean(0)
    assert blue < red


def test_blur_takes_detail_not_light() -> None:
    """Out of focus, contrast falls and brightness stays."""
    blurred = exposed(1, [Fault("blur", 0, 2)], scene)
    assert blurred.std() < 0.6 * scene(1).std()
    assert abs(blurred.mean() - scene(1).mean()) < 2


def test_frozen_repeats_and_torn_mixes() -> None:
    """Frozen is the frame before the fault; torn is this frame above and the one before below."""
    assert np.array_equal(exposed(5, [Fault("frozen", 4, 6)], scene), scene(3))
    torn = exposed(4, [Fault("torn", 4, 4, 0.5)], scene)
    assert np.array_equal(torn[:22], scene(4)[:22])
    assert np.array_equal(np.sort(torn[22:], 1), np.sort(scene(3)[22:], 1))


@pytest.mark.parametrize(
    "wrong", [("steam", 0, 1, 1.0), ("blur", 3, 2, 1.0), ("blur", -1, 2, 1.0), ("blur", 0, 1, 1.5)]
)
def test_impossible_faults_are_refused(wrong: tuple[str, int, int, float]) -> None:
    """An unknown kind, a span that runs backwards and a strength outside 0..1 are told at once."""
    with pytest.raises(BadConfig):
        Fault(*wrong)

"""Thresholds and exits where frames are cut: whole frames are promised, not tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.calibration_fit import Wanted, _made_odd, fit_entry
from engines.exits import Walks, fit_exits
from engines.tiles import Tiling
from engines.trajectories import Walked

some = settings(max_examples=40, deadline=None)
THRESHOLD = 1.0


def scores_of(rng: np.random.Generator, frames: int, tiles: int) -> np.ndarray:
    """Good scores, [frames, tiles]: tiles of a frame resemble each other."""
    return rng.normal(size=(frames, 1)) + rng.normal(size=(frames, tiles))


def walked(scores: np.ndarray) -> Walked:
    """Rows that make no step, [frames, tiles]."""
    return Walked(
        scores.reshape(-1, 1).astype(np.float32),
        np.ones(scores.size, np.bool_),
        tiles=len(scores[0]),
    )


@some
@given(seed=st.integers(0, 999), frames=st.integers(60, 150), tiles=st.integers(1, 6))
def test_frames_are_counted_not_tiles(seed: int, frames: int, tiles: int) -> None:
    """As many frames exceed the threshold with some tile as the evidence says, within the bound."""
    scores = scores_of(np.random.default_rng(seed), frames, tiles)
    walk = walked(scores)
    entry = fit_entry({0: walk, 1: walk}, [seed % 2] * scores.size, Wanted(0.1, 0.9))
    worst = entry.tails[0].surprise_of(scores.astype(np.float32)).max(1)
    failing = int((worst > entry.threshold).sum())
    assert (entry.evidence.good, entry.evidence.exceeding) == (frames, failing)
    assert failing / frames <= entry.evidence.bound <= 0.1
    assert entry.exceeding_by_plan == dict.fromkeys((0, 1), pytest.approx(failing / frames))


def test_the_promise_holds_on_frames_never_seen() -> None:
    """Over many calibrations the rate of whole frames breaks the promise as seldom as it says."""
    rng, broken = np.random.default_rng(5), 0
    for _ in range(100):
        scores = scores_of(rng, 100, 4)
        entry = fit_entry({0: walked(scores)}, [0] * scores.size, Wanted(0.05, 0.9))
        limit = entry.tails[0].score_at(entry.threshold)
        broken += float((scores_of(rng, 4000, 4).max(1) > limit).mean()) > 0.05
    assert broken / 100 <= 0.17


def walks_of(rng: np.random.Generator, frames: int, tiles: int, drift: float) -> Walks:
    """Good frames, then the same with one odd tile; surprise moves along the walk."""
    first = np.full((2 * frames, tiles), 0.3)
    first[frames:, 0] = 1.8
    moved = rng.uniform(-drift, drift, (2 * frames * tiles, 3))
    start = first.reshape(-1, 1) + rng.normal(0, 0.1, (2 * frames * tiles, 1))
    surprise = np.cumsum(np.column_stack([start, moved]), axis=1)
    return Walks((0, 1, 2, 3), surprise, np.repeat([True, False], frames * tiles), tiles)


@some
@given(seed=st.integers(0, 999), tiles=st.integers(1, 5), drift=st.floats(0, 0.6))
def test_a_changed_tile_is_a_changed_frame(seed: int, tiles: int, drift: float) -> None:
    """The evidence counts frames of the half that taught nothing, by their tiles' last word."""
    frames = 40
    walk = walks_of(np.random.default_rng(seed), frames, tiles, drift)
    fitted = fit_exits(walk, THRESHOLD, changed_max=1.0, confidence=0.9)
    if fitted is None:
        return
    at_end = walk.surprise[:, -1] > THRESHOLD
    left = walk.surprise[:, -1].copy()
    for column, made in reversed(list(enumerate(walk.steps[:-1]))):
        if made in fitted.exits:
            here = walk.surprise[:, column]
            leaves = np.array([fitted.exits[made].decides(value) for value in here])
            left[leaves] = here[leaves]
    changed = ((left > THRESHOLD) != at_end).reshape(2, frames, tiles).any(2)
    tested = np.arange(frames) % 2 == 1
    promise = fitted.promise
    assert promise.parts == frames // 2
    assert promise.changed_good == changed[0, tested].sum()
    assert promise.changed_odd == changed[1, tested].sum()
    assert promise.calls_good <= promise.calls_good_full == 3 * tiles


def test_clear_frames_spare_the_calls_of_all_their_tiles() -> None:
    """Where evidence is clear from the start, no tile of a good frame makes a step."""
    walk = walks_of(np.random.default_rng(0), 100, 4, drift=0.01)
    fitted = fit_exits(walk, THRESHOLD, changed_max=0.1, confidence=0.95)
    assert fitted is not None
    assert fitted.promise.calls_good < 0.5 < fitted.promise.calls_good_full == 12


def test_an_odd_frame_is_odd_in_one_place() -> None:
    """Anomalies are no larger than a tile, lie anywhere in the frame, and leave good ones alone."""
    tiling = Tiling((32, 32), 2, 3, 0.25)
    rng = np.random.default_rng(1)
    good = [rng.integers(0, 256, (*tiling.frame_size, 3)).astype(np.uint8) for _ in range(12)]
    kept = [image.copy() for image in good]
    corners = []
    for image, before, odd in zip(good, kept, _made_odd(good, tiling, 7), strict=True):
        np.testing.assert_array_equal(image, before)
        rows, columns = np.nonzero((odd != image).any(2))
        assert np.ptp(rows) < 32
        assert np.ptp(columns) < 32
        corners.append((int(rows.min()), int(columns.min())))
    assert len(set(corners)) > 6

"""Laws of tiles: what is cut can be put together again, and nobody sees where it was cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.contracts import BadBundle, BadConfig, BadFrame, Float32
from engines.masks import regions
from engines.tiles import FRAME_BYTES_MAX, Tiling
from pipeline.wire import MAX_IMAGE_BYTES

some = settings(max_examples=60, deadline=None)
sides = st.integers(2, 16).map(lambda cells: 4 * cells)
tilings = st.builds(
    Tiling,
    st.tuples(sides, sides),
    st.integers(1, 4),
    st.integers(1, 4),
    st.floats(0, 0.5),
)


def maps_of(tiling: Tiling, frame: Float32) -> list[Float32]:
    """What tiles would find whose maps are exact: the frame's map [H, W], cut."""
    layers = np.repeat(frame[..., None], 3, axis=2)
    return [tile[..., 0].astype(np.float32) for tile in tiling.cut(layers)]  # type: ignore[arg-type]


@some
@given(tiling=tilings, seed=st.integers(0, 99))
def test_what_is_cut_is_put_together_again(tiling: Tiling, seed: int) -> None:
    """Where all tiles find the same in what they share, the frame's map is just that."""
    frame = np.random.default_rng(seed).normal(size=tiling.frame_size).astype(np.float32)
    merged = tiling.merge(list(maps_of(tiling, frame)))
    np.testing.assert_allclose(merged, frame, rtol=1e-6)


@some
@given(tiling=tilings, value=st.floats(-1e6, 1e6, width=32))
def test_a_constant_map_stays_that_constant(tiling: Tiling, value: float) -> None:
    """There is no seam, not by one bit."""
    flat = np.full(tiling.size, value, np.float32)
    merged = tiling.merge([flat] * tiling.count)
    assert merged.shape == tiling.frame_size
    assert (merged == np.float32(value)).all()


@some
@given(tiling=tilings, seed=st.integers(0, 99))
def test_no_tile_is_outvoted_beyond_what_was_found(tiling: Tiling, seed: int) -> None:
    """Every cell lies between what its tiles found there."""
    draws = np.random.default_rng(seed)
    maps = [draws.normal(size=tiling.size).astype(np.float32) for _ in range(tiling.count)]
    low, high = np.full((2, *tiling.frame_size), np.inf) * np.array([1, -1])[:, None, None]
    ids = np.arange(np.prod(tiling.frame_size)).reshape(tiling.frame_size)
    for found, cells in zip(maps, tiling.cut(np.repeat(ids[..., None], 3, 2)), strict=True):  # type: ignore[arg-type]
        np.minimum.at(low.reshape(-1), cells[..., 0], found)
        np.maximum.at(high.reshape(-1), cells[..., 0], found)
    merged = tiling.merge(maps)
    assert (merged >= low - 1e-5).all()
    assert (merged <= high + 1e-5).all()


@some
@given(tiling=tilings)
def test_a_frame_is_covered_and_nothing_is_copied(tiling: Tiling) -> None:
    """Each pixel is in one tile at least, in four at most; tiles are windows of the frame."""
    frame = np.zeros((*tiling.frame_size, 3), np.uint8)
    tiles = tiling.cut(frame)
    assert len(tiles) == tiling.count
    assert all(tile.shape == (*tiling.size, 3) for tile in tiles)
    for tile in tiles:
        tile[:] += 1
    assert frame.min() >= 1
    assert frame.max() <= 4


@some
@given(
    overlap=st.floats(0.13, 0.5),
    at=st.floats(0, 1),
    side=st.integers(1, 3),
    down=st.booleans(),
)
def test_a_blob_across_a_border_is_one_region(
    overlap: float, at: float, side: int, down: bool
) -> None:
    """What two tiles both see, wholly or in part, is one patch of the mask and not two."""
    tiling = Tiling((64, 64), *((2, 1) if down else (1, 2)), overlap)
    shared = 128 - max(tiling.frame_size)
    frame = np.zeros(tiling.frame_size, np.float32)
    place = (64 - shared) + int(at * shared) - side  # its middle lies in the overlap
    blob = (slice(place, place + 2 * side), slice(30, 30 + 2 * side))
    frame[blob if down else blob[::-1]] = 5
    merged = tiling.merge(list(maps_of(tiling, frame)))
    (region,) = regions(merged > 1, merged)
    assert region.area_px == (2 * side) ** 2
    assert region.peak == pytest.approx(5)


@some
@given(tiling=tilings.filter(lambda t: t.count > 1), data=st.data())
def test_what_nobody_saw_stands_out_nowhere(tiling: Tiling, data: st.DataObject) -> None:
    """A tile without evidence adds no value of its own; without any there is no map."""
    missing = data.draw(st.sets(st.integers(0, tiling.count - 1), min_size=1))
    draws = np.random.default_rng(len(missing))
    maps = [
        None if tile in missing else draws.normal(size=tiling.size).astype(np.float32)
        for tile in range(tiling.count)
    ]
    merged = tiling.merge(maps)
    seen = [found for found in maps if found is not None]
    if not seen:
        assert np.isnan(merged).all()
        return
    assert merged.shape == tiling.frame_size
    assert merged.min() >= min(found.min() for found in seen) - 1e-6
    assert merged.max() <= max(found.max() for found in seen) + 1e-6


@some
@given(tiling=tilings)
def test_a_coarse_map_is_put_together_on_its_own_grid(tiling: Tiling) -> None:
    """Maps of a quarter of the size make a frame's map of a quarter of its size."""
    coarse = (tiling.size[0] // 4, tiling.size[1] // 4)
    merged = tiling.merge([np.ones(coarse, np.float32)] * tiling.count)
    assert merged.shape == (tiling.frame_size[0] // 4, tiling.frame_size[1] // 4)


def test_a_grid_that_does_not_fit_is_refused() -> None:
    """Maps whose cells would straddle a tile's edge are refused in one sentence."""
    with pytest.raises(BadBundle, match="do not fit"):
        Tiling((64, 64), 1, 2, 0.07).merge([np.ones((6, 6), np.float32)] * 2)


@some
@given(tiling=tilings)
def test_a_manifest_remembers_how_frames_are_cut(tiling: Tiling) -> None:
    """What is written into a configuration is read from it; nothing is said of one tile."""
    again = Tiling.of(tiling.configuration(), tiling.size)
    assert again == (tiling if tiling.count > 1 else Tiling(tiling.size))
    assert Tiling.of({}, tiling.size).frame_size == tiling.size


@pytest.mark.parametrize("told", [{"rows": 2}, {"rows": 0, "columns": 1, "overlap": 0}, "2x2"])
def test_a_manifest_that_makes_no_sense_is_refused(told: object) -> None:
    """Before any frame is read."""
    with pytest.raises(BadBundle, match="makes no sense"):
        Tiling.of({"tiles": told}, (64, 64))


@pytest.mark.parametrize("text", ["2", "2x", "x2", "0x2", "-1x2", "2 x 2", "two"])
def test_what_is_no_grid_is_refused(text: str) -> None:
    """People learn in one sentence how a grid is written."""
    with pytest.raises(BadConfig, match="give"):
        Tiling.parse(text, 0.1, (64, 64))


def test_a_frame_that_cannot_travel_is_refused() -> None:
    """Where frames of so many tiles would not fit into an entry, nothing is trained."""
    assert FRAME_BYTES_MAX == MAX_IMAGE_BYTES
    with pytest.raises(BadConfig, match="fewer or smaller tiles"):
        Tiling((1024, 1024), 8, 8)


def test_a_frame_of_another_size_is_refused() -> None:
    """Nothing is cut by guess."""
    with pytest.raises(BadFrame, match="2 x 2 tiles need"):
        Tiling((64, 64), 2, 2, 0.1).cut(np.zeros((128, 128, 3), np.uint8))

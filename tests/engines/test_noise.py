"""Noise schedules and the update that all methods share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.noise import (
    Float64,
    add_noise,
    cosine_alpha_bar,
    linear_alpha_bar,
    move_to_level,
    predict_x0,
    scaled_linear_alpha_bar,
    thinned_levels,
    with_clean_level,
)

QUICK = settings(max_examples=60, deadline=None)
SCHEDULES = {
    "cosine": cosine_alpha_bar(),
    "scaled linear": scaled_linear_alpha_bar(),
    "linear": linear_alpha_bar(),
}
ALPHA_BAR = [0.9721, 0.8987, 0.7869, 0.6475, 0.4938, 0.3408, 0.2031, 0.0941, 0.0241, 0.00002]
SIGNAL = [0.9859, 0.9480, 0.8871, 0.8047, 0.7027, 0.5838, 0.4507, 0.3067, 0.1552, 0.0049]
NOISE = [0.1671, 0.3183, 0.4616, 0.5937, 0.7114, 0.8119, 0.8927, 0.9518, 0.9879, 1.0]
places = st.tuples(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 1))
latents = st.lists(st.floats(-8, 8), min_size=2, max_size=8)


def scales(place: tuple[str, float]) -> tuple[Float64, Float64]:
    """a_t and b_t somewhere on a schedule."""
    alpha_bar = SCHEDULES[place[0]]
    chosen = alpha_bar[int(place[1] * (len(alpha_bar) - 1))]
    return np.sqrt(chosen), np.sqrt(1 - chosen)


def test_ten_cosine_levels_have_the_published_values() -> None:
    """The cos-10 table, to its last printed digit."""
    alpha_bar = cosine_alpha_bar(10)
    assert alpha_bar == pytest.approx(ALPHA_BAR, abs=6e-5)
    assert np.sqrt(alpha_bar) == pytest.approx(SIGNAL, abs=6e-5)
    assert np.sqrt(1 - alpha_bar) == pytest.approx(NOISE, abs=6e-5)


@pytest.mark.parametrize(
    ("name", "signal"),
    [
        ("scaled linear", {200: 0.868, 350: 0.712, 500: 0.526, 750: 0.237, 850: 0.153}),
        ("linear", {20: 0.983, 40: 0.963, 60: 0.940, 80: 0.914, 200: 0.717, 500: 0.221}),
    ],
)
def test_thousand_level_schedules_have_the_published_values(
    name: str, signal: dict[int, float]
) -> None:
    """Stable Diffusion's and latent diffusion's signal levels."""
    found = np.sqrt(SCHEDULES[name][list(signal)])
    assert found == pytest.approx(list(signal.values()), abs=1.1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_rises_with_the_timestep(name: str) -> None:
    """Strictly less signal at every further level, and always some of both."""
    alpha_bar = SCHEDULES[name]
    assert (np.diff(alpha_bar) < 0).all()
    assert (alpha_bar > 0).all()
    assert (alpha_bar < 1).all()


@QUICK
@given(place=places, clean=latents, seed=st.integers(0, 2**16))
def test_the_clean_latent_comes_back(
    place: tuple[str, float], clean: list[float], seed: int
) -> None:
    """predict_x0 inverts add_noise at every level, given the noise."""
    x_0 = np.array(clean)
    noise = np.random.default_rng(seed).normal(size=x_0.shape)
    a_t, b_t = scales(place)
    x_t = add_noise(x_0, noise, a_t, b_t)
    assert predict_x0(x_t, noise, a_t, b_t) == pytest.approx(x_0, abs=1e-9)


@QUICK
@given(place=places, other=places, clean=latents, seed=st.integers(0, 2**16))
def test_a_step_lands_where_adding_noise_would(
    place: tuple[str, float], other: tuple[str, float], clean: list[float], seed: int
) -> None:
    """With the true noise, x_t moved to level s is x_s."""
    x_0 = np.array(clean)
    noise = np.random.default_rng(seed).normal(size=x_0.shape)
    estimate = predict_x0(add_noise(x_0, noise, *scales(place)), noise, *scales(place))
    moved = move_to_level(estimate, noise, *scales(other))
    assert moved == pytest.approx(add_noise(x_0, noise, *scales(other)), abs=1e-9)


def test_a_deviation_moves_along_the_difference_of_scales() -> None:
    """With A = 1, one step is z_s = z_t - (b_t - b_s) d (DeCo-Diff)."""
    z_t, deviation = np.array([1.0, -2.0]), np.array([0.5, 0.25])
    b_t, b_s = np.array(0.9879), np.array(0.8927)
    moved = move_to_level(predict_x0(z_t, deviation, 1.0, b_t), deviation, 1.0, b_s)
    assert moved == pytest.approx(z_t - (b_t - b_s) * deviation)


@pytest.mark.parametrize("name", SCHEDULES)
def test_level_minus_one_is_clean(name: str) -> None:
    """The appended level has all of the signal, and moving there leaves no noise."""
    levels = with_clean_level(SCHEDULES[name])
    assert len(levels) == len(SCHEDULES[name]) + 1
    assert levels[-1] == 1.0
    x_0, noise = np.array([0.3, -0.7]), np.array([5.0, 5.0])
    assert move_to_level(x_0, noise, levels[-1] ** 0.5, np.sqrt(1 - levels[-1])).tolist() == [
        0.3,
        -0.7,
    ]


def test_five_of_ten_levels() -> None:
    """The number of steps fixes the start level as well."""
    assert thinned_levels(5, 10) == (8, 6, 4, 2, 0)
    assert thinned_levels(10, 10) == tuple(range(9, -1, -1))
    assert thinned_levels(1, 10) == (0,)


@QUICK
@given(steps=st.integers(1, 60), levels=st.integers(1, 60))
def test_thinned_levels_descend_by_equal_strides(steps: int, levels: int) -> None:
    """Either exactly that many levels down to 0, or a ValueError that names the numbers."""
    try:
        chosen = thinned_levels(steps, levels)
    except ValueError as error:
        assert f"{levels} levels" in str(error)  # noqa: PT017 - most draws do not raise
        return
    assert len(chosen) == steps
    assert chosen[-1] == 0
    assert chosen[0] < levels
    assert len(set(np.diff(chosen).tolist())) <= 1

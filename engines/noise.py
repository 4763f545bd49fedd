"""Noise schedules and the one update all methods share, as functions for numpy and torch.

Levels are integers on a schedule of T levels, 0 the least noisy; level -1 is the clean latent,
whose alpha_bar is 1.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
Array = TypeVar("Array")


def cosine_alpha_bar(levels: int = 10, beta_max: float = 0.999) -> Float64:
    """Cumulative signal level of the cosine schedule, [levels] (Nichol & Dhariwal 2021, eq. 17)."""
    edge = np.arange(levels + 1) / levels
    signal = np.cos((edge + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - signal[1:] / signal[:-1], beta_max)
    return np.asarray(np.cumprod(1 - beta), np.float64)


def linear_alpha_bar(levels: int = 1000, first: float = 0.0015, last: float = 0.0195) -> Float64:
    """Linear betas, the schedule of the latent diffusion that D3AD uses, [levels]."""
    return np.asarray(np.cumprod(1 - np.linspace(first, last, levels)), np.float64)


def scaled_linear_alpha_bar(
    levels: int = 1000, first: float = 0.00085, last: float = 0.012
) -> Float64:
    """Betas linear in their root, the Stable Diffusion schedule that GLAD uses, [levels]."""
    return np.cumprod(1 - np.linspace(first**0.5, last**0.5, levels) ** 2)


def with_clean_level(alpha_bar: Float64) -> Float64:
    """The schedule with alpha_bar = 1 appended: index -1 is the clean latent, [levels + 1]."""
    return np.append(alpha_bar, 1.0)


def add_noise(x_0: Array, noise: Array, a_t: Array, b_t: Array) -> Array:
    """x_t = a_t x_0 + b_t noise (Ho et al. 2020, eq. 4)."""
    return a_t * x_0 + b_t * noise  # type: ignore[operator, no-any-return]


def predict_x0(x_t: Array, deviation: Array, a_t: Array | float, b_t: Array) -> Array:
    """Clean latent implied by the predicted noise or deviation: (x_t - b_t d) / A_t.

    A_t is sqrt(alpha_bar) for noise prediction (Ho et al. 2020, eq. 15), 1 for a deviation
    (DeCo-Diff).
    """
    return (x_t - b_t * deviation) / a_t  # type: ignore[operator, no-any-return]


def move_to_level(x_0: Array, deviation: Array, a_s: Array | float, b_s: Array) -> Array:
    """Deterministic step to level s: A_s x_0 + b_s d (Song et al. 2020, eq. 12, sigma = 0)."""
    return a_s * x_0 + b_s * deviation  # type: ignore[operator, no-any-return]


def thinned_levels(steps: int, levels: int) -> tuple[int, ...]:
    """Descending levels of a schedule thinned to ``steps`` equal integer strides from 0.

    Five of ten gives 8, 6, 4, 2, 0: the number of steps fixes the start level as well (DeCo-Diff).
    Raises ValueError where no integer stride gives that many levels.
    """
    for stride in range(1, levels + 1):
        chosen = tuple(range(0, levels, stride))
        if len(chosen) == steps:
            return chosen[::-1]
    raise ValueError(f"{levels} levels cannot be thinned to {steps} by an integer stride")

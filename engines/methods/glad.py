"""GLAD: noise the input away, and return to it at a level of its own per frame (arXiv 2406.07487).

A network learns to predict, besides the noise, the synthetic anomaly it hides. At test time a frame
is noised to T and denoised; beside the walk stands the input at the same level with the same noise.
Where the walk has strayed from it, the frame closes there with a spatial blend of both; where it
never does, it restarts from the input at a low level and keeps its details.

Where this departs from the paper: the two are compared in the latent, which costs nothing, instead
of in DINO features of two decoded pictures ("decoded" does that with the codec's layers); theta is
fitted on held-out good parts, per category, where the authors chose it by the test metric; a
category token stands for the prompt, without guidance; the map compares the codec's layers, within
a few cells, and is multiplied by no foreground mask, which would be hidden supervision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from engines.contracts import BadConfig
from engines.maps import gaussian_blur, resize_map
from engines.matching import nearest_distance
from engines.methods.latent import Batch, LatentMethod, noise_table
from engines.methods.method import Plan, State
from engines.noise import add_noise, move_to_level, predict_x0, scaled_linear_alpha_bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.noise import Float64

LEVELS = 1000
START_LEVEL, FLOOR_LEVEL = 500, 250  # T and t_min, as published for one model of all of VisA
STEPS = 10  # n; published 15 and 25
SHORTENED = (0.5, 0.7)  # of the steps, at the same stride: 250 in 5 and 350 in 7
WORST_CELLS = 10  # the test is the mean of so many largest cells
THETA_QUANTILE = 0.99  # of good parts: the others stray so far that they close with a blend
REACH, EVERYWHERE = 1, "everywhere"  # cells around a cell that its match is looked for in
TESTS = ("latent", "decoded")
SMOOTHING_SHARE = 6 / 512  # sigma of the map's blur, of its height
SCORE_SHARE = 250 / 512**2  # of the map, the largest: their mean is the score


def levels_of(start_level: int, steps: int) -> tuple[int, ...]:
    """t_i = 1 + r i with the stride r = T // n, descending; 750 in 25 gives 721, 691, ..., 1."""
    stride = start_level // steps
    return tuple(1 + stride * i for i in reversed(range(steps)))


def soft_anomaly(clean: Tensor, odd: Tensor, level: Tensor) -> Tensor:
    """z_s = (t/1000) z_a + (1 - t/1000) z_n: faint at low noise, whole at high noise, [B, C, h, w].

    clean z_n and odd z_a [B, C, h, w], level i64 [B].
    """
    share = (level / LEVELS).view(-1, 1, 1, 1)
    return clean + share * (odd - clean)


def target_noise(noise: Tensor, soft: Tensor, clean: Tensor, a_t: Tensor, b_t: Tensor) -> Tensor:
    """eps* = eps + (a_t/b_t)(z_s - z_n), so that the estimate from z_t is the clean z_n.

    The sign is plus: the minus of the authors' later code gives 2 z_s - z_n, twice the anomaly. It
    is computed in single precision, since a_t/b_t reaches 34; the soft anomaly holds the shift at
    .36 |z_a - z_n| or less at every level, so the loss needs no weights.
    """
    return noise + a_t / b_t * (soft - clean)


class Glad(LatentMethod):
    """GLAD: one fixed noise per frame, and a closing level that each frame finds by itself.

    ``configuration`` besides the shared keys: "start_level" T (500), "steps" n (10), "floor_level"
    t_min (250), below which every frame restarts from its input; "reach", how many cells away the
    map looks for a match (1, or "everywhere" as published, where a defect that looks like another
    place of the part finds its match there); "test", "latent" or "decoded". Raises BadConfig for
    values that do not fit.
    """

    name: ClassVar[str] = "GLAD"  # every call is followed by the closing test: none in bf16
    learns_from_anomalies: ClassVar[bool] = True
    constants_steer: ClassVar[bool] = True

    theta: Tensor
    noise_rows: Tensor

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        # Plain values, which the plan table needs before the module is complete.
        self.start_level = int(configuration.get("start_level", START_LEVEL))
        self.steps = int(configuration.get("steps", STEPS))
        self.floor_level = int(configuration.get("floor_level", FLOOR_LEVEL))
        self.test = str(configuration.get("test", TESTS[0]))
        reach = configuration.get("reach", REACH)
        if isinstance(reach, str) and reach != EVERYWHERE:
            raise BadConfig(f'reach is {reach!r}; choose 0 or more cells, or "{EVERYWHERE}"')
        self.reach = None if reach == EVERYWHERE else int(reach)
        self._refuse_misfits()
        super().__init__(configuration)
        self.register_buffer("noise_rows", noise_table(self.codec.latent_shape), persistent=False)

    def _refuse_misfits(self) -> None:
        if not 1 <= self.steps <= self.start_level < LEVELS:
            raise BadConfig(
                f"start_level {self.start_level} in {self.steps} steps does not fit; choose a "
                f"start_level below {LEVELS} and from 1 step to one per level"
            )
        if not 2 <= self.floor_level <= self.start_level:
            raise BadConfig(
                f"floor_level is {self.floor_level}; choose 2 to {self.start_level}, the "
                f"start_level, so that every walk closes"
            )
        if self.test not in TESTS:
            raise BadConfig(f"there is no test {self.test!r}; choose {' or '.join(TESTS)}")
        if self.reach is not None and self.reach < 0:
            raise BadConfig(f'reach is {self.reach}; choose 0 or more cells, or "{EVERYWHERE}"')

    @staticmethod
    def alpha_bar() -> Float64:
        """The thousand levels of Stable Diffusion."""
        return scaled_linear_alpha_bar(LEVELS)

    def walks(self) -> Sequence[Plan]:
        """Shallower walks of the same stride, then T in n steps."""
        stride = self.start_level // self.steps
        fewer = sorted({int(share * self.steps) for share in SHORTENED} - {0})
        shallow = [Plan(stride * steps, levels_of(stride * steps, steps)) for steps in fewer]
        return [*shallow, Plan(self.start_level, levels_of(self.start_level, self.steps))]

    def constants(self) -> dict[str, float]:
        """The shared tables and theta; until it is fitted, every frame restarts at the floor."""
        return {"theta": torch.inf, **super().constants()}

    def training_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared error to eps* at a random level of the thousand."""
        clean = batch.latent.float()
        level = torch.randint(LEVELS, (len(clean),), generator=generator).to(clean.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        soft = soft_anomaly(clean, batch.odd.float(), level)
        a_t, b_t = self.signal(level)
        predicted = self.predicted_noise(add_noise(soft, noise, a_t, b_t), level, batch.category)
        return functional.mse_loss(predicted.float(), target_noise(noise, soft, clean, a_t, b_t))

    def place(self, latent: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """z_T = a_T z_0 + b_T eps, eps by the seed and the same for the whole walk."""
        del category
        noise = self.noise_rows[seed.remainder(len(self.noise_rows))]
        return {"noise": noise, **self._opened(latent, noise, plan)}

    def _opened(self, latent: Tensor, noise: Tensor, plan: Tensor) -> State:
        # As published: noised at T itself, though the first call is told T - r + 1. Walk and input
        # therefore differ a little from the start; theta has met that on good parts.
        a, b = self.signal(self.start_of_plan[plan].long())
        return {
            "latent": add_noise(latent, noise, a, b),
            "open": torch.ones_like(plan, dtype=torch.int32),
            "drift": torch.zeros_like(plan, dtype=torch.float32),
        }

    def move(self, state: Mapping[str, Tensor], level: Tensor, following: Tensor) -> State:
        """One step, and for an open row the test whether it closes on this level.

        ``estimate`` is what the evidence is drawn from: of an open row the copy, as if it closed
        here; of a closed one z^_0, the blend or the copy it closed with included.
        """
        (a_t, b_t), (a_s, b_s) = self.signal(level), self.signal(following)
        noise = self.predicted_noise(state["latent"], level.clamp(min=0), state["category"])
        walked = predict_x0(state["latent"], noise, a_t, b_t)
        apart = self.apart(state, a_t, b_t)
        copy = walked - apart
        strayed = self.strayed(walked, apart)
        drift = mean_of_largest(strayed, WORST_CELLS)
        severe = drift > self.theta[state["category"]]
        is_open = state["open"] > 0
        closes = is_open & (severe | (level < self.floor_level))
        share = torch.where(severe[:, None, None], strayed.sigmoid(), 0.0)[:, None]
        closed = share * walked + (1 - share) * copy
        walked = torch.where(_by_row(closes), closed, walked)
        stays_open = is_open & ~closes
        return {
            "latent": move_to_level(walked, noise, a_s, b_s),
            "estimate": torch.where(_by_row(stays_open), copy, walked),
            "level": torch.where(is_open, level.int(), state["level"]),
            "open": stays_open.int(),
            "drift": torch.where(is_open, state["drift"].maximum(drift), state["drift"]),
        }

    def apart(self, state: Mapping[str, Tensor], a_t: Tensor, b_t: Tensor) -> Tensor:
        """z^_0 - z~_0 = (z_t - z~_t) / a_t, whatever noise is predicted, [B, C, h, w].

        z~_t is the input at the same level with its own noise, z~_0 the copy: the estimate that the
        predicted noise gives from there.
        """
        return (state["latent"] - add_noise(state["anchor"], state["noise"], a_t, b_t)) / a_t

    def strayed(self, walked: Tensor, apart: Tensor) -> Tensor:
        """m: how far generated content lies from the copy, per cell, 0 to 2, [B, h, w].

        walked is z^_0, apart z^_0 - z~_0. "latent": the mean over channels of |apart|, bent to the
        range of the published cosine distance, so that sigmoid(m) keeps its meaning.
        """
        if self.test == "latent":
            return 2 * torch.tanh(apart.abs().mean(1) / 2)
        one, other = (self.codec.layers(latent)[-1] for latent in (walked - apart, walked))
        return resize_map(nearest_distance(one, other, self.reach), self.codec.latent_shape[1:])

    def fit_steering(self, states: Sequence[State], category: int) -> None:
        """Theta: the 99 % level of the largest drift of good parts while they are open.

        The test is made once below the floor too, so that level counts. Rows that met a theta on
        their way are walked again without one.
        """
        if not bool(self.theta[category].isinf()):
            self.theta[category] = torch.inf
            states = [self._walked_again(state) for state in states]
        drift = torch.cat([state["drift"] for state in states])
        self.theta[category] = torch.quantile(drift, THETA_QUANTILE)

    def _walked_again(self, state: State) -> State:
        plan = state["plan"].long()
        again = state | self._opened(state["anchor"], state["noise"], plan)
        again["steps_left"] = self.steps_of_plan[plan]
        return self.walked(again, -1)

    def deviation_map(self, state: Mapping[str, Tensor]) -> Tensor:
        """Sum over the codec's layers of the distance to the nearest token, [B, h', w']."""
        pairs = zip(
            self.codec.layers(state["anchor"]), self.codec.layers(self.closed(state)), strict=True
        )
        distances = [nearest_distance(*pair, self.reach) for pair in pairs]
        maps = torch.stack([resize_map(found, self.map_size) for found in distances]).sum(0)
        return gaussian_blur(maps, SMOOTHING_SHARE * self.map_size[0])

    def score_of(self, anomaly_map: Tensor) -> Tensor:
        """Mean of the largest cells, 250 of 512 x 512, [B]."""
        height, width = self.map_size
        return mean_of_largest(anomaly_map, max(1, round(SCORE_SHARE * height * width)))


def mean_of_largest(maps: Tensor, count: int) -> Tensor:
    """Mean of each row's ``count`` largest cells, [B, h, w] -> [B]."""
    cells = maps.flatten(1)
    return cells.topk(min(count, cells.shape[1]), dim=1).values.mean(1)


def _by_row(flags: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, 1]."""
    return flags[:, None, None, None]

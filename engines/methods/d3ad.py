"""D3AD: the further a frame lies from good parts, the deeper it is denoised (arXiv 2401.04463).

A network learns the noise of good latents. At test time the latent is only scaled, never noised;
ten deterministic steps lead it back while a pull keeps it near the input. How deep the walk starts,
T, is chosen per frame by its distance to good parts.

Where this departs from the paper: the distance is the severity bank's instead of a search over
whole frames, its bins are those of held-out good parts; the features compared are the codec's
own, which are not adapted to the reconstructions; maps are scaled by good parts instead of by the
test set; a latent is a posterior's mean; one network serves all categories and is told which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from engines.contracts import BadConfig
from engines.maps import gaussian_blur, level_of, resize_map
from engines.methods.fused import MAP_STRIDE, SMOOTHING_PX, latent_map, per_row
from engines.methods.latent import Batch, LatentMethod
from engines.methods.method import Plan, State
from engines.noise import add_noise, linear_alpha_bar, move_to_level, predict_x0

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.noise import Float64

LEVELS = 1000
T_MAX = 80
ETA = 4.0  # of the pull towards the input
CALLS = 10  # of every published plan, whatever its T
SHORTENED = (2, 5)  # calls of the plans that a deadline may ask for; they divide every T
BINS, BIN_MIN = 10, 2
LATENT_SHARE = 0.85  # lambda: weight of the latent map beside the map of features
SCALE_QUANTILE = 0.99


def start_levels(t_max: int) -> tuple[int, ...]:
    """T of the severity bins 1 to 10: the multiple of ten nearest to bin / 10 * t_max, ties up.

    Bin 1 counts as 2. With t_max = 80: 20, 20, 20, 30, 40, 50, 60, 60, 70, 80.
    """
    return tuple(10 * ((max(b, BIN_MIN) * t_max + 50) // 100) for b in range(1, BINS + 1))


def walk_from(start_level: int, calls: int) -> Plan:
    """The plan from T in ``calls`` equal strides r: levels T - r, T - 2r, ..., 0."""
    stride = start_level // calls
    return Plan(start_level, tuple(range(start_level - stride, -1, -stride)))


def cosine_distance(one: Tensor, other: Tensor) -> Tensor:
    """1 - cosine over channels, [B, C, h, w] twice -> [B, h, w].

    As half the squared distance of the directions: exactly zero where both are the same, also in
    low precision.
    """
    difference = functional.normalize(one, dim=1) - functional.normalize(other, dim=1)
    return (difference**2).sum(1) / 2


class D3ad(LatentMethod):
    """D3AD: a scaled latent, ten calls, a pull towards the input, and a depth chosen by severity.

    ``configuration`` besides the shared keys: "eta", the strength of the pull (4); "t_max", the
    deepest T (80, up to 990; 200 with a weak codec). The pull leads beyond the input where
    eta (1 - abar_t) > 1: with an eta of 4 in the first calls of a T above 120. Choosing T needs the
    bank; without one every frame takes T = t_max. Raises BadConfig for a t_max or an eta that does
    not fit.
    """

    name: ClassVar[str] = "D3AD"
    exact_in_bf16: ClassVar[tuple[str, ...]] = ("denoiser",)  # the depth is chosen before

    latent_scale: Tensor
    feature_scale: Tensor

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        # Plain numbers, which the plan table needs before the module is complete.
        self.t_max = int(configuration.get("t_max", T_MAX))
        self.eta = float(configuration.get("eta", ETA))
        if self.t_max % 10 or not 30 <= self.t_max < LEVELS:
            raise BadConfig(f"t_max is {self.t_max}; choose a multiple of 10 from 30 to 990")
        if self.eta < 0:
            raise BadConfig(f"eta is {self.eta}; choose 0 (no pull) or more")
        super().__init__(configuration)

    @staticmethod
    def alpha_bar() -> Float64:
        """A thousand levels of linear betas."""
        return linear_alpha_bar(LEVELS)

    def walks(self) -> Sequence[Plan]:
        """Shortened walks from t_max for deadlines, then the published ones, ascending in T.

        Severity climbs the table by counting the edges it exceeds, so published plans stand
        together at its end, t_max last; all of them make ten calls, a greater T is their depth.
        """
        shortened = [walk_from(self.t_max, calls) for calls in SHORTENED]
        published = sorted(set(start_levels(self.t_max)))
        return [*shortened, *(walk_from(t, CALLS) for t in published)]

    def constants(self) -> dict[str, float]:
        """The shared tables and the scales of both maps."""
        return {"latent_scale": 1.0, "feature_scale": 1.0, **super().constants()}

    def training_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise at a random level of the thousand."""
        latent = batch.latent
        level = torch.randint(LEVELS, (len(latent),), generator=generator).to(latent.device)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        noisy = add_noise(latent, noise, *self.signal(level))
        predicted = self.predicted_noise(noisy, level, batch.category)
        return functional.mse_loss(predicted.float(), noise)

    def place(self, latent: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """z_T = a_T z_0, without noise."""
        del category, seed
        return {"latent": self.signal(self.start_of_plan[plan].long())[0] * latent}

    def move(self, state: Mapping[str, Tensor], level: Tensor, following: Tensor) -> State:
        """One step with the noise e^ = e - eta b_t (z~ - z), where z~ = a_t z_0 + b_t e.

        The estimate is therefore z^_0 + eta (1 - abar_t) (z_0 - z^_0) of the unguided z^_0.
        """
        (a_t, b_t), (a_s, b_s) = self.signal(level), self.signal(following)
        noise = self.predicted_noise(state["latent"], level.clamp(min=0), state["category"])
        target = add_noise(state["anchor"], noise, a_t, b_t)
        guided = noise - self.eta * b_t * (target - state["latent"])
        estimate = predict_x0(state["latent"], guided, a_t, b_t)
        return {"latent": move_to_level(estimate, guided, a_s, b_s), "estimate": estimate}

    def deviation_map(self, state: Mapping[str, Tensor]) -> Tensor:
        """lambda l / l_scale + (1 - lambda) f / f_scale, smoothed by sigma = 4 px, [B, h', w']."""
        category = state["category"]
        latent = self.latent_change(state) / per_row(self.latent_scale, category)
        feature = self.feature_change(state) / per_row(self.feature_scale, category)
        fused = LATENT_SHARE * latent + (1 - LATENT_SHARE) * feature
        return gaussian_blur(fused, SMOOTHING_PX / MAP_STRIDE)

    def latent_change(self, state: Mapping[str, Tensor]) -> Tensor:
        """l = mean over channels of |z^ - z_0|, on the emitted grid [B, h', w']."""
        return resize_map(latent_map(state, self.closed(state)), self.map_size)

    def feature_change(self, state: Mapping[str, Tensor]) -> Tensor:
        """f = sum over the codec's layers of 1 - cosine, on the emitted grid [B, h', w']."""
        layers = zip(
            self.codec.layers(state["anchor"]), self.codec.layers(self.closed(state)), strict=True
        )
        changes = [resize_map(cosine_distance(*pair), self.map_size) for pair in layers]
        return torch.stack(changes).sum(0)

    def fit_constants(self, states: Sequence[State], category: int) -> None:
        """Scales: the 99 % level of each map on good parts.

        The paper takes the minimum and maximum over the test set.
        """
        latent = torch.cat([self.latent_change(state) for state in states])
        feature = torch.cat([self.feature_change(state) for state in states])
        self.latent_scale[category] = level_of(latent, SCALE_QUANTILE)
        self.feature_scale[category] = level_of(feature, SCALE_QUANTILE)

    def edges_of(self, severity: Tensor) -> Tensor:
        """Limits between the plans from severities of good parts [N], ascending [plans - 1].

        The edges are those of ten equal bins from the least to the greatest severity. Frames up to
        the median make no step. Shortened plans end where they begin, so severity never picks one.
        """
        share = torch.arange(BINS + 1).to(severity) / BINS
        edges = torch.lerp(severity.min(), severity.max(), share)
        calm = torch.quantile(severity, 0.5)
        reached = start_levels(self.t_max)
        published = [plan.start_level for plan in self.plans[1 + len(SHORTENED) :]]
        climbs = torch.stack([edges[reached.index(t)] for t in published]).clamp(min=calm)
        climbs[0] = calm
        return torch.cat([calm.expand(len(SHORTENED)), climbs])

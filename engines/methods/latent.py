"""What the published methods share: a latent, a table of plans, a severity bank, and the walk.

A method proper says how the latent is placed on its noise level (``place``), how one denoiser call
moves it (``move``), what its map is (``deviation_map``) and what its network learns
(``training_loss``). Everything else stands here once, or, for what a walk is worth, in ``fused``.

Extensions to the papers, each a switch that is named in a bundle's substitutions: an "unknown"
category by label dropout; a severity bank in ``start`` (D3AD's idea, behind any method) that gives
a base map, chooses the plan, and lets plainly normal frames leave without any step; a learned
scorer; a preconditioned denoiser; changes measured in those of good parts.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from engines.bank import SeverityBank, distance_of
from engines.codecs import build_codec
from engines.methods.fused import FusedMethod
from engines.methods.method import Plan, State, plan_taken
from engines.methods.whitening import Whitening
from engines.networks import build_denoiser
from engines.noise import with_clean_level
from engines.scorer import Scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.codecs import Seen
    from engines.noise import Float64

SEVERITY_QUANTILE_MAX = 0.95  # of good parts: beyond it a frame takes the deepest plan


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a denoiser learns from."""

    latent: Tensor  # [B, C, h, w] of good parts
    odd: Tensor  # [B, C, h, w], the same parts, about half with a synthetic anomaly
    category: Tensor  # i64 [B]


class LatentMethod(FusedMethod):
    """A method over a codec's latent, with or without a severity bank and a learned scorer.

    ``configuration``: codec (dict), denoiser (size name), categories (count), image_size, dropout,
    bank (None or dict with ``rows``), scorer, preconditioned, whitened (bool).
    """

    learns_from_anomalies: ClassVar[bool] = False  # training needs ``Batch.odd``
    constants_steer: ClassVar[bool] = False  # ``fit_steering`` changes how a frame walks
    has_zero_step_evidence: ClassVar[bool] = False  # its map means something without a step
    steps_unit = 1

    levels: Tensor
    start_of_plan: Tensor
    a: Tensor
    b: Tensor
    severity_edges: Tensor

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        super().__init__()
        height, width = configuration["image_size"]
        self.image_size = (int(height), int(width))
        self.codec = build_codec(dict(configuration["codec"]))
        self.pretrained_prefixes = tuple(f"codec.{p}" for p in self.codec.pretrained_prefixes)
        self.categories = int(configuration["categories"])
        self.neutral = frozenset(
            {f"{piece}_centre" for piece in ("base", "deviation", "scorer", "outline")}
            | {"outline_scale", "walk_share"}
        )
        self.is_preconditioned = bool(configuration.get("preconditioned"))
        self.denoiser = self.build_network(configuration)
        self._build_measures(configuration)
        self.steps_min = 0 if self.bank is not None or self.has_zero_step_evidence else 1
        walks = tuple(self.walks())
        self.plans = (Plan(-1, ()), *walks) if self.steps_min == 0 else walks
        self._register_tables()

    def _build_measures(self, configuration: Mapping[str, Any]) -> None:
        """What tells an anomaly from a good part, each piece where it is asked for."""
        codec, bank = self.codec, configuration.get("bank")
        measured = self.change_names if configuration.get("whitened") else ()
        channels = codec.latent_shape[0]
        self.whitenings = nn.ModuleDict(
            {name: Whitening(self.categories, channels) for name in measured}
        )
        self.bank = (
            SeverityBank(self.categories, bank["rows"], codec.feature_channels) if bank else None
        )
        seen = (codec.activation_channels, channels, self.categories)
        self.scorer = (
            Scorer(*seen, codec.feature_channels if bank else 0)
            if configuration.get("scorer")
            else None
        )

    def _register_tables(self) -> None:
        deepest = max(plan.steps for plan in self.plans)
        padded = [plan.levels + (-1,) * (deepest + 1 - plan.steps) for plan in self.plans]
        steps = torch.tensor([plan.steps for plan in self.plans], dtype=torch.int32)
        starts = torch.tensor([plan.start_level for plan in self.plans], dtype=torch.int32)
        alpha_bar = torch.from_numpy(with_clean_level(self.alpha_bar())).float()
        for name, table in {
            "levels": torch.tensor(padded),
            "steps_of_plan": steps,
            "start_of_plan": starts,
            "a": alpha_bar.sqrt(),
            "b": (1 - alpha_bar).sqrt(),
        }.items():
            self.register_buffer(name, table, persistent=False)
        for name, value in self.constants().items():
            self.register_buffer(name, torch.full((self.categories + 1,), value))
        edges = torch.full((self.categories + 1, len(self.plans) - 1), float("inf"))
        self.register_buffer("severity_edges", edges)

    # ---- what a method says of itself

    @staticmethod
    @abstractmethod
    def alpha_bar() -> Float64:
        """The noise schedule, [levels]."""

    @abstractmethod
    def walks(self) -> Sequence[Plan]:
        """Plans that make at least one step, shallow to deep, the official one last."""

    @abstractmethod
    def training_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """What gradient descent on ``denoiser`` minimises, scalar."""

    @abstractmethod
    def move(self, state: Mapping[str, Tensor], level: Tensor, following: Tensor) -> State:
        """One denoiser call at ``level`` i64 [B], towards ``following`` (-1 = clean).

        Returns the tensors it changes, ``latent`` and ``estimate`` among them.
        """

    def build_network(self, configuration: Mapping[str, Any]) -> nn.Module:
        """The network that gradient descent fits."""
        return build_denoiser(
            configuration["denoiser"],
            self.codec.latent_shape[0],
            self.categories,
            dropout=configuration.get("dropout", 0.1),
        )

    def place(self, latent: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """Put clean latents on the first level of plan i64 [B]: ``latent`` and what is kept."""
        del category, seed, plan
        return {"latent": latent.clone()}

    def fit_steering(self, states: Sequence[State], category: int) -> None:
        """Fit what changes how a frame walks, on good parts that walked the deepest plan."""

    def fit_constants(self, states: Sequence[State], category: int) -> None:
        """Fit the method's own tables on good parts that walked the deepest plan, in place."""

    def edges_of(self, severity: Tensor) -> Tensor:
        """Limits between the plans from severities of good parts [N], ascending [plans - 1].

        Half of the good parts take the first plan; the rest climb evenly, up to the quantile beyond
        which a frame takes the deepest.
        """
        shares = torch.linspace(0.5, SEVERITY_QUANTILE_MAX, len(self.plans) - 1)
        return torch.quantile(severity, shares)

    # ---- the three graphs

    def start(self, image: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """Encode, look the frame up in the bank, take the forced plan or the severity's."""
        seen = self.codec.encode_all(image)
        residual = None if self.bank is None else self.bank.residual(seen.patches, category)
        return self.opened(seen, residual, category, seed, plan)

    def opened(
        self, seen: Seen, residual: Tensor | None, category: Tensor, seed: Tensor, plan: Tensor
    ) -> State:
        """The state of frames that were seen; residual [B, D, h, w] from good patches, if any."""
        kept: State = {}
        if residual is None:
            chosen = torch.full_like(category, len(self.plans) - 1)
        else:
            kept["base_map"] = distance_of(residual)
            severity = self.severity(kept["base_map"])
            chosen = (severity[:, None] > self.severity_edges[category]).long().sum(1)
        if self.scorer is not None:
            kept["context"] = self.scorer.context(seen.activations, residual, category)
        chosen = plan_taken(plan, chosen)
        return {
            "steps_left": self.steps_of_plan[chosen],
            "plan": chosen.int(),
            "level": self.start_of_plan[chosen],
            "category": category,
            "estimate": seen.latent.clone(),
            "anchor": seen.latent.clone(),
            **kept,
            **self.place(seen.latent, category, seed, chosen),
        }

    def step(self, state: State) -> State:
        """Look up this row's level and the next, and make one denoiser call."""
        plan = state["plan"].long()
        done = (self.steps_of_plan[plan] - state["steps_left"]).long()
        deepest = self.levels.shape[1] - 1
        level = self.levels[plan, done.clamp(0, deepest)]
        following = self.levels[plan, (done + 1).clamp(0, deepest)]
        return {**self.move(state, level, following), "steps_left": state["steps_left"] - 1}

    # ---- pieces

    def walked(self, state: State, plan: int) -> State:
        """A state after all denoiser calls of a plan that every row of it is on."""
        for _ in range(self.plans[plan].steps):
            state = state | self.step(state)
        return state

    def predicted_noise(self, latent: Tensor, level: Tensor, category: Tensor) -> Tensor:
        """The noise in latent [B, inputs, h, w], its noisy channels first, at level i64 [B].

        Preconditioned (v-prediction, arXiv 2202.00512): eps^ = b_t z_t + a_t v^, so the network
        starts from the guess that is best for whitened latents and learns what that leaves over. A
        network narrower than the latent cannot copy the noise of all its channels.
        """
        predicted: Tensor = self.denoiser(latent, level, category)
        if not self.is_preconditioned:
            return predicted
        a_t, b_t = self.signal(level)
        return b_t * latent[:, : predicted.shape[1]] + a_t * predicted

    def signal(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and b_t of level i64 [B] (-1 = clean), each [B, 1, 1, 1]."""
        return self.a[level].view(-1, 1, 1, 1), self.b[level].view(-1, 1, 1, 1)

    def reconstruct(self, state: Mapping[str, Tensor]) -> Tensor:
        """The normal-looking image, rgb f32 [B, 3, H, W] in [0, 1], for people."""
        return self.codec.decode(self.closed(state))


def noise_table(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Standard normal noise in values that fp16 holds exactly, at most 4 MB of it, [n, C, h, w].

    ``place`` gathers from it by the seed of the image's bytes, so the same image meets the same
    noise whatever its name, batch or worker.
    """
    rows = max(1, min(64, 2_000_000 // (shape[0] * shape[1] * shape[2])))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *shape, generator=generator).half().float()

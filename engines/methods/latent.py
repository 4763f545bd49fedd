"""What the published methods share: a latent, a table of plans, a severity bank, fused evidence.

A method proper says how the latent is placed on its noise level (``place``), how one denoiser call
moves it (``move``), what its map is (``deviation_map``) and what its network learns
(``training_loss``). Everything else stands here once.

Extensions to the papers, each a switch that is named in a bundle's substitutions: an "unknown"
category by label dropout; a severity bank in ``start`` (D3AD's idea, behind any method) that gives
a base map, chooses the plan, and lets plainly normal frames leave without any step; a learned
scorer; a preconditioned denoiser; changes measured in those of good parts.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from engines.bank import SeverityBank, distance_of
from engines.codecs import build_codec
from engines.maps import gaussian_blur, resize_map
from engines.methods.method import Method, Plan, State, plan_taken
from engines.methods.shares import TABLES, fused
from engines.methods.whitening import Whitening
from engines.networks import build_denoiser
from engines.noise import with_clean_level
from engines.scorer import Scorer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.codecs import Seen
    from engines.noise import Float64

BASE_SHARE = 0.7  # weight of the base map where nothing has been fitted
SCORER_SHARE = 0.5  # likewise of the learned scorer
OUTLINE_SHARE = 0.5  # its say in what is drawn: it learned outlines, the bank where to look
MAP_STRIDE = 4  # the emitted map is the image's grid divided by this
WHITENED_SMOOTHING = 2.0  # sigma in cells of the emitted map: half a cell of stride 16
SMOOTHING_PX = 4.0  # sigma of the base map's blur
SEVERITY_QUANTILE_MAX = 0.95  # of good parts: beyond it a frame takes the deepest plan


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What a denoiser learns from."""

    latent: Tensor  # [B, C, h, w] of good parts
    odd: Tensor  # [B, C, h, w], the same parts, about half with a synthetic anomaly
    category: Tensor  # i64 [B]


class LatentMethod(Method):
    """A method over a codec's latent, with or without a severity bank and a learned scorer.

    ``configuration``: codec (dict), denoiser (size name), categories (count), image_size, dropout,
    bank (None or dict with ``rows``), scorer, preconditioned, whitened (bool).
    """

    learns_from_anomalies: ClassVar[bool] = False  # training needs ``Batch.odd``
    constants_steer: ClassVar[bool] = False  # ``fit_steering`` changes how a frame walks
    has_zero_step_evidence: ClassVar[bool] = False  # its map means something without a step
    change_names: ClassVar[tuple[str, ...]] = ("walk",)
    steps_unit = 1

    levels: Tensor
    steps_of_plan: Tensor
    start_of_plan: Tensor
    a: Tensor
    b: Tensor
    base_centre: Tensor
    base_scale: Tensor
    deviation_centre: Tensor
    deviation_scale: Tensor
    scorer_centre: Tensor
    scorer_scale: Tensor
    severity_edges: Tensor
    base_share: Tensor
    scorer_share: Tensor
    walk_share: Tensor

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
        self.whitenings = nn.ModuleDict(
            {
                name: Whitening(self.categories, self.codec.latent_shape[0])
                for name in self.change_names
            }
            if configuration.get("whitened")
            else {}
        )
        bank = configuration.get("bank")
        self.bank = (
            SeverityBank(self.categories, bank["rows"], self.codec.feature_channels)
            if bank
            else None
        )
        self.scorer = (
            Scorer(
                self.codec.activation_channels,
                self.codec.latent_shape[0],
                self.categories,
                self.codec.feature_channels if bank else 0,
            )
            if configuration.get("scorer")
            else None
        )
        self.steps_min = 0 if bank or self.has_zero_step_evidence else 1
        walks = tuple(self.walks())
        self.plans = (Plan(-1, ()), *walks) if self.steps_min == 0 else walks
        self._register_tables()

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

    @abstractmethod
    def deviation_map(self, state: Mapping[str, Tensor]) -> Tensor:
        """The method's own anomaly map on the emitted grid, [B, h', w']."""

    def build_network(self, configuration: Mapping[str, Any]) -> nn.Module:
        """The network that gradient descent fits."""
        return build_denoiser(
            configuration["denoiser"],
            self.codec.latent_shape[0],
            self.categories,
            dropout=configuration.get("dropout", 0.1),
        )

    def constants(self) -> dict[str, float]:
        """Tables of one number per category and what they hold before they are fitted."""
        shared = {"base_share": BASE_SHARE}
        learned = () if self.scorer is None else ("scorer", "outline")
        for piece in ("base", "deviation", *learned):
            shared |= {f"{piece}_centre": 0.0, f"{piece}_scale": 1.0}
        if self.scorer is not None:
            shared |= {"scorer_share": SCORER_SHARE, "walk_share": 1.0}
        return shared

    def place(self, latent: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """Put clean latents on the first level of plan i64 [B]: ``latent`` and what is kept."""
        del category, seed, plan
        return {"latent": latent.clone()}

    def closed(self, state: Mapping[str, Tensor]) -> Tensor:
        """The reconstruction that evidence is drawn from, [B, C, h, w]."""
        return state["estimate"]

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

    def finish(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Map on a quarter of the image's grid, and the score.

        With the method's own map alone they are that map and its maximum. Otherwise every piece of
        evidence is brought to where good parts peak and how far their peaks spread, and they are
        added: for the score by shares that tell anomalous parts best, for the map by the same ones
        or, with a learned scorer, by equal shares. A frame that made no step is judged by the bank.
        """
        evidence = self.evidence(state)
        score = self.score_of(evidence["fused"])
        if self.steps_min > 0:
            # Without a step there is no evidence, and no evidence is not a score of zero.
            made = self.steps_of_plan[state["plan"].long()] - state["steps_left"]
            score = torch.where(made >= self.steps_min, score, torch.nan)
        return evidence["outlines"], score

    # ---- pieces

    def walked(self, state: State, plan: int) -> State:
        """A state after all denoiser calls of a plan that every row of it is on."""
        for _ in range(self.plans[plan].steps):
            state = state | self.step(state)
        return state

    @property
    def map_size(self) -> tuple[int, int]:
        """h', w' of the emitted map."""
        return self.image_size[0] // MAP_STRIDE, self.image_size[1] // MAP_STRIDE

    def evidence(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each piece of evidence by itself, "fused" and "outlines", all [B, h', w'].

        "denoiser" is the method's own map, "bank" the distance to good patches, "scorer" the
        learned one; the last two only where the method has them. "fused" is what decides,
        "outlines" what is drawn, in the units of "fused".
        """
        category = state["category"]
        found = {"denoiser": self.change_map(state)}
        base = scorer = torch.zeros(())
        if self.bank is not None:
            found["bank"] = self.smooth_base_map(state["base_map"])
            base = per_row(self.base_share, category)
        if self.scorer is not None:
            found["scorer"] = self.scorer_map(state)
            scorer = per_row(self.scorer_share, category)
        if len(found) == 1:
            return found | {"fused": found["denoiser"], "outlines": found["denoiser"]}
        scaled = {k: self.standardised(TABLES[k], maps, category) for k, maps in found.items()}
        joined = drawn = fused(scaled, base, scorer)
        if self.scorer is not None:
            drawn = self.standardised("outline", fused(scaled, base, OUTLINE_SHARE), category)
        return found | {"fused": joined, "outlines": drawn}

    def change_map(self, state: Mapping[str, Tensor]) -> Tensor:
        """The method's own map, or how unlike good parts' its change is, [B, h', w']."""
        return self.unlike(state, "walk") if self.whitenings else self.deviation_map(state)

    def unlike(self, state: Mapping[str, Tensor], name: str) -> Tensor:
        """A change in units of good parts' changes, on the emitted grid, [B, h', w']."""
        length = self.whitening(name)(self.changes(state)[name], state["category"])
        return gaussian_blur(resize_map(length, self.map_size), WHITENED_SMOOTHING)

    def whitening(self, name: str) -> Whitening:
        """The measure of one of the changes."""
        return cast("Whitening", self.whitenings[name])

    def changes(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What was made of the latent, [B, C, h, w] each, by the names of ``change_names``."""
        return {"walk": self.closed(state) - state["anchor"]}

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

    def standardised(self, piece: str, maps: Tensor, category: Tensor) -> Tensor:
        """Maps [B, h, w] of a piece of evidence less their centre, by their scale."""
        centre, scale = (self.get_buffer(f"{piece}_{name}") for name in ("centre", "scale"))
        return (maps - per_row(centre, category)) / per_row(scale, category)

    def score_of(self, anomaly_map: Tensor) -> Tensor:
        """Image score of a map [B, h', w']: its maximum, [B]."""
        return anomaly_map.amax((1, 2))

    def scorer_map(self, state: Mapping[str, Tensor]) -> Tensor:
        """Log-odds of an anomaly by the learned scorer, smoothed, [B, h', w'].

        It reads the walk where that was found to help (``walk_share``), else the frame alone. Odds,
        not probabilities: those of plain anomalies would all be 1.
        """
        if self.scorer is None:
            raise ValueError("this method has no learned scorer")
        anchor, share = state["anchor"], per_row(self.walk_share, state["category"])[:, None]
        seen = anchor + share * (self.closed(state) - anchor)
        logits = self.scorer(state["context"], anchor, seen)
        return gaussian_blur(resize_map(logits, self.map_size), 1.0)

    def severity(self, base_map: Tensor) -> Tensor:
        """How far the worst place of a frame lies from all good parts, [B]."""
        return self.smooth_base_map(base_map).amax((1, 2))

    def smooth_base_map(self, base_map: Tensor) -> Tensor:
        """Distances on the emitted grid, smoothed by sigma = 4 image pixels, [B, h', w']."""
        return gaussian_blur(resize_map(base_map, self.map_size), SMOOTHING_PX / MAP_STRIDE)

    def signal(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and b_t of level i64 [B] (-1 = clean), each [B, 1, 1, 1]."""
        return self.a[level].view(-1, 1, 1, 1), self.b[level].view(-1, 1, 1, 1)

    def reconstruct(self, state: Mapping[str, Tensor]) -> Tensor:
        """The normal-looking image, rgb f32 [B, 3, H, W] in [0, 1], for people."""
        return self.codec.decode(self.closed(state))


def per_row(table: Tensor, category: Tensor) -> Tensor:
    """A number per category -> [B, 1, 1], to scale maps with."""
    return table[category].view(-1, 1, 1)


def latent_map(state: Mapping[str, Tensor], estimate: Tensor) -> Tensor:
    """Mean over channels of |estimate - z_0|, [B, h, w]."""
    return (estimate - state["anchor"]).abs().mean(1)


def noise_table(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Standard normal noise in values that fp16 holds exactly, at most 4 MB of it, [n, C, h, w].

    ``place`` gathers from it by the seed of the image's bytes, so the same image meets the same
    noise whatever its name, batch or worker.
    """
    rows = max(1, min(64, 2_000_000 // (shape[0] * shape[1] * shape[2])))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, *shape, generator=generator).half().float()

"""DRDC-style: inpainting refines what feature reconstruction suspects (arXiv 2407.01905).

The paper leaves values open and has no code, so the name says "style". What is its own: one model
for all categories; a transformer's reconstruction error as base heatmap; a diffusion branch that
inpaints masked regions, conditioned on the category and, at test time, on the image; few timesteps
visited independently; maps fused over timesteps, mask sizes and masks.

What is chosen here: the inpainting works in the codec's latent; T = 1000 with linear betas, trained
on the 300 least noisy levels, of which 50 and 150 are visited; masks are checkerboards of 2 and 4
cells. Masks are the innermost loop: one cover is a checkerboard and its complement, and only
complete covers count. Where changes are whitened, the last complete cover alone is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from engines.contracts import BadConfig
from engines.maps import LEVEL_MIN, gaussian_blur, level_of, resize_map
from engines.methods.drdc_base import DrdcNetwork
from engines.methods.drdc_inpainting import (
    PARTS,
    checkerboards,
    high_pass,
    lock_low_band,
    reimpose,
    shown_to_network,
    training_masks,
)
from engines.methods.fused import per_row
from engines.methods.latent import Batch, LatentMethod, noise_table
from engines.methods.method import Plan, State, plan_taken
from engines.noise import add_noise, linear_alpha_bar, predict_x0

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from engines.noise import Float64

TIMESTEPS, TRAINED_TIMESTEPS = 1000, 300
COVERS = (  # of each plan: (timestep, side of a mask's squares in cells)
    ((50, 2),),
    ((50, 2), (150, 2)),
    ((50, 2), (150, 2), (50, 4), (150, 4)),
)
KINDS = COVERS[-1]  # every cover that a plan makes
BOARDS = tuple(sorted({side for _, side in KINDS}))
LOW_PASS_CELLS = 2.0  # sigma of what counts as low frequency
GATE_QUANTILE = 0.99  # of good parts: above it the lock lets go, at twice it has
FUSIONS = ("product", "sum")
REFINEMENT = 0.5  # lambda
SMOOTHING = 1.0  # sigma in cells of the emitted map


class Drdc(LatentMethod):
    """DRDC-style: a base heatmap by feature reconstruction, sharpened by inpainting.

    ``configuration`` may say how the two are fused: ``fusion`` ("product" or "sum"), ``refinement``
    (lambda) and ``low_pass`` (cells).
    """

    name: ClassVar[str] = "DRDC-style"
    exact_in_bf16: ClassVar[tuple[str, ...]] = ("denoiser.inpainter",)  # the base chooses the plan
    constants_steer: ClassVar[bool] = True  # the gate
    has_zero_step_evidence: ClassVar[bool] = True
    change_names: ClassVar[tuple[str, ...]] = ("walk", "base")
    steps_unit = PARTS

    denoiser: DrdcNetwork
    gate_level: Tensor
    error_level: Tensor
    refined_mean: Tensor
    refined_spread: Tensor
    kind_of_cover: Tensor
    masks: Tensor
    noise_table: Tensor

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        super().__init__(configuration)
        self.fusion = configuration.get("fusion", FUSIONS[0])
        if self.fusion not in FUSIONS:
            raise BadConfig(f"there is no fusion {self.fusion!r}; choose {' or '.join(FUSIONS)}")
        self.refinement = float(configuration.get("refinement", REFINEMENT))
        self.low_pass = float(configuration.get("low_pass", LOW_PASS_CELLS))
        _, height, width = self.codec.latent_shape
        kinds = [[KINDS.index(cover) for cover in covers] for covers in ((), *COVERS)]
        for name, table in {
            "kind_of_cover": torch.tensor([row + [0] * (len(KINDS) - len(row)) for row in kinds]),
            "masks": torch.stack([checkerboards((height, width), side) for _, side in KINDS]),
            "noise_table": noise_table(self.codec.latent_shape),
        }.items():
            self.register_buffer(name, table, persistent=False)

    @staticmethod
    def alpha_bar() -> Float64:
        """A thousand linear levels."""
        return linear_alpha_bar(TIMESTEPS)

    @staticmethod
    def walks() -> Sequence[Plan]:
        """One, two and four covers; a plan's level is its strongest."""
        return [
            Plan(max(t for t, _ in covers), tuple(t for t, _ in covers for _ in range(PARTS)))
            for covers in COVERS
        ]

    def build_network(self, configuration: Mapping[str, Any]) -> nn.Module:
        """Transformer and U-Net of one size."""
        return DrdcNetwork(
            configuration["denoiser"],
            self.codec.latent_shape,
            self.categories,
            configuration.get("dropout", 0.1),
        )

    def constants(self) -> dict[str, float]:
        """The shared tables, where the lock lets go, and the levels of both heatmaps."""
        named = dict.fromkeys(map(residual_name, range(len(KINDS))), 1.0)
        named |= {"gate_level": torch.inf, "error_level": 1.0}
        return {"refined_mean": 0.0, "refined_spread": 1.0, **named, **super().constants()}

    # ---- training

    def training_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Base MSE on features plus the error of the noise predicted in the hidden region."""
        rebuilding = self.denoiser.base.training_loss(batch.latent, batch.category, generator)
        return rebuilding + self.inpainting_loss(batch.latent, batch.category, generator)

    def inpainting_loss(
        self, latent: Tensor, category: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Mean of |eps - eps_hat|^2 over hidden cells alone, scalar."""
        level = torch.randint(TRAINED_TIMESTEPS, (len(latent),), generator=generator)
        grid = (latent.shape[2], latent.shape[3])
        hidden = training_masks(len(latent), grid, BOARDS, generator).to(latent)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        a, b = (scale.to(latent) for scale in self.signal(level))
        shown = shown_to_network(add_noise(latent, noise, a, b), latent, hidden)
        predicted = self.predicted_noise(shown, level.to(latent.device), category)
        error = (predicted.float() - noise).square() * hidden
        loss: Tensor = error.sum() / (hidden.sum() * latent.shape[1]).clamp(min=1)
        return loss

    # ---- the walk

    def start(self, image: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """As in every method; without a severity bank the base heatmap chooses the plan."""
        state = super().start(image, category, seed, plan)
        if self.bank is not None:
            return state
        severity = self.severity(state["feature_error"])
        chosen = (severity[:, None] > self.severity_edges[category]).long().sum(1)
        chosen = plan_taken(plan, chosen)
        return state | {
            "steps_left": self.steps_of_plan[chosen],
            "plan": chosen.int(),
            "level": self.start_of_plan[chosen],
        }

    def place(self, latent: Tensor, category: Tensor, seed: Tensor, plan: Tensor) -> State:
        """The base heatmap, empty accumulators, and which noise every call of this frame takes."""
        heat = torch.zeros_like(latent[:, :1]).repeat(1, len(KINDS), 1, 1)
        missed = self.denoiser.base.missed(latent, category)
        return {
            "latent": latent.clone(),
            "feature_error": missed.square().mean(1).sqrt(),
            **({"missed": missed} if self.whitenings else {}),
            "noise_row": seed.remainder(len(self.noise_table)),
            "heat": heat,
            "covers": torch.zeros_like(plan, dtype=torch.int32)[:, None].repeat(1, len(KINDS)),
        }

    def move(self, state: Mapping[str, Tensor], level: Tensor, following: Tensor) -> State:
        """Inpaint what one mask hides; after the second mask of a cover, add its residual.

        ``following`` plays no part: every call starts from the image itself.
        """
        del following
        image = state["anchor"]
        kind, part = self.turn(state)
        hidden = self.masks[kind, part]  # [B, 1, h, w]
        estimate = self.inpaint(state, level, hidden)
        stitched = hidden * estimate + (1 - hidden) * state["latent"]
        is_whole = part == PARTS - 1
        # H is linear, so the change of the high band is the high band of the change.
        residual = high_pass(image - stitched, self.low_pass).abs().mean(1, keepdim=True)
        added = is_whole[:, None] & (kind[:, None] == torch.arange(len(KINDS), device=kind.device))
        return {
            "latent": stitched,
            "estimate": torch.where(is_whole[:, None, None, None], stitched, state["estimate"]),
            "heat": state["heat"] + torch.where(added[:, :, None, None], residual, 0.0),
            "covers": state["covers"] + added.int(),
        }

    def turn(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Which kind of cover a row is at, and which of its masks, i64 [B] each."""
        plan = state["plan"].long()
        done = (self.steps_of_plan[plan] - state["steps_left"]).long()
        return self.kind_of_cover[plan, (done // PARTS).clamp(0, len(KINDS) - 1)], done % PARTS

    def inpaint(self, state: Mapping[str, Tensor], level: Tensor, hidden: Tensor) -> Tensor:
        """Clean latent with the hidden region rebuilt and the visible one as it is, [B, C, h, w].

        Conditioning at test time: visible cells are re-imposed, and what the network makes of the
        hidden ones takes the image's own low frequencies, unless the base heatmap objects.
        """
        image, (a, b) = state["anchor"], self.signal(level)
        noisy = add_noise(image, self.noise_table[state["noise_row"]], a, b)
        shown = shown_to_network(noisy, image, hidden)
        noise = self.predicted_noise(shown, level.clamp(min=0), state["category"])
        estimate = reimpose(predict_x0(noisy, noise, a, b), image, hidden)
        return lock_low_band(estimate, image, hidden, self.gate(state), self.low_pass)

    def gate(self, state: Mapping[str, Tensor]) -> Tensor:
        """How far the lock holds: 1 up to the level of good parts, 0 from twice it, [B, 1, h, w].

        A slope, because a cell near a hard edge would fall on either side with the runtime.
        """
        height, width = self.codec.latent_shape[1:]
        error = resize_map(state["feature_error"], (height, width))
        return (2 - error / per_row(self.gate_level, state["category"])).clamp(0, 1)[:, None]

    # ---- evidence

    def changes(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What inpainting made of the latent, and what the base branch missed of its tokens."""
        return super().changes(state) | {"base": state["missed"]}

    def change_map(self, state: Mapping[str, Tensor]) -> Tensor:
        """The method's own map; its heatmaps may be measured in good parts' changes."""
        return self.deviation_map(state)

    def base_heat(self, state: Mapping[str, Tensor]) -> Tensor:
        """What the base branch missed, on the emitted grid, [B, h', w']."""
        if self.whitenings:
            return self.unlike(state, "base")
        return self.smooth_base_map(state["feature_error"])

    def deviation_map(self, state: Mapping[str, Tensor]) -> Tensor:
        """A_base (1 + lambda A_ref), or A_base + lambda A_ref, [B, h', w'].

        A_base is in units of its mean on good parts; A_ref says by how many deviations the
        refinement exceeds its mean on them, and is 0 below it and without a complete cover.
        """
        category = state["category"]
        base = self.base_heat(state) / per_row(self.error_level, category)
        above = self.refined(state) - per_row(self.refined_mean, category)
        refined = (above / per_row(self.refined_spread, category)).clamp(min=0)
        return base + self.refinement * refined * (base if self.fusion == FUSIONS[0] else 1.0)

    def refined(self, state: Mapping[str, Tensor]) -> Tensor:
        """Mean over complete covers of residuals, each over its mean on good parts, [B, h', w'].

        Whitened, it is the last cover's change, and nothing without a complete cover.
        """
        if self.whitenings:
            made = (state["covers"].sum(1) > 0).to(state["heat"])
            return self.unlike(state, "walk") * made[:, None, None]
        tables = [self.get_buffer(residual_name(kind)) for kind in range(len(KINDS))]
        scale = torch.stack(tables, 1)[state["category"]]  # [B, kinds]
        covers = state["covers"].sum(1).clamp(min=1)
        heat = (state["heat"] / scale[:, :, None, None]).sum(1) / covers[:, None, None]
        return gaussian_blur(resize_map(heat, self.map_size), SMOOTHING)

    @torch.no_grad()
    def fit_steering(self, states: Sequence[State], category: int) -> None:
        """The gate."""
        errors = torch.cat([state["feature_error"] for state in states])
        self.gate_level[category] = level_of(errors, GATE_QUANTILE)

    @torch.no_grad()
    def fit_constants(self, states: Sequence[State], category: int) -> None:
        """Both heatmaps' levels, and without a bank the edges between plans."""
        smooth = torch.cat([self.base_heat(state) for state in states])
        self.error_level[category] = smooth.mean().clamp(min=LEVEL_MIN)
        mean = torch.cat([state["heat"] for state in states]).mean((0, 2, 3))
        for kind, level in enumerate(mean.clamp(min=LEVEL_MIN)):
            self.get_buffer(residual_name(kind))[category] = level
        refined = torch.cat([self.refined(state) for state in states])
        self.refined_mean[category] = refined.mean()
        self.refined_spread[category] = refined.std().clamp(min=LEVEL_MIN)
        if self.bank is None:
            errors = torch.cat([state["feature_error"] for state in states])
            self.severity_edges[category] = self.edges_of(self.severity(errors))


def residual_name(kind: int) -> str:
    """The table that holds the mean residual of a kind of cover on good parts."""
    timestep, side = KINDS[kind]
    return f"residual_{timestep}_{side}"

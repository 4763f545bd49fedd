"""What a walk is worth: its pieces of evidence, how they are fused, and the graph ``finish``.

A piece is a map: the method's own, the distance to good patches, the learned scorer's. Each is
brought to where good parts peak before it is added, so that a noisy one cannot outvote a quiet one.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from engines.maps import gaussian_blur, resize_map
from engines.methods.method import Method
from engines.methods.shares import TABLES, fused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engines.bank import SeverityBank
    from engines.methods.whitening import Whitening
    from engines.scorer import Scorer

BASE_SHARE = 0.7  # weight of the base map where nothing has been fitted
SCORER_SHARE = 0.5  # likewise of the learned scorer
OUTLINE_SHARE = 0.5  # its say in what is drawn: it learned outlines, the bank where to look
MAP_STRIDE = 4  # the emitted map is the image's grid divided by this
WHITENED_SMOOTHING = 2.0  # sigma in cells of the emitted map: half a cell of stride 16
SMOOTHING_PX = 4.0  # sigma of the base map's blur


class FusedMethod(Method):
    """A method whose evidence is its own map and, where it has them, a bank's and a scorer's."""

    change_names: ClassVar[tuple[str, ...]] = ("walk",)  # of what ``changes`` returns

    bank: SeverityBank | None
    scorer: Scorer | None
    whitenings: nn.ModuleDict  # by the names of changes; empty = changes are not measured so
    steps_of_plan: Tensor
    base_centre: Tensor
    base_scale: Tensor
    base_share: Tensor
    deviation_centre: Tensor
    deviation_scale: Tensor
    scorer_centre: Tensor
    scorer_scale: Tensor
    scorer_share: Tensor
    walk_share: Tensor

    @abstractmethod
    def deviation_map(self, state: Mapping[str, Tensor]) -> Tensor:
        """The method's own anomaly map on the emitted grid, [B, h', w']."""

    def constants(self) -> dict[str, float]:
        """Tables of one number per category and what they hold before they are fitted."""
        shared = {"base_share": BASE_SHARE}
        learned = () if self.scorer is None else ("scorer", "outline")
        for piece in ("base", "deviation", *learned):
            shared |= {f"{piece}_centre": 0.0, f"{piece}_scale": 1.0}
        if self.scorer is not None:
            shared |= {"scorer_share": SCORER_SHARE, "walk_share": 1.0}
        return shared

    def closed(self, state: Mapping[str, Tensor]) -> Tensor:
        """The reconstruction that evidence is drawn from, [B, C, h, w]."""
        return state["estimate"]

    def changes(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What was made of the latent, [B, C, h, w] each, by the names of ``change_names``."""
        return {"walk": self.closed(state) - state["anchor"]}

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


def per_row(table: Tensor, category: Tensor) -> Tensor:
    """A number per category -> [B, 1, 1], to scale maps with."""
    return table[category].view(-1, 1, 1)


def latent_map(state: Mapping[str, Tensor], estimate: Tensor) -> Tensor:
    """Mean over channels of |estimate - z_0|, [B, h, w]."""
    return (estimate - state["anchor"]).abs().mean(1)

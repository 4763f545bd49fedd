"""What each piece of evidence is worth by itself and together: the ablation of one bundle.

Every test image walks the deepest plan once, in torch; its bank map, the denoiser's own map and the
learned scorer's are then ranked apart and fused. Raw scores are compared, since every image has the
same depth. Standard errors are of the bootstrap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from engines.dataset import load_model_input, load_truth, test_items
from engines.methods.fit import seeds_of
from engines.methods.fused import per_row
from engines.metrics import auroc, auroc_se, pooled, ranking_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from engines.contracts import Float32
    from engines.masks import Mask
    from engines.methods.latent import LatentMethod
    from engines.methods.method import State

BATCH = 8
PIECES = ("bank", "denoiser", "scorer")


class Piece(BaseModel):
    """One piece of evidence on one category's test images."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    category: str
    evidence: str
    image_auroc: float | None
    image_auroc_se: float | None
    pixel_ap: float | None  # on the emitted grid


@torch.inference_mode()
def weigh_evidence(
    method: LatentMethod,
    data: Path,
    categories: Mapping[str, int],
    progress: Callable[[float, str], None] = lambda *_: None,
) -> list[Piece]:
    """Measure every piece on every category; ``categories``: name -> row of the method's tables."""
    pieces = []
    for number, (name, row) in enumerate(categories.items()):
        items = test_items(data, name)
        truths = [load_truth(item, method.map_size) for item in items]
        good = np.array([item.is_good for item in items])
        maps: dict[str, list[Float32]] = {}
        for first in range(0, len(items), BATCH):
            progress((number + first / len(items)) / len(categories), name)
            images = [load_model_input(i, method.image_size) for i in items[first : first + BATCH]]
            for kind, found in _maps(method, torch.from_numpy(np.stack(images)), row).items():
                maps.setdefault(kind, []).extend(found.numpy())
        for kind, drawn in maps.items():
            scores = method.score_of(torch.from_numpy(np.stack(drawn))).numpy()
            pieces.append(_piece((name, kind), scores, drawn, truths, good))
    return pieces


def _maps(method: LatentMethod, images: torch.Tensor, category: int) -> dict[str, torch.Tensor]:
    ids = torch.full((len(images),), category)
    plan = len(method.plans) - 1
    state = method.start(images, ids, seeds_of(images), torch.full_like(ids, plan).int())
    return _combinations(method, method.walked(state, plan), state)


def _combinations(method: LatentMethod, state: State, unmoved: State) -> dict[str, torch.Tensor]:
    """Each piece alone, the pairs, all, and what is drawn; "bank + scorer" leaves the walk out."""
    found = method.evidence(state)
    maps: dict[str, torch.Tensor] = {k: found[k] for k in PIECES if k in found}
    category = state["category"]
    if method.bank is not None:
        base = method.standardised("base", found["bank"], category)
        walked = method.standardised("deviation", found["denoiser"], category)
        share = per_row(method.base_share, category)
        maps["bank + denoiser"] = share * base + (1 - share) * walked
        if method.scorer is not None:
            learned = method.standardised("scorer", method.scorer_map(unmoved), category)
            share = per_row(method.scorer_share, category)
            maps["bank + scorer"] = share * learned + (1 - share) * base
            maps["outlines"] = found["outlines"]
    return maps | {"all": found["fused"]}


def _piece(
    named: tuple[str, str],
    scores: Float32,
    maps: Sequence[Float32],
    truths: Sequence[Mask | None],
    is_good: Mask,
) -> Piece:
    category, kind = named
    outlined = [truth for truth in truths if truth is not None]
    pixel_ap = None
    if len(outlined) == len(truths):
        pixel_ap = ranking_metrics(*pooled(outlined, maps), "pixel")["pixel_ap"]
    return Piece(
        category=category,
        evidence=kind,
        image_auroc=auroc(scores[is_good], scores[~is_good]),
        image_auroc_se=auroc_se(scores[is_good].tolist(), scores[~is_good].tolist()),
        pixel_ap=pixel_ap,
    )

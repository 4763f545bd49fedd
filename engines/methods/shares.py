"""How much each piece of evidence counts, fitted on good parts and synthetic anomalies.

One rule serves every product. The bank needs no anomaly to be trusted; what was trained on
synthetic ones must beat it on a category's own images by two standard errors of an AUROC of so
many. That asks for more than the error of the difference would, on purpose: synthetic anomalies
are not real ones. A product with a few images keeps the bank, as does one whose synthetic anomalies
the bank tells nearly all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engines.methods.latent import LatentMethod
    from engines.methods.method import State

SHARES = (0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)
ERRORS = 2.0  # standard errors that another share must be better by
TABLES = {"denoiser": "deviation", "bank": "base", "scorer": "scorer"}  # evidence -> tables


def fit_shares(
    method: LatentMethod, good: Sequence[Sequence[State]], odd: Sequence[Sequence[State]]
) -> None:
    """Choose the shares by which anomalies are told best from good parts, in place.

    ``good`` and ``odd``: states per category. The denoiser is weighed against the bank first, then
    the scorer against both; a share that is not better by two standard errors is none. A bank
    counts for something wherever a frame that makes no step has no other evidence. "unknown" takes
    the median shares.
    """
    if method.bank is None and method.scorer is None:
        return
    calm, strange = ([_standardised(method, states) for states in side] for side in (good, odd))
    rows = [int(states[0]["category"][0]) for states in good]
    counts = np.array([len(maps["denoiser"]) for maps in calm])

    def separation(number: int, base: float, scorer: float) -> float:
        sides = (calm[number], strange[number])
        return _auroc(*(method.score_of(fused(maps, base, scorer)) for maps in sides))

    base = [0.0] * len(rows)
    if method.bank is not None:
        tried = SHARES if method.has_zero_step_evidence else SHARES[1:]
        tried = tried[::-1]  # the bank alone first
        base = _best(tried, counts, lambda number, share: separation(number, share, 0.0))
        _keep(method.base_share, rows, base)
    if method.scorer is not None:
        scorer = _best(
            SHARES, counts, lambda number, share: separation(number, base[number], share)
        )
        _keep(method.scorer_share, rows, scorer)
        method.walk_share[-1] = method.walk_share[rows].median()


def fit_walk_share(
    method: LatentMethod, good: Sequence[State], odd: Sequence[State], category: int
) -> None:
    """Let the scorer read a category's walks only where that tells its anomalies better, in place.

    The walk's reading was trained on synthetic anomalies too, so it has to beat the reading of the
    frame alone as everything else does.
    """
    if method.scorer is None:
        return

    def separation(_: int, share: float) -> float:
        method.walk_share[category] = share
        maps = (torch.cat([method.scorer_map(state) for state in side]) for side in (good, odd))
        return _auroc(*map(method.score_of, maps))

    count = sum(len(state["category"]) for state in good)
    (method.walk_share[category],) = _best((0.0, 1.0), np.array([count]), separation)


def _best(
    shares: Sequence[float], counts: np.ndarray, separation: Callable[[int, float], float]
) -> list[float]:
    """The best share for each category of ``counts`` images, by its own separation.

    It is the first of ``shares`` unless another is better by ``ERRORS`` of its standard errors.
    """
    found = np.array([[separation(k, share) for share in shares] for k in range(len(counts))])
    first = found[:, 0]
    error = np.sqrt(first * (1 - first) / counts)
    is_better = found.max(1) > first + ERRORS * error
    return [shares[place] for place in np.where(is_better, found.round(4).argmax(1), 0)]


def _keep(table: Tensor, rows: Sequence[int], shares: Sequence[float]) -> None:
    table[rows] = torch.tensor(shares, dtype=table.dtype)
    table[-1] = float(np.median(shares))


def _standardised(method: LatentMethod, states: Sequence[State]) -> dict[str, Tensor]:
    """Evidence of a category's frames, each piece as it is fused, [N, h, w]."""
    pieces: dict[str, list[Tensor]] = {}
    for state in states:
        for name, found in method.evidence(state).items():
            if name in TABLES:
                scaled = method.standardised(TABLES[name], found, state["category"])
                pieces.setdefault(name, []).append(scaled)
    return {name: torch.cat(found) for name, found in pieces.items()}


def fused(maps: Mapping[str, Tensor], base: float | Tensor, scorer: float | Tensor) -> Tensor:
    """Standardised evidence [B, h, w] by its shares, numbers or [B, 1, 1]; what is absent has none.

    The bank is weighed against the denoiser, then the scorer against both.
    """
    joined = maps["denoiser"]
    if "bank" in maps:
        joined = base * maps["bank"] + (1 - base) * joined
    if "scorer" in maps:
        joined = scorer * maps["scorer"] + (1 - scorer) * joined
    return joined


def _auroc(good: Tensor, odd: Tensor) -> float:
    """Probability that an anomaly scores above a good part (Mann-Whitney), ties counted half."""
    above = (odd[:, None] > good).double() + 0.5 * (odd[:, None] == good).double()
    return float(above.mean())

"""What is fitted on held-out good images: scales, severity edges, and the shares of evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.methods import build_method
from engines.methods.decodiff import DecoDiff
from engines.methods.fit import PIECES, fit_scales, fit_walks, seeds_of, walk_all
from engines.methods.latent import LatentMethod
from engines.methods.method import State
from engines.methods.shares import SHARES, _auroc, _best, fit_shares, fit_walk_share
from engines.scorer import CONTEXT

MEDIANS = {"base_share", "scorer_share", "walk_share", "outline_centre", "outline_scale"}
torch.set_num_threads(1)
CATEGORIES, GOOD = 2, 12
CONFIGURATION: dict[str, Any] = {
    "method": "DeCo-Diff",
    "codec": {"kind": "features", "channels": 8, "image_size": (64, 64)},
    "denoiser": "nano",
    "categories": CATEGORIES,
    "image_size": (64, 64),
    "bank": {"rows": 40},
    "scorer": True,
}


def images(category: int, seed: int) -> Tensor:
    """Good parts, u8 [N, 64, 64, 3]: a bar on a dim ground; noisier in the second category."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.full((GOOD, 64, 64, 3), 80.0)
    drawn[:, 20:44, 10:54] += 90
    noise = torch.randn(drawn.shape, generator=generator)
    return (drawn + (4 + 12 * category) * noise).clamp(0, 255).to(torch.uint8)


def held_out() -> list[Tensor]:
    """Good parts of each category that neither codec nor bank has seen."""
    return [images(category, seed=9 + category) for category in range(CATEGORIES)]


@pytest.fixture(scope="module")
def fitted() -> DecoDiff:
    """A method with bank and scorer and an untrained denoiser that answers something, fitted."""
    torch.manual_seed(0)
    method = DecoDiff(CONFIGURATION).eval().requires_grad_(False)
    method.denoiser.get_parameter("unet.conv_out.weight").normal_(std=0.05)
    train = torch.cat([images(category, seed=category) for category in range(CATEGORIES)])
    method.codec.fit([train])
    cells = method.codec.encode_all(train).patches.permute(0, 2, 3, 1)
    assert method.bank is not None
    method.bank.fit({c: cells[c * GOOD : (c + 1) * GOOD].flatten(0, 2) for c in range(CATEGORIES)})
    fit_scales(method, held_out(), range(CATEGORIES))
    return method


def test_every_table_is_finite_and_positive(fitted: DecoDiff) -> None:
    """No clip, scale or edge is left at infinity or divides by zero."""
    shares = {"base_share", "scorer_share", "walk_share"}
    for name in sorted({*fitted.constants(), "severity_edges"} - shares):
        table = fitted.get_buffer(name)
        assert bool(table.isfinite().all()), name
        assert name.endswith("_centre") or bool((table > 0).all()), name


def test_good_parts_peak_about_zero_and_within_one(fitted: DecoDiff) -> None:
    """In every piece of evidence half of the good parts peak above 0, a tenth above 1 at most."""
    for category, image in enumerate(held_out()):
        (state,) = walk_all(fitted, image, category)
        found = fitted.evidence(state)
        for piece, name in PIECES.items():
            maps = fitted.standardised(piece, found[name], state["category"])
            peaks = fitted.score_of(maps)
            assert int((peaks > 1e-6).sum()) == GOOD // 2, piece
            assert int((peaks > 1.001).sum()) <= -(-GOOD // 10), piece


def test_unknown_takes_the_widest_scales_and_the_middle_edges(fitted: DecoDiff) -> None:
    """The last row is the maximum of the categories' own; of edges and shares it is the median."""
    for name in set(fitted.constants()) - MEDIANS:
        table = fitted.get_buffer(name)
        torch.testing.assert_close(table[-1], table[:-1].amax(0), atol=0, rtol=0)
    edges = fitted.severity_edges
    torch.testing.assert_close(edges[-1], edges[:-1].median(0).values, atol=0, rtol=0)
    for table in (fitted.base_share, fitted.scorer_share):
        assert float(table[-1]) == pytest.approx(float(np.median(table[:-1].numpy())))


def test_shares_are_among_those_tried(fitted: DecoDiff) -> None:
    """Each is one that was tried; the bank's is never 0."""
    for table in (fitted.base_share, fitted.scorer_share):
        for share in table[:-1].tolist():
            assert min(abs(share - tried) for tried in SHARES) < 1e-6
    assert bool((fitted.base_share > 0).all())


@pytest.mark.parametrize(("count", "share"), [(10, 0.0), (500, 1.0)], ids=["few", "many"])
def test_a_share_must_be_better_by_more_than_chance(count: int, share: float) -> None:
    """With a few images the first share stays, with many the better one is taken."""
    found = _best((0.0, 1.0), np.array([count, 100]), lambda _, tried: 0.8 + 0.1 * tried)
    assert found[0] == share


@pytest.mark.parametrize(("walk", "share"), [(0.0, 0.0), (9.0, 1.0)], ids=["silent", "telling"])
def test_the_scorer_reads_a_walk_that_tells(walk: float, share: float) -> None:
    """Anomalies that only the walk shows make it count; a walk that shows nothing does not."""
    method = DecoDiff(CONFIGURATION).eval().requires_grad_(False)
    assert method.scorer is not None
    for name, weight in method.scorer.named_parameters():
        if name.startswith(("difference", "judge")):
            weight.fill_(0.1)
    context = torch.zeros(GOOD, CONTEXT, 16, 16)
    sides = [[s | {"context": context} for s in deviating(k, walk * k, 0.0)] for k in range(2)]
    fit_walk_share(method, *sides, 0)
    assert float(method.walk_share[0]) == share


def test_what_is_drawn_has_the_limit_of_what_decides(fitted: DecoDiff) -> None:
    """Good parts' outlines peak where their scores do, in the middle and as far above it."""
    for category, image in enumerate(held_out()):
        (state,) = walk_all(fitted, image, category)
        drawn, score = fitted.finish(state)
        peaks = fitted.score_of(drawn)
        torch.testing.assert_close(peaks.median(), score.median(), atol=1e-5, rtol=0)
        torch.testing.assert_close(peaks.quantile(0.9), score.quantile(0.9))


def test_edges_send_the_calm_half_away(fitted: DecoDiff) -> None:
    """Edges ascend; of the images they were fitted on half leave at once, each with evidence."""
    assert bool((fitted.severity_edges.diff() >= 0).all())
    for category, image in enumerate(held_out()):
        ids = torch.full((GOOD,), category)
        free = torch.full((GOOD,), -1, dtype=torch.int32)
        with torch.inference_mode():
            state = fitted.start(image, ids, torch.zeros_like(ids), free)
            calm = state["steps_left"] == 0
            assert int(calm.sum()) == GOOD // 2
            assert len(set(fitted.finish(state)[1][calm].tolist())) == GOOD // 2


def test_a_walk_ends_at_its_plan(fitted: DecoDiff) -> None:
    """Every row has made the calls of the plan that was named, the deepest if none was."""
    image = images(0, seed=3)
    for plan in (None, 1):
        for state in walk_all(fitted, image, 0, plan):
            assert not state["steps_left"].any()
            assert set(state["plan"].tolist()) == {len(fitted.plans) - 1 if plan is None else plan}


@pytest.fixture(scope="module", params=["GLAD", "DRDC-style"])
def steered(request: pytest.FixtureRequest) -> LatentMethod:
    """A method whose constants change its walk, without them; eight good parts are its codec's."""
    torch.manual_seed(0)
    made = build_method(CONFIGURATION | {"method": request.param, "bank": None, "scorer": False})
    assert isinstance(made, LatentMethod)
    made.eval().requires_grad_(False).codec.fit([images(0, seed=0)])
    with torch.no_grad():
        for name, weight in made.denoiser.named_parameters():
            if name.endswith("unet.conv_out.weight"):
                weight.normal_(std=0.05)
    return made


def test_good_parts_meet_the_noise_that_they_meet_on_the_line(steered: LatentMethod) -> None:
    """Each image has the noise of its own bytes, not all of them the same."""
    (state,) = walk_all(steered, images(0, seed=9), 0, plan=0)
    has_row = "noise_row" in state
    table = steered.get_buffer("noise_table" if has_row else "noise_rows")
    rows = seeds_of(images(0, seed=9)).remainder(len(table))
    drawn = table[state["noise_row"]] if has_row else state["noise"]
    assert torch.equal(drawn, table[rows])
    assert len(set(rows.tolist())) > 1


def test_what_steers_a_walk_is_fitted_before_it(steered: LatentMethod) -> None:
    """Walking with the fitted tables and fitting them again changes none of them."""
    fit_walks(steered, held_out(), range(CATEGORIES))
    name = "theta" if "theta" in steered.constants() else "gate_level"
    before = steered.get_buffer(name).clone()
    assert bool(before.isfinite().all())
    for category, image in enumerate(held_out()):
        steered.fit_steering(walk_all(steered, image, category), category)
    torch.testing.assert_close(steered.get_buffer(name), before, rtol=1e-4, atol=1e-6)


def test_tables_are_those_of_the_final_walk(steered: LatentMethod) -> None:
    """What is measured along the way is measured where frames really go."""
    fit_walks(steered, held_out(), range(CATEGORIES))
    fit_scales(steered, held_out(), range(CATEGORIES))
    before = {name: steered.get_buffer(name).clone() for name in steered.constants()}
    for category, image in enumerate(held_out()):
        steered.fit_constants(walk_all(steered, image, category), category)
    for name, table in before.items():
        torch.testing.assert_close(steered.get_buffer(name), table, rtol=1e-4, atol=1e-6)


def deviating(seed: int, latent: float, base: float) -> list[State]:
    """States of one category with so much deviation in the latent and from the bank."""
    generator = torch.Generator().manual_seed(seed)
    anchor = torch.zeros(GOOD, 8, 8, 8)
    noise = torch.rand(anchor.shape, generator=generator)
    return [
        {
            "category": torch.zeros(GOOD, dtype=torch.int64),
            "anchor": anchor,
            "estimate": latent + noise,
            "base_map": base + torch.rand(GOOD, 8, 8, generator=generator),
        }
    ]


@pytest.mark.parametrize(
    ("calm", "odd", "share"),
    [((9.0, 0.0), (0.0, 9.0), 1.0), ((0.0, 0.0), (9.0, 9.0), 1.0), ((0.0, 9.0), (9.0, 0.0), 0.3)],
    ids=["bank-alone-tells", "both-tell", "bank-misleads"],
)
def test_a_denoiser_counts_where_it_beats_the_bank(
    calm: tuple[float, float], odd: tuple[float, float], share: float
) -> None:
    """As much as tells best, the most of the bank first; none where the bank tells as well.

    ``calm`` and ``odd``: what denoiser and bank find on good and on anomalous parts.
    """
    method = DecoDiff(CONFIGURATION | {"scorer": False})
    method.latent_clip.fill_(10.0)
    method.base_scale.fill_(10.0)
    fit_shares(method, [deviating(0, *calm)], [deviating(1, *odd)])
    torch.testing.assert_close(method.base_share[[0, -1]], torch.full((2,), share))


def test_without_bank_and_scorer_there_is_nothing_to_weigh() -> None:
    """A method alone has its own map, whatever the states."""
    method = DecoDiff(CONFIGURATION | {"bank": None, "scorer": False})
    before = method.base_share.clone()
    fit_shares(method, [deviating(0, 0.0, 0.0)], [deviating(1, 9.0, 0.0)])
    assert torch.equal(method.base_share, before)
    assert method.steps_min == 1


def test_auroc_counts_ties_half() -> None:
    """Of four pairs three are in order and one is equal."""
    assert _auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])) == 0.875

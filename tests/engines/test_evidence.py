"""What each piece of evidence is worth: which are weighed, and how they add up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from engines.backend import SEED_MASK
from engines.evidence import Piece, _combinations, weigh_evidence
from engines.images import image_seed
from engines.methods.decodiff import DecoDiff
from engines.methods.fit import seeds_of
from engines.methods.method import State
from pipeline.simulator import write_dataset

torch.set_num_threads(1)
SIDE = 64
CONFIGURATION: dict[str, Any] = {
    "method": "DeCo-Diff",
    "codec": {"kind": "features", "channels": 8, "image_size": (SIDE, SIDE)},
    "denoiser": "nano",
    "categories": 2,
    "image_size": (SIDE, SIDE),
    "bank": {"rows": 40},
    "scorer": True,
}


def pictures(count: int, seed: int) -> Tensor:
    """Random pictures, u8 [count, 64, 64, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)


def built(**changes: object) -> DecoDiff:
    """A method whose bank is fitted and whose denoiser and scorer answer something."""
    torch.manual_seed(0)
    method = DecoDiff(CONFIGURATION | changes).eval().requires_grad_(False)
    method.denoiser.get_parameter("unet.conv_out.weight").normal_(std=0.05)
    if method.bank is not None:
        patches = method.codec.encode_all(pictures(4, 0)).patches.permute(0, 2, 3, 1)
        method.bank.fit(dict.fromkeys(range(2), patches.flatten(0, 2)))
    return method


def walked(method: DecoDiff) -> tuple[State, State]:
    """Two frames after the deepest plan, and as they started."""
    images = pictures(2, 1)
    ids, deepest = torch.tensor([0, 1]), len(method.plans) - 1
    state = method.start(images, ids, seeds_of(images), torch.full((2,), deepest).int())
    unmoved = dict(state)
    for _ in range(method.plans[deepest].steps):
        state |= method.step(state)
    return state, unmoved


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        ({"bank": None, "scorer": False}, ["denoiser", "all"]),
        ({"scorer": False}, ["bank", "denoiser", "bank + denoiser", "all"]),
        ({"bank": None}, ["denoiser", "scorer", "all"]),
        ({}, ["bank", "denoiser", "scorer", "bank + denoiser", "bank + scorer", "outlines", "all"]),
    ],
    ids=["neither", "bank", "scorer", "both"],
)
def test_what_a_method_has_is_weighed(changes: dict[str, object], pieces: list[str]) -> None:
    """Each piece alone, the pairs that exist, and all of them; every map on the emitted grid."""
    method = built(**changes)
    maps = _combinations(method, *walked(method))
    assert list(maps) == pieces
    assert {found.shape for found in maps.values()} == {(2, *method.map_size)}


def test_all_is_what_the_bundle_finds() -> None:
    """The fused map of the table is the one that finish emits."""
    method = built()
    state, unmoved = walked(method)
    found, (drawn, score) = _combinations(method, state, unmoved), method.finish(state)
    torch.testing.assert_close(method.score_of(found["all"]), score)
    assert torch.equal(found["outlines"], drawn)


def test_a_bank_that_counts_for_all_is_all() -> None:
    """At a share of 1 the fused map is the bank's, less its centre and by its scale."""
    method = built(scorer=False)
    method.base_share.fill_(1.0)
    method.base_scale.copy_(torch.tensor([2.0, 5.0, 1.0]))
    method.base_centre.copy_(torch.tensor([0.5, 3.0, 0.0]))
    method.deviation_scale.fill_(0.01)
    maps = _combinations(method, *walked(method))
    centre, scale = (t[:2].view(-1, 1, 1) for t in (method.base_centre, method.base_scale))
    torch.testing.assert_close(maps["bank"], centre + scale * maps["all"])
    torch.testing.assert_close(maps["bank + denoiser"], maps["all"])


def test_without_the_denoiser_its_walk_is_left_out() -> None:
    """Bank and scorer say the same together whatever the denoiser has made of a frame."""
    method = built()
    state, unmoved = walked(method)
    without = _combinations(method, state, unmoved)["bank + scorer"]
    elsewhere = state | {"estimate": state["estimate"] + 1}
    assert torch.equal(_combinations(method, elsewhere, unmoved)["bank + scorer"], without)
    assert not torch.equal(_combinations(method, elsewhere, unmoved)["all"], without)


def test_shares_are_read_by_category() -> None:
    """A share of 0 leaves a piece out for that category alone."""
    method = built()
    method.scorer_share.copy_(torch.tensor([0.0, 1.0, 0.5]))
    maps = _combinations(method, *walked(method))
    torch.testing.assert_close(maps["all"][0], maps["bank + denoiser"][0])
    torch.testing.assert_close(maps["all"][1], maps["scorer"][1])


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Piece]:
    """The table of two categories of simulated parts, one image short of a whole batch."""
    data = tmp_path_factory.mktemp("evidence") / "parts"
    write_dataset(data, ("board", "disc"), 3, 4, test_defect=5, size=(SIDE, SIDE))
    return weigh_evidence(built(scorer=False), data, {"board": 0, "disc": 1})


def test_every_category_is_measured(pieces: list[Piece]) -> None:
    """A row for each category and piece, rates with their standard error, pixels where masked."""
    names = [piece.evidence for piece in pieces if piece.category == "board"]
    assert names == ["bank", "denoiser", "bank + denoiser", "all"]
    assert [(p.category, p.evidence) for p in pieces] == [
        (category, name) for category in ("board", "disc") for name in names
    ]
    for piece in pieces:
        assert piece.image_auroc is not None
        assert piece.pixel_ap is not None
        assert 0 <= piece.image_auroc <= 1
        assert 0 <= piece.pixel_ap <= 1
        assert piece.image_auroc_se is not None


def test_two_names_of_one_map_have_one_score(pieces: list[Piece]) -> None:
    """Without a scorer bank and denoiser are all, so their rates agree."""
    for category in ("board", "disc"):
        by_name = {p.evidence: p for p in pieces if p.category == category}
        pair, everything = by_name["bank + denoiser"], by_name["all"]
        assert pair.image_auroc == everything.image_auroc
        assert pair.pixel_ap == everything.pixel_ap


def test_noise_is_drawn_as_on_the_line() -> None:
    """An image's seed is a backend's, so its evidence is the verdict's."""
    images = pictures(3, 2)
    seeds = [image_seed(image) & SEED_MASK for image in images.numpy()]
    assert seeds_of(images).tolist() == seeds

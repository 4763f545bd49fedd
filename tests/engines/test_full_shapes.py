"""The published configurations, built for their shapes alone, against the counts of the papers."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engines.features import build_features
from engines.networks import build_denoiser
from engines.recipe import configuration_of, load_recipe
from engines.sizes import FRAME, Part, describe

CONFIGS = Path(__file__).parents[2] / "configs"
CATEGORIES = 15


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sketch fetches nothing."""

    def refuse(*_: Any, **__: Any) -> None:  # noqa: ANN401 - whatever the library takes
        raise AssertionError("a sketch asked the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)


@cache
def parts_of(name: str) -> dict[str, Part]:
    """What a recipe's method consists of."""
    settings = load_recipe(CONFIGS / f"{name}.full.yaml", {})
    return {part.name: part for part in describe(configuration_of(settings, CATEGORIES))}


@pytest.mark.parametrize(
    ("recipe", "name", "millions", "gflop"),
    [
        ("decodiff", "encoder", 34.16, 273),
        ("decodiff", "decoder", 49.49, 622),
        ("decodiff", "denoiser", 394.98 + 0.008, 114.1),
        ("d3ad", "encoder", 34.16, 273),
        ("d3ad", "denoiser", 281.1, 41.8),
        ("glad", "encoder", 34.16, 1117),
        ("glad", "decoder", 49.49, 2515),
        ("glad", "denoiser", 859.52 + 0.012, 797),  # 803 with the prompt's 77 tokens, ours is one
    ],
)
def test_full_recipes_have_the_published_size(
    recipe: str, name: str, millions: float, gflop: float
) -> None:
    """Parameters and FLOPs of each part are those of the published configuration."""
    part = parts_of(recipe)[name]
    assert part.parameters is not None
    assert part.parameters / 1e6 == pytest.approx(millions, abs=0.06)
    assert part.gflop == pytest.approx(gflop, rel=0.002)


@pytest.mark.parametrize(("side", "gflop"), [(32, 180), (64, 803)])
def test_stable_diffusion_costs_what_is_published_with_its_prompt(side: int, gflop: float) -> None:
    """With 77 tokens instead of one category the U-Net of GLAD has the published cost."""
    with torch.device("meta"):
        unet = build_denoiser("sd", 4, 1).eval().unet
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            unet(torch.zeros(1, 4, side, side), torch.zeros(1).long(), torch.zeros(1, 77, 768))
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=0.002)


@pytest.mark.parametrize(
    ("path", "side", "millions", "gflop", "channels"),
    [
        ("facebook/dino-vitb8", 256, 86.4, 213, {8: 4 * 768}),
        ("facebook/dino-vitb8", 512, 86.4, 1316, {8: 4 * 768}),
        ("microsoft/resnet-34", 256, 21.3, 9.57, {4: 64, 8: 128, 16: 256, 32: 512}),
        ("google/efficientnet-b4", 256, 17.5, 3.92, {2: 24, 4: 32, 8: 56, 16: 160, 32: 448}),
    ],
)
def test_published_feature_networks_have_the_published_size(
    path: str, side: int, millions: float, gflop: float, channels: dict[int, int]
) -> None:
    """DINO with its blocks 3, 6, 9 and 12, ResNet-34 and EfficientNet-B4 by their stages."""
    layers = {"layers": [3, 6, 9, 12]} if "dino" in path else {}
    with torch.device("meta"):
        named = {"network": "path", "path": path, "image_size": [side, side]}
        network = build_features(named | layers)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, side, side, 3, dtype=torch.uint8))
    assert network.channels == channels
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=0.005)


def test_the_graphs_add_up_for_a_small_configuration() -> None:
    """start holds the features, step the denoiser; the tiny recipe costs what its notes say."""
    settings = load_recipe(CONFIGS / "train.tiny.yaml", {})
    parts = {part.name: part for part in describe(configuration_of(settings, 1))}
    assert parts["features"].parameters == 692_688
    assert parts["start"].gflop >= parts["features"].gflop > 0.6
    assert parts["step"].gflop == pytest.approx(parts["denoiser"].gflop, rel=0.01)


@pytest.mark.parametrize("recipe", ["decodiff", "glad", "d3ad"])
def test_published_counts_stand_beside_ours(recipe: str) -> None:
    """They agree; a ResNet is counted whole here, and there up to its third stage."""
    known = [part for part in parts_of(recipe).values() if part.published_millions is not None]
    assert {"encoder", "decoder", "denoiser"} <= {part.name for part in known}
    for part in known:
        assert part.parameters is not None
        assert part.parameters / 1e6 == pytest.approx(part.published_millions, rel=0.03)
        assert part.gflop == pytest.approx(part.published_gflop, rel=0.25)


def test_a_frame_costs_what_is_published_or_what_is_named() -> None:
    """DeCo-Diff's as published; D3AD decodes both pictures; GLAD's graph tests at every step."""
    frames = {name: parts_of(name)[FRAME] for name in ("decodiff", "d3ad", "glad")}
    ratios = {k: part.gflop / (part.published_gflop or 1) for k, part in frames.items()}
    assert ratios == pytest.approx({"decodiff": 1.0, "d3ad": 1.5, "glad": 1.44}, rel=0.02)


def test_drdc_has_two_branches_of_full_size() -> None:
    """Its U-Net is DeCo-Diff's with the mask and what is visible, beside UniAD's transformer."""
    parts = parts_of("drdc")
    assert parts["features"].parameters == pytest.approx(17.5e6, abs=1e5)
    assert parts["denoiser"].parameters == pytest.approx(402.6e6, abs=1e6)

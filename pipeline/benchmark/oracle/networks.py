"""The two segmentation networks: they see the picture through different windows, so that they err apart.

`UNet` pools down to 4 px, where it knows the whole figure, before it refines outlines. `DilatedNet` never pools: pixels
folded into channels and dilation widen its window to the whole picture. Both are built for a resolution.

Shape suffixes: B batch, C channels, H height, W width, N classes, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.training.convolution_blocks import Residual, convolution

_LOWEST = 4
"""Side of the U-Net's smallest activations."""
_FOLDED = 16
"""Side of the picture that the dilated network's blocks look at."""


@dataclass(frozen=True)
class OracleOutput:
    """What a network makes of a batch."""

    logits_BNHW: Tensor
    features_BD: Tensor
    """Means over the picture of inner activations."""


class UNet(nn.Module):
    """Encoder and decoder with skips (Ronneberger et al. 2015), batch normalisation, 0.9 M parameters at 32 px; each
    doubling of the resolution adds a level of 16 channels around that network.

    Features are the means of the 4 px and of the last 8 px activations, 128 + 96.
    """

    def __init__(self, num_classes: int, resolution: int) -> None:
        super().__init__()
        more = (resolution // _LOWEST).bit_length() - 4
        widths = (*(16,) * more, 32, 64, 96, 128)
        inputs = (3, *widths[:-1])
        self.down = nn.ModuleList(_double(i, o) for i, o in zip(inputs, widths, strict=True))
        pairs = zip(widths[:0:-1], widths[-2::-1], strict=True)
        self.up = nn.ModuleList(_double(lower + upper, upper) for lower, upper in pairs)
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, images_BCHW: Tensor) -> OracleOutput:
        """images float32 in [-1, 1], of the resolution."""
        levels, x_BCHW = [], images_BCHW
        for index, block in enumerate(self.down):
            x_BCHW = block(functional.max_pool2d(x_BCHW, 2) if index else x_BCHW)
            levels.append(x_BCHW)
        features = [x_BCHW]
        for block, skip_BCHW in zip(self.up, reversed(levels[:-1]), strict=True):
            enlarged_BCHW = functional.interpolate(x_BCHW, scale_factor=2, mode="nearest")
            x_BCHW = block(torch.cat([enlarged_BCHW, skip_BCHW], dim=1))
            features.append(x_BCHW)
        return OracleOutput(self.head(x_BCHW), _means(features[:2]))


class DilatedNet(nn.Module):
    """Residual blocks dilated 1, 2, 4, 4, 2, 1 (after Yu & Koltun 2016) on pixels folded into channels down to 16 px,
    0.7 M parameters at 32 px: nothing is pooled, no pixel is lost. The stem's activations at full resolution join again
    at the end.

    Features are the means of the activations after the first of the widest and after the last block, 80 + 80.
    """

    DILATIONS = (1, 2, 4, 4, 2, 1)

    def __init__(self, num_classes: int, resolution: int, width: int = 80) -> None:
        super().__init__()
        fold = resolution // _FOLDED
        stem = 32 if fold == 2 else 16
        self.stem = convolution(3, stem)
        self.fold = nn.Sequential(nn.PixelUnshuffle(fold), convolution(fold**2 * stem, width, size=1))
        self.blocks = nn.ModuleList(Residual(width, dilation) for dilation in self.DILATIONS)
        self.unfold = nn.Sequential(convolution(width, fold**2 * stem, size=1), nn.PixelShuffle(fold))
        self.join = convolution(2 * stem, stem)
        self.head = nn.Conv2d(stem, num_classes, 1)

    def forward(self, images_BCHW: Tensor) -> OracleOutput:
        """images float32 in [-1, 1], of the resolution."""
        stem_BCHW = self.stem(images_BCHW)
        x_BCHW, features = self.fold(stem_BCHW), []
        for block in self.blocks:
            x_BCHW = block(x_BCHW)
            features.append(x_BCHW)
        joined_BCHW = self.join(torch.cat([stem_BCHW, self.unfold(x_BCHW)], dim=1))
        widest = self.DILATIONS.index(max(self.DILATIONS))
        return OracleOutput(self.head(joined_BCHW), _means([features[widest], features[-1]]))


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(convolution(inputs, outputs), convolution(outputs, outputs))


def _means(maps: list[Tensor]) -> Tensor:
    return torch.cat([map_BCHW.float().mean(dim=(2, 3)) for map_BCHW in maps], dim=1)


ARCHITECTURES: dict[str, type[UNet] | type[DilatedNet]] = {"u-net": UNet, "dilated": DilatedNet}
"""By the name that a weights file carries."""

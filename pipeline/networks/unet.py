"""U-Net (Ronneberger et al., 2015), which RepurposeGAN's auto-shot network is (Tritrong et al., 2021).

Five resolutions of 64 to 1024 channels, two 3 x 3 convolutions at each on the way down and up, 2 x 2 transposed
convolutions between those on the way up. Unlike the paper's, convolutions are padded, so that logits have the image's
size, and each is followed by batch normalisation. RepurposeGAN's code also pads and normalises, but enlarges by linear
interpolation and has 512 channels at the lowest resolution; it never applies its last layer, the one to the classes.

Shape suffixes: B batch, C channels, H height, W width, K classes.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

_WIDTHS = (64, 128, 256, 512, 1024)


class UNet(nn.Module):
    """[B, 3, H, W] to logits [B, K, H, W], for H and W that 16 divides."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        pairs = list(pairwise(_WIDTHS))
        self.first = _convolutions(3, _WIDTHS[0])
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), _convolutions(wide, deep)) for wide, deep in pairs)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(deep, wide, 2, stride=2) for wide, deep in reversed(pairs))
        self.up = nn.ModuleList(_convolutions(2 * wide, wide) for wide, _ in reversed(pairs))
        self.classifier = nn.Conv2d(_WIDTHS[0], num_classes, kernel_size=1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x_BCHW = self.first(images_BCHW)
        passed = []
        for down in self.down:
            passed.append(x_BCHW)
            x_BCHW = down(x_BCHW)
        for enlarge, up in zip(self.enlarge, self.up, strict=True):
            x_BCHW = up(torch.cat([passed.pop(), enlarge(x_BCHW)], dim=1))
        logits_BKHW: Tensor = self.classifier(x_BCHW)
        return logits_BKHW


def _convolutions(num_in: int, num_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (num_in, num_out):
        layers += [
            nn.Conv2d(channels, num_out, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(num_out),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)

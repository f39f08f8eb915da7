"""The networks of the published few-shot labelers, each after our own reading of paper and code.

A 1x1 first layer is a linear map of a pixel's features, which commutes with resizing: it is applied at every layer's
own resolution (features.LinearMap), so that no stack of upsampled features is ever made. Resizing is bilinear by the
centres of pixels; the authors' codes align corners.

Shape suffixes: B batch, C channels, F outputs of the first layer, K classes, S pixels, h w resolution of a layer, H W
resolution of the maps.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.labelers.common.joint_upsampling import resize
from labelmill.pipeline.labelers.few_shot.features import LinearMap, split_by_layer

CNN_DILATIONS = {
    "small": (1, 2, 1, 2, 1),
    "medium": (1, 2, 4, 1, 2, 4, 1),
    "large": (2, 4, 8, 1, 2, 4, 8, 1),
}
"""`large` is the network of the authors' code; the others have fewer and closer layers of the same width."""
CNN_WIDTH = 128
_CNN_INNER, _CNN_LAST = 64, 32
MLP_DEVIATION = 0.02


class MlpTail(nn.Module):
    """A pixel classifier behind its first linear layer (Zhang et al., DatasetGAN, CVPR 2021, section 3.1; ReLU before
    batch normalisation, as in the authors' code)."""

    def __init__(self, hidden: Sequence[int], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReLU(), nn.BatchNorm1d(hidden[0])]
        for width, wider in zip(hidden[1:], hidden, strict=False):
            layers += [nn.Linear(wider, width), nn.ReLU(), nn.BatchNorm1d(width)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], num_classes))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=MLP_DEVIATION)
                nn.init.zeros_(module.bias)

    def pixels(self, x_SF: Tensor) -> Tensor:
        """Logits [S, K]."""
        return torch.as_tensor(self.layers(x_SF))

    def forward(self, maps_BFHW: Tensor) -> Tensor:
        """Logits [B, K, H, W]."""
        logits_SK = self.pixels(maps_BFHW.permute(0, 2, 3, 1).flatten(0, 2))
        return logits_SK.unflatten(0, (len(maps_BFHW), *maps_BFHW.shape[2:])).permute(0, 3, 1, 2)


class CnnTail(nn.Module):
    """Dilated 3x3 convolutions behind a 1x1 one (Tritrong et al., Repurposing GANs for One-shot Semantic Part
    Segmentation, CVPR 2021; widths and slopes of the authors' code)."""

    def __init__(self, size: str, num_classes: int) -> None:
        super().__init__()
        dilations = CNN_DILATIONS[size]
        widths = [CNN_WIDTH, *([_CNN_INNER] * (len(dilations) - 2)), _CNN_LAST, num_classes]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=dilation, dilation=dilation)
            for before, after, dilation in zip(widths, widths[1:], dilations, strict=False)
        )

    def forward(self, maps_BFHW: Tensor) -> Tensor:
        """Logits [B, K, H, W]."""
        for convolution in self.convolutions:
            maps_BFHW = convolution(functional.leaky_relu(maps_BFHW, 0.01))
        return maps_BFHW


class _EqualisedConv(nn.Module):
    """3x3, weights from N(0, 1) and scaled when used (Karras et al., 2018, section 4.1)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(after, before, 3, 3)), nn.Parameter(torch.zeros(after))
        self._scale = 1 / math.sqrt(9 * before)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return functional.conv2d(x_BCHW, self.weight * self._scale, self.bias, padding=1)


class Decoder(nn.Module):
    """A light decoder over features of rising resolution (Galeev et al., Learning High-Resolution Domain-Specific
    Representations with a GAN Generator, 2020; layers and rates of the authors' later code for StyleGAN2, which differs
    from the paper's in framework, generator and optimiser).

    Each block's features are read by a convolution, joined to the trunk, doubled, and convolved at the next size. Where
    a generator's images are as small as its highest block there is nothing left to double: the last convolution then
    keeps its size, which the authors' code, for 1024 px, never meets.
    """

    def __init__(self, widths: Mapping[int, int], width: int, dropout: float, num_doublings: int, num_classes: int):
        """widths: channels by the resolution of a block, from the lowest. num_doublings: how many times the maps are
        larger than the highest."""
        super().__init__()
        read = [min(width, channels) for channels in widths.values()]
        joined = [read[0], *(2 * end for end in read[1:])]  # the trunk comes with the block's own number of channels
        self.branches = nn.ModuleList(
            _EqualisedConv(channels, end) for channels, end in zip(widths.values(), read, strict=True)
        )
        self.trunk = nn.ModuleList(
            _EqualisedConv(before, after) for before, after in zip(joined, [*read[1:], read[-1]], strict=True)
        )
        self.rises = nn.ModuleList(_EqualisedConv(read[-1], read[-1]) for _ in range(num_doublings - 1))
        self.last = _EqualisedConv(read[-1], num_classes)
        self._dropout, self._is_doubled_at_last = dropout, num_doublings > 0

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Logits [B, K, H, W]. blocks: features [B, C, h, w] from the lowest resolution."""
        read = [
            functional.dropout(functional.leaky_relu(branch(x), 0.2), self._dropout, self.training)
            for branch, x in zip(self.branches, blocks, strict=True)
        ]
        trunk = read[0]
        for index, convolution in enumerate(self.trunk):
            joined = torch.cat([trunk, read[index]], dim=1) if index else trunk
            if index + 1 < len(read):
                joined = resize(joined, tuple(read[index + 1].shape[2:]))
            elif self._is_doubled_at_last:
                joined = _doubled(joined)
            trunk = functional.leaky_relu(convolution(joined), 0.2)
        for rise in self.rises:
            trunk = functional.leaky_relu(rise(_doubled(trunk)), 0.2)
        return torch.as_tensor(self.last(trunk))


def _doubled(x_BCHW: Tensor) -> Tensor:
    """Bilinear, twice as large."""
    return resize(x_BCHW, (2 * x_BCHW.shape[2], 2 * x_BCHW.shape[3]))


class _FirstLayer(nn.Module):
    """A linear map of all features of a pixel, applied at each layer's own resolution."""

    def __init__(self, widths: Mapping[str, int], size: tuple[int, int], num_outputs: int) -> None:
        super().__init__()
        self._widths, self._size = dict(widths), size
        self.pixel = nn.Linear(sum(widths.values()), num_outputs)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """[B, F, H, W]. features: [B, C, h, w] by layer."""
        weights = split_by_layer(self.pixel.weight.T, self._widths)
        return LinearMap(weights, self.pixel.bias, self._size)(features)


class MlpNetwork(nn.Module):
    """One perceptron of DatasetGAN's ensemble."""

    def __init__(
        self, widths: Mapping[str, int], size: tuple[int, int], hidden: Sequence[int], num_classes: int
    ) -> None:
        super().__init__()
        self.first, self.tail = _FirstLayer(widths, size, hidden[0]), MlpTail(hidden, num_classes)
        nn.init.normal_(self.first.pixel.weight, std=MLP_DEVIATION)
        nn.init.zeros_(self.first.pixel.bias)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, K, H, W]. features: [B, C, h, w] by layer."""
        return torch.as_tensor(self.tail(self.first(features)))


class CnnNetwork(nn.Module):
    """RepurposeGAN's segmenter."""

    def __init__(self, widths: Mapping[str, int], size: tuple[int, int], cnn_size: str, num_classes: int) -> None:
        super().__init__()
        self.first, self.tail = _FirstLayer(widths, size, CNN_WIDTH), CnnTail(cnn_size, num_classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, K, H, W]. features: [B, C, h, w] by layer."""
        return torch.as_tensor(self.tail(self.first(features)))


class DecoderNetwork(nn.Module):
    """The decoder of Galeev et al."""

    def __init__(
        self, blocks: Mapping[int, tuple[str, int]], width: int, dropout: float, num_doublings: int, num_classes: int
    ) -> None:
        """blocks: layer and channels by resolution, from the lowest."""
        super().__init__()
        self._layers = tuple(name for name, _ in blocks.values())
        widths = {resolution: channels for resolution, (_, channels) in blocks.items()}
        self.decoder = Decoder(widths, width, dropout, num_doublings, num_classes)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Logits [B, K, H, W]. features: [B, C, h, w] by layer."""
        return torch.as_tensor(self.decoder([features[name].float() for name in self._layers]))

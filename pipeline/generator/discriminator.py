"""The StyleGAN2 discriminator: residual blocks, minibatch standard deviation, optional class projection.

Parameter names are NVIDIA's. Shape suffixes: B batch, C channels, H height, W width, Z classes (one-hot).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.generator.layers import Conv2dLayer, FullyConnected, binomial_filter
from labelmill.pipeline.generator.networks import Mapping, is_half_resolution

RESIDUAL_GAIN = math.sqrt(0.5)


def minibatch_deviation(x_BCHW: Tensor, group_size: int) -> Tensor:
    """Append one channel: the mean over features of the standard deviation across a group of samples.

    Karras et al. 2018, section 3. Groups are strided over the batch; a batch that the group size does not divide
    uses the largest size that does.
    """
    batch, channels, height, width = x_BCHW.shape
    group_size = next(size for size in range(min(group_size, batch), 0, -1) if batch % size == 0)
    grouped = x_BCHW.float().reshape(group_size, batch // group_size, channels, height, width)
    variance = (grouped - grouped.mean(dim=0)).square().mean(dim=0)
    deviation = (variance + 1e-8).sqrt().mean(dim=(1, 2, 3))
    statistic = deviation.view(-1, 1, 1, 1).repeat(group_size, 1, height, width).to(x_BCHW.dtype)
    return torch.cat([x_BCHW, statistic], dim=1)


class DiscriminatorBlock(nn.Module):
    """Two convolutions and a downsampling shortcut; the first block also reads the image."""

    def __init__(
        self, channels: int, out_channels: int, *, image_channels: int | None, conv_clamp: float | None
    ) -> None:
        super().__init__()
        self.register_buffer("resample_filter", binomial_filter())
        self.fromrgb = (
            None if image_channels is None else Conv2dLayer(image_channels, channels, 1, conv_clamp=conv_clamp)
        )
        self.conv0 = Conv2dLayer(channels, channels, 3, conv_clamp=conv_clamp)
        self.conv1 = Conv2dLayer(channels, out_channels, 3, down=True, conv_clamp=conv_clamp)
        self.skip = Conv2dLayer(channels, out_channels, 1, linear=True, down=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.fromrgb is not None:
            x_BCHW = self.fromrgb(x_BCHW)
        shortcut = self.skip(x_BCHW, gain=RESIDUAL_GAIN)
        return self.conv1(self.conv0(x_BCHW), gain=RESIDUAL_GAIN) + shortcut


class DiscriminatorEpilogue(nn.Module):
    """The lowest block: minibatch deviation, convolution, two linear layers."""

    def __init__(
        self,
        channels: int,
        *,
        size: tuple[int, int],
        out_features: int,
        group_size: int,
        conv_clamp: float | None,
    ) -> None:
        super().__init__()
        self.group_size = group_size
        self.conv = Conv2dLayer(channels + 1, channels, 3, conv_clamp=conv_clamp)
        self.fc = FullyConnected(channels * size[0] * size[1], channels, leaky=True)
        self.out = FullyConnected(channels, out_features)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv(minibatch_deviation(x_BCHW, self.group_size))
        return self.out(self.fc(x_BCHW.contiguous().flatten(1)))


def with_detail(images_BCHW: Tensor, gain: float) -> Tensor:
    """Images [B, C, H, W] with as many more channels: `gain` times what an image holds beyond its 2x2 means.

    One level of a Laplacian pyramid (Denton et al. 2015, section 2.2), as channels beside the image: what a generator
    that has just grown lacks is a few hundredths of the range, which a fresh discriminator is slow to see.
    """
    coarse_BCHW = functional.interpolate(
        functional.avg_pool2d(images_BCHW, 2), scale_factor=2, mode="bilinear", align_corners=False
    )
    return torch.cat([images_BCHW, gain * (images_BCHW - coarse_BCHW)], dim=1)


class Discriminator(nn.Module):
    """Images [B, C, H, W] float32 in [-1, 1] (and one-hot classes [B, Z]) to logits [B, 1] float32.

    Source: Karras et al. 2020, section 4 and table 2 (residual discriminator). With `detail` above 0 the first
    convolution reads the image's fine detail as channels of its own, too (`with_detail`).
    """

    def __init__(
        self,
        channels: tuple[tuple[int, int], ...],
        *,
        c_dim: int = 0,
        image_channels: int = 3,
        lowest_size: tuple[int, int] = (4, 4),
        conv_clamp: float | None = None,
        group_size: int = 4,
        detail: float = 0.0,
    ) -> None:
        """channels: by resolution as a generator's. lowest_size: height and width there, at the lowest."""
        super().__init__()
        self.detail = detail
        widths = dict(channels)
        first_channels = 2 * image_channels if detail > 0 else image_channels
        self.resolution = max(widths)
        height, width = lowest_size
        self.image_size = (height * self.resolution // 4, width * self.resolution // 4)
        self.compute_dtype = torch.float32
        self.block_resolutions = sorted((r for r in widths if r > 4), reverse=True)
        for resolution in self.block_resolutions:
            block = DiscriminatorBlock(
                widths[resolution],
                widths[resolution // 2],
                image_channels=first_channels if resolution == self.resolution else None,
                conv_clamp=conv_clamp,
            )
            self.add_module(f"b{resolution}", block)
        embedding = widths[4] if c_dim > 0 else 0
        self.mapping = Mapping(0, c_dim, embedding, num_layers=8) if c_dim > 0 else None
        self.b4 = DiscriminatorEpilogue(
            widths[4],
            size=lowest_size,
            out_features=embedding or 1,
            group_size=group_size,
            conv_clamp=conv_clamp,
        )

    def forward(self, images_BCHW: Tensor, classes_BZ: Tensor | None = None) -> Tensor:
        if images_BCHW.shape[-2:] != self.image_size:
            height, width = self.image_size
            raise ValueError(
                f"this discriminator takes images of {height} x {width} px, got {tuple(images_BCHW.shape)}"
            )
        x_BCHW = with_detail(images_BCHW, self.detail) if self.detail > 0 else images_BCHW
        for resolution in self.block_resolutions:
            half = is_half_resolution(resolution, self.resolution)
            dtype = self.compute_dtype if half else torch.float32
            x_BCHW = x_BCHW.to(dtype=dtype, memory_format=torch.channels_last)
            x_BCHW = self.get_submodule(f"b{resolution}")(x_BCHW)
        logits = self.b4(x_BCHW.float())
        if self.mapping is None:
            return logits
        if classes_BZ is None:
            raise ValueError("a conditional discriminator needs one-hot classes")
        embedded = self.mapping(None, classes_BZ)
        return (logits * embedded).sum(dim=1, keepdim=True) / math.sqrt(embedded.shape[1])

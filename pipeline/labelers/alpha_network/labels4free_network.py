"""The alpha network that Labels4Free's authors published, beside the one that `fit` trains.

Abdal et al. (ICCV 2021), figure 3. The paper leaves the widths open; this is what the authors' public code computes
(`bg_extractor`, and `bg_extractor_repro`, the same under other names). Their tests call a pixel foreground where its
opacity passes .9; here that is .5, as for every alpha network, after masks are snapped to edges.

Shape suffixes: B batch, C channels, h w resolution of a layer, H W of the images.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.generator.spec import GeneratorSpec, conv_name, row_resolution
from labelmill.schemas.errors import ConfigError

NUM_RESOLUTIONS = 6
READ_CHANNELS = 3
"""Of each layer."""
# The lowest resolution with two convolutions.
_LOWEST_RESOLUTION = 8
_LEAKY_SLOPE = 0.2


class Labels4FreeNetwork(nn.Module):
    """Features by layer [B, C, h, w] to logits of opacity [B, H, W] float32."""

    def __init__(self, spec: GeneratorSpec) -> None:
        """Without values; see `with_tensors`."""
        super().__init__()
        self.layers, channels = published_layers(spec), dict(spec.channels)
        resolutions = _resolutions(spec)
        self._sizes = [spec.size_at(resolution) for resolution in resolutions]
        with torch.device("meta"):
            widths = [channels[resolution] for resolution in resolutions for _ in range(2)]
            self.reading = nn.ModuleList(nn.Conv2d(width, READ_CHANNELS, 1) for width in widths)
            self.merging = nn.ModuleList(
                nn.Conv2d(4 * READ_CHANNELS, 2 * READ_CHANNELS, 1) for _ in range(NUM_RESOLUTIONS - 2)
            )
            self.outer = nn.Conv2d(2 * READ_CHANNELS, 1, 1)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Labels4FreeNetwork":
        """The same network with values, which learns no more."""
        self.load_state_dict(tensors, assign=True)
        return self.requires_grad_(False)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        x_BChw = self._resized(self._read(features, 0), 1)
        for index, merging in enumerate(self.merging, 1):
            merged_BChw = merging(torch.cat([self._read(features, index), x_BChw], dim=1))
            x_BChw = self._resized(functional.leaky_relu(merged_BChw, _LEAKY_SLOPE), index + 1)
        return self.outer(self._read(features, NUM_RESOLUTIONS - 1) + x_BChw)[:, 0]

    def _read(self, features: Mapping[str, Tensor], index: int) -> Tensor:
        """What both convolutions of a resolution give, one after the other."""
        pair = range(2 * index, 2 * index + 2)
        return torch.cat([self.reading[number](features[self.layers[number]].float()) for number in pair], dim=1)

    def _resized(self, x_BChw: Tensor, index: int) -> Tensor:
        return functional.interpolate(x_BChw, size=self._sizes[index], mode="bicubic", align_corners=True)


def published_layers(spec: GeneratorSpec) -> tuple[str, ...]:
    """Both convolutions of the last six resolutions, the lowest first. Raises ConfigError where there are fewer."""
    resolutions = _resolutions(spec)
    if resolutions[0] < _LOWEST_RESOLUTION:
        raise ConfigError(
            f"labeler.weights: Labels4Free's networks read two convolutions of each of six resolutions, which begin at "
            f"256 px; this generator makes images of {spec.size_in_words}. Leave out labeler.weights to train a network"
        )
    return tuple(conv_name(row) for row in range(spec.num_ws - 1) if row_resolution(row) >= resolutions[0])


def _resolutions(spec: GeneratorSpec) -> list[int]:
    return [spec.resolution >> shift for shift in reversed(range(NUM_RESOLUTIONS))]

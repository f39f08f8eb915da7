"""The alpha network: from a generator's features at a pixel to the opacity of its foreground.

Abdal et al. (Labels4Free, ICCV 2021, section 3.2 and figure 3) read the features of all blocks from 1/32 of the
resolution on with 1x1 convolutions, upsampling from block to block. This network does the same in one step: a 1x1
convolution commutes with bilinear resizing, so each layer is reduced to a few channels at its own resolution, resized,
and added up. Strictly per pixel beside the resizing, as theirs is in code.

Shape suffixes: B batch, C channels, h w resolution of a layer, H W of the images.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.generator.spec import GeneratorSpec, conv_name, row_resolution

_LOWEST_RESOLUTION, _LOWEST_SHARE = 8, 32
_LEAKY_SLOPE = 0.2


def default_layers(spec: GeneratorSpec) -> tuple[str, ...]:
    """All convolutions from 8 px, or from 1/32 of the resolution if that is more (as Labels4Free at 256 to 1024 px)."""
    lowest = max(_LOWEST_RESOLUTION, spec.resolution // _LOWEST_SHARE)
    return tuple(conv_name(row) for row in range(spec.num_ws - 1) if row_resolution(row) >= lowest)


class AlphaNetwork(nn.Module):
    """Features by layer [B, C, h, w] to logits of opacity [B, H, W] float32."""

    def __init__(self, spec: GeneratorSpec, layers: Sequence[str], width: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        channels = dict(spec.channels)
        resolutions = {conv_name(row): row_resolution(row) for row in range(spec.num_ws - 1)}
        self.reading = nn.ParameterDict()
        self.resizing: dict[str, tuple[Tensor, Tensor] | None] = {}
        for name in self.layers:
            fan_in = channels[resolutions[name]]
            scale = (fan_in * len(self.layers)) ** -0.5
            self.reading[_key(name)] = nn.Parameter(torch.randn(width, fan_in) * scale)
            self.register_buffer(f"deviation_{_key(name)}", torch.ones(()))
            for axis, (before, after) in enumerate(zip(spec.size_at(resolutions[name]), spec.image_size, strict=True)):
                self.register_buffer(f"resize_{_key(name)}_{axis}", _bilinear(before, after), persistent=False)
        self.bias = nn.Parameter(torch.zeros(width))
        self.inner = nn.Conv2d(width, width, 1)
        self.outer = nn.Conv2d(width, 1, 1)

    def set_deviations(self, deviations: Mapping[str, float]) -> None:
        """The standard deviation of each layer's features, which they are divided by."""
        for name, value in deviations.items():
            self.get_buffer(f"deviation_{_key(name)}").fill_(value)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        x_BCHW = torch.zeros(())
        for name in self.layers:
            key = _key(name)
            weights = self.reading[key] / self.get_buffer(f"deviation_{key}")
            x_BChw = functional.conv2d(features[name].float(), weights[:, :, None, None])
            rows_Hh, columns_Ww = self.get_buffer(f"resize_{key}_0"), self.get_buffer(f"resize_{key}_1")
            if rows_Hh.shape[0] != rows_Hh.shape[1]:
                x_BChw = rows_Hh @ x_BChw @ columns_Ww.T
            x_BCHW = x_BCHW + x_BChw if x_BCHW.ndim else x_BChw
        x_BCHW = functional.leaky_relu(x_BCHW + self.bias[:, None, None], _LEAKY_SLOPE)
        x_BCHW = functional.leaky_relu(self.inner(x_BCHW), _LEAKY_SLOPE)
        return self.outer(x_BCHW)[:, 0]


def _key(layer: str) -> str:
    """A layer's name without the dot, which names of parameters must not have."""
    return layer.replace(".", "_")


def _bilinear(before: int, after: int) -> Tensor:
    """[after, before]: what bilinear resizing by the centres of pixels does along an axis, as a matrix, whose gradient
    repeats to the bit on every device."""
    eye = torch.eye(before)[None]
    return functional.interpolate(eye, size=after, mode="linear", align_corners=False)[0].T.contiguous()

"""Which features a head reads, how large its maps are, and a linear map of features that never stacks them.

Shape suffixes: B batch, C channels, Q outputs, S pixels, h w resolution of a layer, H W resolution of the maps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from labelmill.pipeline.generator.spec import GeneratorSpec, conv_name, row_resolution
from labelmill.pipeline.labelers.common.joint_upsampling import resize
from labelmill.pipeline.labelers.common.linear_maps import layer_scores
from labelmill.schemas.labelers.few_shot import FewShotConfig

# Higher layers hold texture, and most of the memory; maps are no larger.
_HIGHEST_RESOLUTION = 256
# Of a decoder, which doubles its maps up to this many pixels afterwards.
_HIGHEST_BLOCK, _LARGEST_DECODED = 128, 512


def layers_of(config: FewShotConfig, spec: GeneratorSpec) -> tuple[str, ...]:
    """The convolutions that a head reads, lowest first."""
    if config.layers == "auto":
        return automatic_blocks(spec) if config.head.type == "decoder" else automatic_layers(spec)
    return tuple(name for name in spec.conv_names if name in config.layers)


def automatic_layers(spec: GeneratorSpec) -> tuple[str, ...]:
    """What `layers: auto` means."""
    rows = range(spec.num_ws - 1)
    return tuple(conv_name(row) for row in rows if row_resolution(row) <= _HIGHEST_RESOLUTION)


def automatic_blocks(spec: GeneratorSpec) -> tuple[str, ...]:
    """What `layers: auto` means to a decoder: the last convolution of each block. Galeev et al. leave out the two
    highest of nine, 256 and 512 px."""
    rows = range(0, spec.num_ws - 1, 2)
    return tuple(conv_name(row) for row in rows if row_resolution(row) <= _HIGHEST_BLOCK)


def num_doublings(spec: GeneratorSpec, layers: Sequence[str]) -> int:
    """How many times a decoder doubles its maps after the highest layer."""
    highest = max(layer_resolutions(spec)[name] for name in layers)
    return max(0, (min(spec.resolution, _LARGEST_DECODED) // highest).bit_length() - 1)


def map_size(spec: GeneratorSpec, layers: Sequence[str]) -> tuple[int, int]:
    """Height and width of the maps that heads give: 256 px or the image's, and more where higher layers are read."""
    highest = max(layer_resolutions(spec)[name] for name in layers)
    return spec.size_at(max(highest, min(spec.resolution, _HIGHEST_RESOLUTION)))


def layer_resolutions(spec: GeneratorSpec) -> dict[str, int]:
    """Resolution of every convolution of a generator."""
    return {conv_name(row): row_resolution(row) for row in range(spec.num_ws - 1)}


def layer_widths(spec: GeneratorSpec, layers: Sequence[str]) -> dict[str, int]:
    """Channels of each of the layers, in their order."""
    widths, resolutions = dict(spec.channels), layer_resolutions(spec)
    return {name: widths[resolutions[name]] for name in layers}


@dataclass(frozen=True)
class LinearMap:
    """A linear map of a pixel's features: resizing and a linear map commute, so each layer is mapped at its own
    resolution and the outputs, which are fewer, are resized and summed."""

    weights: Mapping[str, Tensor]
    """[C, Q] float32 by layer."""
    bias_Q: Tensor
    size: tuple[int, int]
    """Of the maps."""

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        """Maps [B, Q, H, W] float32. features: [B, C, h, w] by layer."""
        maps_BQHW: Tensor | None = None
        for name, weights_CQ in self.weights.items():
            scores_BQHW = resize(layer_scores(features[name], weights_CQ), self.size)
            maps_BQHW = scores_BQHW if maps_BQHW is None else maps_BQHW + scores_BQHW
        assert maps_BQHW is not None
        return maps_BQHW + self.bias_Q[:, None, None]


def split_by_layer(weights_DQ: Tensor, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Rows of a matrix over all features, by layer."""
    return dict(zip(widths, weights_DQ.split(list(widths.values())), strict=True))

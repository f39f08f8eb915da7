"""What fixes a StyleGAN2 generator's shape, and how rows of w map to its layers (Karras et al. 2020)."""

from dataclasses import dataclass
from math import prod
from typing import Literal

from labelmill.schemas.sample import ImageShape

NUM_HALF_RESOLUTIONS = 4
# Of a convolution's size at once: what goes in, scaled by the styles, what comes out, and the sum with noise and bias.
_ACTIVATIONS_ALIVE = 4

Architecture = Literal["skip", "orig", "resnet"]
ARCHITECTURES: tuple[Architecture, ...] = ("skip", "orig", "resnet")


class SynthesisError(ValueError):
    """A request that this generator cannot fulfil."""


def channels_by_resolution(resolution: int, *, channel_base: int, channel_max: int) -> tuple[tuple[int, int], ...]:
    """StyleGAN2's widths: min(channel_base / r, channel_max) at each r = 4, 8, ..., resolution."""
    sizes = [2**power for power in range(2, resolution.bit_length())]
    return tuple((size, min(channel_base // size, channel_max)) for size in sizes)


def is_half_resolution(resolution: int, full_resolution: int) -> bool:
    """Whether a block runs in the reduced precision when one is asked for: the top four resolutions, 8 and up."""
    return resolution >= max(full_resolution >> (NUM_HALF_RESOLUTIONS - 1), 8)


@dataclass(frozen=True)
class GeneratorSpec:
    """Everything that fixes a generator's tensor shapes and arithmetic."""

    resolution: int
    """Of the last block, b{resolution}: height and width of square images whose constant is 4 x 4."""
    z_dim: int
    w_dim: int
    c_dim: int
    """Number of classes; 0 when unconditional."""
    mapping_layers: int
    channels: tuple[tuple[int, int], ...]
    """(resolution, channels) for 4, 8, ..., resolution."""
    architecture: Architecture = "skip"
    conv_clamp: float | None = None
    """Activations and RGB contributions are clamped to this magnitude; None: not at all."""
    img_channels: int = 3
    """3: RGB; 1: gray."""
    const_size: tuple[int, int] = (4, 4)
    """Height and width of the constant that synthesis begins with, at the lowest of `channels`. Each next one doubles
    both, so that a constant of other sides than 4 x 4 makes rectangular images."""
    mapping_width: int | None = None
    """Features of all mapping layers but the last; None: w_dim, as every published network has."""

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise SynthesisError(f"resolution must be a power of two of at least 8, got {self.resolution}")
        sizes = tuple(2**power for power in range(2, self.resolution.bit_length()))
        if tuple(size for size, _ in self.channels) != sizes:
            raise SynthesisError(f"channels must list the resolutions {sizes} in order, got {self.channels}")
        for name in ("z_dim", "w_dim", "mapping_layers"):
            if getattr(self, name) < 1:
                raise SynthesisError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.img_channels not in (1, 3):
            raise SynthesisError(f"its images have {self.img_channels} channels; gray (1) and RGB (3) ones work")
        if len(self.const_size) != 2 or min(self.const_size) < 1:
            raise SynthesisError(f"const_size must be a height and a width of at least 1, got {self.const_size}")
        if self.mapping_width is not None and self.mapping_width < 1:
            raise SynthesisError(f"mapping_width must be at least 1, got {self.mapping_width}")
        if self.c_dim < 0:
            raise SynthesisError(f"c_dim must be 0 (unconditional) or more, got {self.c_dim}")
        if self.architecture not in ARCHITECTURES:
            raise SynthesisError(f"architecture must be one of {ARCHITECTURES}, got {self.architecture!r}")

    @property
    def num_ws(self) -> int:
        """Rows of w: 2 log2(resolution) - 2, whatever the architecture."""
        return num_rows(self.resolution)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.size_at(self.resolution)

    @property
    def image_shape(self) -> ImageShape:
        """What datasets say of the images."""
        height, width = self.image_size
        return ImageShape.model_validate({"height": height, "width": width, "channels": self.img_channels})

    def size_at(self, resolution: int) -> tuple[int, int]:
        """Height and width of the activations of block b{resolution}."""
        height, width = self.const_size
        return height * resolution // 4, width * resolution // 4

    def bytes_to_synthesize(self, resolution: int) -> int:
        """Memory that the synthesis of one image up to a resolution takes at least, beside the weights: float32
        activations of its largest convolution, several at once."""
        widths = (channels * prod(self.size_at(size)) for size, channels in self.channels if size <= resolution)
        return 4 * _ACTIVATIONS_ALIVE * max(widths)

    @property
    def size_in_words(self) -> str:
        """Of the images."""
        height, width = self.image_size
        return f"{height} px" if height == width else f"{width} x {height} px (width x height)"

    @property
    def conv_names(self) -> tuple[str, ...]:
        """Names of the convolutions by their row: b4.conv1, b8.conv0, b8.conv1, ..."""
        return tuple(conv_name(row) for row in range(self.num_ws - 1))


def num_rows(resolution: int) -> int:
    """Rows of w that synthesis up to a resolution uses."""
    return 2 * (resolution.bit_length() - 1) - 2


def row_resolution(row: int) -> int:
    """Resolution of the convolution that a row styles."""
    return 4 << ((row + 1) // 2)


def conv_name(row: int) -> str:
    """Name of the convolution that a row styles."""
    return f"b{row_resolution(row)}.conv{1 if row % 2 == 0 else 0}"

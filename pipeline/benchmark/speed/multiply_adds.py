"""How many multiply-adds a synthesis needs at least: what a saving is measured against.

A 3x3 convolution takes 9 per pixel and pair of channels; upsampling by a transposed convolution takes them per input
pixel, followed by a separable 4-tap filter. Scalings, noise, bias and activation are not counted: they move bytes.
"""

from math import prod

from labelmill.pipeline.generator.networks import GeneratorSpec, row_resolution

_KERNEL = 9
# Two passes of 4 taps over the output.
_FILTER = 8


def of_rows(spec: GeneratorSpec, rows: range) -> int:
    """Multiply-adds of an image in these rows of w: their convolution, or the last toRGB."""
    widths = dict(spec.channels)
    total = 0
    for row in rows:
        resolution = row_resolution(row) if row < spec.num_ws - 1 else spec.resolution
        width, num_pixels = widths[resolution], prod(spec.size_at(resolution))
        if row % 2 == 1:
            # The toRGB of the block just finished, and its image's way up to the next block.
            below = resolution if row == spec.num_ws - 1 else resolution // 2
            total += widths[below] * spec.img_channels * prod(spec.size_at(below))
            if row < spec.num_ws - 1:
                total += _up_convolution(widths[below], width, num_pixels) + _FILTER * spec.img_channels * num_pixels
        else:
            total += _KERNEL * width * width * num_pixels
    return total


def of_synthesis(spec: GeneratorSpec, resolution: int | None = None) -> int:
    """Multiply-adds of an image up to a resolution, the full one by default."""
    stop = resolution or spec.resolution
    rows_below = 2 * (stop.bit_length() - 1) - 3
    widths = dict(spec.channels)
    rgb = widths[stop] * spec.img_channels * prod(spec.size_at(stop))
    return of_rows(spec, range(rows_below)) + rgb


def of_variants(spec: GeneratorSpec, count: int, crossover: int, resolution: int) -> int:
    """Multiply-adds of an image's variants: their trunk once, what follows for each."""
    trunk = of_rows(spec, range(crossover))
    return trunk + count * (of_synthesis(spec, resolution) - trunk)


def _up_convolution(channels_in: int, channels_out: int, num_pixels: int) -> int:
    """num_pixels: of what comes out, four times what goes in."""
    return _KERNEL * channels_in * channels_out * num_pixels // 4 + _FILTER * channels_out * num_pixels

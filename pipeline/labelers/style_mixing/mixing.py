"""Style-mixed variants of images.

Rows of w before the crossover are the image's own, the others a donor's: early rows lay the picture out, late ones
colour it. All images share the donors.

Shape suffixes: B batch, N variants (donors), C channels, H height, W width, L rows of w, D style.
"""

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from labelmill.pipeline.generator.networks import Generator, GeneratorSpec
from labelmill.pipeline.generator.sampling import Batch, BatchNoise
from labelmill.pipeline.process.device import repeatable_kernels

# Bounds of one synthesis: in images and in pixels, past which a CPU gains nothing and a GPU is full, and in bytes, so
# that it fits beside a batch on a GPU of 8 GB. Fixed numbers, because the size of a batch decides bits.
_MOST_IMAGES = {"cpu": 16, "cuda": 1024}
_MOST_PIXELS = {"cpu": 2**20, "cuda": 2**24}
_MOST_BYTES = 2**32
# Bound of a pass in base images, beside the size of a batch: the last pass is padded, and padding is wasted work.
_MOST_BASE_IMAGES = 16


def variants_per_pass(spec: GeneratorSpec, resolution: int, device: torch.device) -> int:
    """How many variants are synthesised at once, up to a resolution."""
    kind = device.type if device.type in _MOST_IMAGES else "cpu"
    by_pixels = _MOST_PIXELS[kind] // prod(spec.size_at(resolution))
    return max(1, min(_MOST_IMAGES[kind], by_pixels, _MOST_BYTES // spec.bytes_to_synthesize(resolution)))


def images_per_pass(
    num_variants: int, spec: GeneratorSpec, resolution: int, device: torch.device, batch_size: int
) -> int:
    """How many images' variants are synthesised at once: 1 where an image's own take several passes."""
    at_once = variants_per_pass(spec, resolution, device)
    return max(1, min(_MOST_BASE_IMAGES, batch_size, at_once // num_variants))


def bytes_per_pass(
    num_variants: int, spec: GeneratorSpec, resolution: int, device: torch.device, batch_size: int
) -> int:
    """Memory that a pass takes at least, beside the weights and the batch."""
    num_images = images_per_pass(num_variants, spec, resolution, device, batch_size)
    at_once = min(num_images * num_variants, variants_per_pass(spec, resolution, device))
    return at_once * spec.bytes_to_synthesize(resolution)


def mix(
    generator: Generator, batch: Batch, donors_NLD: Tensor, crossover: int, resolution: int | None = None
) -> Tensor:
    """Variants [B, N, C, H, W] float32 of each image: rows from `crossover` on are the donors', noise is its own.

    What depends on earlier rows only is computed once an image. Call it with `images_per_pass` images at a time.
    resolution: where synthesis stops; None for the whole image. Raises SynthesisError where it cannot.
    """
    at_once = variants_per_pass(generator.spec, resolution or generator.spec.resolution, donors_NLD.device)
    with repeatable_kernels():
        trunk = generator.trunk(batch.ws_BLD, crossover, batch.noise)
        parts = []
        for some_NLD in donors_NLD.split(at_once):
            count = some_NLD.shape[0]
            synthesis = generator.synthesize(
                some_NLD.repeat(len(batch), 1, 1),
                _repeated(batch.noise, count),
                resolution=resolution,
                trunk=trunk.repeat_interleave(count),
            )
            parts.append(synthesis.images_BCHW.unflatten(0, (len(batch), count)))
        return torch.cat(parts, dim=1)


def mix_in_passes(
    generator: Generator, batch: Batch, donors_NLD: Tensor, crossover: int, resolution: int | None, *, batch_size: int
) -> Iterator[tuple[range, Tensor]]:
    """Positions in the batch and variants as `mix` makes them, a fixed number of images at a time.

    The sizes of a pass choose kernels and thereby bits, so the last one is padded with the last image; its variants
    are more than its positions. batch_size: the configured one, which no pass exceeds, whatever this batch holds.
    """
    spec, count = generator.spec, len(batch)
    at_once = images_per_pass(len(donors_NLD), spec, resolution or spec.resolution, donors_NLD.device, batch_size)
    for start in range(0, count, at_once):
        positions = [min(position, count - 1) for position in range(start, start + at_once)]
        variants_BNCHW = mix(generator, batch.select(positions), donors_NLD, crossover, resolution)
        yield range(start, min(start + at_once, count)), variants_BNCHW


def _repeated(noise: BatchNoise, repeats: int) -> BatchNoise:
    if isinstance(noise, str):
        return noise
    return tuple(noise_B1HW.repeat_interleave(repeats, dim=0) for noise_B1HW in noise)

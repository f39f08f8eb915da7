"""Style-mixed variants of images, and the row of w from which mixing keeps the layout.

Rows of w before the crossover are the image's own, the others a donor's: early rows lay the picture out, late ones
colour it. All images share the donors.

Shape suffixes: B batch, N variants (donors), C channels, H height, W width, L rows of w, D style.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.generator.networks import Generator
from pipeline.generator.sampling import Batch, BatchNoise, repeatable_kernels

# Bounds of one synthesis: in images, past which a CPU gains nothing, and in pixels, for memory (a full-width generator
# needs a few hundred bytes a pixel). Fixed numbers, because the size of a batch decides bits.
_MOST_IMAGES = {"cpu": 16, "cuda": 1024}
_MOST_PIXELS = {"cpu": 2**20, "cuda": 2**24}


def variants_per_pass(resolution: int, device: torch.device) -> int:
    """How many variants are synthesised at once."""
    kind = device.type if device.type in _MOST_IMAGES else "cpu"
    return max(1, min(_MOST_IMAGES[kind], _MOST_PIXELS[kind] // resolution**2))


def images_per_pass(num_variants: int, resolution: int, device: torch.device) -> int:
    """How many images' variants are synthesised at once: 1 where an image's own take several passes."""
    return max(1, variants_per_pass(resolution, device) // num_variants)


def mix(generator: Generator, batch: Batch, donors_NLD: Tensor, crossover: int) -> Tensor:
    """Variants [B, N, C, H, W] float32 of each image: rows from `crossover` on are the donors', noise is its own.

    What depends on earlier rows only is computed once an image. Call it with `images_per_pass` images at a time.
    """
    at_once = variants_per_pass(generator.spec.resolution, donors_NLD.device)
    with repeatable_kernels():
        trunk = generator.trunk(batch.ws_BLD, crossover, batch.noise)
        parts = []
        for some_NLD in donors_NLD.split(at_once):
            count = some_NLD.shape[0]
            synthesis = generator.synthesize(
                some_NLD.repeat(len(batch), 1, 1),
                _repeated(batch.noise, count),
                trunk=trunk.repeat_interleave(count),
            )
            parts.append(synthesis.images_BCHW.unflatten(0, (len(batch), count)))
        return torch.cat(parts, dim=1)


def _repeated(noise: BatchNoise, repeats: int) -> BatchNoise:
    if isinstance(noise, str):
        return noise
    return tuple(noise_B1HW.repeat_interleave(repeats, dim=0) for noise_B1HW in noise)


@dataclass(frozen=True)
class CrossoverTable:
    """How much layout survives, and how much colour moves, for mixing from each row on."""

    layout_agreement: dict[int, float]
    """By row: mean edge agreement of images and their variants; 0 as between strangers, 1 as with itself."""
    colour_change: dict[int, float]
    """By row: mean absolute change of a pixel, in units of the image's range of 2."""

    def choose(self, min_agreement: float) -> int:
        """The lowest row, hence the strongest change of colour, from which on agreement never falls short.

        The last row if none reaches it: that one changes colour only.
        """
        rows = sorted(self.layout_agreement, reverse=True)
        chosen = rows[0]
        for row in rows:
            if self.layout_agreement[row] < min_agreement:
                break
            chosen = row
        return chosen


def measure_crossovers(generator: Generator, batch: Batch, donors_NLD: Tensor) -> CrossoverTable:
    """Mix the batch with the donors from every row on, and compare edges and colours."""
    edges_B = edge_field(batch.images_BCHW)
    strangers = field_agreement(edges_B, edges_B.roll(1, dims=0)).mean().item()
    agreement: dict[int, float] = {}
    change: dict[int, float] = {}
    for row in range(1, generator.spec.num_ws):
        variants_BNCHW = torch.cat([mix(generator, batch.select([i]), donors_NLD, row) for i in range(len(batch))])
        edges_BN = edge_field(variants_BNCHW.flatten(0, 1)).unflatten(0, variants_BNCHW.shape[:2])
        mean = field_agreement(edges_B[:, None], edges_BN).mean().item()
        agreement[row] = round((mean - strangers) / (1 - strangers), 4)
        difference = variants_BNCHW - batch.images_BCHW[:, None]
        change[row] = round(difference.abs().mean().item() / 2, 4)
    return CrossoverTable(agreement, change)


def edge_field(images_BCHW: Tensor) -> Tensor:
    """Edges as doubled angles [B, 2, H, W]: length is the gradient's magnitude, direction twice its angle.

    Doubling makes the field blind to the sign of contrast, which recolouring may turn. Summed over channels before
    the root (Di Zenzo, 1986), so an edge needs contrast in any colour, not in brightness.
    """
    kernel = torch.tensor([-0.5, 0.0, 0.5], device=images_BCHW.device)
    channels = images_BCHW.shape[1]
    padded = functional.pad(images_BCHW, (1, 1, 1, 1), mode="replicate")
    dx = functional.conv2d(padded[:, :, 1:-1], kernel.view(1, 1, 1, 3).expand(channels, -1, -1, -1), groups=channels)
    dy = functional.conv2d(padded[:, :, :, 1:-1], kernel.view(1, 1, 3, 1).expand(channels, -1, -1, -1), groups=channels)
    doubled = torch.stack([(dx.square() - dy.square()).sum(dim=1), 2 * (dx * dy).sum(dim=1)], dim=1)
    return doubled / doubled.norm(dim=1, keepdim=True).clamp_min(1e-8).sqrt()


def field_agreement(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarity of edge fields over their last three axes."""
    product = (first * second).sum(dim=(-3, -2, -1))
    lengths = first.square().sum(dim=(-3, -2, -1)) * second.square().sum(dim=(-3, -2, -1))
    return product / lengths.sqrt().clamp_min(1e-12)

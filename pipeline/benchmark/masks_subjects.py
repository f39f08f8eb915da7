"""What the mask benchmark labels: images of a generator with masks of an oracle, or drawings with exact masks.

Shape suffixes: B batch, N variants, C channels, H height, W width, L rows of w, D style.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.benchmark.avatars import recolourings
from pipeline.generator.sampling import Batch, Sampler
from pipeline.labelers.mixing import images_per_pass, measure_crossovers, mix
from schemas.config import StyleMixingConfig

SplitName = Literal["fit", "dev", "test"]
# Far from the seeds that runs start at, that domains train on, and that donors and `fit` take.
FIRST_SEED: Mapping[SplitName, int] = {"dev": 1_000_000_000, "test": 2_000_000_000}

BATCH_SIZE = 16


@dataclass(frozen=True)
class Truth:
    """What the foreground is."""

    foreground_BHW: Tensor
    """uint8, 0 and 1."""
    agreed_BHW: Tensor
    """The same, 255 (ignore) where judges of different build disagree."""


Judge = Callable[[Tensor], Truth]
"""Foreground of images [B, C, H, W] float32 in [-1, 1]."""


@dataclass(frozen=True)
class Pictures:
    """A batch with its truth. The variants of drawings are drawn beforehand."""

    batch: Batch
    truth: Truth
    variants_BNCHW: Tensor | None = None


class Subject(Protocol):
    """Pictures in three splits, and their variants."""

    device: torch.device
    splits: Mapping[SplitName, Sequence[Pictures]]

    def crossover(self, config: StyleMixingConfig) -> int | None:
        """The row of w that `crossover: auto` chooses, or the given one; None where there are no rows."""

    def variants(self, batch: Batch, count: int, crossover: int | None) -> Tensor:
        """Style-mixed variants [B, N, C, H, W] float32 of a batch."""


class GeneratorSubject:
    """A generator's images, judged by an oracle."""

    def __init__(
        self,
        sampler: Sampler,
        judge: Judge,
        labeler: StyleMixingConfig,
        sizes: Mapping[SplitName, int],
        most_variants: int,
    ) -> None:
        """labeler: says which seeds are donors and images of `fit`. sizes: images of every split. Raises what the
        judge raises for images that it does not take."""
        self.device = sampler.device
        self._sampler = sampler
        self._judge = judge
        self._crossovers: dict[tuple[int, float], int] = {}
        donor_seeds = range(labeler.donor_first_seed, labeler.donor_first_seed + most_variants)
        self._donors_NLD, _ = sampler.ws(donor_seeds, psi=labeler.donor_truncation_psi)
        first_seed: Mapping[SplitName, int] = {"fit": labeler.fit_first_seed, **FIRST_SEED}
        self.splits: Mapping[SplitName, Sequence[Pictures]] = {
            name: self._pictures(range(first, first + sizes[name])) for name, first in first_seed.items()
        }

    def crossover(self, config: StyleMixingConfig) -> int | None:
        if config.crossover != "auto":
            return config.crossover
        # As `fit` does: up to 16 images and 8 donors.
        num_donors = min(8, config.variants)
        known = (num_donors, config.min_layout_agreement)
        if known not in self._crossovers:
            batch = self.splits["fit"][0].batch
            table = measure_crossovers(self._sampler.generator, batch, self._donors_NLD[:num_donors])
            self._crossovers[known] = table.choose(config.min_layout_agreement)
        return self._crossovers[known]

    def variants(self, batch: Batch, count: int, crossover: int | None) -> Tensor:
        assert crossover is not None
        generator, donors_NLD = self._sampler.generator, self._donors_NLD[:count]
        at_once = images_per_pass(count, generator.spec.resolution, self.device)
        parts = [range(len(batch))[start : start + at_once] for start in range(0, len(batch), at_once)]
        return torch.cat([mix(generator, batch.select(part), donors_NLD, crossover) for part in parts])

    def _pictures(self, seeds: range) -> list[Pictures]:
        size = self._sampler.numerics.batch_size
        batches = [self._sampler.sample(seeds[start : start + size]) for start in range(0, len(seeds), size)]
        return [Pictures(batch, self._judge(batch.images_BCHW)) for batch in batches]


class DrawingsSubject:
    """Drawings of the avatars domain in other palettes: style mixing as a perfect generator would do it."""

    def __init__(self, resolution: int, sizes: Mapping[SplitName, int], most_variants: int) -> None:
        """sizes: images of every split. Raises ImportError without the benchmark extra."""
        self.device = torch.device("cpu")
        first_seed: Mapping[SplitName, int] = {"fit": 0, **FIRST_SEED}
        self.splits: Mapping[SplitName, Sequence[Pictures]] = {
            name: [
                _drawn(range(first, first + sizes[name])[start : start + BATCH_SIZE], resolution, most_variants)
                for start in range(0, sizes[name], BATCH_SIZE)
            ]
            for name, first in first_seed.items()
        }
        self._variants = {id(p.batch): p.variants_BNCHW for split in self.splits.values() for p in split}

    def crossover(self, config: StyleMixingConfig) -> int | None:
        return None

    def variants(self, batch: Batch, count: int, crossover: int | None) -> Tensor:
        variants_BNCHW = self._variants[id(batch)]
        assert variants_BNCHW is not None
        return variants_BNCHW[:, :count]


def _drawn(seeds: range, resolution: int, num_variants: int) -> Pictures:
    pairs = [recolourings(seed, resolution, num_variants) for seed in seeds]
    variants_BNHWC = torch.from_numpy(np.stack([images for images, _ in pairs]))
    variants_BNCHW = variants_BNHWC.permute(0, 1, 4, 2, 3) / 127.5 - 1
    foreground_BHW = torch.from_numpy(np.stack([mask_HW > 0 for _, mask_HW in pairs]).astype(np.uint8))
    batch = Batch(tuple(seeds), (None,) * len(seeds), torch.empty(len(seeds), 0, 0), variants_BNCHW[:, 0], "none")
    return Pictures(batch, Truth(foreground_BHW, foreground_BHW), variants_BNCHW)

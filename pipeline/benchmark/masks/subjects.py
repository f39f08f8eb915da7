"""What the mask benchmark labels: images of a generator with masks of an oracle, or drawings with exact masks.

Shape suffixes: B batch, N variants, C channels, H height, W width, L rows of w, D style.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from labelmill.pipeline.avatars.avatars import recolourings
from labelmill.pipeline.generator.networks import Generator, Noise, Synthesis, Trunk
from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.style_mixing.fit import fit_style_mixing
from labelmill.pipeline.labelers.style_mixing.mixing import mix_in_passes
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

SplitName = Literal["fit", "dev", "test"]
# Far from the seeds that runs start at, that domains train on, and that donors and `fit` take.
FIRST_SEED: Mapping[SplitName, int] = {"dev": 1_000_000_000, "test": 2_000_000_000}

BATCH_SIZE = 16
_MOST_BYTES = 2**30


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
    """A batch with its truth."""

    batch: Batch
    truth: Truth


class Subject(Protocol):
    """Pictures in three splits, and their variants."""

    device: torch.device
    splits: Mapping[SplitName, Sequence[Pictures]]

    def variants(self, batch: Batch, count: int) -> Tensor:
        """Style-mixed variants [B, N, C, h, w] float32 of a batch, as the labeler's defaults mix them."""


class PicturesAlone:
    """Pictures without variants, for methods that look at single images."""

    def __init__(self, device: torch.device, splits: Mapping[SplitName, Sequence[Pictures]]) -> None:
        self.device, self.splits = device, splits

    def variants(self, batch: Batch, count: int) -> Tensor:
        raise ValueError("these pictures have no variants: choose a method that looks at single images")


class RememberingGenerator(Generator):
    """A generator that keeps the variants it has made, so that rows which look at the same ones share them.

    Bits are those of the generator itself: a synthesis is repeated only when all it depends on is equal.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__(generator.spec)
        self.load_state_dict(generator.state_dict())
        self.compute_dtype = generator.compute_dtype
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._is_remembering = True

    def synthesize(
        self,
        ws_BLD: Tensor,
        noise: Noise = "const",
        *,
        resolution: int | None = None,
        taps: Collection[str] = (),
        trunk: Trunk | None = None,
    ) -> Synthesis:
        if trunk is None or taps or not isinstance(noise, str) or not self._is_remembering:
            return super().synthesize(ws_BLD, noise, resolution=resolution, taps=taps, trunk=trunk)
        key = _digest(f"{noise} {resolution} {trunk.row}", ws_BLD, trunk.x_BCHW, trunk.images_BCHW, trunk.shortcut_BCHW)
        if key not in self._kept:
            made = super().synthesize(ws_BLD, noise, resolution=resolution, trunk=trunk)
            self._kept[key] = made.images_BCHW
            while sum(images.nbytes for images in self._kept.values()) > _MOST_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return Synthesis(self._kept[key], {})

    @contextmanager
    def forgetful(self) -> Iterator[None]:
        """Within it every synthesis is computed: for measuring time."""
        self._is_remembering = False
        try:
            yield
        finally:
            self._is_remembering = True


def _digest(text: str, *tensors: Tensor | None) -> bytes:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for tensor in tensors:
        if tensor is not None:
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.digest()


class GeneratorSubject:
    """A generator's images, judged by an oracle."""

    def __init__(
        self, sampler: Sampler, judge: Judge, labeler: StyleMixingConfig, sizes: Mapping[SplitName, int]
    ) -> None:
        """labeler: the defaults, which say which seeds are donors and images of `fit`. sizes: images of every split.

        Raises what the judge raises for images that it does not take.
        """
        self.device, self.sampler = sampler.device, sampler
        self._judge, self._labeler = judge, labeler
        self._chosen: tuple[Tensor, int, int] | None = None
        first_seed: Mapping[SplitName, int] = {"fit": labeler.fit_first_seed, **FIRST_SEED}
        self.splits: Mapping[SplitName, Sequence[Pictures]] = {
            name: self._pictures(range(first, first + sizes[name])) for name, first in first_seed.items()
        }

    def variants(self, batch: Batch, count: int) -> Tensor:
        """At the row of w and the resolution that `fit` chooses with default settings."""
        if self._chosen is None:
            fitted = fit_style_mixing(self._labeler, self.sampler)
            self._chosen = fitted.donors_NLD, fitted.provenance.crossover, fitted.provenance.variant_resolution
        donors_NLD, crossover, resolution = self._chosen
        generator, size = self.sampler.generator, self.sampler.numerics.batch_size
        passes = mix_in_passes(generator, batch, donors_NLD[:count], crossover, resolution, batch_size=size)
        return torch.cat([variants_BNCHW for _, variants_BNCHW in passes])[: len(batch)]

    def _pictures(self, seeds: range) -> list[Pictures]:
        return [Pictures(batch, self._judge(batch.images_BCHW)) for batch in self.sampler.batches(seeds)]


class DrawingsSubject:
    """Drawings of the avatars domain in other palettes: style mixing as a perfect generator would do it."""

    def __init__(self, resolution: int, sizes: Mapping[SplitName, int], most_variants: int) -> None:
        """sizes: images of every split. Raises ImportError without the benchmark extra."""
        self.device = torch.device("cpu")
        self._resolution, self._most_variants = resolution, most_variants
        self._variants: dict[tuple[int, ...], Tensor] = {}
        first_seed: Mapping[SplitName, int] = {"fit": 0, **FIRST_SEED}
        self.splits: Mapping[SplitName, Sequence[Pictures]] = {
            name: [
                self._drawn(range(first, first + sizes[name])[start : start + BATCH_SIZE])
                for start in range(0, sizes[name], BATCH_SIZE)
            ]
            for name, first in first_seed.items()
        }

    def variants(self, batch: Batch, count: int) -> Tensor:
        return self._variants[batch.seeds][:, :count]

    def _drawn(self, seeds: range) -> Pictures:
        pairs = [recolourings(seed, self._resolution, self._most_variants) for seed in seeds]
        variants_BNHWC = torch.from_numpy(np.stack([images for images, _ in pairs]))
        variants_BNCHW = variants_BNHWC.permute(0, 1, 4, 2, 3) / 127.5 - 1
        foreground_BHW = torch.from_numpy(np.stack([mask_HW > 0 for _, mask_HW in pairs]).astype(np.uint8))
        batch = Batch(tuple(seeds), (None,) * len(seeds), torch.empty(len(seeds), 0, 0), variants_BNCHW[:, 0], "none")
        self._variants[batch.seeds] = variants_BNCHW
        return Pictures(batch, Truth(foreground_BHW, foreground_BHW))

"""One side of the speed comparison, in its own process: `python -m labelmill.pipeline.benchmark.speed.side REQUEST`.

A process, because the allocator's settings hold for a whole one. Prints a SideResult as JSON.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from labelmill.pipeline.benchmark.speed import baseline, multiply_adds
from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution
from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.labelers.style_mixing.labeler import StyleMixingLabeler
from labelmill.pipeline.labelers.style_mixing.mixing import variants_per_pass
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

BASELINE_BATCHES = (1, 4, 8, 16, 32)
# Random weights mix like trained ones as far as time goes; the fit only has to run.
_FIT_SAMPLES = 16


class SideRequest(BaseModel):
    """What to measure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: Literal["labelmill", "baseline"]
    device: Literal["cpu", "cuda"]
    resolution: int
    channel_base: int
    channel_max: int
    w_dim: int
    mapping_layers: int
    labeler: StyleMixingConfig
    numerics: NumericsConfig
    repeats: int
    """Batches that are timed, after one that is not."""


class SideResult(BaseModel):
    """Seconds an image: medians over the timed batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bare_seconds: float
    """Synthesis alone."""
    seconds_by_stage: dict[str, float]
    """Of a labeled image, without encoding; they add up to `labeled_seconds`."""
    labeled_seconds: float
    full_variants_seconds: float
    """The variants synthesised without sharing and at full resolution, by the same code."""
    variant_resolution: int
    crossover: int
    bare_multiply_adds: int
    variants_multiply_adds: int
    full_variants_multiply_adds: int
    batch_size: int
    peak_bytes: int | None
    """On a GPU, what PyTorch held at most."""


def random_generator(request: SideRequest) -> Generator:
    """A generator of the request's size with random weights and noise."""
    torch.manual_seed(0)
    channels = channels_by_resolution(
        request.resolution, channel_base=request.channel_base, channel_max=request.channel_max
    )
    spec = GeneratorSpec(
        resolution=request.resolution,
        z_dim=request.w_dim,
        w_dim=request.w_dim,
        c_dim=0,
        mapping_layers=request.mapping_layers,
        channels=channels,
    )
    generator = Generator(spec)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.1)
    return generator


def measure_side(request: SideRequest) -> SideResult:
    """Time the request's side on this machine."""
    torch.set_num_threads(request.numerics.threads)
    with torch.no_grad():
        return _Side(request).labelmill() if request.side == "labelmill" else _Side(request).baseline()


class _Side:
    """A sampler and a fitted labeler of the request, and what both sides time with them."""

    def __init__(self, request: SideRequest) -> None:
        self.request = request
        self.device = torch.device(request.device)
        self.sampler = Sampler(
            random_generator(request), GeneratorConfig(checkpoint="random"), request.numerics, self.device
        )
        fit = request.labeler.model_copy(update={"fit_samples": _FIT_SAMPLES})
        labeler = open_fitted(fit, self.sampler, fit_to_bytes(fit, self.sampler)).labeler
        assert isinstance(labeler, StyleMixingLabeler)
        self.labeler = labeler
        self.batches = [self.sampler.sample(self._seeds(index), labeler.layers) for index in range(request.repeats + 1)]

    def labelmill(self) -> SideResult:
        """labelmill's own way, batch by batch."""
        bare = self._time(lambda index: self.sampler.sample(self._seeds(index)))
        tapped = self._time(lambda index: self.sampler.sample(self._seeds(index), self.labeler.layers))
        variants = self._time(lambda index: self.labeler.variants(self.batches[index]))
        label = self._time(lambda index: self.labeler.label(self.batches[index]))
        full = self._time(lambda index: self._full_variants(self.batches[index]))
        if self.request.labeler.masks_from == "readout":
            stages = {"synthesise": tapped, "read out": label}
        else:
            stages = {"synthesise": tapped, "variants": variants, "cluster and merge": label - variants}
        return self._result(bare, stages, full, self.request.numerics.batch_size)

    def baseline(self) -> SideResult:
        """N + 1 full syntheses by grouped convolutions at their best batch size, and scikit-learn."""
        batch, generator = self.batches[0], self.sampler.generator
        donors_NLD, crossover = self.labeler.donors_NLD, self.labeler.crossover
        of_size = {
            size: self._seconds(partial(baseline.mixed, generator, batch.ws_BLD[:2], donors_NLD, crossover, size))
            for size in BASELINE_BATCHES
        }
        best = min(of_size, key=lambda size: of_size[size])
        bare = self._time(lambda index: baseline.synthesise(generator, self.batches[index].ws_BLD[:best]), images=best)
        ws_BLD = batch.ws_BLD[:2]
        variants = self._time(lambda _: baseline.mixed(generator, ws_BLD, donors_NLD, crossover, best), images=2)
        variants_NCHW = baseline.mixed(generator, ws_BLD[:1], donors_NLD, crossover, best)[0].cpu()
        clustering = self._time(lambda _: baseline.cluster(variants_NCHW), images=1)
        stages = {"synthesise": bare, "variants": variants, "cluster": clustering}
        return self._result(bare, stages, variants, best)

    def _result(self, bare: float, stages: dict[str, float], full: float, batch_size: int) -> SideResult:
        spec, count = self.sampler.generator.spec, len(self.labeler.donors_NLD)
        resolution = self.labeler.variant_resolution
        return SideResult(
            bare_seconds=bare,
            seconds_by_stage=stages,
            labeled_seconds=sum(stages.values()),
            full_variants_seconds=full,
            variant_resolution=resolution,
            crossover=self.labeler.crossover,
            bare_multiply_adds=multiply_adds.of_synthesis(spec),
            variants_multiply_adds=multiply_adds.of_variants(spec, count, self.labeler.crossover, resolution),
            full_variants_multiply_adds=count * multiply_adds.of_synthesis(spec),
            batch_size=batch_size,
            peak_bytes=torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None,
        )

    def _full_variants(self, batch: Batch) -> Tensor:
        """Every variant from the start, at full resolution, by labelmill's synthesis, a few at a time."""
        generator, donors_NLD = self.sampler.generator, self.labeler.donors_NLD
        rows_NLD = torch.cat(
            [
                batch.ws_BLD[:1, : self.labeler.crossover].expand(len(donors_NLD), -1, -1),
                donors_NLD[:, self.labeler.crossover :],
            ],
            dim=1,
        )
        at_once = variants_per_pass(generator.spec, generator.spec.resolution, self.device)
        with repeatable_kernels():
            parts = [
                generator.synthesize(some_NLD).images_BCHW
                for _ in range(len(batch))
                for some_NLD in rows_NLD.split(at_once)
            ]
        return torch.cat(parts)

    def _seeds(self, index: int) -> range:
        size = self.request.numerics.batch_size
        return range(index * size, (index + 1) * size)

    def _time(self, work: Callable[[int], object], images: int | None = None) -> float:
        """Seconds an image: the median of the timed batches."""
        work(0)
        seconds = [self._seconds(partial(work, index)) for index in range(1, self.request.repeats + 1)]
        return median(seconds) / (images or self.request.numerics.batch_size)

    def _seconds(self, work: Callable[[], object]) -> float:
        self._synchronise()
        start = time.perf_counter()
        work()
        self._synchronise()
        return time.perf_counter() - start

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    print(measure_side(SideRequest.model_validate_json(sys.argv[1])).model_dump_json())

"""Samples of a batch on their way into a shard: what is no image is no sample."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.random_sampler import make_sampler
from helpers.small_dataset import config_of

from labelmill.pipeline.generator.sampling import Batch
from labelmill.pipeline.labelers.base import Labels
from labelmill.pipeline.make_shard import LoadedRun, candidates
from labelmill.pipeline.process.stopwatch import Stopwatch
from labelmill.schemas.errors import ShardError


@dataclass(frozen=True)
class AllForeground:
    classes: tuple[str, ...] = ("background", "foreground")
    layers: tuple[str, ...] = ()
    optional_files: tuple[()] = ()

    def label(self, batch: Batch) -> Labels:
        return Labels(torch.ones(len(batch), 16, 16, dtype=torch.uint8), torch.ones(len(batch)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_without_finite_numbers_is_refused(tmp_path: Path, value: float) -> None:
    sampler = make_sampler(16, batch_size=4)
    with ThreadPoolExecutor(1) as threads:
        run = LoadedRun(config_of(tmp_path), sampler, AllForeground(), "c" * 64, "f" * 64, threads)
        assert len(list(candidates(range(3), run, Stopwatch()))) == 3
        sampler.generator.get_parameter("synthesis.b4.torgb.bias").data[0] = value
        with pytest.raises(ShardError, match=r"seed 0: .* no finite numbers\. .* set numerics\.precision to float32"):
            list(candidates(range(3), run, Stopwatch()))

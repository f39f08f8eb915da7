"""Samples of a batch on their way into a shard: what is no image is no sample, and the device does not wait."""

import time
from collections.abc import Collection, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.random_sampler import make_sampler
from helpers.small_dataset import config_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from labelmill.pipeline import make_shard as make_shard_module
from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.base import Labeler, Labels
from labelmill.pipeline.labelers.methods import fit_to_bytes
from labelmill.pipeline.labelers.style_mixing.fitted import FittedStyleMixing
from labelmill.pipeline.labelers.style_mixing.labeler import StyleMixingLabeler
from labelmill.pipeline.make_shard import LoadedRun, candidates, make_shard
from labelmill.pipeline.process.stopwatch import Stopwatch
from labelmill.pipeline.shards.reader import members_in, metadata_in
from labelmill.schemas.errors import ShardError
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.sample import Sample
from labelmill.schemas.shard import ShardTask


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


@dataclass
class Watched:
    """A labeler that notes what has been read when it is asked for the next batch."""

    read: list[int]
    classes: tuple[str, ...] = ("background", "foreground")
    layers: tuple[str, ...] = ()
    optional_files: tuple[()] = ()
    asked: list[tuple[int, int]] = field(default_factory=list)
    """First seed of each batch, and how many seeds were read before."""

    def label(self, batch: Batch) -> Labels:
        self.asked.append((batch.seeds[0], len(self.read)))
        masks_BHW = torch.zeros(len(batch), 16, 16, dtype=torch.uint8)
        for row, seed in enumerate(batch.seeds):
            masks_BHW[row, : 16 if seed % 3 else 8] = 1  # two of three are too large to be kept
        return Labels(masks_BHW, torch.ones(len(batch)))


def _loaded(tmp_path: Path, labeler: Labeler, threads: Executor, *, enabled: bool = False) -> LoadedRun:
    config = config_of(tmp_path)
    quality = config.quality.model_copy(update={"enabled": enabled, "confidence_min": 0})
    numerics = config.numerics.model_copy(update={"batch_size": 4})
    config = config.model_copy(update={"quality": quality, "numerics": numerics})
    return LoadedRun(config, make_sampler(16, batch_size=4), labeler, "c" * 64, "f" * 64, threads)


def test_the_device_has_the_next_batch_before_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labeler, rows = Watched(read=[]), make_shard_module._Launched.rows

    def noted(launched: make_shard_module._Launched, stopwatch: Stopwatch) -> list[make_shard_module._Row]:
        labeler.read.extend(launched.seeds)
        return rows(launched, stopwatch)

    monkeypatch.setattr(make_shard_module._Launched, "rows", noted)
    with ThreadPoolExecutor(2) as threads:
        run = _loaded(tmp_path, labeler, threads)
        drawn = list(candidates(range(14), run, Stopwatch()))
        assert [sample.metadata.candidate.seed for sample in drawn] == list(range(14))
        assert labeler.asked == [(0, 0), (4, 0), (8, 4), (12, 8)]
        # Of a shard nothing is synthesised that it would not need if all were kept.
        for num_samples, batches in ((8, 2), (9, 3), (14, 4)):
            labeler.asked.clear()
            task = ShardTask(index=0, name="x-000000", num_samples=num_samples, first_seed=0, num_seeds=200)
            assert make_shard(task, run).finish().num_candidates == num_samples
            assert len(labeler.asked) == batches


def test_a_shard_does_not_depend_on_who_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = ShardTask(index=0, name="x-000000", num_samples=9, first_seed=0, num_seeds=200)
    judge = make_shard_module._judged

    def late(run: LoadedRun, row: make_shard_module._Row) -> Sample:
        time.sleep(0.01 * (-row.seed % 4))  # the first of a batch last
        return judge(run, row)

    with ThreadPoolExecutor(4) as threads:
        run = _loaded(tmp_path, Watched(read=[]), threads, enabled=True)
        made = make_shard(task, run).finish()
        monkeypatch.setattr(make_shard_module, "_judged", late)
        again = make_shard(task, run).finish()
    assert (again.tar, again.num_candidates) == (made.tar, made.num_candidates) == (made.tar, 25)
    kept = [sample.candidate.seed for sample in metadata_in(members_in(made.tar))]
    assert kept == list(range(0, 25, 3))


def test_what_a_thread_beside_the_device_raises_fails_the_shard(tmp_path: Path) -> None:
    class Wrong(Watched):
        def label(self, batch: Batch) -> Labels:
            return Labels(torch.full((len(batch), 16, 16), 7, dtype=torch.uint8), torch.ones(len(batch)))

    task = ShardTask(index=0, name="x-000000", num_samples=9, first_seed=0, num_seeds=200)
    with ThreadPoolExecutor(2) as threads, pytest.raises(ValueError, match=r"seed 0: mask holds \[7\]"):
        make_shard(task, _loaded(tmp_path, Wrong(read=[]), threads))


def test_the_thread_that_feeds_the_device_does_little_else(tmp_path: Path) -> None:
    # A device that costs nothing; CPU seconds, so that a busy machine does not matter.
    side, size, task = 256, 16, ShardTask(index=0, name="x-000000", num_samples=96, first_seed=0, num_seeds=200)
    random = np.random.default_rng(0)
    images_BHWC = torch.from_numpy(random.integers(0, 256, (size, side, side, 3), np.uint8))
    masks_BHW = torch.zeros(size, side, side, dtype=torch.uint8)
    masks_BHW[:, 50:200, 50:200] = 1

    class Free(Sampler):
        def __init__(self) -> None: ...

        def sample(self, seeds: Sequence[int], layers: Collection[str] = (), edit_D: Tensor | None = None) -> Batch:
            no_pixels = torch.zeros(size, 3, 1, 1)
            return Batch(tuple(seeds), (None,) * size, no_pixels[..., 0], no_pixels, "none")

    class Same(AllForeground):
        def label(self, batch: Batch) -> Labels:
            return Labels(masks_BHW, torch.ones(size))

    with ThreadPoolExecutor(2) as threads, pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_shard_module, "to_uint8", lambda images_BCHW: images_BHWC)
        config = config_of(tmp_path)
        config = config.model_copy(update={"numerics": config.numerics.model_copy(update={"batch_size": size})})
        run = LoadedRun(config, Free(), Same(), "c" * 64, "f" * 64, threads)
        make_shard(task, run).finish()
        start, start_of_all = time.thread_time(), time.process_time()
        drawn = make_shard(task, run)
        feeding = time.thread_time() - start
        drawn.finish()
        everything = time.process_time() - start_of_all
    assert feeding < everything / 5


class CopiesToDevice(TorchDispatchMode):
    """Counts tensors that go from the host to a device of the kind meta, where every read by the host raises."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        sources = [value for value in args if isinstance(value, Tensor)]
        is_copy = any(value.device.type == "cpu" and value.dim() for value in sources)
        self.count += is_copy and isinstance(result, Tensor) and result.device.type == "meta"
        return result


@pytest.mark.parametrize("masks_from", ["readout", "clusters"])
def test_a_batch_is_asked_for_without_a_look_at_the_device(masks_from: str) -> None:
    config = StyleMixingConfig.model_validate(
        {"variants": 4, "crossover": 3, "clusters": 4, "restarts": 2, "iterations": 3, "masks_from": masks_from}
        | {"fit_samples": 16}
    )
    on_cpu = make_sampler(16)
    fitted = fit_to_bytes(config, on_cpu)
    sampler = Sampler(make_sampler(16).generator, on_cpu.config, on_cpu.numerics, "meta")
    mixing = FittedStyleMixing.from_bytes(fitted, config, sampler.generator.spec, sampler.device, None)
    labeler = StyleMixingLabeler(config, sampler, mixing)
    with CopiesToDevice() as copies:
        batch = sampler.sample(range(4), labeler.layers)
        assert copies.count == 1  # z
        labels = labeler.label(batch)
        assert masks_from == "clusters" or copies.count == 1
        found = make_shard_module._pixels(batch, labels) | make_shard_module._values(batch, labels)
    assert {tensor.device.type for tensor in found.values()} == {"meta"}

"""What a worker fixes before it starts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from labelmill.pipeline.generator.open import open_sampler
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.yaml_file import load_config


def test_bits_do_not_depend_on_the_threads_that_torch_has(write_run_file: Callable[..., Path]) -> None:
    # Matrix products of this generator are split differently by one thread and by two; the tiny one's are not.
    path = write_run_file(generator={"checkpoint": "bundled:avatars-32"}, numerics={"batch_size": 16, "threads": 2})
    config = load_config(path, RunConfig)
    before = torch.get_num_threads()
    images = []
    try:
        for num_threads in (1, 2, 4):
            torch.set_num_threads(num_threads)
            sampler, _ = open_sampler(config)
            images.append(sampler.sample(range(16)).images_BCHW)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_a_gpu_that_is_not_there(write_run_file: Callable[..., Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    config = load_config(write_run_file(execution={"device": "cuda"}), RunConfig)
    with pytest.raises(ConfigError, match=r"execution\.device: cuda, but PyTorch finds no GPU here"):
        open_sampler(config)


def test_a_gpu_that_was_promised(write_run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = load_config(write_run_file(execution={"gpus_per_worker": 0.5}), RunConfig)
    with pytest.raises(ConfigError, match=r"execution\.gpus_per_worker: 0\.5, but PyTorch can use no GPU on \S+"):
        open_sampler(config)
    # The machine that asks a cluster for GPUs needs none itself.
    on_ray = config.execution.model_copy(update={"executor": "ray"})
    assert open_sampler(config.model_copy(update={"execution": on_ray}))[0].device.type == "cpu"


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_needs_a_gpu(write_run_file: Callable[..., Path], precision: str) -> None:
    config = load_config(write_run_file(numerics={"precision": precision}, execution={"device": "cpu"}), RunConfig)
    with pytest.raises(ConfigError, match=rf"numerics\.precision: {precision} needs a GPU"):
        open_sampler(config)

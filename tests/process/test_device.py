"""The device of a setting, on machines with any number of GPUs: a GPU is not there to be tried, its number is."""

import pytest
import torch

from labelmill.pipeline.process.device import choose_device
from labelmill.schemas.errors import ConfigError


@pytest.fixture
def num_gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.parametrize(
    ("num_gpus", "name", "chosen"),
    [(0, "auto", "cpu"), (2, "auto", "cuda"), (2, "cpu", "cpu"), (2, "cuda", "cuda"), (2, "cuda:1", "cuda:1")],
    indirect=["num_gpus"],
)
def test_the_device_of_a_name(num_gpus: None, name: str, chosen: str) -> None:
    assert choose_device(name) == torch.device(chosen)


@pytest.mark.parametrize(
    ("num_gpus", "name", "words"),
    [
        (0, "cuda", "execution.device: cuda, but PyTorch finds no GPU here; auto or cpu works"),
        (0, "cuda:1", "execution.device: cuda:1, but PyTorch finds no GPU here; auto or cpu works"),
        (2, "gpu", "execution.device: gpu is no device; auto, cpu, cuda or cuda:N works"),
        (2, "cuda:2", "execution.device: cuda:2 is not there; this machine has 2 GPUs, counted from cuda:0"),
    ],
    indirect=["num_gpus"],
)
def test_a_gpu_that_is_not_there_is_refused(num_gpus: None, name: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        choose_device(name, key="execution.device")
    assert str(raised.value) == words

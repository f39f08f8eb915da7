"""The device of a setting, on machines with any number of GPUs: a GPU is not there to be tried, its number is."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from labelmill.pipeline.process.device import best_precision, choose_device, repeatable_kernels
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


@pytest.fixture
def precisions() -> Iterator[Callable[[], tuple[str, ...]]]:
    """Reads the precision of float32 products on a GPU; what a test changes holds no longer than it."""
    cudnn: Any = torch.backends.cudnn
    settings = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)

    def read() -> tuple[str, ...]:
        return tuple(setting.fp32_precision for setting in settings)

    before = read()
    yield read
    for setting, precision in zip(settings, before, strict=True):
        setting.fp32_precision = precision


def _by_matmul() -> None:
    torch.set_float32_matmul_precision("high")


def _by_convolution() -> None:
    cudnn: Any = torch.backends.cudnn
    cudnn.conv.fp32_precision = "ieee"


@pytest.mark.parametrize("choose", [_by_matmul, _by_convolution])
def test_kernels_repeat_whatever_a_library_has_asked_for(
    choose: Callable[[], None], precisions: Callable[[], tuple[str, ...]]
) -> None:
    choose()
    asked = precisions()
    with pytest.raises(ZeroDivisionError), repeatable_kernels():
        assert precisions() == ("ieee", "ieee", "ieee")
        assert not torch.is_grad_enabled() and torch.backends.cudnn.deterministic
        raise ZeroDivisionError
    assert precisions() == asked and torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("device", "capability", "precision"),
    [
        ("cpu", (9, 0), "float32"),
        ("cuda", (6, 1), "float32"),
        ("cuda:1", (7, 0), "float16"),
        ("cuda", (9, 0), "float16"),
    ],
)
def test_the_best_precision_of_a_device(
    device: str, capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert best_precision(torch.device(device)) == precision

"""The many shapes in which rosinality's weights travel."""

import argparse
from collections import OrderedDict

import pytest
import torch
from generator.checkpoints.checkpoint_files import (
    images,
    random_discriminator,
    random_generator,
    relative_difference,
    rosinality_discriminator,
    rosinality_state,
    torch_file,
)
from torch import Tensor

from labelmill.pipeline.generator.checkpoints import CheckpointError, LoadedCheckpoint, parse_checkpoint
from labelmill.pipeline.generator.networks import Generator


def loaded(value: object, *, stream: bool = False) -> LoadedCheckpoint:
    return parse_checkpoint("file.pt", torch_file(value, stream=stream))


def state_of(generator: Generator, **options: bool) -> "OrderedDict[str, Tensor]":
    return rosinality_state(generator, **options)


def training_file(generator: Generator) -> dict[str, object]:
    """What rosinality's train.py saves."""
    network = random_discriminator()
    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimiser = torch.optim.Adam(parameters)
    sum(parameter.sum() for parameter in parameters).backward()
    optimiser.step()
    return {
        "g": rosinality_state(random_generator(9)),
        "d": rosinality_discriminator(network),
        "g_ema": rosinality_state(generator),
        "g_optim": optimiser.state_dict(),
        "d_optim": optimiser.state_dict(),
        "args": argparse.Namespace(path="data", size=16, lr=0.002, distributed=False, wandb=None),
        "ada_aug_p": 0.0,
    }


@pytest.mark.parametrize("stream", [False, True])
def test_with_average(stream: bool) -> None:
    generator = random_generator()
    value = {"g_ema": state_of(generator), "latent_avg": generator.mapping.w_avg}
    checkpoint = loaded(value, stream=stream)
    assert checkpoint.generator.spec == generator.spec
    assert "w_avg" not in checkpoint.info.provenance
    assert relative_difference(images(checkpoint.generator), images(generator)) < 1e-6


@pytest.mark.parametrize(("const_size", "img_channels"), [((4, 2), 3), ((2, 4), 1)])
def test_rectangular_and_gray_networks(const_size: tuple[int, int], img_channels: int) -> None:
    generator = random_generator(const_size=const_size, img_channels=img_channels)
    found = loaded({"g_ema": state_of(generator), "latent_avg": generator.mapping.w_avg}).generator
    assert found.spec == generator.spec
    assert torch.equal(images(found), images(generator))


@pytest.mark.parametrize("stream", [False, True])
def test_training_file(stream: bool) -> None:
    generator = random_generator()
    content = torch_file(training_file(generator), stream=stream)
    checkpoint = parse_checkpoint("file.pt", content, discriminator=True)
    assert checkpoint.info.provenance["weights"] == "g_ema"
    assert checkpoint.info.provenance["w_avg"].startswith("estimated")
    found = checkpoint.generator
    found.mapping.w_avg = generator.mapping.w_avg
    assert relative_difference(images(found), images(generator)) < 1e-6

    assert checkpoint.discriminator is not None
    images_BCHW = torch.randn(4, 3, 16, 16)
    expected = random_discriminator()(images_BCHW)
    assert relative_difference(checkpoint.discriminator(images_BCHW), expected) < 1e-6
    unasked = parse_checkpoint("file.pt", content)
    assert unasked.discriminator is None
    assert unasked.info.has_discriminator


@pytest.mark.parametrize("prefix", ["", "module."])
def test_bare_state_dict(prefix: str) -> None:
    generator = random_generator()
    state = OrderedDict((prefix + name, tensor) for name, tensor in state_of(generator).items())
    found = loaded(state)
    assert found.info.provenance["weights"] == "the file itself"
    found.generator.mapping.w_avg = generator.mapping.w_avg
    assert relative_difference(images(found.generator), images(generator)) < 1e-6


def test_without_averaged_weights_the_others_are_used_and_named() -> None:
    content = {"g": state_of(random_generator(5)), "d": {}}
    assert loaded(content).info.provenance["weights"] == "g"


def test_missing_noise_is_drawn_once_and_recorded() -> None:
    state = state_of(random_generator(), with_noise=False)
    first, second = loaded({"g_ema": state}), loaded({"g_ema": state})
    assert first.info.provenance["noise"] == "5 buffers, absent from the file: RandomState(0)"
    assert torch.equal(images(first.generator), images(second.generator))
    first.generator.mapping.w_avg = random_generator().mapping.w_avg
    without = images(random_generator(), noise="none")
    assert relative_difference(images(first.generator, noise="none"), without) < 1e-6


def test_labels4free_file_with_its_generator() -> None:
    """Its `g` is the generator that the alpha network was trained on, unchanged."""
    alpha = {"conv.weight": torch.ones(3)}
    found = loaded({"g": state_of(random_generator()), "bg_extractor": alpha, "bg_extractor_ema": alpha})
    assert "Labels4Free" in found.info.provenance["alpha network"]
    found.generator.mapping.w_avg = random_generator().mapping.w_avg
    assert relative_difference(images(found.generator), images(random_generator())) < 1e-6


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"bg_extractor_ema": {"conv.weight": torch.ones(3)}}, "a Labels4Free alpha network.*without its generator"),
        ({"d": {"final_conv.0.weight": torch.ones(3)}}, "holds a discriminator but no generator"),
        ({"final_conv.0.weight": torch.ones(3)}, "holds a discriminator but no generator"),
        ({"g_running": {"generator.progression.0.conv": torch.ones(3)}}, "a StyleGAN1 checkpoint"),
        ({"synthesis.input.weight": torch.ones(3)}, "a StyleGAN3 state dict"),
        ({"encoder": {"conv1.weight": torch.ones(3)}, "opts": 1}, "its entries are 'encoder', 'opts'"),
        (torch.ones(3), "holds a StoredTensor, not a checkpoint"),
        ({}, "holds a dict, not a checkpoint"),
    ],
)
def test_what_else_it_may_be(value: object, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=f"file.pt: .*{sentence}"):
        loaded(value)


def test_forks_are_named() -> None:
    state = state_of(random_generator())
    state["convs.0.attention.gamma"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"has 'convs\.0\.attention\.gamma', unknown to StyleGAN2"):
        loaded({"g_ema": state})
    state = state_of(random_generator())
    state["convs.0.conv.blur.kernel"] = torch.ones(4, 4)
    with pytest.raises(CheckpointError, match="a resampling filter other than"):
        loaded({"g_ema": state})
    state = state_of(random_generator())
    del state["convs.1.activate.bias"]
    with pytest.raises(CheckpointError, match=r"it lacks synthesis\.b8\.conv1\.bias"):
        loaded({"g_ema": state})
    del state["convs.1.conv.weight"]
    with pytest.raises(CheckpointError, match=r"incomplete: a StyleGAN2 generator has synthesis\.b8\.conv1\.weight"):
        loaded({"g_ema": state})


def test_a_pickled_module_of_something_else_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"names 'torch\.nn\.modules\.linear\.Linear'"):
        loaded({"g_ema": torch.nn.Linear(2, 2)})


def test_checksums_that_torch_was_told_to_leave_out() -> None:
    generator = random_generator()
    torch.serialization.set_crc32_options(False)
    try:
        content = torch_file({"g_ema": state_of(generator)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert parse_checkpoint("file.pt", content).generator.spec == generator.spec

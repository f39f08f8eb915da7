"""Pickles of NVIDIA's PyTorch repositories: both ways of storing settings, and what must be refused."""

import pytest
import torch
from generator.checkpoints.checkpoint_files import (
    SMALL,
    dump,
    images,
    nvidia_module,
    nvidia_pickle,
    random_discriminator,
    random_generator,
    relative_difference,
)
from torch import nn

from labelmill.pipeline.generator.checkpoints import CheckpointError, parse_checkpoint
from labelmill.pipeline.generator.discriminator import Discriminator
from labelmill.pipeline.generator.layers import FullyConnected
from labelmill.pipeline.generator.networks import Generator


def loaded(content: bytes) -> Generator:
    return parse_checkpoint("file.pkl", content).generator


@pytest.mark.parametrize(
    ("const_size", "img_channels", "options"),
    [((4, 2), 3, {"square": False}), ((3, 5), 1, {"synthesis_kwargs": {"init_res": [3, 5]}})],
)
def test_rectangular_and_gray_networks_survive(
    const_size: tuple[int, int], img_channels: int, options: dict[str, object]
) -> None:
    generator = random_generator(const_size=const_size, img_channels=img_channels)
    judge = Discriminator(SMALL.channels, image_channels=img_channels, lowest_size=const_size).eval()
    stored = nvidia_pickle(generator, kwargs={"synthesis_kwargs": {}, **options}, discriminator=judge)
    found = parse_checkpoint("file.pkl", stored, discriminator=True)
    assert found.generator.spec == generator.spec
    assert torch.equal(images(found.generator), images(generator))
    shown_BCHW = torch.randn(2, img_channels, 4 * const_size[0], 4 * const_size[1])
    assert found.discriminator is not None
    assert torch.equal(found.discriminator(shown_BCHW), judge(shown_BCHW))


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
@pytest.mark.parametrize("c_dim", [0, 3])
def test_any_generator_survives(architecture: str, c_dim: int) -> None:
    generator = random_generator(architecture=architecture, c_dim=c_dim)
    found = loaded(nvidia_pickle(generator, kwargs={"synthesis_kwargs": {"architecture": architecture}}))
    assert found.spec == generator.spec
    assert torch.equal(images(found), images(generator))


def test_settings_of_the_stylegan3_repository_are_flat_and_clamp_unless_told() -> None:
    content = nvidia_pickle(random_generator(), kwargs={"channel_base": 64, "fused_modconv_default": "inference_only"})
    checkpoint = parse_checkpoint("file.pkl", content)
    assert checkpoint.info.format == "stylegan3-repository StyleGAN2 pickle"
    assert checkpoint.generator.spec.conv_clamp == 256.0

    nested = parse_checkpoint("file.pkl", nvidia_pickle(random_generator(), kwargs={"synthesis_kwargs": {}}))
    assert nested.info.format == "stylegan2-ada-pytorch pickle"
    assert nested.generator.spec.conv_clamp is None


def test_repository_is_told_by_attributes_when_no_setting_is_stored() -> None:
    content = nvidia_pickle(random_generator(), attributes={"synthesis": {"num_fp16_res": 4}})
    assert parse_checkpoint("file.pkl", content).info.format == "stylegan3-repository StyleGAN2 pickle"
    assert parse_checkpoint("file.pkl", nvidia_pickle(random_generator())).generator.spec.conv_clamp is None


def test_the_layers_own_clamp_counts_and_is_applied() -> None:
    layers = ("b4.conv1", "b4.torgb", "b8.conv0", "b8.conv1", "b8.torgb", "b16.conv0", "b16.conv1", "b16.torgb")
    attributes = {f"synthesis.{name}": {"conv_clamp": 0.5} for name in layers}
    found = loaded(nvidia_pickle(random_generator(), attributes=attributes))
    assert torch.equal(images(found), images(random_generator(conv_clamp=0.5)))
    assert not torch.equal(images(found), images(random_generator()))

    attributes["synthesis.b16.torgb"] = {"conv_clamp": 1}
    with pytest.raises(CheckpointError, match="conv_clamp differs by layer"):
        loaded(nvidia_pickle(random_generator(), attributes=attributes))


def test_another_learning_rate_multiplier_is_folded_in() -> None:
    generator, stored = random_generator(), random_generator()
    for index in range(2):
        for parameter in stored.mapping.get_submodule(f"fc{index}").parameters():
            parameter.data *= 0.01 / 0.5
    gains = {f"mapping.fc{index}": {"bias_gain": 0.5} for index in range(2)}
    found = loaded(nvidia_pickle(stored, attributes=gains))
    assert relative_difference(images(found), images(generator)) < 1e-5


def test_noise_may_be_left_out_as_without_use_noise() -> None:
    generator, stored = random_generator(), random_generator()
    for size in (4, 8, 16):
        for name in ("conv0", "conv1"):
            layer = getattr(stored.synthesis.get_submodule(f"b{size}"), name, None)
            if layer is not None:
                del layer.noise_const, layer.noise_strength
    found = loaded(nvidia_pickle(stored, kwargs={"synthesis_kwargs": {"use_noise": False}}))
    assert torch.equal(images(found), images(generator, noise="none"))


def test_a_missing_average_is_estimated_and_recorded() -> None:
    generator, stored = random_generator(c_dim=3), random_generator(c_dim=3)
    del stored.mapping.w_avg
    first, second = (parse_checkpoint("file.pkl", nvidia_pickle(stored)) for _ in range(2))
    assert first.info.provenance["w_avg"].startswith("estimated: mean of 4096 latents")
    average = first.generator.mapping.w_avg
    assert torch.equal(average, second.generator.mapping.w_avg)

    z_BZ = torch.randn(30_000, 12, generator=torch.Generator().manual_seed(3))
    classes_BZ = torch.eye(3).repeat(10_000, 1)
    ws_BD = generator.map(z_BZ, classes_BZ)[:, 0]
    # Six standard errors of the smaller sample.
    assert bool(((average - ws_BD.mean(dim=0)).abs() < 6 * ws_BD.std(dim=0) / 4096**0.5).all())


def test_the_estimate_does_not_depend_on_threads() -> None:
    stored = random_generator(z_dim=256, w_dim=256, mapping_layers=8)
    del stored.mapping.w_avg
    content, averages = nvidia_pickle(stored), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        averages.append(loaded(content).mapping.w_avg)
    torch.set_num_threads(1)
    assert all(torch.equal(average, averages[0]) for average in averages)


def test_without_averaged_weights_the_others_are_used_and_named() -> None:
    content = nvidia_pickle(random_generator(), G=nvidia_module(random_generator(3)), G_ema=None)
    found = parse_checkpoint("file.pkl", content)
    assert found.info.provenance["weights"] == "G"
    assert torch.equal(images(found.generator), images(random_generator(3)))


def test_a_lone_generator_is_enough() -> None:
    assert torch.equal(images(loaded(dump(nvidia_module(random_generator())))), images(random_generator()))


@pytest.mark.parametrize("c_dim", [0, 3])
def test_discriminator_is_kept_when_asked_for(c_dim: int) -> None:
    network = random_discriminator(c_dim=c_dim, conv_clamp=0.7)
    clamped = [f"b{size}.{name}" for size in (8, 16) for name in ("conv0", "conv1")] + ["b16.fromrgb", "b4.conv"]
    stored = nvidia_module(network, "Discriminator", {name: {"conv_clamp": 0.7} for name in clamped})
    content = nvidia_pickle(random_generator(c_dim=c_dim), D=stored)
    assert parse_checkpoint("file.pkl", content).discriminator is None
    found = parse_checkpoint("file.pkl", content, discriminator=True).discriminator
    assert found is not None
    images_BCHW = torch.randn(4, 3, 16, 16)
    classes_BZ = torch.eye(3)[torch.arange(4) % 3] if c_dim else None
    assert torch.equal(found(images_BCHW, classes_BZ), network(images_BCHW, classes_BZ))


def test_discriminator_alone_is_named() -> None:
    content = nvidia_pickle(random_generator(), D=nvidia_module(random_discriminator()), G_ema=None)
    with pytest.raises(CheckpointError, match=r"file\.pkl: holds a discriminator but no generator"):
        loaded(content)
    with pytest.raises(CheckpointError, match="holds a discriminator but no generator"):
        loaded(dump(nvidia_module(random_discriminator(), "Discriminator")))


def test_stylegan3_is_named() -> None:
    generator = random_generator()
    generator.synthesis.add_module("input", nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"StyleGAN3 generator.*StyleGAN2 works"):
        loaded(nvidia_pickle(generator))


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"synthesis_kwargs": {"magnitude_ema_beta": 0.5}}, "'magnitude_ema_beta' = 0.5"),
        ({"scale_type": [4, 7]}, "'scale_type' = a list"),
        ({"mapping_kwargs": {"w_type": "plus"}}, "'w_type' = 'plus'"),
    ],
)
def test_unknown_options_are_named(kwargs: dict[str, object], named: str) -> None:
    with pytest.raises(CheckpointError, match=f"unknown architecture option {named}"):
        loaded(nvidia_pickle(random_generator(), kwargs=kwargs))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"square": True},
        {"synthesis_kwargs": {"square": True, "freeze_layers": 3}},
        {"freeze_layers": 10, "class_name": "training.networks.Generator"},
    ],
)
def test_options_of_forks_that_change_nothing(kwargs: dict[str, object]) -> None:
    found = parse_checkpoint("file.pkl", nvidia_pickle(random_generator(), kwargs=kwargs))
    assert found.info.format == "stylegan2-ada-pytorch pickle"
    assert found.generator.spec == random_generator().spec
    assert torch.equal(images(found.generator), images(random_generator()))


def test_unknown_options_say_what_to_do() -> None:
    content = nvidia_pickle(random_generator(), kwargs={"skip_everything": True})
    with pytest.raises(CheckpointError, match=r"If it changes no image, save the weights alone.*torch\.save"):
        loaded(content)


def test_mapping_layers_of_another_width() -> None:
    generator = random_generator(mapping_width=20, c_dim=3)
    content = nvidia_pickle(generator, kwargs={"mapping_kwargs": {"layer_features": 20}, "synthesis_kwargs": {}})
    assert loaded(content).spec == generator.spec
    assert torch.equal(images(loaded(content)), images(generator))


def test_a_class_embedding_of_another_width_is_named() -> None:
    generator = random_generator(c_dim=3)
    generator.mapping.embed = FullyConnected(3, 20)
    generator.mapping.fc0 = FullyConnected(32, 12, leaky=True, rate_multiplier=0.01)
    content = nvidia_pickle(
        generator,
        kwargs={"mapping_kwargs": {"embed_features": 20}},
        attributes={"mapping": {"w_dim": 12, "c_dim": 3}},
    )
    for found in (content, dump({"g_ema": generator.state_dict()})):
        with pytest.raises(CheckpointError, match=r"unknown architecture option 'embed_features' = 20: .* w \(12\)"):
            loaded(found)


@pytest.mark.parametrize("taps", [[1.0, 2.0, 1.0], [1.0], [1.0, 3.0, 3.0, 1.1], [1.0] * 100])
def test_other_filters_are_named(taps: list[float]) -> None:
    for stored in (torch.tensor(taps), torch.outer(torch.tensor(taps), torch.tensor(taps))):
        generator = random_generator()
        generator.synthesis.get_submodule("b8").conv0.resample_filter = stored
        with pytest.raises(CheckpointError, match="unknown architecture option: a resampling filter other than"):
            loaded(nvidia_pickle(generator))


def test_the_filter_in_one_direction_is_the_same() -> None:
    generator = random_generator()
    for module in generator.modules():
        if hasattr(module, "resample_filter"):
            module.resample_filter = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    assert torch.equal(images(loaded(nvidia_pickle(generator))), images(random_generator()))


def test_unknown_activation_and_filter_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"b8\.conv0 has activation 'swish', not 'lrelu'"):
        loaded(nvidia_pickle(random_generator(), attributes={"synthesis.b8.conv0": {"activation": "swish"}}))
    generator = random_generator()
    generator.synthesis.get_submodule("b8").conv0.resample_filter[0, 0] += 0.1
    with pytest.raises(CheckpointError, match="a resampling filter other than"):
        loaded(nvidia_pickle(generator))


def test_other_architectures_are_named_by_their_parts() -> None:
    network = nn.Module()
    network.add_module("backbone", nn.Linear(2, 2))
    network.add_module("renderer", nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="not a StyleGAN2 generator: Generator is made of backbone, renderer"):
        loaded(dump({"G_ema": nvidia_module(network, "Generator")}))


def test_wrong_shapes_and_values_are_named() -> None:
    generator = random_generator()
    layer = generator.synthesis.get_submodule("b8").conv1
    layer.bias = nn.Parameter(torch.zeros(5))
    with pytest.raises(CheckpointError, match=r"b8\.conv1\.bias has shape \(5,\).* needs \(8,\)"):
        loaded(nvidia_pickle(generator))
    layer.bias = nn.Parameter(torch.full((8,), torch.inf))
    with pytest.raises(CheckpointError, match=r"b8\.conv1\.bias holds values that are not finite"):
        loaded(nvidia_pickle(generator))
    generator = random_generator()
    generator.synthesis.get_submodule("b8").conv1.extra = nn.Parameter(torch.zeros(5))
    with pytest.raises(CheckpointError, match=r"has in addition synthesis\.b8\.conv1\.extra"):
        loaded(nvidia_pickle(generator))
    generator = random_generator()
    generator.synthesis.get_submodule("b16").torgb.weight = nn.Parameter(torch.zeros(4, 4, 1, 1))
    with pytest.raises(CheckpointError, match=r"its images have 4 channels; gray \(1\) and RGB \(3\) ones work"):
        loaded(nvidia_pickle(generator))


def test_half_precision_tensors_are_widened() -> None:
    generator = random_generator()
    half = random_generator().half()
    found = loaded(nvidia_pickle(half))
    assert found.synthesis.get_submodule("b8").conv1.weight.dtype == torch.float32
    assert relative_difference(images(found), images(generator)) < 2e-2
    brain = loaded(nvidia_pickle(random_generator().bfloat16()))
    expected = generator.synthesis.get_submodule("b8").conv1.weight
    assert torch.equal(brain.synthesis.get_submodule("b8").conv1.weight, expected.bfloat16().float())

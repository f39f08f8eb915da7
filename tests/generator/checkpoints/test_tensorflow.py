"""Pickles of NVIDIA's TensorFlow repositories beyond the conformance file."""

import numpy as np
import pytest
import torch
from generator.checkpoints.checkpoint_files import (
    images,
    random_discriminator,
    random_generator,
    relative_difference,
    tensorflow_pickle,
)

from labelmill.pipeline.generator.checkpoints import CheckpointError, parse_checkpoint
from labelmill.pipeline.generator.networks import Generator


def loaded(content: bytes) -> Generator:
    return parse_checkpoint("file.pkl", content).generator


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
@pytest.mark.parametrize("c_dim", [0, 3])
def test_any_generator_survives(architecture: str, c_dim: int) -> None:
    generator = random_generator(architecture=architecture, c_dim=c_dim)
    checkpoint = parse_checkpoint("file.pkl", tensorflow_pickle(generator, settings={"architecture": architecture}))
    assert checkpoint.generator.spec == generator.spec
    assert checkpoint.info.format == "TensorFlow StyleGAN2 pickle"
    assert "Source Code License-NC" in checkpoint.info.provenance["licence"]
    assert relative_difference(images(checkpoint.generator), images(generator)) < 1e-5


def test_gray_and_rectangular_networks_survive() -> None:
    for changes in ({"img_channels": 1}, {"const_size": (2, 4)}):
        generator = random_generator(**changes)
        found = loaded(tensorflow_pickle(generator, settings={"num_channels": generator.spec.img_channels}))
        assert found.spec == generator.spec
        assert relative_difference(images(found), images(generator)) < 1e-5


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])  # StyleGAN2's are of protocol 4
def test_pickle_protocols(protocol: int) -> None:
    content = tensorflow_pickle(random_generator(), protocol=protocol)
    assert relative_difference(images(loaded(content)), images(random_generator())) < 1e-5


def test_names_of_numpy_before_version_2() -> None:
    content = tensorflow_pickle(random_generator(), protocol=3)
    assert b"numpy._core.multiarray\n" in content
    older = content.replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")
    assert relative_difference(images(loaded(older)), images(random_generator())) < 1e-5


def test_settings_change_the_arithmetic() -> None:
    found = loaded(tensorflow_pickle(random_generator(), settings={"conv_clamp": 0.5, "num_fp16_res": 4}))
    assert relative_difference(images(found), images(random_generator(conv_clamp=0.5))) < 1e-5

    generator = random_generator()
    for index in range(2):
        for parameter in generator.mapping.get_submodule(f"fc{index}").parameters():
            parameter.data *= 0.01 / 0.2
    found = loaded(tensorflow_pickle(generator, settings={"mapping_lrmul": 0.2}))
    assert relative_difference(images(found), images(random_generator())) < 1e-5


@pytest.mark.parametrize("mapping_width", [None, 20])
def test_settings_of_forks_that_change_nothing(mapping_width: int | None) -> None:
    generator = random_generator(mapping_width=mapping_width)
    settings = {"resolution": 16, "resolution_h": 16, "resolution_w": 16, "freeze_layers": 3, "mapping_fmaps": 20}
    found = loaded(tensorflow_pickle(generator, settings=settings))
    assert found.spec == generator.spec
    assert relative_difference(images(found), images(generator)) < 1e-5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"resolution_h": 7}, "'resolution_h' = 7"),
        ({"resolution": 16, "resolution_h": 16, "resolution_w": 8}, "'resolution_w' = 8"),
        ({"nonlinearity": "swish"}, "'nonlinearity' = 'swish'"),
        ({"normalize_latents": False}, "'normalize_latents' = False"),
        ({"resample_kernel": [1, 2, 1]}, "'resample_kernel' = a list"),
        ({"conv_clamp": "much"}, "conv_clamp 'much'"),
    ],
)
def test_unknown_settings_are_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(CheckpointError, match=f"unknown architecture option:? {named}"):
        loaded(tensorflow_pickle(random_generator(), settings=settings))


@pytest.mark.parametrize("name", ["4x4/AdaIN_1/StyleMod/weight", "synthesis/ToRGB_lod0/weight"])
def test_stylegan1_is_named(name: str) -> None:
    with pytest.raises(CheckpointError, match="a StyleGAN1 generator, or one of StyleGAN2's configurations A to D"):
        loaded(tensorflow_pickle(random_generator(), extra_variables={name: np.zeros(3)}))
    with pytest.raises(CheckpointError, match="a StyleGAN1 or older network"):
        loaded(tensorflow_pickle(random_generator(), version=3))


def test_conditional_networks_of_the_first_code_are_named() -> None:
    with pytest.raises(CheckpointError, match="joins labels and latents before normalising"):
        loaded(tensorflow_pickle(random_generator(), extra_variables={"mapping/LabelConcat/weight": np.zeros((3, 12))}))


def test_unknown_variables_are_named() -> None:
    with pytest.raises(CheckpointError, match="has a variable 'synthesis/attention', unknown to StyleGAN2"):
        loaded(tensorflow_pickle(random_generator(), extra_variables={"synthesis/attention": np.zeros(3)}))


def test_discriminator() -> None:
    network = random_discriminator()
    with pytest.raises(CheckpointError, match="holds a discriminator but no generator"):
        loaded(tensorflow_pickle(None, discriminator=network))
    content = tensorflow_pickle(random_generator(), discriminator=network)
    assert parse_checkpoint("file.pkl", content).discriminator is None
    found = parse_checkpoint("file.pkl", content, discriminator=True).discriminator
    assert found is not None
    images_BCHW = torch.randn(4, 3, 16, 16)
    assert relative_difference(found(images_BCHW), network(images_BCHW)) < 1e-5


def test_object_arrays_are_refused() -> None:
    variables = {"dlatent_avg": np.array([print], dtype=object)}
    with pytest.raises(CheckpointError, match=r"dlatent_avg cannot be read .*numpy type 'O8'"):
        loaded(tensorflow_pickle(random_generator(), extra_variables=variables))

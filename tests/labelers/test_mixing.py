"""Variants by mixing rows of w, and the measure of where layout ends."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.generator.checkpoints import open_checkpoint
from pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution
from pipeline.generator.sampling import Batch, Sampler
from pipeline.labelers.mixing import (
    CrossoverTable,
    edge_field,
    field_agreement,
    images_per_pass,
    measure_crossovers,
    mix,
    variants_per_pass,
)
from schemas.config import GeneratorConfig, NumericsConfig

CHECKPOINTS = Path(__file__).parent.parent / "data" / "checkpoints"


def make_sampler(noise: str = "const") -> Sampler:
    torch.manual_seed(2)
    spec = GeneratorSpec(
        resolution=16,
        z_dim=8,
        w_dim=8,
        c_dim=0,
        mapping_layers=2,
        channels=channels_by_resolution(16, channel_base=64, channel_max=8),
    )
    generator = Generator(spec)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.5)
    config = GeneratorConfig.model_validate({"checkpoint": "test", "noise": noise})
    return Sampler(generator, config, NumericsConfig(batch_size=4), "cpu")


@pytest.mark.parametrize("noise", ["const", "none", "per_seed"])
@pytest.mark.parametrize("crossover", [1, 2, 3, 4, 5])
def test_variants_are_full_syntheses_of_mixed_rows_with_the_images_own_noise(crossover: int, noise: str) -> None:
    sampler = make_sampler(noise)
    batch = sampler.sample([1, 2])
    donors_NLD, _ = sampler.ws([10, 11, 12])
    variants_BNCHW = mix(sampler.generator, batch, donors_NLD, crossover)
    assert variants_BNCHW.shape == (2, 3, 3, 16, 16)
    for image in range(2):
        own = batch.select([image])
        for donor in range(3):
            ws_BLD = torch.cat([own.ws_BLD[:, :crossover], donors_NLD[[donor], crossover:]], dim=1)
            expected = sampler.generator.synthesize(ws_BLD, own.noise).images_BCHW[0]
            torch.testing.assert_close(variants_BNCHW[image, donor], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("crossover", [2, 5, 8])
def test_mixing_is_nvidias(crossover: int) -> None:
    expected = np.load(CHECKPOINTS / "ada-64-uncond.expected.npz")
    generator = open_checkpoint(str(CHECKPOINTS / "ada-64-uncond.pkl")).generator
    ws_BLD = torch.from_numpy(expected["ws"])
    images_BCHW = torch.from_numpy(expected["image_noise_const"])
    batch = Batch((0,), (None,), ws_BLD[:1], images_BCHW[:1], "const")
    variants_BNCHW = mix(generator, batch, ws_BLD[1:2], crossover)
    mixed = expected[f"image_mix_sample0_rows_below_{crossover}_sample1_rows_from_{crossover}"]
    assert np.abs(variants_BNCHW[0].numpy() - mixed).max() <= 1e-4 * np.abs(mixed).max()


def test_more_variants_than_a_pass_holds() -> None:
    sampler = make_sampler()
    batch = sampler.sample([1])
    donors_NLD, _ = sampler.ws(range(10, 30))
    variants_BNCHW = mix(sampler.generator, batch, donors_NLD, 3)
    assert variants_BNCHW.shape == (1, 20, 3, 16, 16)
    torch.testing.assert_close(variants_BNCHW[:, 18:], mix(sampler.generator, batch, donors_NLD[18:], 3))


def test_passes_are_bounded_in_images_and_pixels() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [variants_per_pass(size, cpu) for size in (32, 256, 512, 1024)] == [16, 16, 4, 1]
    assert [variants_per_pass(size, cuda) for size in (32, 256, 1024)] == [1024, 256, 16]
    assert [images_per_pass(number, 128, cpu) for number in (2, 16, 256)] == [8, 1, 1]
    assert images_per_pass(16, 256, cuda) == 16


def test_mixing_an_image_with_itself_gives_the_image() -> None:
    sampler = make_sampler()
    batch = sampler.sample([3])
    variants_BNCHW = mix(sampler.generator, batch, batch.ws_BLD, 3)
    torch.testing.assert_close(variants_BNCHW[:, 0], batch.images_BCHW, rtol=1e-4, atol=1e-5)


def test_edges_ignore_contrast_and_its_sign_but_not_direction_and_place() -> None:
    torch.manual_seed(0)
    images_BCHW = torch.randn(2, 3, 24, 24)
    edges = edge_field(images_BCHW)
    same = field_agreement(edges, edge_field(0.3 - 2 * images_BCHW))
    torch.testing.assert_close(same, torch.ones(2))
    assert field_agreement(edges, edge_field(images_BCHW.roll(7, dims=3))).abs().max() < 0.2
    stripes = torch.arange(24.0).sin().view(1, 1, 1, 24).expand(1, 3, 24, 24)
    across = field_agreement(edge_field(stripes), edge_field(stripes.transpose(2, 3)))
    assert across < -0.7


def test_flat_images_agree_with_nothing_and_divide_by_nothing() -> None:
    flat = edge_field(torch.zeros(1, 3, 8, 8))
    assert field_agreement(flat, flat).tolist() == [0.0]


def test_agreement_grows_with_the_crossover_and_ends_near_one() -> None:
    sampler = make_sampler()
    donors_NLD, _ = sampler.ws([10, 11, 12])
    table = measure_crossovers(sampler.generator, sampler.sample([1, 2, 3, 4]), donors_NLD)
    assert sorted(table.layout_agreement) == [1, 2, 3, 4, 5]
    assert table.layout_agreement[5] > 0.9
    assert table.layout_agreement[5] > table.layout_agreement[1]
    assert table.colour_change[5] < table.colour_change[1]


def test_the_lowest_row_of_an_unbroken_run_is_chosen() -> None:
    def choose(agreements: list[float], minimum: float) -> int:
        table = dict(enumerate(agreements, start=1))
        return CrossoverTable(table, dict.fromkeys(table, 0.0)).choose(minimum)

    assert choose([0.1, 0.3, 0.6, 0.8, 0.9], 0.5) == 3
    assert choose([0.9, 0.3, 0.6, 0.8, 0.9], 0.5) == 3
    assert choose([0.6, 0.6, 0.6, 0.8, 0.9], 0.5) == 1
    assert choose([0.1, 0.1, 0.1, 0.1, 0.2], 0.5) == 5

"""What labelmill's speed is measured against: the same pictures, and counts that add up."""

import pytest
import torch

from labelmill.pipeline.benchmark.speed import baseline, multiply_adds
from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution

SPEC = GeneratorSpec(
    resolution=32,
    z_dim=16,
    w_dim=16,
    c_dim=0,
    mapping_layers=2,
    channels=channels_by_resolution(32, channel_base=256, channel_max=16),
)


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    generator = Generator(SPEC).requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(0.1)
    return generator


def test_grouped_convolutions_draw_the_same_pictures(generator: Generator) -> None:
    ws_BLD = generator.map(torch.randn(3, 16))
    wanted = generator.synthesize(ws_BLD).images_BCHW
    found = baseline.synthesise(generator, ws_BLD)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_variants_are_those_of_mixed_rows(generator: Generator) -> None:
    ws_BLD, donors_NLD = generator.map(torch.randn(2, 16)), generator.map(torch.randn(3, 16))
    found = baseline.mixed(generator, ws_BLD, donors_NLD, crossover=3, batch_size=4)
    rows_LD = torch.cat([ws_BLD[1, :3], donors_NLD[2, 3:]])
    wanted = generator.synthesize(rows_LD[None]).images_BCHW[0]
    assert (found[1, 2] - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_counts_add_up() -> None:
    assert multiply_adds.of_rows(SPEC, range(SPEC.num_ws)) == multiply_adds.of_synthesis(SPEC)
    first = 9 * 16 * 16 * 4 * 4  # 3x3 from 16 to 16 channels on 4 px
    assert multiply_adds.of_rows(SPEC, range(1)) == first
    assert multiply_adds.of_variants(SPEC, 4, 1, 32) == 4 * multiply_adds.of_synthesis(SPEC) - 3 * first

"""Variants by mixing rows of w."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.random_sampler import make_noisy_sampler

from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.networks import GeneratorSpec, channels_by_resolution
from labelmill.pipeline.generator.sampling import Batch
from labelmill.pipeline.labelers.style_mixing import mixing
from labelmill.pipeline.labelers.style_mixing.mixing import (
    bytes_per_pass,
    images_per_pass,
    mix,
    mix_in_passes,
    variants_per_pass,
)
from labelmill.schemas.config import NumericsConfig

CHECKPOINTS = Path(__file__).resolve().parents[2] / "data" / "checkpoints"


def _spec(channel_base: int) -> GeneratorSpec:
    channels = channels_by_resolution(1024, channel_base=channel_base, channel_max=512)
    return GeneratorSpec(resolution=1024, z_dim=512, w_dim=512, c_dim=0, mapping_layers=8, channels=channels)


@pytest.mark.parametrize("noise", ["const", "none", "per_seed"])
@pytest.mark.parametrize("crossover", [1, 2, 3, 4, 5])
def test_variants_are_full_syntheses_of_mixed_rows_with_the_images_own_noise(crossover: int, noise: str) -> None:
    sampler = make_noisy_sampler(noise)
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
    sampler = make_noisy_sampler()
    batch = sampler.sample([1])
    donors_NLD, _ = sampler.ws(range(10, 30))
    variants_BNCHW = mix(sampler.generator, batch, donors_NLD, 3)
    assert variants_BNCHW.shape == (1, 20, 3, 16, 16)
    torch.testing.assert_close(variants_BNCHW[:, 18:], mix(sampler.generator, batch, donors_NLD[18:], 3))


def test_passes_are_bounded_in_images_and_pixels() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    narrow, batch_size = _spec(8192), NumericsConfig().batch_size
    assert [variants_per_pass(narrow, size, cpu) for size in (32, 256, 512, 1024)] == [16, 16, 4, 1]
    assert [variants_per_pass(narrow, size, cuda) for size in (8, 256, 1024)] == [1024, 128, 16]
    assert [images_per_pass(number, narrow, 128, cpu, batch_size) for number in (2, 16, 256)] == [8, 1, 1]
    assert images_per_pass(8, narrow, 256, cuda, batch_size) == 16
    # A batch is one pass without padding, however small and few its variants are.
    for size in (batch_size, 4, 1):
        assert [images_per_pass(number, narrow, 32, cuda, size) for number in (2, 8, 16, 32)] == [size] * 4
    assert images_per_pass(2, narrow, 32, cuda, 1024) == batch_size
    assert variants_per_pass(replace(narrow, const_size=(4, 2)), 1024, cpu) == 2


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("base", [16384, 32768])
def test_a_pass_fits_beside_a_batch_on_a_small_gpu(device: str, base: int) -> None:
    # Widths of StyleGAN2's configurations E and F; 256 variants of 256 px were 34 GB.
    spec = _spec(base)
    for size, _ in spec.channels:
        for num_variants in (1, 8, 16, 64, 256):
            needed = bytes_per_pass(num_variants, spec, size, torch.device(device), 16)
            assert needed <= max(mixing._MOST_BYTES, spec.bytes_to_synthesize(size))
    assert spec.bytes_to_synthesize(1024) == 4 * 4 * 1024**2 * base // 1024


def test_mixing_an_image_with_itself_gives_the_image() -> None:
    sampler = make_noisy_sampler()
    batch = sampler.sample([3])
    variants_BNCHW = mix(sampler.generator, batch, batch.ws_BLD, 3)
    torch.testing.assert_close(variants_BNCHW[:, 0], batch.images_BCHW, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise", ["const", "per_seed"])
def test_variants_of_a_lower_resolution_are_the_rgb_at_which_synthesis_stops(noise: str) -> None:
    sampler = make_noisy_sampler(noise)
    batch = sampler.sample([1, 2])
    donors_NLD, _ = sampler.ws([10, 11, 12])
    variants_BNCHW = mix(sampler.generator, batch, donors_NLD, 2, resolution=8)
    assert variants_BNCHW.shape == (2, 3, 3, 8, 8)
    own = batch.select([1])
    ws_BLD = torch.cat([own.ws_BLD[:, :2], donors_NLD[[2], 2:]], dim=1)
    expected = sampler.generator.synthesize(ws_BLD, own.noise, resolution=8).images_BCHW[0]
    torch.testing.assert_close(variants_BNCHW[1, 2], expected, rtol=1e-4, atol=1e-5)


def test_passes_cover_a_batch_in_order_and_are_of_one_size() -> None:
    sampler = make_noisy_sampler()
    batch, (donors_NLD, _) = sampler.sample([1, 2, 3]), sampler.ws(range(10, 18))
    passes = list(mix_in_passes(sampler.generator, batch, donors_NLD, 3, None, batch_size=16))
    assert [(list(positions), len(variants)) for positions, variants in passes] == [([0, 1], 2), ([2], 2)]
    alone = mix(sampler.generator, batch.select([2]), donors_NLD, 3)
    torch.testing.assert_close(passes[1][1][:1], alone)


def test_nothing_is_synthesised_beyond_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    # The bounds of a GPU on a CPU: 8 of these variants would make passes of 16 images.
    monkeypatch.setitem(mixing._MOST_IMAGES, "cpu", 1024)
    monkeypatch.setitem(mixing._MOST_PIXELS, "cpu", 2**24)
    sampler = make_noisy_sampler()
    batch, (donors_NLD, _) = sampler.sample([1, 2, 3, 4]), sampler.ws(range(10, 18))
    synthesised = [
        variants_BNCHW.shape[:2]
        for _, variants_BNCHW in mix_in_passes(sampler.generator, batch, donors_NLD, 3, None, batch_size=4)
    ]
    assert synthesised == [(4, 8)]

"""Seeds to images: the formula, and independence from everything but the seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution
from labelmill.pipeline.generator.sampling import (
    Batch,
    ClassChooser,
    Sampler,
    check_memory,
    latents,
    noise_of_seeds,
    to_uint8,
)
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.errors import ConfigError

SPEC = GeneratorSpec(
    resolution=16,
    z_dim=8,
    w_dim=12,
    c_dim=0,
    mapping_layers=2,
    channels=channels_by_resolution(16, channel_base=64, channel_max=8),
)


def make_generator(c_dim: int = 0, **changes: object) -> Generator:
    torch.manual_seed(1)
    generator = Generator(replace(SPEC, c_dim=c_dim, **changes))
    generator.mapping.w_avg.normal_()
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.5)
    return generator


def make_sampler(c_dim: int = 0, batch_size: int = 4, precision: str = "float32", **settings: object) -> Sampler:
    config = GeneratorConfig.model_validate({"checkpoint": "test.pkl", **settings})
    numerics = NumericsConfig.model_validate({"batch_size": batch_size, "precision": precision})
    return Sampler(make_generator(c_dim), config, numerics, "cpu")


def test_latents_are_those_of_nvidias_tools() -> None:
    z_BZ = latents([3, 2**32 - 1], 8)
    assert z_BZ.dtype == torch.float32
    for row, seed in zip(z_BZ, [3, 2**32 - 1], strict=True):
        assert np.array_equal(row.numpy(), np.random.RandomState(seed).randn(1, 8)[0].astype(np.float32))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=f"seed {seed}: must be 0 or more and below 2\\^32"):
        latents([seed], 4)


@pytest.mark.parametrize("noise", ["const", "none"])
def test_an_image_is_what_the_formula_gives(noise: str) -> None:
    sampler = make_sampler(noise=noise, truncation_psi=0.6, truncation_cutoff=3)
    generator = sampler.generator
    z_BZ = torch.from_numpy(np.random.RandomState(7).randn(1, 8)).float()
    w_BD = generator.mapping(z_BZ)
    ws_BLD = w_BD.repeat(generator.spec.num_ws, 1)[None]
    w_avg = generator.mapping.w_avg
    ws_BLD[:, :3] = w_avg + 0.6 * (ws_BLD[:, :3] - w_avg)
    expected = generator.synthesize(ws_BLD, noise).images_BCHW  # type: ignore[arg-type]
    batch = sampler.sample([7])
    torch.testing.assert_close(batch.ws_BLD, ws_BLD)
    torch.testing.assert_close(batch.images_BCHW, expected)


@pytest.mark.parametrize("noise", ["const", "per_seed"])
def test_pixels_do_not_depend_on_the_batch(noise: str) -> None:
    sampler = make_sampler(noise=noise)
    alone = sampler.sample([5], layers=["b8.conv1"])
    for seeds in ([5, 1, 2, 3], [3, 2, 1, 5], [8, 5]):
        batch = sampler.sample(seeds, layers=["b8.conv1"])
        assert batch.seeds == tuple(seeds)
        assert batch.images_BCHW.shape == (len(seeds), 3, 16, 16)
        place = seeds.index(5)
        assert torch.equal(batch.images_BCHW[place], alone.images_BCHW[0])
        assert torch.equal(batch.ws_BLD[place], alone.ws_BLD[0])
        assert torch.equal(batch.features["b8.conv1"][place], alone.features["b8.conv1"][0])


def test_ws_of_more_seeds_than_a_batch_holds() -> None:
    sampler = make_sampler()
    ws_BLD, class_ids = sampler.ws(range(10))
    assert ws_BLD.shape == (10, 6, 12)
    assert class_ids == (None,) * 10
    assert torch.equal(ws_BLD[6], sampler.ws([6])[0][0])


def test_any_number_of_seeds_comes_in_batches() -> None:
    sampler, layers, edit_D = make_sampler(noise="per_seed"), ["b16.conv1"], torch.linspace(-1, 1, SPEC.w_dim)
    batches = list(sampler.batches(range(3, 13), layers, edit_D))
    assert [batch.seeds for batch in batches] == [(3, 4, 5, 6), (7, 8, 9, 10), (11, 12)]
    for batch in batches:
        alone = sampler.sample(batch.seeds, layers, edit_D)
        assert torch.equal(batch.images_BCHW, alone.images_BCHW)
        assert torch.equal(batch.features["b16.conv1"], alone.features["b16.conv1"])
    assert list(sampler.batches([])) == []


def test_psi_zero_is_the_average_and_can_be_given_apart() -> None:
    sampler = make_sampler(truncation_psi=0.7)
    ws_BLD, _ = sampler.ws([1, 2], psi=0.0)
    torch.testing.assert_close(ws_BLD, sampler.generator.mapping.w_avg.expand(2, 6, 12))


def test_noise_of_a_seed() -> None:
    noise = noise_of_seeds([4, 9], SPEC)
    assert [tuple(tensor.shape) for tensor in noise] == [(2, 1, size, size) for size in (4, 8, 8, 16, 16)]
    assert torch.equal(noise[3][1], noise_of_seeds([9], SPEC)[3][0])
    pooled = torch.cat([tensor.flatten() for tensor in noise_of_seeds(range(40), SPEC)])
    assert abs(pooled.mean()) < 0.02
    assert abs(pooled.std() - 1) < 0.02
    assert not torch.equal(noise[0].flatten()[:8], latents([4], 8)[0])


def test_rectangular_images_have_noise_of_their_own_shape_and_gray_ones_three_equal_channels_on_demand() -> None:
    generator = make_generator(const_size=(4, 2), img_channels=1)
    config = GeneratorConfig.model_validate({"checkpoint": "test.pkl", "noise": "per_seed"})
    batch = Sampler(generator, config, NumericsConfig(batch_size=2), "cpu").sample([3, 5])
    sizes = [(2, 1, size, size // 2) for size in (4, 8, 8, 16, 16)]
    assert [tuple(tensor.shape) for tensor in batch.noise if not isinstance(tensor, str)] == sizes
    assert batch.images_BCHW.shape == (2, 1, 16, 8)
    assert torch.equal(batch.rgb(), batch.images_BCHW.repeat(1, 3, 1, 1))
    alone = Sampler(generator, config, NumericsConfig(batch_size=2), "cpu").sample([5])
    assert torch.equal(alone.images_BCHW[0], batch.images_BCHW[1])


def test_per_seed_noise_changes_the_picture() -> None:
    const, per_seed = (make_sampler(noise=noise).sample([3]).images_BCHW for noise in ("const", "per_seed"))
    assert (const - per_seed).abs().max() > 0.01


def test_a_batch_holds_no_more_than_its_size() -> None:
    with pytest.raises(ValueError, match="1 to 4 seeds, got 5"):
        make_sampler().sample(range(5))


def test_select() -> None:
    batch = make_sampler(noise="per_seed").sample([1, 2, 3], layers=["b4.conv1"])
    chosen = batch.select([2, 0, 2])
    assert isinstance(chosen, Batch)
    assert chosen.seeds == (3, 1, 3)
    assert torch.equal(chosen.images_BCHW[1], batch.images_BCHW[0])
    assert torch.equal(chosen.noise[4][2], batch.noise[4][2])  # type: ignore[index, union-attr]
    assert torch.equal(chosen.features["b4.conv1"][0], batch.features["b4.conv1"][2])


def test_classes_follow_from_seeds_alone() -> None:
    chooser = make_sampler(c_dim=5, classes=[4, 1]).choose_class
    chosen = [chooser(seed) for seed in range(400)]
    assert set(chosen) == {1, 4}
    assert 150 < chosen.count(1) < 250
    assert chosen == [chooser(seed) for seed in range(400)]


def test_class_weights() -> None:
    chooser = make_sampler(c_dim=5, classes={0: 3.0, 2: 0.0, 3: 1.0}).choose_class
    chosen = [chooser(seed) for seed in range(1000)]
    assert set(chosen) == {0, 3}
    assert 700 < chosen.count(0) < 800


def test_all_classes_and_what_they_do() -> None:
    sampler = make_sampler(c_dim=5, classes="all")
    assert {sampler.choose_class(seed) for seed in range(100)} == set(range(5))
    first, second = (make_sampler(c_dim=5, classes=[c]).sample([1]) for c in (0, 1))
    assert (first.class_ids, second.class_ids) == ((0,), (1,))
    assert not torch.equal(first.images_BCHW, second.images_BCHW)
    classes_BZ = torch.eye(5)[[1]]
    expected = sampler.generator.map(latents([1], 8), classes_BZ)
    torch.testing.assert_close(sampler.generator.truncate(expected, 0.7), second.ws_BLD)


@pytest.mark.parametrize(
    ("c_dim", "settings", "message"),
    [
        (0, {"truncation_cutoff": 7}, r"generator\.truncation_cutoff: 7, but test\.pkl has 6 rows of w; 1 to 6"),
        (5, {}, r"generator\.classes: missing, but test\.pkl is conditional on 5 classes"),
        (0, {"classes": [1]}, r"generator\.classes: \[1\], but test\.pkl is not class-conditional"),
        (5, {"classes": [1, 5]}, r"generator\.classes: \[5\] not in 0 to 4"),
        (5, {"classes": []}, r"generator\.classes: weights must be 0 or more, one above 0"),
        (5, {"classes": {1: -1.0, 2: 2.0}}, r"generator\.classes: weights must be 0 or more"),
        (5, {"classes": {1: 0.0}}, r"generator\.classes: weights must be 0 or more, one above 0"),
        (0, {"precision": "float16"}, r"numerics\.precision: float16 needs a GPU"),
    ],
)
def test_settings_that_do_not_fit(c_dim: int, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_sampler(c_dim, **settings)  # type: ignore[arg-type]


def test_bytes_of_known_values() -> None:
    """x * 127.5 + 128 without its fraction: half a step more or less would change each of these."""
    golden = {-1.5: 0, -1.0: 0, -0.998: 0, -0.995: 1, -0.5: 64, -0.004: 127, 0.0: 128, 0.0078: 128, 0.0079: 129}
    golden |= {0.5: 191, 0.992: 254, 0.996: 254, 0.9961: 255, 1.0: 255, 1.5: 255}
    found = to_uint8(torch.tensor([*golden]).view(1, 1, 1, -1))
    assert found.dtype == torch.uint8 and found.flatten().tolist() == [*golden.values()]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3))
def test_bytes_are_nvidias(colour: list[float]) -> None:
    images_BCHW = torch.tensor(colour).view(1, 3, 1, 1)
    expected = [int(min(max(np.float32(np.float32(x) * np.float32(127.5)) + np.float32(128), 0), 255)) for x in colour]
    assert to_uint8(images_BCHW).flatten().tolist() == expected


def test_noise_of_a_seed_is_a_stream_of_its_own() -> None:
    """Golden: it must never change, and is not that of the seed alone, which z is drawn from."""
    channels = channels_by_resolution(8, channel_base=64, channel_max=8)
    spec = GeneratorSpec(resolution=8, z_dim=4, w_dim=4, c_dim=0, mapping_layers=1, channels=channels)
    noise = noise_of_seeds([7], spec)
    assert [tuple(tensor.shape) for tensor in noise] == [(1, 1, 4, 4), (1, 1, 8, 8), (1, 1, 8, 8)]
    expected = np.random.default_rng([7, 1]).standard_normal(16 + 64 + 64, dtype=np.float32)
    assert torch.cat([tensor.flatten() for tensor in noise]).tolist() == expected.tolist()


def test_classes_of_weight_0_are_left_out_and_rounding_leaves_no_seed_without_one() -> None:
    chooser = ClassChooser(GeneratorConfig(checkpoint="test.pkl", classes={0: 0.0, 3: 1.0, 4: 2.0}), 5)
    assert chooser.ids == (3, 4)
    chooser.upper_bounds = np.array([0.2, 0.4])  # as if sums of shares had ended below 1
    assert {chooser(seed) for seed in range(50)} == {3, 4}


def test_a_batch_is_padded_with_its_last_sample() -> None:
    batch = make_sampler(noise="per_seed").sample([5, 6])
    padded = batch.padded(4)
    assert padded.seeds == (5, 6, 6, 6) and batch.padded(2) is batch
    for row, source in enumerate((0, 1, 1, 1)):
        assert torch.equal(padded.images_BCHW[row], batch.images_BCHW[source])


def test_a_cutoff_may_be_all_rows_and_no_more() -> None:
    num_ws = make_generator().spec.num_ws
    assert make_sampler(truncation_cutoff=num_ws).config.truncation_cutoff == num_ws
    with pytest.raises(ConfigError, match=rf"truncation_cutoff: {num_ws + 1}, but test\.pkl has {num_ws} rows of w"):
        make_sampler(truncation_cutoff=num_ws + 1)


def test_kernels_that_repeat() -> None:
    with repeatable_kernels():
        cudnn = torch.backends.cudnn
        assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (False, True, False)
        assert not torch.is_grad_enabled()


def test_a_batch_that_does_not_fit_into_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = make_sampler()
    spec = sampler.generator.spec
    per_image = spec.bytes_to_synthesize(spec.resolution)
    assert per_image == 4 * 4 * max(channels * size**2 for size, channels in spec.channels)
    size = sampler.numerics.batch_size
    for num_fit, words in ((size, None), (size - 1, f"{size - 1} fit"), (0, "not even one image fits")):
        monkeypatch.setattr("labelmill.pipeline.generator.sampling.free_bytes", lambda device, n=num_fit: n * per_image)
        if words is None:
            check_memory(sampler)
            continue
        with pytest.raises(ConfigError, match=rf"batch_size: {size} images of .* the CPU has .* left; {words}"):
            check_memory(sampler)

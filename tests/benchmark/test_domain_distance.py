"""The domain distance: what it says of the bundled generator, small and enlarged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from labelmill.pipeline.avatars.avatars import CLASSES, render
from labelmill.pipeline.avatars.renders import DISTANCE_SEEDS
from labelmill.pipeline.benchmark.oracle.detail_distance import detail_distance, detail_patches, sliced_distance
from labelmill.pipeline.benchmark.oracle.domain_distance import as_markdown, main, measure_distances, shares
from labelmill.pipeline.benchmark.oracle.images import generated_images, rendered_images
from labelmill.pipeline.benchmark.oracle.oracle import open_oracle
from labelmill.pipeline.generator.checkpoints.native import save_generator
from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution
from labelmill.pipeline.generator.training.frechet import frechet_distance


def test_shares_count_pixels() -> None:
    assert shares(np.array([[0, 0], [2, 0]], np.uint8), 4).tolist() == [0.75, 0, 0.25, 0]


def test_generated_avatars_are_farther_from_renders_than_other_renders() -> None:
    num = 96
    found = measure_distances("bundled:avatars-32", (0.7,), num)
    floor, seen = found.distances["other renders"], found.distances["generated, psi 0.7"]
    assert found.classes == CLASSES and (found.num_images, found.resolution) == (num, 32)
    assert 0 < 3 * floor.structure < seen.structure
    assert 0 < floor.detail < seen.detail

    oracle, own = open_oracle("b", 32), DISTANCE_SEEDS[0]
    pair = rendered_images(own[:num])[0], generated_images(range(num)).clamp(-1, 1)
    by_hand = frechet_distance(*(oracle.features(images).numpy() for images in pair))
    assert seen.structure == pytest.approx(by_hand, rel=1e-6)
    assert seen.detail == detail_distance(*pair)

    masks_NHW = np.stack([render(seed, 32).mask_HW for seed in own[:num]])
    counts_K = [(masks_NHW == index).mean() for index in range(len(CLASSES))]
    np.testing.assert_allclose(found.shares["renders, exact"], counts_K)
    np.testing.assert_allclose(found.shares["renders"], counts_K, atol=0.01)
    assert all(abs(shares_K.sum() - 1) < 1e-9 for shares_K in found.shares.values())

    text = as_markdown(found)
    assert f"| other renders | {floor.structure:.3f} | {floor.detail:.2f} |" in text
    assert "| % of pixels | renders, exact | renders | other renders | generated, psi 0.7 |" in text
    assert text.count("\n| ") == 16


def test_a_small_generator_enlarged_has_the_structure_and_lacks_the_detail() -> None:
    num = 64
    found = measure_distances("bundled:avatars-32", (1.0,), num, resolution=64)
    floor, enlarged = found.distances["other renders"], found.distances["generated, psi 1"]
    renders_BCHW, small_BCHW = (
        rendered_images(DISTANCE_SEEDS[0][:num], 64)[0],
        generated_images(range(num), truncation_psi=1.0),
    )
    size_BCHW = torch.nn.functional.interpolate(small_BCHW.clamp(-1, 1), (64, 64), mode="bicubic").clamp(-1, 1)
    reduced = [images.reshape(num, 3, 32, 2, 32, 2).mean(dim=(3, 5)) for images in (renders_BCHW, size_BCHW)]
    by_hand = frechet_distance(*(open_oracle("b", 32).features(images).numpy() for images in reduced))
    assert enlarged.structure == pytest.approx(by_hand, rel=1e-4)
    assert enlarged.detail > 10 * floor.detail


class TestDetail:
    def test_along_one_axis_it_is_the_mean_difference_of_sorted_numbers(self) -> None:
        first, second = (np.random.default_rng(seed).standard_normal((50, 1)).astype(np.float32) for seed in (0, 1))
        expected = 1000 * np.abs(np.sort(first[:, 0]) - np.sort(second[:, 0])).mean()  # directions are 1 or -1
        assert sliced_distance(first, second) == pytest.approx(expected, rel=1e-5)

    def test_patches_of_flat_images_are_zero(self) -> None:
        patches = detail_patches(torch.full((2, 3, 16, 16), 0.25), seed=0)
        assert patches.shape == (2 * 128, 3 * 49) and not patches.any()

    def test_fainter_detail_is_farther_away(self) -> None:
        images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        smooth = (torch.nn.functional.avg_pool2d(images, 3, 1, 1), images * 0.5)
        same = detail_distance(images, images)
        assert all(detail_distance(images, other) > 3 * same for other in smooth)


def test_unusable_arguments_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images", "2", "--generator", "bundled:nobody"]) == 2
    assert "no bundled generator 'nobody'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--images", "1"])
    assert "--images: 2 to 10000, got 1" in capsys.readouterr().err


@pytest.mark.parametrize(("resolution", "size"), [(16, []), (64, ["--resolution", "32"])])
def test_sizes_that_cannot_be_compared_are_refused(
    resolution: int, size: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    channels = channels_by_resolution(resolution, channel_base=64, channel_max=8)
    spec = GeneratorSpec(resolution=resolution, z_dim=8, w_dim=8, c_dim=0, mapping_layers=1, channels=channels)
    save_generator(tmp_path / "small.safetensors", Generator(spec), {})
    assert main(["--images", "2", "--generator", str(tmp_path / "small.safetensors"), *size]) == 2
    assert f"makes images of {resolution} px" in capsys.readouterr().err

"""The downstream benchmark: exact data, networks that learn from it, results that are kept, a page that says so."""

from pathlib import Path

import numpy as np
import pytest
import torch

from labelmill.pipeline.avatars.avatars import CLASSES, render
from labelmill.pipeline.avatars.renders import DISTANCE_SEEDS, GENERATOR_SEEDS, HELD_OUT_SEEDS, VALIDATION_SEEDS
from labelmill.pipeline.avatars.renders import TRAINING_SEEDS as ORACLE_SEEDS
from labelmill.pipeline.benchmark.classes.results import PROMPTED_CLUSTERS
from labelmill.pipeline.benchmark.downstream.data import TEST_SEEDS, TRAINING_SEEDS, Pairs, drawn_pairs
from labelmill.pipeline.benchmark.downstream.results import DownstreamBenchmark, DownstreamSettings
from labelmill.pipeline.benchmark.downstream.run import DownstreamExtent, _Bench, benchmark_downstream
from labelmill.pipeline.benchmark.downstream.tables import PUBLISHED, markdown
from labelmill.pipeline.benchmark.downstream.training import Regime, score_all_background, score_on, train_on
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.segmentation import SegmentationModelConfig

TINY_MODEL = SegmentationModelConfig(architecture="resnet18_8s", upscale=1)
TINY = DownstreamExtent(
    model=TINY_MODEL, steps=2, batch_size=2, num_seeds=2, num_synthetic=4, num_supervised=(3, 1), num_test=3
)
TINY_REGIME = Regime(TINY.model, TINY.steps, TINY.batch_size)


def test_pairs_are_the_drawings_with_exact_foreground() -> None:
    pairs = drawn_pairs(range(9, 12), 32, num_processes=1)
    for index, seed in enumerate(range(9, 12)):
        avatar = render(seed, 32)
        assert np.array_equal(pairs.images_NHWC[index], avatar.image_HWC)
        assert np.array_equal(pairs.masks_NHW[index], avatar.mask_HW)
        assert np.array_equal(pairs.foreground().masks_NHW[index] == 1, avatar.mask_HW != 0)
    assert pairs.classes == CLASSES and pairs.foreground().classes == ("background", "foreground")


def test_what_is_ignored_is_no_foreground() -> None:
    masks_NHW = np.array([[[0, 1, 7, 255]]], np.uint8)
    pairs = Pairs(np.zeros((1, 1, 4, 3), np.uint8), masks_NHW, CLASSES)
    assert pairs.foreground().masks_NHW.tolist() == [[[0, 1, 1, 255]]]


def test_no_figure_is_both_learned_from_and_tested_on() -> None:
    ranges = [TRAINING_SEEDS, GENERATOR_SEEDS, VALIDATION_SEEDS, HELD_OUT_SEEDS, *DISTANCE_SEEDS]
    ranges += list(ORACLE_SEEDS.values())
    assert not any(set(TEST_SEEDS) & set(seeds) for seeds in ranges)


def _squares(count: int) -> Pairs:
    """Bright squares on dark ground."""
    random = np.random.default_rng(count)
    masks = np.zeros((count, 32, 32), np.uint8)
    for mask_HW in masks:
        top, left = random.integers(2, 14, 2)
        mask_HW[top : top + 16, left : left + 16] = 1
    images = masks[..., None] * 140 + random.integers(0, 90, (count, 32, 32, 3))
    return Pairs(images.astype(np.uint8), masks)


def test_a_network_learns_its_pairs_and_follows_from_its_seed() -> None:
    regime = Regime(SegmentationModelConfig(architecture="resnet18_8s", upscale=2), steps=25, batch_size=4)
    device, test = torch.device("cpu"), _squares(10)
    one, two = (train_on(_squares(16), regime, seed=1, device=device)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    miou, nothing = score_on(one, test).miou, score_all_background(test)
    assert miou is not None and miou > 0.8
    share = float((test.masks_NHW == 0).mean())
    assert nothing.iou == {"background": pytest.approx(share), "foreground": 0.0}


@pytest.mark.parametrize(("side", "upscale"), [(16, 8), (32, 4), (64, 2), (128, 1), (256, 1)])
def test_images_of_any_size_have_one_size_inside_the_network(side: int, upscale: int) -> None:
    regime = Regime(SegmentationModelConfig(architecture="resnet18_8s", upscale=4), steps=1, batch_size=1)
    assert regime.for_images_of(side).model.upscale == upscale


def test_results_are_of_one_labelers_settings(tmp_path: Path) -> None:
    circumstances = DownstreamSettings(
        checkpoint="a",
        checkpoint_sha256="b",
        resolution=32,
        truncation_psi=0.7,
        architecture="c",
        upscale=1,
        steps=1,
        batch_size=1,
        num_synthetic=1,
        num_supervised=1,
        num_test=1,
        device="d",
        threads=1,
        versions={},
    )
    config = GeneratorConfig(checkpoint="bundled:avatars-32")
    sampler = Sampler(open_checkpoint(config.checkpoint).generator, config, NumericsConfig(), "cpu")
    store = Store.open(str(tmp_path))
    bench = _Bench(store, sampler, circumstances, TINY, TINY_REGIME, print)
    default = bench.key(StyleMixingConfig())
    assert default == bench.key(StyleMixingConfig())
    others = [bench.key(labeler) for labeler in (StyleMixingConfig(variants=8), PROMPTED_CLUSTERS, None)]
    longer = circumstances.model_copy(update={"steps": 2})
    others.append(_Bench(store, sampler, longer, TINY, TINY_REGIME, print).key(StyleMixingConfig()))
    assert len({default, *others}) == 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_benchmark_is_measured_once_and_written(tmp_path: Path) -> None:
    store, told, device = Store.open(str(tmp_path)), [], torch.device("cpu")
    first = benchmark_downstream(store, "bundled:avatars-32", device, TINY, told.append)
    assert [row.row for row in first.rows] == [
        "style_mixing", "feature_clusters", "alpha_network", "few_shot", "single_image", "all_background",
        "supervised_3", "supervised_1",
    ]  # fmt: skip
    assert [len(row.networks) for row in first.rows] == [2, 2, 2, 2, 2, 1, 2, 2]
    assert len(told) == 14
    assert first.rows[0].networks[0].label_seconds is not None and first.rows[5].networks[0].label_seconds is None
    assert all(network.scores.num_images == 3 for row in first.rows for network in row.networks)
    assert DownstreamBenchmark.model_validate_json(store.read("downstream.json")) == first

    # A lost result is made again, equal but for the time; the others are not.
    store.delete("downstream/style_mixing-1.json")
    again = benchmark_downstream(store, "bundled:avatars-32", device, TINY, told.append)
    assert len(told) == 15
    assert [n.scores for row in again.rows for n in row.networks] == [
        n.scores for row in first.rows for n in row.networks
    ]

    page = store.read("downstream.md").decode()
    assert page == markdown(again)
    figures = [network.scores.miou or 0 for network in again.rows[0].networks]
    assert f"{100 * np.mean(figures):.1f} ± {100 * np.std(figures, ddof=1):.1f}" in page
    assert all(name in page for name in PUBLISHED)

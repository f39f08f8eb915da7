"""The measures of where layout ends and foregrounds still agree, and the choice between rows by both."""

from collections.abc import Sequence

import pytest
import torch
from helpers.random_sampler import make_noisy_sampler

from labelmill.pipeline.labelers.common.agreement import soft_iou
from labelmill.pipeline.labelers.common.kmeans import PixelClusters
from labelmill.pipeline.labelers.style_mixing.crossover import (
    CrossoverTable,
    edge_field,
    field_agreement,
    measure_crossovers,
)
from labelmill.pipeline.labelers.style_mixing.foreground import (
    border_affinity,
    border_share,
    calibrate_affinity,
    cluster_probability,
    on_pixels,
)
from labelmill.pipeline.labelers.style_mixing.mixing import mix
from labelmill.pipeline.labelers.style_mixing.variant_clusters import VariantClusterer
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

CONFIG = StyleMixingConfig(variants=3, clusters=4, restarts=2, iterations=4)


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


def measured(resolution: int | None = None, batches: Sequence[Sequence[int]] = ((1, 2, 3, 4),)) -> CrossoverTable:
    sampler = make_noisy_sampler()
    donors_NLD, _ = sampler.ws([10, 11, 12])
    samples = [sampler.sample(seeds) for seeds in batches]
    return measure_crossovers(sampler.generator, samples, donors_NLD, VariantClusterer(CONFIG), resolution)


def test_agreement_grows_with_the_crossover_and_ends_near_one() -> None:
    table = measured()
    for by_row in (table.layout_agreement, table.foreground_agreement, table.colour_change):
        assert sorted(by_row) == [1, 2, 3, 4, 5]
    assert table.layout_agreement[5] > 0.9
    assert table.layout_agreement[5] > table.layout_agreement[1]
    assert table.colour_change[5] < table.colour_change[1]


def test_variants_that_stop_early_have_fewer_rows_to_mix() -> None:
    assert sorted(measured(resolution=8).layout_agreement) == [1, 2, 3]


@pytest.mark.parametrize("batches", [[[1], [2], [3], [4]], [[1, 2, 3], [4]]])
def test_images_in_several_batches_are_measured_as_one_set(batches: list[list[int]]) -> None:
    whole, parts = measured(), measured(batches=batches)
    for name in ("layout_agreement", "foreground_agreement", "colour_change"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=2e-3)


def test_images_that_are_all_alike_have_no_layout_in_common_with_variants() -> None:
    table = measured(batches=[[1], [1]])
    assert all(value < 0 for value in table.layout_agreement.values())
    assert table.choose(0.5, 0.01) == 5


def test_foreground_agreement_is_that_of_masks_with_and_without_variants() -> None:
    sampler = make_noisy_sampler()
    donors_NLD, _ = sampler.ws([10, 11, 12])
    batch, clusterer = sampler.sample([1, 2, 3, 4]), VariantClusterer(CONFIG)
    variants = torch.cat([mix(sampler.generator, batch.select([i]), donors_NLD, 4) for i in range(4)])

    def masks(clusters: PixelClusters, affinity_BK: torch.Tensor) -> torch.Tensor:
        probability_BK = cluster_probability(clusters, affinity_BK, calibrate_affinity(clusters, affinity_BK))
        return (on_pixels(clusters, probability_BK) > 0.5).float()

    mixed, plain = clusterer(variants), VariantClusterer(CONFIG.model_copy(update={"normalisation": "none"}))
    colours = plain(batch.images_BCHW[:, None])
    expected = soft_iou(masks(mixed, border_affinity(mixed, 3)), masks(colours, border_share(colours))).mean()
    assert abs(measured().foreground_agreement[4] - expected.item()) < 2e-3


def choose(layout: list[float], foreground: list[float], minimum: float = 0.5, loss: float = 0.01) -> int:
    tables = [dict(enumerate(values, start=1)) for values in (layout, foreground)]
    return CrossoverTable(tables[0], tables[1], dict.fromkeys(tables[0], 0.0)).choose(minimum, loss)


def test_the_lowest_row_of_an_unbroken_run_of_layout_agreement_is_chosen() -> None:
    same = [0.8] * 5
    assert choose([0.1, 0.3, 0.6, 0.8, 0.9], same) == 3
    assert choose([0.9, 0.3, 0.6, 0.8, 0.9], same) == 3
    assert choose([0.6, 0.6, 0.6, 0.8, 0.9], same) == 1
    assert choose([0.1, 0.1, 0.1, 0.1, 0.2], same) == 5


def test_of_those_rows_the_lowest_without_loss_of_foreground_is_chosen() -> None:
    layout = [0.1, 0.6, 0.7, 0.8, 0.9]
    assert choose(layout, [0.5, 0.7, 0.8, 0.8, 0.8]) == 3
    assert choose(layout, [0.5, 0.7, 0.8, 0.805, 0.82]) == 5
    assert choose(layout, [0.5, 0.7, 0.8, 0.805, 0.82], loss=0.02) == 3
    assert choose(layout, [0.5, 0.7, 0.8, 0.805, 0.82], loss=1.0) == 2
    # A row that loses the layout sets no standard, and a late row whose foreground fails is no obstacle.
    assert choose(layout, [0.99, 0.8, 0.8, 0.8, 0.8]) == 2
    assert choose(layout, [0.5, 0.8, 0.8, 0.8, 0.4]) == 2

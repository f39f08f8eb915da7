"""Merging clusters, on ideal recolourings of drawings with exact masks."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from labelmill.pipeline.avatars.avatars import recolourings
from labelmill.pipeline.labelers.base import Labels
from labelmill.pipeline.labelers.common.joint_upsampling import downsample
from labelmill.pipeline.labelers.common.kmeans import PixelClusters, one_hot
from labelmill.pipeline.labelers.style_mixing.foreground import (
    ForegroundModel,
    border_affinity,
    border_share,
    calibrate,
    cluster_probability,
    decide_by_clusters,
    familiarity,
    on_pixels,
)
from labelmill.pipeline.labelers.style_mixing.variant_clusters import VariantClusterer
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

RESOLUTION, NUM_VARIANTS = 64, 16


class Recolourings(NamedTuple):
    variants_BNCHW: Tensor
    truth_BHW: Tensor

    @property
    def images(self) -> Tensor:
        """The drawings in their own palettes [B, C, H, W]."""
        return self.variants_BNCHW[:, 0]


def draw(seeds: range) -> Recolourings:
    pairs = [recolourings(seed, RESOLUTION, NUM_VARIANTS) for seed in seeds]
    variants = torch.from_numpy(np.stack([images for images, _ in pairs]))
    truth_BHW = torch.from_numpy(np.stack([mask > 0 for _, mask in pairs]))
    return Recolourings(variants.permute(0, 1, 4, 2, 3) / 127.5 - 1, truth_BHW)


@pytest.fixture(scope="module")
def fit_set() -> Recolourings:
    return draw(range(100, 124))


@pytest.fixture(scope="module")
def test_set() -> Recolourings:
    return draw(range(200, 216))


def cluster(variants_BNCHW: Tensor, **settings: object) -> PixelClusters:
    config = StyleMixingConfig.model_validate({"variants": max(2, variants_BNCHW.shape[1]), **settings})
    return VariantClusterer(config)(variants_BNCHW)


def merge(
    clusters: PixelClusters, model: ForegroundModel, images_BCHW: Tensor, num_variants: int = NUM_VARIANTS
) -> Labels:
    """As a labeler does it: masks of background (0) and foreground (1), and confidence, not calibrated."""
    probability_BK = cluster_probability(clusters, border_affinity(clusters, num_variants), model)
    decision = decide_by_clusters(on_pixels(clusters, probability_BK)[:, None], images_BCHW)
    return Labels(decision.masks_BHW, decision.sharpness() * familiarity(decision.masks_BHW, model))


def mean_iou(masks_BHW: Tensor, truth_BHW: Tensor) -> float:
    """Mean over images of the mean of foreground's and background's IoU."""
    masks_BHW, ious = masks_BHW.bool(), []
    for found, wanted in ((masks_BHW, truth_BHW), (~masks_BHW, ~truth_BHW)):
        ious.append((found & wanted).sum((1, 2)) / (found | wanted).sum((1, 2)))
    return torch.stack(ious).mean().item()


def best_merging(clusters: PixelClusters, truth_BHW: Tensor) -> Tensor:
    """The masks that a judge who knows the truth would merge the clusters to."""
    num_clusters = clusters.sizes_BK.shape[1]
    inside_BK = (one_hot(clusters.assignment_BP, num_clusters) @ truth_BHW.flatten(1).float()[..., None]).squeeze(2)
    is_foreground_BK = inside_BK > clusters.sizes_BK / 2
    return torch.gather(is_foreground_BK, 1, clusters.assignment_BP).view_as(truth_BHW)


def test_eight_clusters_are_merged_to_the_right_masks(fit_set: Recolourings, test_set: Recolourings) -> None:
    model = calibrate(cluster(fit_set.variants_BNCHW), NUM_VARIANTS)
    clusters = cluster(test_set.variants_BNCHW)
    labels = merge(clusters, model, test_set.images)
    found, possible = (
        mean_iou(masks, test_set.truth_BHW) for masks in (labels.masks_BHW, best_merging(clusters, test_set.truth_BHW))
    )
    assert labels.masks_BHW.dtype == torch.uint8
    assert found > 0.92
    assert found > possible - 0.05

    two = {"clusters": 2, "normalisation": "standardised", "restarts": 16}
    of_two = calibrate(cluster(fit_set.variants_BNCHW, **two), NUM_VARIANTS)
    masks_of_two = merge(cluster(test_set.variants_BNCHW, **two), of_two, test_set.images).masks_BHW
    assert 0.5 < mean_iou(masks_of_two, test_set.truth_BHW) < found - 0.1


def test_colours_of_one_image_do_worse_even_when_merged_with_the_truth(
    fit_set: Recolourings, test_set: Recolourings
) -> None:
    model = calibrate(cluster(fit_set.variants_BNCHW), NUM_VARIANTS)
    ours = merge(cluster(test_set.variants_BNCHW), model, test_set.images).masks_BHW
    single = cluster(test_set.variants_BNCHW[:, :1], normalisation="none", restarts=16)
    assert mean_iou(best_merging(single, test_set.truth_BHW), test_set.truth_BHW) < (
        mean_iou(ours, test_set.truth_BHW) - 0.05
    )


def test_the_map_learns_where_the_background_is(fit_set: Recolourings) -> None:
    model = calibrate(cluster(fit_set.variants_BNCHW), NUM_VARIANTS)
    assert model.background_HW.shape == (RESOLUTION, RESOLUTION)
    assert 0 <= model.background_HW.min() <= model.background_HW.max() <= 1
    truth_HW = 1 - fit_set.truth_BHW.float().mean(dim=0)
    assert (model.background_HW - truth_HW).abs().mean() < 0.08
    # Clothes fill the middle of the lower border in every drawing, and nothing but background the upper corners.
    assert model.background_HW[-1, RESOLUTION // 2] < 0.2
    assert model.background_HW[0, 0] > 0.8


def test_a_turned_domain_is_learned_as_well(fit_set: Recolourings, test_set: Recolourings) -> None:
    model = calibrate(cluster(fit_set.variants_BNCHW.rot90(1, (3, 4))), NUM_VARIANTS)
    labels = merge(cluster(test_set.variants_BNCHW.rot90(1, (3, 4))), model, test_set.images.rot90(1, (2, 3)))
    assert mean_iou(labels.masks_BHW, test_set.truth_BHW.rot90(1, (1, 2))) > 0.9


@pytest.mark.parametrize("is_gray", [False, True])
def test_a_rectangular_domain_is_learned_as_well(is_gray: bool, fit_set: Recolourings, test_set: Recolourings) -> None:
    """The middle 48 of 64 columns; gray variants tell less, but more than nothing."""
    columns = slice(8, 56)

    def shown(drawn: Recolourings) -> Tensor:
        variants_BNCHW = drawn.variants_BNCHW[..., columns]
        return variants_BNCHW.mean(dim=2, keepdim=True) if is_gray else variants_BNCHW

    clusters = cluster(shown(test_set))
    assert clusters.size == (64, 48)
    model = calibrate(cluster(shown(fit_set)), NUM_VARIANTS)
    assert model.background_HW.shape == (64, 48)
    masks_BHW = merge(clusters, model, shown(test_set)[:, 0]).masks_BHW
    assert mean_iou(masks_BHW, test_set.truth_BHW[..., columns]) > (0.75 if is_gray else 0.9)


def test_coarse_clusters_give_fine_masks(fit_set: Recolourings, test_set: Recolourings) -> None:
    def coarse(variants_BNCHW: Tensor) -> Tensor:
        return downsample(variants_BNCHW.flatten(0, 1), (32, 32)).unflatten(0, variants_BNCHW.shape[:2])

    model = calibrate(cluster(coarse(fit_set.variants_BNCHW)), NUM_VARIANTS)
    masks = merge(cluster(coarse(test_set.variants_BNCHW)), model, test_set.images).masks_BHW
    full = calibrate(cluster(fit_set.variants_BNCHW), NUM_VARIANTS)
    full_masks = merge(cluster(test_set.variants_BNCHW), full, test_set.images).masks_BHW
    assert masks.shape == full_masks.shape == test_set.truth_BHW.shape
    assert mean_iou(masks, test_set.truth_BHW) > mean_iou(full_masks, test_set.truth_BHW) - 0.01


def test_masks_unlike_the_others_are_less_sure(fit_set: Recolourings, test_set: Recolourings) -> None:
    model = calibrate(cluster(fit_set.variants_BNCHW), NUM_VARIANTS)
    labels = merge(cluster(test_set.variants_BNCHW), model, test_set.images)
    good = labels.confidence_B
    assert good.min() > 0.5
    assert good.max() <= 1
    assert familiarity(labels.masks_BHW, model).min() > 0.9
    # The figure in the corners: clusters as clear as before, but where background is in other images.
    moved = test_set.variants_BNCHW.roll((RESOLUTION // 2, RESOLUTION // 2), dims=(3, 4))
    odd = merge(cluster(moved), model, moved[:, 0]).confidence_B
    assert odd.min() >= 0
    assert odd.max() < good.min()
    assert odd.mean() < good.mean() - 0.2


def quarters() -> PixelClusters:
    """One 8x8 image: the frame, half of it in each of two opposite colours, and a middle like the first half."""
    assignment_HW = torch.zeros(8, 8, dtype=torch.int64)
    assignment_HW[4:] = 1
    assignment_HW[2:6, 2:6] = 2
    signature = torch.tensor([1.0, -1.0, 1.0, -1.0]).repeat_interleave(3)
    centroids_BKD = torch.stack([signature, -signature, 2 * signature + 5])[None]
    sizes_BK = torch.tensor([[24.0, 24.0, 16.0]])
    return PixelClusters(assignment_HW.view(1, 64), centroids_BKD, sizes_BK, torch.zeros(1), (8, 8))


def test_affinity_to_the_border_by_hand() -> None:
    # Correlations are 1, or negative and hence none; half of the border's 28 pixels lie in each half.
    torch.testing.assert_close(border_affinity(quarters(), 4), torch.tensor([[0.5, 0.5, 0.5]]))


def test_chance_correlation_counts_as_none() -> None:
    clusters = quarters()
    weak = clusters.centroids_BKD.clone()
    weak[0, 2] = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat_interleave(3) + 0.5 * weak[0, 0]
    changed = replace(clusters, centroids_BKD=weak)
    # Squared correlation .2 with the first half, below the 1/3 that four variants give by chance.
    assert border_affinity(changed, 4)[0, 2] == 0


def test_a_glaring_variant_does_not_decide_alone() -> None:
    """Two kinds of colour that agree in one variant, the strongest, and differ in the others."""
    clusters = quarters()
    background = torch.tensor([6.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    clothes = torch.tensor([6.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    series = torch.stack([background, background, clothes])
    centroids = (series - series.mean(dim=1, keepdim=True)).repeat_interleave(3, dim=1)[None]
    changed = replace(clusters, centroids_BKD=centroids)
    centred = centroids[0, :, ::3]
    plain = (centred[0] @ centred[2] / centred[0].norm() / centred[2].norm()).square()
    moved = (centred.square() * (clusters.sizes_BK[0] / 64)[:, None]).sum(dim=0).sqrt()
    weighted = centred / moved.sqrt()
    expected = (weighted[0] @ weighted[2] / weighted[0].norm() / weighted[2].norm()).square()
    found = border_affinity(changed, 7)[0, 2]
    torch.testing.assert_close(found, ((expected - 1 / 6) / (5 / 6)).clamp_min(0))
    assert found < 0.6 * (plain - 1 / 6) / (5 / 6)


def test_shares_of_the_border_by_hand() -> None:
    torch.testing.assert_close(border_share(quarters()), torch.tensor([[0.5, 0.5, 0.0]]))
    # The same pixels as 4 rows of 16, and as 16 of 4: frames of 36 pixels, of which each half holds 18.
    wide = replace(quarters(), size=(4, 16), assignment_BP=torch.arange(64)[None] // 32)
    torch.testing.assert_close(border_share(wide), torch.tensor([[0.5, 0.5, 0.0]]))
    tall = replace(quarters(), size=(16, 4), assignment_BP=torch.arange(64)[None] // 32 * 2)
    torch.testing.assert_close(border_share(tall), torch.tensor([[0.5, 0.0, 0.5]]))
    # And of the wide one's frame, 16 lie in the first row.
    first_row = replace(quarters(), size=(4, 16), assignment_BP=(torch.arange(64)[None] < 16).long())
    torch.testing.assert_close(border_share(first_row), torch.tensor([[20 / 36, 16 / 36, 0.0]]))


def test_familiar_masks_by_hand() -> None:
    background_HW = torch.ones(8, 8)
    background_HW[:4] = 0
    model = ForegroundModel(background_HW, torch.tensor(0.5), torch.tensor(1.0), torch.tensor(0.8))
    masks = torch.zeros(3, 16, 16, dtype=torch.uint8)
    masks[0, :8], masks[1, :8], masks[1, 8:] = 1, 2, 3
    found = familiarity(masks, model)
    # The map at twice the resolution has its edge between two rows, each a quarter off.
    assert found[0] == 1
    assert 0 < found[1] < 0.2
    assert 0 < found[2] < 0.2


def test_one_cluster_for_all_gives_finite_numbers() -> None:
    clusters = PixelClusters(
        torch.zeros(2, 64, dtype=torch.int64),
        torch.zeros(2, 2, 12),
        torch.tensor([[64.0, 0.0]] * 2),
        torch.zeros(2),
        (8, 8),
    )
    model = calibrate(clusters, 4)
    labels = merge(clusters, model, torch.zeros(2, 3, 8, 8), num_variants=4)
    assert bool(torch.isfinite(labels.confidence_B).all())
    for name, shape in ForegroundModel.shapes((8, 8)).items():
        assert tuple(getattr(model, name).shape) == shape
        assert bool(torch.isfinite(getattr(model, name)).all())

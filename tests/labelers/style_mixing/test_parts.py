"""Parts by a codebook of clusters, on clusters made by hand."""

from dataclasses import replace

import torch

from labelmill.pipeline.labelers.common.kmeans import Clusters, PixelClusters
from labelmill.pipeline.labelers.style_mixing.parts import describe_parts, fit_parts, part_maps

NUM_VARIANTS, SIDE = 6, 8
# Rows of each image: background, and three kinds of foreground with their own response to donors.
ROWS = {0: 2, 1: 3, 2: 2, 3: 1}


def striped(seed: int) -> tuple[PixelClusters, torch.Tensor, torch.Tensor]:
    """An image of stripes, the probability of foreground of its clusters, and the kind [H, W] of each pixel.

    Which number a kind's cluster has differs between images; so do colours, except how they respond to donors.
    """
    source = torch.Generator().manual_seed(seed)
    responses = torch.randn(4, NUM_VARIANTS, 3, generator=torch.Generator().manual_seed(99))
    order = torch.randperm(4, generator=source)
    kinds_H = torch.repeat_interleave(torch.arange(4), torch.tensor(list(ROWS.values())))
    kinds_HW = kinds_H[:, None].expand(SIDE, SIDE)
    base = torch.randn(4, 1, 3, generator=source)
    noise = 0.1 * torch.randn(4, NUM_VARIANTS, 3, generator=source)
    number_of = order.argsort()
    assignment = number_of[kinds_HW].view(1, -1)
    centroids = (responses + base + noise)[order].flatten(1)[None]
    sizes = torch.tensor([[float(ROWS[int(kind)] * SIDE) for kind in order]])
    probability = torch.where(order == 0, 0.1, 0.9)[None]
    return PixelClusters(assignment, centroids, sizes, torch.zeros(1), (SIDE, SIDE)), probability, kinds_HW


def test_descriptions_by_hand() -> None:
    clusters, _, kinds_HW = striped(0)
    described = describe_parts(clusters, NUM_VARIANTS)
    assert described.shape == (1, 4, NUM_VARIANTS * 3 + 2)
    background = int(clusters.assignment_BP[0, 0])
    assert kinds_HW[0, 0] == 0
    # Two of eight rows: their centres are at -7/8 and -5/8, columns are even about 0.
    torch.testing.assert_close(described[0, background, -2:], torch.tensor([-0.75, 0.0]), rtol=0, atol=1e-6)
    response = described[0, :, :-2].unflatten(1, (NUM_VARIANTS, 3))
    torch.testing.assert_close(response.mean(dim=1), torch.zeros(4, 3), rtol=0, atol=1e-6)


def test_places_of_rectangles_by_hand() -> None:
    """The same pixels as 4 rows of 16: the first 16, the background, are the first row."""
    clusters, _, _ = striped(0)
    background = int(clusters.assignment_BP[0, 0])
    described = describe_parts(replace(clusters, size=(4, 16)), NUM_VARIANTS)
    torch.testing.assert_close(described[0, background, -2:], torch.tensor([-0.75, 0.0]), rtol=0, atol=1e-6)
    described = describe_parts(replace(clusters, size=(16, 4)), NUM_VARIANTS)
    torch.testing.assert_close(described[0, background, -2:], torch.tensor([-0.75, 0.0]), rtol=0, atol=1e-6)
    first_HW = torch.zeros(2, 32, dtype=torch.int64)
    first_HW[:, :8] = 1
    quarter = replace(clusters, size=(2, 32), assignment_BP=first_HW.view(1, 64), sizes_BK=torch.full((1, 4), 16.0))
    described = describe_parts(quarter, NUM_VARIANTS)
    torch.testing.assert_close(described[0, 1, -2:], torch.tensor([0.0, -0.75]), rtol=0, atol=1e-6)


def test_parts_mean_the_same_in_every_image_and_go_by_size() -> None:
    made = [striped(seed) for seed in range(12)]
    clusters = Clusters.joined([some for some, _, _ in made])
    probability = torch.cat([some for _, some, _ in made])
    model = fit_parts(clusters, probability, NUM_VARIANTS, 3)
    fresh, fresh_probability, kinds_HW = striped(100)
    maps = part_maps(fresh, fresh_probability, NUM_VARIANTS, model)
    assert maps.shape == (1, 3, SIDE, SIDE)
    # Kinds 1, 2 and 3 have 3, 2 and 1 rows.
    for part, kind in enumerate((1, 2, 3)):
        torch.testing.assert_close(maps[0, part][kinds_HW == kind], torch.full((ROWS[kind] * SIDE,), 0.9))
    torch.testing.assert_close(maps[0].sum(dim=0), torch.where(kinds_HW == 0, 0.1, 0.9))


def test_no_foreground_at_all_still_gives_a_codebook() -> None:
    clusters, probability, _ = striped(3)
    model = fit_parts(clusters, torch.zeros_like(probability), NUM_VARIANTS, 2)
    assert bool(torch.isfinite(model.centres_QF).all() and torch.isfinite(model.scales_F).all())

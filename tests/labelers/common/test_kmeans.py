"""k-means against independent computation, and its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelmill.pipeline.labelers.common.kmeans import START_POINTS, Clusters, KMeans, one_hot, start_points


def blobs(seed: int, num_blobs: int, per_blob: int, num_dims: int, spread: float) -> tuple[torch.Tensor, np.ndarray]:
    """Points [1, P, D] around centres at least 1 apart, in shuffled order, and their blobs."""
    rng = np.random.default_rng(seed)
    centres = np.stack([np.roll(np.eye(num_dims)[0], i) * (1 + i // num_dims) for i in range(num_blobs)])
    labels = rng.permutation(np.repeat(np.arange(num_blobs), per_blob))
    points = centres[labels] + rng.uniform(-spread, spread, (len(labels), num_dims))
    return torch.from_numpy(points.astype(np.float32))[None], labels


def inertia(x_PD: np.ndarray, assignment: np.ndarray) -> float:
    """Sum of squared distances to the mean of each point's cluster."""
    groups = [x_PD[assignment == k] for k in np.unique(assignment)]
    return float(sum(((group - group.mean(0)) ** 2).sum() for group in groups))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**20), num_blobs=st.integers(1, 5), num_dims=st.integers(2, 9))
def test_separated_blobs_are_found_exactly(seed: int, num_blobs: int, num_dims: int) -> None:
    x_BPD, labels = blobs(seed, num_blobs, 20, num_dims, 0.1)
    clusters = KMeans(num_blobs, restarts=4, iterations=5)(x_BPD)
    pairs = set(zip(labels.tolist(), clusters.assignment_BP[0].tolist(), strict=True))
    assert len(pairs) == num_blobs
    assert sorted(clusters.sizes_BK[0].tolist()) == [20.0] * num_blobs
    for k in range(num_blobs):
        members = x_BPD[0][clusters.assignment_BP[0] == k]
        torch.testing.assert_close(clusters.centroids_BKD[0, k], members.mean(0), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**20),
    num_points=st.integers(1, 80),
    num_dims=st.integers(1, 6),
    num_clusters=st.integers(1, 9),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_no_random_assignment_is_better(
    seed: int, num_points: int, num_dims: int, num_clusters: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    x_PD = (rng.standard_normal((num_points, num_dims)) * scale).astype(np.float32)
    clusters = KMeans(num_clusters, restarts=2, iterations=8)(torch.from_numpy(x_PD)[None])
    guesses = [inertia(x_PD, rng.integers(0, num_clusters, num_points)) for _ in range(5)]
    tolerance = 1e-4 * float((x_PD**2).sum())
    if num_points >= 16:  # of fewer points a guess may be the optimum, which Lloyd's steps need not find
        assert clusters.inertia_B.item() <= min(guesses) + tolerance
    assert clusters.sizes_BK.sum() == num_points
    nearest = ((x_PD[:, None] - clusters.centroids_BKD[0].numpy()) ** 2).sum(2)
    assert abs(clusters.inertia_B.item() - nearest.min(1).sum()) <= tolerance


def test_the_best_start_wins_whatever_their_order() -> None:
    x_BPD = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 200, 5)).astype(np.float32))
    forward = KMeans(6, restarts=5, iterations=6)
    backward = KMeans(6, restarts=5, iterations=6)
    backward._race_KRS = backward._race_KRS.flip(1)
    first, second = forward(x_BPD), backward(x_BPD)
    assert torch.equal(first.assignment_BP, second.assignment_BP)
    assert torch.equal(first.inertia_B, second.inertia_B)


def test_more_starts_are_never_worse() -> None:
    x_BPD = torch.from_numpy(np.random.default_rng(4).standard_normal((4, 300, 4)).astype(np.float32))
    one = KMeans(7, restarts=1, iterations=10)
    many = KMeans(7, restarts=12, iterations=10)
    many._race_KRS[:, :1] = one._race_KRS
    assert bool((many(x_BPD).inertia_B <= one(x_BPD).inertia_B * (1 + 1e-5)).all())
    assert many(x_BPD).inertia_B.sum() < one(x_BPD).inertia_B.sum()


def test_items_of_a_batch_are_clustered_apart() -> None:
    x_BPD = torch.from_numpy(np.random.default_rng(5).standard_normal((3, 150, 4)).astype(np.float32))
    kmeans = KMeans(4, restarts=3, iterations=6)
    together = kmeans(x_BPD)
    for item in range(3):
        alone = kmeans(x_BPD[item : item + 1])
        assert torch.equal(alone.assignment_BP[0], together.assignment_BP[item])


def test_it_repeats_to_the_bit_and_leaves_global_random_numbers_alone() -> None:
    x_BPD = torch.from_numpy(np.random.default_rng(6).standard_normal((2, 500, 6)).astype(np.float32))
    torch.manual_seed(0)
    first = KMeans(5, restarts=3, iterations=4)(x_BPD)
    drawn = torch.rand(1)
    second = KMeans(5, restarts=3, iterations=4)(x_BPD)
    assert torch.equal(first.centroids_BKD, second.centroids_BKD)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_fewer_distinct_points_than_clusters() -> None:
    x_BPD = torch.tensor([[[0.0, 0.0]] * 5 + [[1.0, 2.0]] * 3])
    clusters = KMeans(4, restarts=2, iterations=3)(x_BPD)
    assert clusters.inertia_B.item() == pytest.approx(0, abs=1e-5)
    assert sorted(clusters.sizes_BK[0].tolist()) == [0, 0, 3, 5]
    assert bool(torch.isfinite(clusters.centroids_BKD).all())


def test_a_cluster_that_lost_all_its_points_stays_where_it_was() -> None:
    """Others move to the mean of theirs, be that one alone."""
    x_BPD = torch.tensor([[[1.0, 1.0], [2.0, 1.0]], [[5.0, 5.0], [7.0, 9.0]], [[3.0, 3.0], [8.0, 8.0]]])
    starts_BCD = torch.tensor([[[1.5, 2.0], [40.0, 50.0]], [[-40.0, 50.0], [6.0, 6.0]], [[3.0, 4.0], [8.0, 7.0]]])
    moved_BCD = KMeans(2, restarts=1, iterations=1)._improve(x_BPD, starts_BCD)
    assert moved_BCD.tolist() == [[[1.5, 1.0], [40.0, 50.0]], [[-40.0, 50.0], [6.0, 7.0]], [[3.0, 3.0], [8.0, 8.0]]]


@pytest.mark.parametrize(("num_rows", "width"), [(8 * 256, 8), (16 * 128, 16), (1024, 1024), (256, 256)])
def test_starts_come_from_everywhere_in_an_image(num_rows: int, width: int) -> None:
    chosen_S = start_points(num_rows * width, START_POINTS)
    assert len(chosen_S) == len(set(chosen_S.tolist())) == START_POINTS
    assert chosen_S.tolist() == sorted(chosen_S.tolist())
    columns, rows = {int(point) % width for point in chosen_S}, {int(point) // width for point in chosen_S}
    assert len(columns) > width / 2 and len(rows) > min(num_rows, START_POINTS) / 3
    assert torch.equal(chosen_S, start_points(num_rows * width, START_POINTS))


def test_starts_come_from_all_points_of_small_images() -> None:
    for num_points in (1, 7, START_POINTS):
        assert start_points(num_points, START_POINTS).tolist() == list(range(num_points))


def test_what_the_left_most_column_does_not_show_is_found() -> None:
    """Stripes of four colours, one of which is all of the column that evenly spaced points would be."""
    stripes_W = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat_interleave(4)
    x_BPD = stripes_W.repeat(1024)[None, :, None]
    clusters = KMeans(4, restarts=1, iterations=1)(x_BPD)
    assert clusters.inertia_B.item() == 0
    assert sorted(clusters.centroids_BKD.flatten().tolist()) == [0, 1, 2, 3]


def test_slices_and_joined_undo_each_other() -> None:
    x_BPD = torch.from_numpy(np.random.default_rng(7).standard_normal((4, 30, 2)).astype(np.float32))
    clusters = KMeans(3, restarts=2, iterations=3)(x_BPD)
    again = Clusters.joined([clusters[:2], KMeans(3, restarts=2, iterations=3)(x_BPD[2:])])
    assert len(again) == 4
    assert torch.equal(again.assignment_BP, clusters.assignment_BP)


def test_one_hot() -> None:
    assert one_hot(torch.tensor([[2, 0, 2]]), 3).tolist() == [[[0, 1, 0], [0, 0, 0], [1, 0, 1]]]


@pytest.mark.parametrize(("clusters", "restarts", "iterations"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_impossible_settings(clusters: int, restarts: int, iterations: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        KMeans(clusters, restarts=restarts, iterations=iterations)


def test_more_clusters_than_start_points_are_refused() -> None:
    with pytest.raises(ValueError, match="9 clusters cannot start from 8 points; raise start_points"):
        KMeans(9, restarts=1, iterations=1, start_points=8)
    with pytest.raises(ValueError, match="1025 clusters cannot start from 1024 points"):
        KMeans(START_POINTS + 1, restarts=1, iterations=1)
    points_BPD = torch.arange(20.0)[None, :, None]
    assert len(KMeans(9, restarts=1, iterations=1, start_points=9)(points_BPD).centroids_BKD.unique()) == 9


def test_padding_repeats_the_last_item() -> None:
    x_BPD = torch.from_numpy(np.random.default_rng(8).standard_normal((2, 30, 2)).astype(np.float32))
    clusters = KMeans(3, restarts=2, iterations=3)(x_BPD)
    padded = clusters.padded(4)
    assert len(padded) == 4
    for index, source in enumerate((0, 1, 1, 1)):
        assert torch.equal(padded.assignment_BP[index], clusters.assignment_BP[source])
        assert torch.equal(padded.centroids_BKD[index], clusters.centroids_BKD[source])

"""Segments that people paint with."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from helpers.small_annotations import sampler_of

from labelmill.pipeline.annotate.segments import (
    LEVELS,
    Labels,
    components,
    joined,
    layers_of,
    main_directions,
    segment_maps,
)

SEEDS = (3, 1, 8)


def _array(*rows: str) -> Labels:
    return np.array([[int(digit) for digit in row] for row in rows], np.int32)


def test_equal_clusters_apart_are_segments_of_their_own() -> None:
    found_HW = components(_array("0011", "1100", "1100"))
    assert len(np.unique(found_HW)) == 4
    assert found_HW[0, 0] != found_HW[2, 3] and found_HW[0, 3] != found_HW[1, 0], "corners do not connect"
    assert sorted(np.unique(found_HW)) == [0, 1, 2, 3]


def test_small_segments_join_the_longest_border_until_none_is_small() -> None:
    found_HW = joined(_array("00000", "02120", "02220", "33333"), least=3)
    assert found_HW.tolist() == _array("00000", "01110", "01110", "22222").tolist()
    assert joined(_array("0123"), least=9).tolist() == [[0, 0, 0, 0]], "the whole image is small"
    kept_HW = joined(_array("1100", "1100"), least=4)
    assert kept_HW.tolist() == _array("0011", "0011").tolist(), "numbered from the top left"


def test_levels_cover_images_with_connected_segments_that_repeat(tiny_checkpoint: Path) -> None:
    sampler = sampler_of(tiny_checkpoint)
    spec = sampler.generator.spec
    batch = sampler.sample(SEEDS, layers_of(spec))
    directions = main_directions(iter([batch]), spec)
    maps = list(segment_maps(batch, directions, spec))
    again = next(segment_maps(sampler.sample(SEEDS, layers_of(spec)), directions, spec))
    assert all(np.array_equal(first, second) for first, second in zip(maps[0], again, strict=True))
    for levels in maps:
        counts = [int(segments_HW.max()) + 1 for segments_HW in levels]
        assert len(counts) == len(LEVELS) and counts == sorted(counts) and counts[0] < counts[-1]
        for level, segments_HW in zip(LEVELS, levels, strict=True):
            assert segments_HW.shape == (32, 32)
            sizes = np.bincount(segments_HW.ravel())
            assert (sizes >= level.least_share * segments_HW.size).all()
            for segment in range(len(sizes)):
                assert cv2.connectedComponents((segments_HW == segment).astype(np.uint8), connectivity=4)[0] == 2


def test_segments_follow_features_and_colours(tiny_checkpoint: Path) -> None:
    """Of an image with two halves, in features alone or in colours alone, no segment crosses the middle."""
    sampler = sampler_of(tiny_checkpoint)
    spec = sampler.generator.spec
    batch = sampler.sample([3], layers_of(spec))
    directions = main_directions(iter([batch]), spec)
    flat = {name: torch.zeros_like(maps) for name, maps in batch.features.items()}
    halved = {name: maps.clone() for name, maps in flat.items()}
    for maps_BCHW in halved.values():
        maps_BCHW[..., maps_BCHW.shape[-1] // 2 :] = torch.randn(
            maps_BCHW.shape[1], 1, 1, generator=torch.Generator().manual_seed(5)
        )
    grey = torch.zeros_like(batch.images_BCHW)
    black_white = grey.clone()
    black_white[..., 16:] = 1
    for features, images_BCHW in ((halved, grey), (flat, black_white)):
        seen = replace(batch, features=features, images_BCHW=images_BCHW)
        for segments_HW in next(segment_maps(seen, directions, spec)):
            # Coarse layers are resized smoothly, so features change over some columns.
            assert not set(np.unique(segments_HW[:, :8])) & set(np.unique(segments_HW[:, 24:]))

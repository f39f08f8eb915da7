"""Colours, overlays and contact sheets."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from labelmill.pipeline.pictures.overlay import (
    IGNORE_COLOUR,
    IGNORE_HATCH,
    PALETTE,
    blend,
    class_colours,
    colour_mask,
    contact_sheet,
    edges,
    overlay,
)
from labelmill.schemas.errors import LabelmillError
from labelmill.schemas.sample import IGNORE, Candidate, Sample, SampleMetadata, sample_key

# Machado, Oliveira, Fernandes 2009, table 1 at severity 1, on linear RGB.
COLOUR_VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def _seen_oklab(colour: NDArray[np.uint8], vision: NDArray[np.float64]) -> NDArray[np.float64]:
    """OKLab (Ottosson 2020) of an sRGB colour as a colour vision perceives it."""
    srgb = colour / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(vision @ linear, 0, 1)
    to_lms = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return to_lab @ np.cbrt(to_lms @ linear)


@pytest.mark.parametrize("vision", COLOUR_VISIONS)
def test_palette_can_be_told_apart_by_every_colour_vision(vision: str) -> None:
    colours = [*class_colours(len(PALETTE)), np.array(IGNORE_COLOUR, dtype=np.uint8)]
    seen = [_seen_oklab(colour, COLOUR_VISIONS[vision]) for colour in colours]
    assert min(np.linalg.norm(one - other) for one, other in combinations(seen, 2)) >= 0.1


def test_colours_are_distinct_and_do_not_depend_on_how_many_follow() -> None:
    all_colours = class_colours(255)
    assert len({tuple(colour) for colour in all_colours.tolist()}) == 255
    for count in (1, 2, 12, 13, 100):
        np.testing.assert_array_equal(class_colours(count), all_colours[:count])
    assert all_colours[1].tolist() == [0x78, 0x96, 0xFF]


def test_colour_mask_gives_each_class_its_colour_and_hatches_ignore() -> None:
    mask_HW = np.repeat(np.array([[0, 1, 2, IGNORE]], dtype=np.uint8), 8, axis=0).repeat(8, axis=1)
    colours = class_colours(3)
    coloured_HWC = colour_mask(mask_HW, colours)
    for value in range(3):
        assert (coloured_HWC[mask_HW == value] == colours[value]).all()
    hatch = coloured_HWC[mask_HW == IGNORE]
    is_line = (hatch == IGNORE_HATCH).all(axis=1)
    assert is_line.sum() == 8 * 8 / 4
    assert (hatch[~is_line] == IGNORE_COLOUR).all()


def test_overlay_tints_classes_draws_their_edges_and_greys_the_background() -> None:
    image_HWC = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    mask_HW = np.zeros((12, 12), dtype=np.uint8)
    mask_HW[3:9, 3:9] = 1
    colours = class_colours(2)
    before_HWC = image_HWC.copy()
    overlay_HWC = overlay(image_HWC, mask_HW, colours)
    np.testing.assert_array_equal(image_HWC, before_HWC)
    # Inside, 45 % colour; at the rim, nearly all of it; outside, dim and a third of the saturation.
    np.testing.assert_allclose(overlay_HWC[5, 5], 0.55 * image_HWC[5, 5] + 0.45 * colours[1], atol=0.51)
    np.testing.assert_allclose(overlay_HWC[3, 5], 0.05 * image_HWC[3, 5] + 0.95 * colours[1], atol=0.51)
    outside = image_HWC[0, 0].astype(float)
    np.testing.assert_allclose(overlay_HWC[0, 0], 0.55 * (0.35 * outside + 0.65 * outside.mean()), atol=0.51)


def test_edges_are_the_pixels_with_a_neighbour_of_another_class() -> None:
    mask_HW = np.random.default_rng(0).integers(0, 2, (9, 7), dtype=np.uint8)
    expected = [
        [
            any(
                mask_HW[y, x] != mask_HW[y + dy, x + dx]
                for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1))
                if 0 <= y + dy < 9 and 0 <= x + dx < 7
            )
            for x in range(7)
        ]
        for y in range(9)
    ]
    np.testing.assert_array_equal(edges(mask_HW), expected)


def test_a_value_without_a_class_is_refused() -> None:
    with pytest.raises(LabelmillError, match=r"value 7; allowed are 0 to 2 .* 255"):
        colour_mask(np.full((2, 2), 7, dtype=np.uint8), class_colours(3))


def _sample(seed: int, drop_reason: str | None = None) -> Sample:
    """A flat image whose left half is class 1."""
    mask_HW = np.zeros((32, 32), dtype=np.uint8)
    mask_HW[:, :16] = 1
    candidate = Candidate(
        seed=seed,
        class_id=None,
        drop_reason=drop_reason,
        confidence=0.9,
        largest_component=1.0,
        class_pixels={"background": 512, "thing": 512, "ignore": 0},
    )
    metadata = SampleMetadata(
        key=sample_key(seed),
        candidate=candidate,
        dropped_before=(),
        channel_means=(0.5, 0.5, 0.5),
        channel_square_means=(0.25, 0.25, 0.25),
        truncation_psi=0.7,
        truncation_cutoff=None,
        noise="const",
        method="style_mixing",
        checkpoint_sha256="",
        fingerprint="",
    )
    return Sample(sample_key(seed), np.full((32, 32, 3), 10 * seed, dtype=np.uint8), mask_HW, metadata)


def test_contact_sheet_shows_every_sample_in_order_under_a_legend() -> None:
    samples = [_sample(seed) for seed in range(5)]
    sheet_HWC = contact_sheet(samples, columns=3, edge=64)
    cell_width, cell_height, legend_height = 2 * 64 + 12, 64 + 22 + 12, 30
    assert sheet_HWC.dtype == np.uint8
    assert sheet_HWC.shape == (12 + legend_height + 2 * cell_height, 12 + 3 * cell_width, 3)
    for number in range(5):
        top = 12 + legend_height + (number // 3) * cell_height
        left = 12 + (number % 3) * cell_width
        assert (sheet_HWC[top : top + 64, left : left + 64] == 10 * number).all()
        tinted = np.rint(0.55 * 10 * number + 0.45 * class_colours(2)[1])
        np.testing.assert_allclose(sheet_HWC[top + 10, left + 64 + 10], tinted, atol=1)
    legend = sheet_HWC[12 : 12 + 16].reshape(-1, 3).tolist()
    assert all(legend.count(colour) >= 16 * 16 for colour in class_colours(2).tolist())


def test_contact_sheet_says_in_red_why_a_sample_was_dropped() -> None:
    def num_red(sample: Sample) -> int:
        red, green, blue = contact_sheet([sample], columns=1).astype(int).transpose(2, 0, 1)
        return int(((red - green > 60) & (red - blue > 60)).sum())

    assert num_red(_sample(2)) == 0
    assert num_red(_sample(2, "low_confidence")) > 50


@pytest.mark.parametrize(("num_samples", "columns"), [(0, 8), (3, 0)])
def test_a_sheet_of_nothing_is_refused(num_samples: int, columns: int) -> None:
    with pytest.raises(LabelmillError, match="needs samples and columns"):
        contact_sheet([_sample(seed) for seed in range(num_samples)], columns)


def test_probabilities_blend_the_colours_of_the_classes() -> None:
    colours = np.array([[0, 0, 0], [200, 100, 0], [0, 100, 255]], np.uint8)
    levels_NHW = np.array([[255, 0, 0], [0, 255, 51], [0, 0, 204]], np.uint8)[:, None]
    assert blend(levels_NHW, colours).tolist() == [[[0, 0, 0], [200, 100, 0], [40, 100, 204]]]

"""Augmentation: image, mask, alpha and probabilities move together, class ids stay class ids."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.small_dataset import paint, sample_of

from labelmill.pipeline.segmentation.augment import Augmentation, cropped, jittered, rotated, scaled
from labelmill.pipeline.segmentation.reading import LabeledImage, LabeledPixels
from labelmill.schemas.segmentation import AugmentationConfig

NOTHING = AugmentationConfig(flip=0, scale=(1, 1), colour_jitter=0)


def _sample(seed: int = 3) -> LabeledImage:
    """All else is a function of the mask, so that they can be compared."""
    mask_HW = paint(seed)[1]
    return LabeledImage(
        _image_of(mask_HW),
        mask_HW,
        alpha_HW=mask_HW // 2,
        probabilities_KHW=_levels_of(mask_HW),
        key="3",
        metadata=sample_of(seed, *paint(seed)).metadata,
    )


def _image_of(mask_HW: np.ndarray) -> np.ndarray:
    return np.stack([mask_HW, 255 - mask_HW, mask_HW // 3], axis=-1)


def _levels_of(mask_HW: np.ndarray) -> np.ndarray:
    """Of five classes."""
    return np.stack([mask_HW // 3, mask_HW // 4, mask_HW // 5, mask_HW // 6, 255 - mask_HW])


def test_nothing_asked_is_nothing_done() -> None:
    sample = _sample()
    changed = Augmentation(NOTHING, (16, 16))(sample, np.random.default_rng(0))
    assert np.array_equal(changed.image_HWC, sample.image_HWC)
    assert np.array_equal(changed.mask_HW, sample.mask_HW)


def test_a_flip_mirrors_all_alike() -> None:
    sample = _sample()
    changed = Augmentation(NOTHING.model_copy(update={"flip": 1.0}), (16, 16))(sample, np.random.default_rng(0))
    assert np.array_equal(changed.mask_HW, sample.mask_HW[:, ::-1])
    assert np.array_equal(changed.image_HWC, sample.image_HWC[:, ::-1])
    assert changed.alpha_HW is not None and np.array_equal(changed.alpha_HW, changed.mask_HW // 2)
    assert changed.probabilities_KHW is not None
    assert np.array_equal(changed.probabilities_KHW, _levels_of(changed.mask_HW))


def _windows(config: AugmentationConfig, size: tuple[int, int], count: int = 20) -> list[LabeledImage]:
    """The samples that as many seeds give."""
    return [Augmentation(config, size)(_sample(), np.random.default_rng(seed)) for seed in range(count)]


@pytest.mark.parametrize("size", [(6, 6), (16, 16), (25, 25), (6, 25), (25, 16)])
def test_a_crop_cuts_all_alike_and_ignores_what_it_fills(size: tuple[int, int]) -> None:
    for changed in _windows(NOTHING, size):
        assert changed.mask_HW.shape == size and changed.image_HWC.shape == (*size, 3)
        assert changed.alpha_HW is not None and changed.probabilities_KHW is not None
        inside_HW = np.all(changed.image_HWC == _image_of(changed.mask_HW), axis=-1)
        assert inside_HW.sum() == min(size[0], 16) * min(size[1], 16)
        assert (changed.mask_HW[~inside_HW] == 255).all() and (changed.alpha_HW[~inside_HW] == 0).all()
        assert np.array_equal(changed.probabilities_KHW[:, inside_HW], _levels_of(changed.mask_HW)[:, inside_HW])
        assert (changed.probabilities_KHW[:, ~inside_HW] == 0).all()


def test_crops_reach_every_corner() -> None:
    corners = {(int(c.mask_HW[0, 0]), c.mask_HW.tobytes()) for c in _windows(NOTHING, (15, 15), count=60)}
    assert len(corners) == 4


def test_a_translation_brings_the_centre_up_to_that_share_of_the_window_away() -> None:
    places = set()
    for changed in _windows(NOTHING.model_copy(update={"translation": 0.25}), (16, 16), count=200):
        inside_HW = np.all(changed.image_HWC == _image_of(changed.mask_HW), axis=-1)
        rows, columns = np.flatnonzero(inside_HW.any(axis=1)), np.flatnonzero(inside_HW.any(axis=0))
        assert inside_HW.sum() == len(rows) * len(columns)
        top, left = (span[0] if span[0] else span[-1] - 15 for span in (rows, columns))
        places.add((int(top), int(left)))
        assert np.array_equal(
            changed.mask_HW[inside_HW],
            _sample().mask_HW[max(0, -top) : 16 - max(0, top), max(0, -left) : 16 - max(0, left)].ravel(),
        )
    for axis in (0, 1):
        assert {place[axis] for place in places} == set(range(-4, 5))


def test_a_quarter_turn_is_counter_clockwise_and_of_all_alike() -> None:
    turned = rotated(_sample(), 90, (0, 0), (16, 16))
    assert np.array_equal(turned.mask_HW, np.rot90(_sample().mask_HW))
    assert np.array_equal(turned.image_HWC, _image_of(turned.mask_HW))
    assert turned.alpha_HW is not None and np.array_equal(turned.alpha_HW, turned.mask_HW // 2)
    assert turned.probabilities_KHW is not None
    assert np.array_equal(turned.probabilities_KHW, _levels_of(turned.mask_HW))
    # A window that reaches beyond the image's left and lower borders turns around its own centre.
    window = cropped(_sample(), (9, -5), (16, 16))
    assert np.array_equal(rotated(_sample(), 180, (9, -5), (16, 16)).mask_HW, np.rot90(window.mask_HW, 2))


def test_rotations_turn_either_way_by_so_many_degrees_and_ignore_what_they_fill() -> None:
    """Told by where a line through the centre goes."""
    mask_HW = np.zeros((65, 65), np.uint8)
    mask_HW[32] = 1
    levels_KHW = np.stack([255 - 255 * mask_HW, 255 * mask_HW])
    sample = LabeledPixels(_image_of(mask_HW), mask_HW, probabilities_KHW=levels_KHW)
    augment, angles = Augmentation(NOTHING.model_copy(update={"rotation": 10}), (65, 65)), []
    for seed in range(60):
        changed = augment(sample, np.random.default_rng(seed))
        rows, columns = np.nonzero(changed.mask_HW == 1)
        angles.append(float(np.degrees(np.arctan(np.polyfit(columns, rows, 1)[0]))))
        assert set(np.unique(changed.mask_HW)) <= {0, 1, 255}
        known_HW = changed.mask_HW != 255
        assert known_HW[32, 32] and (abs(angles[-1]) < 2 or not known_HW[0, 0])
        assert changed.probabilities_KHW is not None
        sums_HW = changed.probabilities_KHW.sum(axis=0, dtype=int)
        assert (abs(sums_HW[8:-8, 8:-8] - 255) <= 1).all() and (sums_HW[known_HW] > 0).all()
        likeliest_HW = changed.probabilities_KHW.argmax(axis=0)
        assert (likeliest_HW == changed.mask_HW)[8:-8, 8:-8].mean() > 0.97
    assert min(angles) < -8 and max(angles) > 8 and max(map(abs, angles)) < 10.5


def test_scaling_keeps_class_ids_and_follows_nearest_pixels() -> None:
    sample = _sample()
    doubled = scaled(sample, 2.0)
    assert np.array_equal(doubled.mask_HW, sample.mask_HW.repeat(2, 0).repeat(2, 1))
    assert set(np.unique(scaled(sample, 0.7).mask_HW)) <= {0, 1, 2, 255}
    assert scaled(sample, 0.7).image_HWC.shape == (11, 11, 3)


def test_jitter_is_brightness_contrast_and_saturation() -> None:
    image_HWC = paint(1)[0]
    strength = 0.3
    brightness, contrast, saturation = 1 + strength * np.random.default_rng(7).uniform(-1, 1, 3)
    lit = image_HWC * brightness
    gray = (lit @ [0.299, 0.587, 0.114])[..., None]
    expected = gray.mean() + contrast * (gray + saturation * (lit - gray) - gray.mean())
    found = jittered(image_HWC, strength, np.random.default_rng(7))
    assert np.abs(found.astype(float) - expected.clip(0, 255)).max() <= 0.9
    assert np.array_equal(jittered(image_HWC, 0, np.random.default_rng(7)), image_HWC)


def test_equal_random_numbers_give_equal_samples() -> None:
    augment = Augmentation(AugmentationConfig(), (16, 16))
    one, two = (augment(_sample(), np.random.default_rng(4)) for _ in range(2))
    other = augment(_sample(), np.random.default_rng(5))
    assert np.array_equal(one.image_HWC, two.image_HWC) and np.array_equal(one.mask_HW, two.mask_HW)
    assert not np.array_equal(one.image_HWC, other.image_HWC)
    assert augment(replace(_sample(), alpha_HW=None), np.random.default_rng(4)).alpha_HW is None


def test_what_counts_at_the_rim_is_as_opaque_as_it_was() -> None:
    """Opacity does not fade into what lies beyond the image."""
    mask_HW = np.ones((64, 64), np.uint8)
    opaque = LabeledPixels(np.zeros((64, 64, 3), np.uint8), mask_HW, np.full((64, 64), 255, np.uint8))
    turned = rotated(opaque, 10, (0, 0), (64, 64))
    assert turned.alpha_HW is not None
    assert (turned.mask_HW == 255).any() and (turned.alpha_HW[turned.mask_HW == 1] == 255).all()

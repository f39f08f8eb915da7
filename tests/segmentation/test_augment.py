"""Augmentation: image, mask and alpha move together, class ids stay class ids."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.small_dataset import paint, sample_of

from labelmill.pipeline.segmentation.augment import Augmentation, cropped, jittered, scaled
from labelmill.pipeline.segmentation.reading import LabeledImage
from labelmill.schemas.segmentation import AugmentationConfig

NOTHING = AugmentationConfig(flip=0, scale=(1, 1), colour_jitter=0)


def _sample(seed: int = 3) -> LabeledImage:
    """An image whose channels, and an alpha which, is a function of the mask, so that they can be compared."""
    mask_HW = paint(seed)[1]
    return LabeledImage(_image_of(mask_HW), mask_HW, mask_HW // 2, "3", sample_of(seed, *paint(seed)).metadata)


def _image_of(mask_HW: np.ndarray) -> np.ndarray:
    return np.stack([mask_HW, 255 - mask_HW, mask_HW // 3], axis=-1)


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


@pytest.mark.parametrize("size", [(6, 6), (16, 16), (25, 25), (6, 25), (25, 16)])
def test_a_crop_cuts_all_alike_and_ignores_what_it_fills(size: tuple[int, int]) -> None:
    sample = _sample()
    for seed in range(20):
        changed = cropped(sample, size, np.random.default_rng(seed))
        assert changed.mask_HW.shape == size and changed.image_HWC.shape == (*size, 3)
        inside_HW = np.zeros(size, bool)
        matching = np.all(changed.image_HWC == _image_of(changed.mask_HW), axis=-1)
        inside_HW[matching] = True
        assert inside_HW.sum() == min(size[0], 16) * min(size[1], 16)
        assert (changed.mask_HW[~inside_HW] == 255).all()


def test_crops_reach_every_corner() -> None:
    sample = _sample()
    corners = {
        (int(c.mask_HW[0, 0]), c.mask_HW.tobytes())
        for c in (cropped(sample, (15, 15), np.random.default_rng(seed)) for seed in range(60))
    }
    assert len(corners) == 4


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
    assert np.abs(found.astype(float) - expected.clip(0, 255)).max() <= 0.51
    assert np.array_equal(jittered(image_HWC, 0, np.random.default_rng(7)), image_HWC)


def test_equal_random_numbers_give_equal_samples() -> None:
    augment = Augmentation(AugmentationConfig(), (16, 16))
    one, two = (augment(_sample(), np.random.default_rng(4)) for _ in range(2))
    other = augment(_sample(), np.random.default_rng(5))
    assert np.array_equal(one.image_HWC, two.image_HWC) and np.array_equal(one.mask_HW, two.mask_HW)
    assert not np.array_equal(one.image_HWC, other.image_HWC)
    assert augment(replace(_sample(), alpha_HW=None), np.random.default_rng(4)).alpha_HW is None

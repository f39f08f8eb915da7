"""What training images go through: flip, scale and crop, colour jitter.

Shape suffixes: H height, W width, C channels.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.segmentation.reading import LabeledPixels
from labelmill.schemas.sample import IGNORE
from labelmill.schemas.segmentation import LUMINANCE, AugmentationConfig

Pixels = NDArray[np.uint8]
Sample = TypeVar("Sample", bound=LabeledPixels)

_LUMINANCE_C = np.array(LUMINANCE, np.float32)


class Augmentation:
    """Changes image, mask and alpha alike. Picklable, for DataLoader's workers."""

    def __init__(self, config: AugmentationConfig, size: tuple[int, int]) -> None:
        """size: height and width of what comes out."""
        self._config, self._size = config, size

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample, changed, of that size. Where the image does not reach, the mask is 255 (ignore)."""
        config = self._config
        if random.random() < config.flip:
            sample = _of_all(sample, _mirrored)
        low, high = np.log(config.scale)
        sample = scaled(sample, float(np.exp(random.uniform(low, high))))
        sample = cropped(sample, self._size, random)
        return replace(sample, image_HWC=jittered(sample.image_HWC, config.colour_jitter, random))


def scaled(sample: Sample, factor: float) -> Sample:
    """Resized: the mask by its nearest pixel, so that class ids stay class ids, the rest linearly (by area when
    smaller)."""
    height, width = sample.mask_HW.shape
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if size == (width, height):
        return sample
    smooth = cv2.INTER_LINEAR if factor > 1 else cv2.INTER_AREA
    return replace(
        sample,
        image_HWC=_uint8(cv2.resize(sample.image_HWC, size, interpolation=smooth)),
        mask_HW=_uint8(cv2.resize(sample.mask_HW, size, interpolation=cv2.INTER_NEAREST_EXACT)),
        alpha_HW=None if sample.alpha_HW is None else _uint8(cv2.resize(sample.alpha_HW, size, interpolation=smooth)),
    )


def cropped(sample: Sample, size: tuple[int, int], random: np.random.Generator) -> Sample:
    """A window of a height and width, anywhere within the image, or with the image anywhere within it."""
    (height, width), (rows, columns) = sample.mask_HW.shape, size
    top, left = (int(random.integers(abs(extra) + 1)) for extra in (height - rows, width - columns))

    def cut(pixels: Pixels, filling: int) -> Pixels:
        if height >= rows:
            pixels = pixels[top : top + rows]
        if width >= columns:
            pixels = pixels[:, left : left + columns]
        above, beside = max(0, rows - height), max(0, columns - width)
        if not above and not beside:
            return np.ascontiguousarray(pixels)
        before = top if above else 0, left if beside else 0
        padding = [(before[0], above - before[0]), (before[1], beside - before[1]), (0, 0)]
        return np.pad(pixels, padding[: pixels.ndim], constant_values=filling)

    return replace(
        sample,
        image_HWC=cut(sample.image_HWC, 128),
        mask_HW=cut(sample.mask_HW, IGNORE),
        alpha_HW=None if sample.alpha_HW is None else cut(sample.alpha_HW, 0),
    )


def jittered(image_HWC: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """Brightness, contrast and saturation, each by a factor from 1 - strength to 1 + strength."""
    if strength == 0:
        return image_HWC
    brightness, contrast, saturation = (1 + strength * random.uniform(-1, 1, 3)).astype(np.float32)
    changed_HWC = image_HWC.astype(np.float32) * brightness
    gray_HW1 = (changed_HWC @ _LUMINANCE_C)[:, :, None]
    changed_HWC = gray_HW1 + saturation * (changed_HWC - gray_HW1)
    middle = gray_HW1.mean()
    changed_HWC = middle + contrast * (changed_HWC - middle)
    return np.clip(np.rint(changed_HWC), 0, 255).astype(np.uint8)


def _mirrored(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels[:, ::-1])


def _of_all(sample: Sample, change: Callable[[Pixels], Pixels]) -> Sample:
    return replace(
        sample,
        image_HWC=change(sample.image_HWC),
        mask_HW=change(sample.mask_HW),
        alpha_HW=None if sample.alpha_HW is None else change(sample.alpha_HW),
    )


def _uint8(pixels: object) -> Pixels:
    return np.asarray(pixels, np.uint8)

"""What training images go through: flip, scale, rotation, crop, colour jitter.

RepurposeGAN's (Tritrong et al., 2021) are flip 0.5, scale [0.5, 2], rotation 10 and translation 0.5. Its code draws the
scale uniformly, here its logarithm is uniform; both leave out what lies beyond the image from the loss.

Shape suffixes: H height, W width, C channels, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.segmentation.reading import LabeledPixels
from labelmill.schemas.sample import IGNORE
from labelmill.schemas.segmentation import LUMINANCE, AugmentationConfig

Pixels = NDArray[np.uint8]
Sample = TypeVar("Sample", bound=LabeledPixels)
Size = tuple[int, int]
"""Height and width."""

_LUMINANCE_C = np.array(LUMINANCE)


@dataclass(frozen=True)
class _Layer:
    """A field of LabeledPixels, and how it is changed."""

    field: str
    filling: int
    """Its value where the image does not reach."""
    is_smooth: bool = True
    """It has values between those of two pixels."""
    border: int = cv2.BORDER_CONSTANT
    """OpenCV's mode for what lies beyond the image: its filling, or the nearest pixel's value, where a blend with the
    filling would change pixels at the image's rim that count."""
    are_maps: bool = False
    """A map per class [K, H, W]: OpenCV changes one after the other faster than many channels."""


_LAYERS = (
    _Layer("image_HWC", filling=128),
    _Layer("mask_HW", filling=IGNORE, is_smooth=False),
    _Layer("alpha_HW", filling=0, border=cv2.BORDER_REPLICATE),
    _Layer("probabilities_KHW", filling=0, are_maps=True),
)


class Augmentation:
    """Changes image, mask, alpha and probabilities alike. Picklable, for DataLoader's workers."""

    def __init__(self, config: AugmentationConfig, size: Size) -> None:
        """size: of what comes out."""
        self._config, self._size = config, size

    def __call__(self, sample: Sample, random: np.random.Generator) -> Sample:
        """The sample, changed, of that size. Where the image does not reach, the mask is 255 (ignore)."""
        config = self._config
        if random.random() < config.flip:
            sample = _of_all(sample, lambda pixels, _: np.asarray(cv2.flip(pixels, 1), np.uint8))
        low, high = np.log(config.scale)
        sample = scaled(sample, float(np.exp(random.uniform(low, high))))
        corner = self._corner(sample.mask_HW.shape, random)
        if config.rotation:
            sample = rotated(sample, random.uniform(-config.rotation, config.rotation), corner, self._size)
        else:
            sample = cropped(sample, corner, self._size)
        return replace(sample, image_HWC=jittered(sample.image_HWC, config.colour_jitter, random))

    def _corner(self, shape: tuple[int, ...], random: np.random.Generator) -> Size:
        """Top and left of the window that is kept, in the image's pixels."""
        extras = [extent - window for extent, window in zip(shape, self._size, strict=True)]
        if self._config.translation is None:  # anywhere within the image, or with the image anywhere within it
            top, left = (int(random.integers(abs(extra) + 1)) * (1 if extra >= 0 else -1) for extra in extras)
        else:
            shifts = random.uniform(-self._config.translation, self._config.translation, 2)
            top, left = (
                round(extra / 2 + shift * window)
                for extra, shift, window in zip(extras, shifts.tolist(), self._size, strict=True)
            )
        return top, left


def scaled(sample: Sample, factor: float) -> Sample:
    """Resized: the mask by its nearest pixel, so that class ids stay class ids, the rest linearly (by area when
    smaller)."""
    height, width = sample.mask_HW.shape
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if size == (width, height):
        return sample
    smooth = cv2.INTER_LINEAR if factor > 1 else cv2.INTER_AREA

    def resized(pixels: Pixels, layer: _Layer) -> Pixels:
        how = smooth if layer.is_smooth else cv2.INTER_NEAREST_EXACT
        return np.asarray(cv2.resize(pixels, size, interpolation=how), np.uint8)

    return _of_all(sample, resized)


def cropped(sample: Sample, corner: Size, size: Size) -> Sample:
    """The window with this corner; it may reach beyond the image."""
    height, width = sample.mask_HW.shape
    (top, left), (rows, columns) = corner, size
    above, before = max(0, -top), max(0, -left)
    below, behind = max(0, top + rows - height), max(0, left + columns - width)

    def cut(pixels: Pixels, layer: _Layer) -> Pixels:
        inside = pixels[max(0, top) : max(0, top + rows), max(0, left) : max(0, left + columns)]
        padding = [(above, below), (before, behind), (0, 0)][: pixels.ndim]
        if not any(map(any, padding)):
            return np.ascontiguousarray(inside)
        return np.pad(inside, padding, constant_values=layer.filling)

    return _of_all(sample, cut)


def rotated(sample: Sample, degrees: float, corner: Size, size: Size) -> Sample:
    """The window with this corner, the image turned counter-clockwise around the window's centre: the mask by its
    nearest pixel, the rest linearly."""
    (top, left), (rows, columns) = corner, size
    # OpenCV's pixels have their centres at whole numbers.
    centre = left + (columns - 1) / 2, top + (rows - 1) / 2
    matrix = cv2.getRotationMatrix2D(centre, degrees, 1.0) - np.array([[0, 0, left], [0, 0, top]])

    def turned(pixels: Pixels, layer: _Layer) -> Pixels:
        how = cv2.INTER_LINEAR if layer.is_smooth else cv2.INTER_NEAREST
        filling = [layer.filling] * 3
        window = columns, rows
        turned = cv2.warpAffine(pixels, matrix, window, flags=how, borderMode=layer.border, borderValue=filling)
        return np.asarray(turned, np.uint8)

    return _of_all(sample, turned)


def jittered(image_HWC: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    """Brightness, contrast and saturation, each by a factor from 1 - strength to 1 + strength.

    All three are one linear map of a pixel's colours, in OpenCV's fixed-point arithmetic: values are within 0.9 of the
    exact ones.
    """
    if strength == 0:
        return image_HWC
    brightness, contrast, saturation = 1 + strength * random.uniform(-1, 1, 3)
    gray_CC = np.tile(_LUMINANCE_C, (3, 1))
    colours_CC = contrast * brightness * (saturation * np.eye(3) + (1 - saturation) * gray_CC)
    middle = brightness * float(_LUMINANCE_C @ np.asarray(cv2.mean(image_HWC)[:3]))
    return np.asarray(cv2.transform(image_HWC, np.c_[colours_CC, [(1 - contrast) * middle] * 3]), np.uint8)


def _of_all(sample: Sample, change: Callable[[Pixels, _Layer], Pixels]) -> Sample:
    held = ((layer, getattr(sample, layer.field)) for layer in _LAYERS)
    return replace(
        sample, **{layer.field: _changed(pixels, layer, change) for layer, pixels in held if pixels is not None}
    )


def _changed(pixels: Pixels, layer: _Layer, change: Callable[[Pixels, _Layer], Pixels]) -> Pixels:
    return np.stack([change(map_HW, layer) for map_HW in pixels]) if layer.are_maps else change(pixels, layer)

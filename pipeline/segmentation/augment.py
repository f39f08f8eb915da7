"""What training images go through: flip, scale and crop, colour jitter.

Shape suffixes: H height, W width, C channels.
"""

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.segmentation.reading import LabeledImage
from schemas.sample import IGNORE
from schemas.segmentation import AugmentationConfig

Pixels = NDArray[np.uint8]

# Shares of red, green and blue in luminance (ITU-R BT.601).
_LUMINANCE_C = np.array([0.299, 0.587, 0.114], np.float32)


class Augmentation:
    """Changes image, mask and alpha alike; picklable."""

    def __init__(self, config: AugmentationConfig, crop: int) -> None:
        """crop: height and width of what comes out."""
        self._config, self._crop = config, crop

    def __call__(self, sample: LabeledImage, random: np.random.Generator) -> LabeledImage:
        """The sample, changed, of size crop x crop. Where the image does not reach, the mask is 255 (ignore)."""
        config = self._config
        if random.random() < config.flip:
            sample = _map(sample, lambda pixels: np.ascontiguousarray(pixels[:, ::-1]))
        low, high = np.log(config.scale)
        sample = _scale(sample, float(np.exp(random.uniform(low, high))))
        sample = _crop(sample, self._crop, random)
        factors = 1 + config.colour_jitter * random.uniform(-1, 1, 3)
        return replace(sample, image_HWC=_jitter(sample.image_HWC, *factors.tolist()))


def _map(sample: LabeledImage, change: "type[object] | object") -> LabeledImage:
    raise NotImplementedError

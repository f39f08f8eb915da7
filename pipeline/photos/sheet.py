"""Pictures beside each other that show what an inversion has found.

Shape suffixes: C channels, H height, W width.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from labelmill.pipeline.generator.sampling import to_uint8
from labelmill.pipeline.pictures.overlay import rgb
from labelmill.pipeline.pictures.photos import Pixels
from labelmill.pipeline.pictures.png import encode_picture
from labelmill.pipeline.process.files import write_atomically

_SMALLEST = 128
_GAP = 4


def write_sheet(path: Path, images: Sequence[Tensor], pictures: Sequence[Pixels] = ()) -> None:
    """Write a photo in its frame, its reconstructions, how far the last of these is off, and `pictures` [H, W, 3].

    images: [C, H, W] in [-1, 1], the photo first.
    """
    shown = [rgb(to_uint8(image_CHW[None])[0].numpy()) for image_CHW in images]
    difference = np.abs(shown[0].astype(int) - shown[-1].astype(int)).astype(np.uint8)
    tiles = [_enlarged(tile) for tile in (*shown, difference, *pictures)]
    height = max(len(tile) for tile in tiles)
    spaced = []
    for tile in tiles:
        spaced += [tile, np.full((height, _GAP, 3), 255, np.uint8)]
    write_atomically(path, encode_picture(np.hstack(spaced[:-1])))


def _enlarged(tile_HWC: Pixels) -> Pixels:
    height, width = tile_HWC.shape[:2]
    factor = max(1, -(-_SMALLEST // max(height, width)))
    size = width * factor, height * factor
    return np.asarray(cv2.resize(tile_HWC, size, interpolation=cv2.INTER_NEAREST), np.uint8)

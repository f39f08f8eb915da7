"""A photo of any size in the generator's frame, and maps back from there.

Shape suffixes: H, W height and width of the photo; h, w of a frame; C channels; K maps.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from labelmill.pipeline.pictures.photos import Pixels
from labelmill.schemas.inversion import Fit
from labelmill.schemas.sample import IGNORE

SMALLEST_SIDE = 8
LARGEST_RATIO = 8
"""Of the longer side to the shorter one: a longer sliver would be hardly a pixel wide in the frame."""


@dataclass(frozen=True)
class Frame:
    """How a photo lies in a frame."""

    photo: tuple[int, int]
    """Height and width of the photo."""
    size: tuple[int, int]
    """Height and width of the frame."""
    fit: Fit

    @property
    def shown(self) -> tuple[slice, slice]:
        """Rows and columns of the photo that the frame shows."""
        if self.fit != "crop":
            return slice(0, self.photo[0]), slice(0, self.photo[1])
        scale = min(self.photo[0] / self.size[0], self.photo[1] / self.size[1])
        sides = [max(1, min(side, round(frame * scale))) for side, frame in zip(self.photo, self.size, strict=True)]
        rows, columns = (
            slice((side - cut) // 2, (side - cut) // 2 + cut) for side, cut in zip(self.photo, sides, strict=True)
        )
        return rows, columns

    @property
    def filled(self) -> tuple[slice, slice]:
        """Rows and columns of the frame that show the photo; the rest is its mirror image."""
        if self.fit != "pad":
            return slice(0, self.size[0]), slice(0, self.size[1])
        scale = min(self.size[0] / self.photo[0], self.size[1] / self.photo[1])
        sides = [max(1, min(frame, round(side * scale))) for side, frame in zip(self.photo, self.size, strict=True)]
        rows, columns = (
            slice((frame - side) // 2, (frame - side) // 2 + side) for side, frame in zip(sides, self.size, strict=True)
        )
        return rows, columns

    def enlarged(self, most: int) -> "Frame":
        """The frame so many times larger that it loses nothing of the photo, but with sides of at most `most` (or as
        they are)."""
        (rows, columns), (shown_rows, shown_columns) = self.filled, self.shown
        needed = max(_length(shown_rows) / _length(rows), _length(shown_columns) / _length(columns))
        factor = max(1, min(int(np.ceil(needed)), most // max(self.size)))
        return Frame(self.photo, (self.size[0] * factor, self.size[1] * factor), self.fit)

    def put(self, image_HWC: Pixels, channels: int) -> NDArray[np.float32]:
        """The photo in the frame [C, h, w] in [-1, 1], gray if there is one channel."""
        rows, columns = self.shown
        image = np.ascontiguousarray(image_HWC[rows, columns])
        if channels == 1:
            image = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
        (top, bottom), (left, right) = ((part.start, part.stop) for part in self.filled)
        size = (bottom - top, right - left)
        if size != image.shape[:2]:
            smaller = size[0] < image.shape[0] or size[1] < image.shape[1]
            way = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
            image = np.asarray(cv2.resize(image, size[::-1], interpolation=way), np.uint8)
        borders = (top, self.size[0] - bottom, left, self.size[1] - right)
        if any(borders):
            image = np.asarray(cv2.copyMakeBorder(image, *borders, cv2.BORDER_REFLECT), np.uint8)
        image = image.reshape(*self.size, channels).transpose(2, 0, 1)
        return np.ascontiguousarray((image.astype(np.float32) - 128) / 127.5)

    def put_mask(self, mask_HW: Pixels) -> Pixels:
        """A mask of the photo in the frame [h, w], each pixel the photo's nearest; 255 where the frame shows a mirror
        image."""
        part = mask_HW[self.shown]
        framed_hw = np.full(self.size, IGNORE, np.uint8)
        height, width = framed_hw[self.filled].shape
        rows, columns = (
            (2 * np.arange(to) + 1) * of // (2 * to) for to, of in zip((height, width), part.shape, strict=True)
        )
        framed_hw[self.filled] = part[rows][:, columns]
        return framed_hw

    def take_back(self, map_hw: Tensor, mode: str = "bilinear") -> Tensor:
        """A map of the frame [h, w] float32 on the part of the photo that the frame shows. mode: as `interpolate`'s."""
        rows, columns = self.filled
        part = map_hw[rows, columns]
        size = tuple(_length(each) for each in self.shown)
        return part if part.shape == size else functional.interpolate(part[None, None], size=size, mode=mode)[0, 0]

    def on_photo(self, part: Tensor, outside: int) -> Tensor:
        """What `take_back` gave, on the whole photo [H, W]."""
        if part.shape == self.photo:
            return part
        whole = torch.full(self.photo, outside, dtype=part.dtype)
        whole[self.shown] = part
        return whole


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def shape_problem(height: int, width: int) -> str | None:
    """Why a photo of such a shape cannot be inverted; None if it can."""
    if min(height, width) < SMALLEST_SIDE:
        return f"has {width} x {height} pixels; a side of less than {SMALLEST_SIDE} shows nothing"
    if max(height, width) > LARGEST_RATIO * min(height, width):
        return f"has {width} x {height} pixels; crop it, one side may be at most {LARGEST_RATIO} times the other"
    return None

"""Who finds boxes: a file, or a function that looks at images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.generator.sampling import Batch, to_uint8
from labelmill.pipeline.instances.boxes import Box, FoundBox, usable_boxes
from labelmill.pipeline.process.log import warn
from labelmill.schemas.errors import ConfigError

Detect = Callable[[NDArray[np.uint8]], Sequence[Iterable[Mapping[str, Any]]]]
"""From images [B, H, W, C] uint8, RGB or gray, to the boxes of each: {"class": "person", "score": 0.9, "box": [x, y,
width, height]}, in the image's pixels from its upper left corner."""


class Detector(Protocol):
    """Boxes of images."""

    def __call__(self, batch: Batch) -> list[tuple[Box, ...]]:
        """The boxes of each image, those of highest score first. Raises TooManyInstancesError."""


class FromFile:
    """Boxes that stand in a file."""

    def __init__(self, boxes: Mapping[str, tuple[Box, ...]]) -> None:
        """boxes: by key; an image without any may be left out."""
        self.boxes = boxes

    def __call__(self, batch: Batch) -> list[tuple[Box, ...]]:
        return [self.boxes.get(key, ()) for key in batch.keys]


class FromFunction:
    """Boxes that a function sees in images."""

    def __init__(self, detect: Detect) -> None:
        self._detect = detect

    def __call__(self, batch: Batch) -> list[tuple[Box, ...]]:
        return self.look(to_uint8(batch.images_BCHW).cpu().numpy(), batch.keys)

    def look(self, images_BHWC: NDArray[np.uint8], names: Sequence[str]) -> list[tuple[Box, ...]]:
        """The boxes of each image; a line in the log for each that cannot be used. names: of the images."""
        found_B = self._detect(images_BHWC)
        if len(found_B) != len(names):
            raise ConfigError(f"a detector gives the boxes of each of {len(names)} images, not of {len(found_B)}")
        return [self._usable(found, images_BHWC.shape, name) for found, name in zip(found_B, names, strict=True)]

    def _usable(self, found: Iterable[Mapping[str, Any]], shape: tuple[int, ...], name: str) -> tuple[Box, ...]:
        boxes, problems = usable_boxes(map(_found, found), (shape[1], shape[2]), name)
        for problem in problems:
            warn(problem)
        return boxes


def _found(values: Mapping[str, Any]) -> FoundBox:
    if not isinstance(values, Mapping):
        raise ConfigError(f"a detector gives boxes as mappings with class, score and box, not {type(values).__name__}")
    return FoundBox(values.get("class"), _plain(values.get("score")), _plain_box(values.get("box")))


def _plain_box(box: Any) -> Any:
    values = box.tolist() if hasattr(box, "tolist") else box
    return [_plain(value) for value in values] if isinstance(values, Sequence) and not isinstance(values, str) else box


def _plain(value: Any) -> Any:
    """A number of NumPy or PyTorch as Python's."""
    return value.item() if hasattr(value, "item") else value

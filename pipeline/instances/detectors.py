"""Who finds boxes: a file, or a function that looks at images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.generator.sampling import Batch, to_uint8
from labelmill.pipeline.instances.boxes import Box, FoundBox, usable_boxes
from labelmill.pipeline.process.log import warn
from labelmill.schemas.errors import ConfigError

Detect = Callable[[NDArray[np.uint8]], Iterable[Mapping[str, Any]]]
"""From an image [H, W, C] uint8, RGB or gray, to its boxes: {"class": "person", "score": 0.9, "box": [x, y, width,
height]}, in the image's pixels from its upper left corner."""


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
    """Boxes that a function sees in an image."""

    def __init__(self, detect: Detect) -> None:
        self._detect = detect

    def __call__(self, batch: Batch) -> list[tuple[Box, ...]]:
        images_BHWC = to_uint8(batch.images_BCHW).cpu().numpy()
        return [self.look(image_HWC, key) for image_HWC, key in zip(images_BHWC, batch.keys, strict=True)]

    def look(self, image_HWC: NDArray[np.uint8], image: str) -> tuple[Box, ...]:
        """The boxes of one image; a line in the log for each that cannot be used. image: its name."""
        height, width = image_HWC.shape[:2]
        boxes, problems = usable_boxes(map(_found, self._detect(image_HWC)), (height, width), image)
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

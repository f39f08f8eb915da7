"""`labelmill annotate check`: what a set's labels cover, and what they lack.

Shape suffixes: N images, K classes.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.annotations.read import Annotations
from labelmill.pipeline.pictures.overlay import Captioned, sheet
from labelmill.pipeline.pictures.png import encode_picture
from labelmill.schemas.sample import IGNORE

FEW_PIXELS = 8
"""A class with fewer pixels in all can hardly be learned."""
_COLUMNS, _EDGE = 4, 192


def class_pixels(annotations: Annotations) -> NDArray[np.int64]:
    """Labeled pixels per image and class [N, K]."""
    num_classes = len(annotations.about.classes)
    counts = [np.bincount(mask_HW.ravel(), minlength=256)[:num_classes] for mask_HW in annotations.masks_NHW]
    return np.array(counts, np.int64)


def check_lines(annotations: Annotations) -> Iterator[str]:
    """One line per image, one per class, and one for each thing that is missing."""
    about, pixels_NK = annotations.about, class_pixels(annotations)
    for key, pixels_K, mask_HW in zip(annotations.keys, pixels_NK, annotations.masks_NHW, strict=True):
        shares = [
            f"{name} {count / mask_HW.size:.1%}"
            for name, count in zip(about.classes, pixels_K.tolist(), strict=True)
            if count
        ]
        yield f"{key}: {(mask_HW != IGNORE).mean():.1%} labeled: {', '.join(shares)}"
    total = int(pixels_NK.sum())
    for name, pixels_N in zip(about.classes, pixels_NK.T, strict=True):
        count, images = int(pixels_N.sum()), int((pixels_N > 0).sum())
        few = f"; fewer than {FEW_PIXELS} pixels can hardly be learned" if 0 < count < FEW_PIXELS else ""
        yield f"class {name}: {count:,} pixels ({count / total:.1%}) in {images} of {len(annotations)} images{few}"
    missing = [name for name, pixels_N in zip(about.classes, pixels_NK.T, strict=True) if not pixels_N.any()]
    if missing:
        yield f"classes without pixels: {', '.join(missing)}"
    labeled = set(annotations.keys)
    unlabeled = [key for key in about.keys if key not in labeled]
    if unlabeled:
        yield f"images without labels: {', '.join(unlabeled)}"
    yield f"{len(annotations)} of {len(about.images)} images labeled, set {annotations.sha256[:12]}"


def check_sheet(annotations: Annotations) -> bytes:
    """A PNG of all annotated images, each beside its labels laid over it."""
    pictures = [
        Captioned(image_HWC, mask_HW, f"{key}  ·  {(mask_HW != IGNORE).mean():.0%} labeled")
        for key, image_HWC, mask_HW in zip(
            annotations.keys, annotations.images_NHWC, annotations.masks_NHW, strict=True
        )
    ]
    return encode_picture(sheet(pictures, annotations.about.classes, _COLUMNS, _EDGE))

"""COCO's JSON: images, categories, and annotations with polygons or run lengths, as COCO's own tools, CVAT and Label
Studio write it.

Annotations lie on each other by their ids. `iscrowd` changes nothing: a crowd's pixels are of its class too.

Shape suffixes: H, W height and width.
"""

from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from labelmill.pipeline.annotations.formats import coco_shapes
from labelmill.pipeline.annotations.formats.drawn import (
    BadShapeError,
    Canvas,
    DrawnImage,
    Findings,
    Inside,
    Region,
    check_size,
    checked_polygon,
)
from labelmill.pipeline.annotations.formats.parsed import parsed


class _Image(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: int
    file_name: str
    height: int
    width: int


class _Category(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: int
    name: str


class _RunLengths(BaseModel):
    model_config = ConfigDict(frozen=True)

    size: tuple[int, int]
    counts: str | list[int]


class _Annotation(BaseModel):
    model_config = ConfigDict(frozen=True)

    id: int
    image_id: int
    category_id: int
    segmentation: _RunLengths | list[list[float]] = Field(default_factory=list, repr=False)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True)

    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


def is_coco(values: Any) -> bool:
    """Whether JSON is COCO's."""
    return isinstance(values, dict) and {"images", "annotations", "categories"} <= values.keys()


def read_coco(values: Any, source: str, findings: Findings) -> list[DrawnImage]:
    """What the file says of its images, those without any annotation left out; mistakes go to `findings`."""
    file = parsed(_File, values, source, findings)
    if file is None:
        return []
    names = {category.id: category.name for category in file.categories}
    by_image: dict[int, list[_Annotation]] = {image.id: [] for image in file.images}
    for annotation in sorted(file.annotations, key=lambda each: each.id):
        place = f"{source}: annotation {annotation.id}"
        if annotation.category_id not in names:
            findings.problems.append(f"{place}: is of category {annotation.category_id}, which the file does not list")
        elif annotation.image_id not in by_image:
            findings.problems.append(f"{place}: is of image {annotation.image_id}, which the file does not list")
        else:
            by_image[annotation.image_id].append(annotation)
    drawn = []
    for image in file.images:
        if not by_image[image.id]:
            continue
        with findings.of(f"{source}: image {image.file_name}"):
            check_size((image.height, image.width))
            regions = tuple(_region(each, names[each.category_id]) for each in by_image[image.id])
            drawn.append(DrawnImage(source, image.file_name, (image.height, image.width), regions))
    return drawn


def _region(annotation: _Annotation, label: str) -> Region:
    name = f"annotation {annotation.id} ({label})"
    return Region(label, partial(_draw, annotation), name)


def _draw(annotation: _Annotation, canvas: Canvas) -> Inside:
    segmentation = annotation.segmentation
    if isinstance(segmentation, _RunLengths):
        if segmentation.size != canvas.size:
            raise BadShapeError(f"has run lengths of {segmentation.size[1]} x {segmentation.size[0]}, unlike its image")
        if isinstance(segmentation.counts, str):
            return coco_shapes.packed_run_lengths(segmentation.counts, canvas.size)
        return coco_shapes.run_lengths(segmentation.counts, canvas.size)
    if not segmentation:
        raise BadShapeError("has no segmentation: a box alone has no pixels; export polygons or masks")
    inside_HW = np.zeros(canvas.size, bool)
    for polygon in segmentation:
        inside_HW |= coco_shapes.polygon(checked_polygon(polygon, canvas), canvas.size)
    return inside_HW

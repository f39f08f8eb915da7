"""PNG masks: class indices, colours of a `labelmap.txt`, or one file per class.

- `KEY.png` or `KEY.mask.png`, gray or palette: class indices, 255 where nothing is known.
- RGB, or a palette beside a `labelmap.txt` (CVAT's `Segmentation mask 1.1`): colours of labels.
- `KEY-CLASS.png`: 0 outside of the class, one other value inside.

A mask says something of each pixel: what it calls background is background, whatever `--rest` says.

Shape suffixes: H, W height and width; C the channels red, green, blue; N colours.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from labelmill.pipeline.annotations.formats.drawn import (
    BadShapeError,
    Canvas,
    DrawnImage,
    Inside,
    Pixels,
    Region,
    check_size,
)
from labelmill.pipeline.pictures.mask_png import MaskError, decode_mask
from labelmill.pipeline.pictures.png import PALETTE, decode_picture, read_png_header
from labelmill.schemas.cluster_mapping import IGNORED
from labelmill.schemas.sample import IGNORE

Colour = tuple[int, int, int]

RGB = 2
"""Colour type, as a PNG's header numbers it."""
_LABELMAP_LINE = re.compile(r"([^:#][^:]*):(\d{1,3}),(\d{1,3}),(\d{1,3}):[^:]*:[^:]*")
_PER_CLASS = re.compile(r"(?:.*\D)?(\d{10})[-_. ](.+)")
_LABEL_STUDIO = re.compile(r"task-\d+-annotation-\d+-by-.*")
_INDEX_SUFFIX = "mask"


def parse_labelmap(content: bytes) -> dict[Colour, str] | None:
    """Labels by colour, as CVAT's `labelmap.txt` lists them; None for any other text."""
    if len(content) > 2**16:
        return None
    try:
        lines = [line.strip() for line in content.decode().splitlines()]
    except UnicodeDecodeError:
        return None
    found = [_LABELMAP_LINE.fullmatch(line) for line in lines if line and not line.startswith("#")]
    labels: dict[Colour, str] = {}
    for line in found:
        if line is None:
            return None
        label, *colour = line.groups()
        red, green, blue = (min(255, int(value)) for value in colour)
        labels[red, green, blue] = label.strip()
    return labels or None


def class_of_file(stem: str) -> str | None:
    """The class that a file of KEY-CLASS.png is about; None for a mask of all classes."""
    match = _PER_CLASS.fullmatch(stem)
    return match[2] if match and match[2] != _INDEX_SUFFIX else None


def read_png_mask(
    png: bytes, source: str, stem: str, classes: Sequence[str], colours: Mapping[Colour, str]
) -> DrawnImage:
    """What a mask says of the image that its name names.

    classes: names of indices. colours: those of a `labelmap.txt` beside it, or none. Raises BadShapeError.
    """
    header = read_png_header(png)
    assert header is not None, "told by its first bytes"
    size = (header.height, header.width)
    check_size(size)
    if _LABEL_STUDIO.fullmatch(stem):
        raise BadShapeError("is one of Label Studio's PNG, which name tasks instead of images; export JSON")
    label = class_of_file(stem)
    if label is not None:
        region = Region(label, partial(_inside_one, png), label)
        return DrawnImage(source, stem, size, (region,), is_single=True)
    if header.colour_type == RGB or (header.colour_type == PALETTE and colours):
        return DrawnImage(source, stem, size, _coloured(png, colours))
    indices_HW = _indices(png)
    return DrawnImage(source, stem, size, _indexed(png, indices_HW, classes))


def _indexed(png: bytes, indices_HW: Pixels, classes: Sequence[str]) -> tuple[Region, ...]:
    values = [int(value) for value in np.unique(indices_HW)]
    if not classes:
        raise BadShapeError("holds class indices, but nothing says which classes; name them with --classes")
    strange = [value for value in values if len(classes) <= value < IGNORE]
    if strange:
        raise BadShapeError(
            f"holds {', '.join(map(str, strange[:8]))}; allowed are 0 to {len(classes) - 1} ({', '.join(classes)}) and "
            f"{IGNORE} (nothing known)"
        )
    names = {value: IGNORED if value == IGNORE else classes[value] for value in values}
    return tuple(Region(names[value], partial(_inside_index, png, value), names[value]) for value in values)


def _coloured(png: bytes, colours: Mapping[Colour, str]) -> tuple[Region, ...]:
    if not colours:
        raise BadShapeError(
            "is an RGB PNG, and no labelmap.txt says which colours are which classes; add it (lines like "
            "hair:255,0,0::)"
        )
    packed_HW = _rgb(png).astype(np.int32) @ np.array([2**16, 2**8, 1], np.int32)
    found = [(each >> 16, each >> 8 & 255, each & 255) for each in np.unique(packed_HW).tolist()]
    strange = [colour for colour in found if colour not in colours]
    if strange:
        listed = ", ".join(",".join(map(str, colour)) for colour in strange[:5])
        raise BadShapeError(f"holds {len(strange)} colours that labelmap.txt does not list, such as {listed}")
    return tuple(Region(colours[each], partial(_inside_colour, png, each), colours[each]) for each in found)


def _inside_one(png: bytes, canvas: Canvas) -> Inside:
    values_HW = _indices(png)
    if len(np.unique(values_HW)) > 2:
        raise BadShapeError("is named after one class, so it should hold 0 and one other value")
    return values_HW != 0


def _inside_index(png: bytes, value: int, canvas: Canvas) -> Inside:
    return _indices(png) == value


def _inside_colour(png: bytes, colour: Colour, canvas: Canvas) -> Inside:
    return np.asarray((_rgb(png) == np.array(colour, np.uint8)).all(axis=2), bool)


def _indices(png: bytes) -> Pixels:
    try:
        return decode_mask(png)
    except MaskError as error:
        raise BadShapeError(str(error)) from None


def _rgb(png: bytes) -> Pixels:
    pixels_HWC = decode_picture(png, channels=3)
    if pixels_HWC is None:
        raise BadShapeError("is a PNG that cannot be decoded: damaged or cut")
    return pixels_HWC

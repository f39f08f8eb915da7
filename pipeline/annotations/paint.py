"""Regions to a mask: painted at the size that people drew on, then brought down to the generator's pixels.

Shape suffixes: H, W height and width that people drew on; h, w those of the generator; K classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from labelmill.pipeline.annotations.formats.drawn import BadShapeError, Canvas, DrawnImage, Findings, Pixels
from labelmill.schemas.sample import IGNORE


@dataclass(frozen=True)
class Painted:
    """The labels of one image."""

    mask_HW: Pixels
    """At the generator's resolution, 255 where nothing is known."""
    overlap: float
    """Share of the covered pixels that regions of several classes cover, in [0, 1]."""


def paint(
    drawn: DrawnImage, canvas: Canvas, indices: Mapping[str, int], findings: Findings, *, rest_is_background: bool
) -> Painted:
    """All regions of an image, later ones on top. indices: mask values by label. Shapes that cannot be drawn go to
    `findings`."""
    values_HW = np.full(canvas.size, IGNORE, np.uint8)
    said_HW = np.zeros(canvas.size, bool)
    overlap_HW = np.zeros(canvas.size, bool)
    for region in drawn.regions:
        with findings.of(f"{drawn.source}: {region.name}"):
            inside_HW = region.draw(canvas)
            if inside_HW.shape != canvas.size:
                raise BadShapeError(f"is {inside_HW.shape[1]} x {inside_HW.shape[0]}, unlike its image")
            index = indices[region.label]
            overlap_HW |= inside_HW & said_HW & (values_HW != index)
            values_HW[inside_HW] = index
            said_HW |= inside_HW
        findings.notes += [f"{drawn.source}: {region.name}: {line}" for line in canvas.told]
        canvas.told.clear()
    overlap = float(overlap_HW.sum() / max(1, said_HW.sum()))
    if rest_is_background:
        values_HW[~said_HW] = 0
    return Painted(bring_down(values_HW, canvas.scale), overlap)


def bring_down(values_HW: Pixels, scale: int) -> Pixels:
    """Each square of scale x scale to one pixel [h, w]: its largest class, of equals the first one, if more than half
    of the square is of any class; else 255."""
    if scale == 1:
        return values_HW
    squares_hsws = values_HW.reshape(values_HW.shape[0] // scale, scale, values_HW.shape[1] // scale, scale)
    classes = [int(value) for value in np.unique(values_HW) if value != IGNORE]
    if not classes:
        return np.full((squares_hsws.shape[0], squares_hsws.shape[2]), IGNORE, np.uint8)
    counts_Khw = np.stack([(squares_hsws == index).sum(axis=(1, 3)) for index in classes])
    largest_hw = np.array(classes, np.uint8)[counts_Khw.argmax(axis=0)]
    return np.where(2 * counts_Khw.sum(axis=0) > scale * scale, largest_hw, IGNORE).astype(np.uint8)

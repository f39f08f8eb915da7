"""The row of w to mix from for instances: as low as what the detector saw survives, because lower rows change colours
more.

The labeler's own row keeps the foreground as a whole; hats, glasses and other small things need a later one. A detector
that looks at images is asked about variants as well. A file knows nothing of variants: there, edges inside the boxes of
images and of variants are compared.

Shape suffixes: B batch, N variants, C channels, H height, W width.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.generator.sampling import Batch, Sampler, to_uint8
from labelmill.pipeline.generator.spec import num_rows
from labelmill.pipeline.instances.boxes import Box
from labelmill.pipeline.instances.detectors import FromFunction
from labelmill.pipeline.labelers.style_mixing.crossover import edge_field, field_agreement
from labelmill.pipeline.labelers.style_mixing.mixing import mix_in_passes

_MOST_DONORS = 4
_LEAST_STRANGENESS = 1e-6

Looked = Sequence[tuple[Batch, list[tuple[Box, ...]]]]
"""Images and their boxes."""


def choose_row(kept: Mapping[int, float], min_kept: float) -> int:
    """The lowest row from which on no row keeps less. The last row if it keeps less itself: that one changes colour
    only."""
    rows = sorted(kept, reverse=True)
    short = next((index for index, row in enumerate(rows) if kept[row] < min_kept), len(rows))
    return rows[max(short, 1) - 1]


def kept_by_detector(sampler: Sampler, looked: Looked, donors_NLD: Tensor, detector: FromFunction) -> dict[int, float]:
    """By row: mean IoU of boxes on images with the best box of their class on variants, of the class with the least."""
    kept: dict[int, float] = {}
    for row in _rows(sampler.generator):
        ious: dict[str, list[float]] = defaultdict(list)
        for each in looked:
            found = [
                (boxes, to_uint8(variants_NCHW).cpu().numpy())
                for boxes, variants_NCHW in _variants(sampler, [each], donors_NLD, row)
            ]
            _compare(found, detector, f"a variant from row {row} on", ious)
        kept[row] = round(min(sum(each) / len(each) for each in ious.values()), 4)
    return kept


def _compare(
    found: Sequence[tuple[tuple[Box, ...], NDArray[np.uint8]]],
    detector: FromFunction,
    name: str,
    ious: dict[str, list[float]],
) -> None:
    """Add, by class, the IoU of images' boxes with the best ones on each of their variants [N, H, W, C]."""
    if not found:
        return
    images_BHWC = np.concatenate([variants_NHWC for _, variants_NHWC in found])
    seen_B = iter(detector.look(images_BHWC, [name] * len(images_BHWC)))
    for boxes, variants_NHWC in found:
        for seen in islice(seen_B, len(variants_NHWC)):
            for box in boxes:
                same = (box.iou(other) for other in seen if other.label == box.label)
                ious[box.label].append(max(same, default=0.0))


def kept_by_edges(sampler: Sampler, looked: Looked, donors_NLD: Tensor) -> dict[int, float]:
    """By row: mean agreement of edges inside the boxes of images and their variants; 0 as between different images, 1
    as with itself."""
    images_BCHW = torch.cat([batch.images_BCHW[position][None] for batch, position, _ in _with_boxes(looked)])
    all_boxes = [boxes for _, _, boxes in _with_boxes(looked)]
    edges_B2HW = edge_field(images_BCHW.float())
    strangers = _mean_agreement(edges_B2HW, edges_B2HW.roll(1, dims=0)[:, None], all_boxes)
    kept: dict[int, float] = {}
    for row in _rows(sampler.generator):
        fields = [edge_field(variants_NCHW) for _, variants_NCHW in _variants(sampler, looked, donors_NLD, row)]
        mean = _mean_agreement(edges_B2HW, fields, all_boxes)
        kept[row] = round((mean - strangers) / max(1 - strangers, _LEAST_STRANGENESS), 4)
    return kept


def _rows(generator: Generator) -> range:
    return range(1, num_rows(generator.spec.resolution))


def _with_boxes(looked: Looked) -> Iterator[tuple[Batch, int, tuple[Box, ...]]]:
    """Batch, position and boxes of each image that has any."""
    for batch, boxes_B in looked:
        yield from ((batch, position, boxes) for position, boxes in enumerate(boxes_B) if boxes)


def _variants(
    sampler: Sampler, looked: Looked, donors_NLD: Tensor, row: int
) -> Iterator[tuple[tuple[Box, ...], Tensor]]:
    """Boxes and variants [N, C, H, W] of each image that has boxes."""
    for batch, boxes_B in looked:
        positions = [position for position, boxes in enumerate(boxes_B) if boxes]
        if not positions:
            continue
        passes = mix_in_passes(
            sampler.generator,
            batch.select(positions),
            donors_NLD[:_MOST_DONORS],
            row,
            None,
            batch_size=sampler.numerics.batch_size,
        )
        for those, variants_BNCHW in passes:
            yield from zip((boxes_B[positions[each]] for each in those), variants_BNCHW, strict=False)


def _mean_agreement(
    edges_B2HW: Tensor, others: Sequence[Tensor] | Tensor, all_boxes: Sequence[tuple[Box, ...]]
) -> float:
    """Over the boxes of all images. others: edges [N, 2, H, W] of each image's counterparts."""
    agreements = []
    for edges_2HW, others_N2HW, boxes in zip(edges_B2HW, others, all_boxes, strict=True):
        for box in boxes:
            rows, columns = slice(int(box.top), int(box.bottom) + 1), slice(int(box.left), int(box.right) + 1)
            agreement_N = field_agreement(edges_2HW[None, :, rows, columns], others_N2HW[:, :, rows, columns])
            agreements.append(agreement_N.mean().item())
    return sum(agreements) / len(agreements)

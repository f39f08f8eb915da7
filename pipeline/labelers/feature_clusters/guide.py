"""What a person needs to check or name clusters in a minute: a contact sheet a cluster, and `clusters.yaml` to edit.

Shape suffixes: B batch, K clusters, h w resolution of the highest layer, H W of the images, C channels.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from labelmill.pipeline.generator.sampling import Sampler, to_uint8
from labelmill.pipeline.labelers.feature_clusters.discovery import edited_seeds
from labelmill.pipeline.labelers.feature_clusters.findings import findings
from labelmill.pipeline.labelers.feature_clusters.fitted import ClusterRecord, FittedFeatureClusters
from labelmill.pipeline.labelers.feature_clusters.labeler import FeatureClustersLabeler
from labelmill.pipeline.pictures.overlay import class_colours, overlay, resize, resize_mask, rgb
from labelmill.pipeline.pictures.png import encode_picture
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig

Pixels = NDArray[np.uint8]

MAPPING_NAME = "clusters.yaml"
_IMAGES = 64
"""Images of `fit` that sheets are chosen from."""
_SHOWN, _EDGE, _CAPTION = 8, 128, 28
_HEAD = """\
# Which cluster is which class. cluster_NN.png beside this file shows each: above the images in which it is largest,
# below the same with nothing but the cluster in colour.
# To change names: copy this file, edit `classes` and the clusters' `name` (a class, or ignore), and fit in a new output
# with `labeler.mapping: PATH` and all else as it was. The rest is for your eyes: shares are of all pixels and of those
# along the images' borders; similarity is the cosine of the nearest prompt, margin by how much all others' are less.
"""


def cluster_guide(config: FeatureClustersConfig, sampler: Sampler, fitted: FittedFeatureClusters) -> dict[str, bytes]:
    """Files by name: a PNG a cluster, one a rare class, and last `clusters.yaml`."""
    records = fitted.provenance.clusters
    sheets = {
        f"cluster_{number:02d}.png": encode_picture(sheet)
        for number, sheet in enumerate(_cluster_sheets(config, sampler, fitted))
    }
    for number, edit_D in enumerate(fitted.edits_QD):
        sheets[f"discovery_{number:02d}.png"] = encode_picture(_edit_sheet(config, sampler, fitted, number, edit_D))
    return {**sheets, MAPPING_NAME: mapping_file(fitted, records)}


def mapping_file(fitted: FittedFeatureClusters, records: Sequence[ClusterRecord]) -> bytes:
    """`clusters.yaml`, which `labelmill.schemas.cluster_mapping.load_mapping` reads back."""
    clusters = {
        number: record.model_dump(exclude_none=True, exclude={"is_unsure"}) for number, record in enumerate(records)
    }
    for entry in clusters.values():
        entry["share"], entry["border_share"] = round(entry["share"], 4), round(entry["border_share"], 4)
    head = {"clustering": fitted.model.clustering, "classes": list(fitted.provenance.classes)}
    notes = [f"# Note: {line}\n" for line in findings(fitted.provenance)]
    lines = [_HEAD, *notes, yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120), "clusters:\n"]
    for number, entry in clusters.items():
        unsure = "  # unsure: name it" if records[number].is_unsure else ""
        flow = yaml.safe_dump(entry, sort_keys=False, default_flow_style=True, allow_unicode=True, width=10**6).strip()
        lines.append(f"  {number}: {flow}{unsure}\n")
    return "".join(lines).encode()


def _cluster_sheets(config: FeatureClustersConfig, sampler: Sampler, fitted: FittedFeatureClusters) -> list[Pixels]:
    images_NHWC, nearest_Nhw = _looked_at(config, sampler, fitted)
    sheets = []
    for number, record in enumerate(fitted.provenance.clusters):
        is_cluster_Nhw = nearest_Nhw == number
        largest = np.argsort(-is_cluster_Nhw.sum(axis=(1, 2)), kind="stable")[:_SHOWN]
        columns = [_pair(images_NHWC[index], is_cluster_Nhw[index].astype(np.uint8)) for index in largest]
        sheets.append(_captioned(np.concatenate(columns, axis=1), _caption(number, record)))
    return sheets


def _looked_at(
    config: FeatureClustersConfig, sampler: Sampler, fitted: FittedFeatureClusters
) -> tuple[Pixels, NDArray[np.int64]]:
    """Images of `fit`, and of rare classes, and the clusters of their pixels."""
    images, nearest = [], []
    for edit_D in (None, *fitted.edits_QD):
        first = config.fit_first_seed
        count = min(_IMAGES, config.fit_samples) if edit_D is None else min(_SHOWN, len(edited_seeds(config)))
        for batch in sampler.batches(range(first, first + count), fitted.model.layers, edit_D):
            images.append(to_uint8(batch.images_BCHW).cpu().numpy())
            nearest.append(fitted.model.nearest(batch.features).cpu().numpy())
    return np.concatenate(images), np.concatenate(nearest)


def _pair(image_HWC: Pixels, is_cluster_hw: Pixels) -> Pixels:
    """The image over itself with nothing but the cluster in colour."""
    large_HWC = resize(rgb(image_HWC), _EDGE)
    shown_HW1 = resize_mask(is_cluster_hw, _EDGE)[..., None]
    grey_HWC = np.repeat(large_HWC.mean(axis=2, keepdims=True) * 0.3 + 150, 3, axis=2).astype(np.uint8)
    return np.concatenate([large_HWC, np.where(shown_HW1 == 1, large_HWC, grey_HWC)])


def _edit_sheet(
    config: FeatureClustersConfig, sampler: Sampler, fitted: FittedFeatureClusters, number: int, edit_D: torch.Tensor
) -> Pixels:
    """Images before and after the edit, and the labels of these."""
    labeler, seeds = FeatureClustersLabeler(sampler, fitted), edited_seeds(config)[:_SHOWN]
    colours, rows = class_colours(len(labeler.classes)), []
    pairs = zip(sampler.batches(seeds), sampler.batches(seeds, labeler.layers, edit_D), strict=True)
    for before, after in pairs:
        masks_BHW = labeler.label(after).masks_BHW.cpu().numpy()
        first, second = (to_uint8(batch.images_BCHW).cpu().numpy() for batch in (before, after))
        for one_HWC, other_HWC, mask_HW in zip(first, second, masks_BHW, strict=True):
            pictures = [resize(rgb(image_HWC), _EDGE) for image_HWC in (one_HWC, other_HWC)]
            labeled_HWC = overlay(pictures[1], resize_mask(mask_HW, _EDGE), colours)
            rows.append(np.concatenate([*pictures, labeled_HWC]))
    record = fitted.provenance.discoveries[number]
    moved = f"moves {record.moved_share:.0%}, wanted {record.moved_share_wanted:.0%}"
    caption = f"{record.prompt}: before, after ({moved}), labels"
    return _captioned(np.concatenate(rows, axis=1), caption)


def _caption(number: int, record: ClusterRecord) -> str:
    text = f"{number}: {record.name}, {record.share:.1%} of pixels"
    if record.nearest is None:
        return text
    doubt = f"; unsure, nearest {record.nearest}" if record.is_unsure else ""
    return f"{text}; similarity {record.similarity:.2f}, margin {record.margin:.2f}{doubt}"


def _captioned(picture_HWC: Pixels, caption: str) -> Pixels:
    canvas_HWC = np.pad(picture_HWC, ((_CAPTION, 0), (0, 0), (0, 0)), constant_values=255)
    face = cv2.FontFace("sans")
    _, written_HWC = cv2.putText(canvas_HWC.copy(), caption, (6, 19), (38, 42, 51), face, 15, 400)
    return np.asarray(written_HWC, np.uint8)

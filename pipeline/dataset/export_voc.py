"""A dataset in the layout of Pascal VOC: JPEG images, palette masks that show their classes, lists of splits.

```
OUT/VOCdevkit/VOC2012/JPEGImages/KEY.jpg
OUT/VOCdevkit/VOC2012/SegmentationClass/KEY.png     palette PNG: class indices, 255 to ignore
OUT/VOCdevkit/VOC2012/SegmentationObject/KEY.png    where samples have instances: their numbers, 0 for none
OUT/VOCdevkit/VOC2012/ImageSets/Segmentation/SPLIT.txt
OUT/VOCdevkit/VOC2012/labelmap.txt                  colours of classes
```

Shape suffixes: H height, W width, N colours.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.dataset.export import pixels_of, shards_to_export, unpacked
from labelmill.pipeline.dataset.manifest import read_manifest
from labelmill.pipeline.pictures.overlay import class_colours
from labelmill.pipeline.pictures.png import encode_palette
from labelmill.pipeline.process.files import made_whole
from labelmill.pipeline.shards.reader import Member
from labelmill.pipeline.shards.sample_files import INSTANCES, MASK
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.manifest import Manifest
from labelmill.schemas.sample import IGNORE

ROOT = Path("VOCdevkit") / "VOC2012"
_IMAGES, _CLASSES, _OBJECTS, _SETS = "JPEGImages", "SegmentationClass", "SegmentationObject", "ImageSets/Segmentation"
_IGNORED = (224, 224, 192)
_JPEG_QUALITY = 95


def export_voc(store: Store, folder: Path, split: str | None) -> int:
    """Write a split (None: all of them) into a new folder, and count the samples.

    JPEG images are copied; PNG and WebP become JPEG of quality 95, as the layout has no other. The folder appears when
    all files are in it; a shard is in memory at a time. Raises OutputError for a shard that is not what the index says,
    more instances than a palette numbers, and a folder that is there already.
    """
    manifest, shards, count = read_manifest(store), shards_to_export(store, folder, split), 0
    with made_whole(folder) as unfinished, ExitStack() as stack:
        root = unfinished / ROOT
        objects = [_OBJECTS] if INSTANCES.ending in manifest.optional_files else []
        for part in (_IMAGES, _CLASSES, _SETS, *objects):
            (root / part).mkdir(parents=True)
        (root / "labelmap.txt").write_text(_labelmap(manifest))
        lists = {
            name: stack.enter_context((root / _SETS / f"{name}.txt").open("w"))
            for name in sorted({shard.split for shard in shards})
        }
        for shard in shards:
            for sample in unpacked(store, shard, manifest):
                try:
                    key = _write(root, sample, manifest)
                except ValueError as error:
                    raise OutputError(f"{store.url}/{shard.url}: {error}") from error
                lists[shard.split].write(f"{key}\n")
                count += 1
    return count


def _write(root: Path, sample: Mapping[str, Member], manifest: Manifest) -> str:
    """Write a sample; its key. Raises ValueError for what cannot be written."""
    image, size = sample["image_HWC"], manifest.image_shape.size
    key = image.key
    (root / _IMAGES / f"{key}.jpg").write_bytes(as_jpeg(image, manifest.image_format))
    mask_HW = pixels_of(sample[MASK.field], size)
    (root / _CLASSES / f"{key}.png").write_bytes(encode_palette(mask_HW.astype(np.uint8), _colours(manifest)))
    if INSTANCES.field in sample:
        numbers_HW = pixels_of(sample[INSTANCES.field], size)
        if numbers_HW.max() >= IGNORE:
            raise ValueError(f"{key} has {numbers_HW.max()} instances; SegmentationObject holds 254, --format coco all")
        colours_N3 = _palette(class_colours(int(numbers_HW.max()) + 1))
        (root / _OBJECTS / f"{key}.png").write_bytes(encode_palette(numbers_HW.astype(np.uint8), colours_N3))
    return key


def as_jpeg(image: Member, image_format: str) -> bytes:
    """An image of a shard as a JPEG file. Raises ValueError for what cannot be decoded."""
    if image_format == "jpg":
        return bytes(image.data)
    pixels = cv2.imdecode(np.frombuffer(image.data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError(f"{image.name} is damaged; run `labelmill verify`")
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return jpeg.tobytes()


def _colours(manifest: Manifest) -> NDArray[np.uint8]:
    return _palette(class_colours(len(manifest.classes)))


def _palette(colours_N3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """All 256 colours."""
    palette_N3 = np.zeros((IGNORE + 1, 3), np.uint8)
    palette_N3[: len(colours_N3)] = colours_N3
    palette_N3[IGNORE] = _IGNORED
    return palette_N3


def _labelmap(manifest: Manifest) -> str:
    lines = ["# label:color_rgb:parts:actions"]
    for name, colour in zip(manifest.classes, class_colours(len(manifest.classes)), strict=True):
        lines.append(f"{name}:{','.join(map(str, colour))}::")
    return "\n".join(lines) + "\n"

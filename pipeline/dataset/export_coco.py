"""A dataset in COCO's format: instances with class, score, box and run lengths; without instances, the mask's classes.

Run lengths are COCO's plain ones, which its tools read as they read packed ones: every pixel comes back as it was.

Shape suffixes: H height, W width, N runs, P pixels.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.dataset.export import pixels_of, shards_to_export, unpacked
from labelmill.pipeline.dataset.manifest import read_manifest
from labelmill.pipeline.process.files import made_whole
from labelmill.pipeline.shards.reader import Member, parse_metadata
from labelmill.pipeline.shards.sample_files import INSTANCES, MASK, METADATA
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.manifest import IndexedShard, Manifest
from labelmill.schemas.sample import SampleMetadata

COCO_FILE = "annotations.json"
_UNNAMED = "instance"
"""Class of instances of which a dataset says nothing more."""


@dataclass(frozen=True)
class CocoCounts:
    """What was written."""

    images: int
    annotations: int


def export_coco(store: Store, folder: Path, split: str | None) -> CocoCounts:
    """Write images/ and annotations.json of a split (None: of all samples) into a new folder.

    The folder appears when all files are in it; a shard is in memory at a time. Raises OutputError for a shard that is
    not what the index says, and a folder that is there already.
    """
    manifest, shards = read_manifest(store), shards_to_export(store, folder, split)
    with made_whole(folder) as unfinished:
        (unfinished / "images").mkdir(parents=True)
        with ExitStack() as stack:
            files = [stack.enter_context((unfinished / name).open("w+")) for name in (".images", ".annotations")]
            export = _Export(manifest, unfinished, *files)
            for shard in shards:
                export.add(store, shard)
            with (unfinished / COCO_FILE).open("w") as out:
                export.finish(out)
        for name in (".images", ".annotations"):
            (unfinished / name).unlink()
    return CocoCounts(export.num_images, export.num_annotations)


class _Export:
    """Writes images and annotations to a file each, which become one in the end: COCO has them in one object."""

    def __init__(self, manifest: Manifest, folder: Path, images: IO[str], annotations: IO[str]) -> None:
        self._manifest, self._folder = manifest, folder
        self._images, self._annotations = images, annotations
        self._has_instances = INSTANCES.ending in manifest.optional_files
        self._categories = {} if self._has_instances else _numbered(manifest.classes[1:])
        self.num_images = self.num_annotations = 0

    def add(self, store: Store, shard: IndexedShard) -> None:
        for sample in unpacked(store, shard, self._manifest):
            try:
                self._add(sample)
            except ValueError as error:
                raise OutputError(f"{store.url}/{shard.url}: {error}; run `labelmill verify`") from error

    def finish(self, out: IO[str]) -> None:
        """Join both files."""
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        info = {"description": self._manifest.name, "fingerprint": self._manifest.fingerprint}
        out.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n"categories": {json.dumps(categories)}')
        for name, part in (("images", self._images), ("annotations", self._annotations)):
            out.write(f',\n"{name}": [\n')
            part.seek(0)
            shutil.copyfileobj(part, out)
            out.write("\n]")
        out.write("}\n")

    def _add(self, sample: Mapping[str, Member]) -> None:
        metadata, image = parse_metadata(sample[METADATA.field]), sample["image_HWC"]
        size, seed = self._manifest.image_shape.size, metadata.candidate.seed
        (self._folder / "images" / image.name).write_bytes(image.data)
        about = {"id": seed, "file_name": image.name, "height": size[0], "width": size[1]}
        _append(self._images, self.num_images, about)
        self.num_images += 1
        for annotation in self._of_sample(sample, metadata, size):
            about = {"id": self.num_annotations + 1, "image_id": seed, **annotation}
            _append(self._annotations, self.num_annotations, about)
            self.num_annotations += 1

    def _of_sample(
        self, sample: Mapping[str, Member], metadata: SampleMetadata, size: tuple[int, int]
    ) -> Iterator[dict[str, Any]]:
        """Annotations without their ids."""
        if not self._has_instances:
            mask_HW = pixels_of(sample[MASK.field], size)
            for value, name in enumerate(self._manifest.classes[1:], start=1):
                if (mask_HW == value).any():
                    yield self._annotation(mask_HW == value, name, {})
            return
        numbers_HW = pixels_of(sample[INSTANCES.field], size)
        known = {instance.id: instance for instance in metadata.instances or ()}
        for number in np.unique(numbers_HW[numbers_HW > 0]).tolist():
            instance = known.get(number)
            more = {} if instance is None else {"score": instance.score, "bbox": list(instance.box)}
            yield self._annotation(numbers_HW == number, _UNNAMED if instance is None else instance.label, more)

    def _annotation(self, inside_HW: NDArray[np.bool_], name: str, more: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "category_id": self._categories.setdefault(name, len(self._categories) + 1),
            "segmentation": {"size": list(inside_HW.shape), "counts": run_lengths_of(inside_HW)},
            "area": int(inside_HW.sum()),
            "bbox": _box_around(inside_HW),
            "iscrowd": 0,
            **more,
        }


def run_lengths_of(inside_HW: NDArray[np.bool_]) -> list[int]:
    """Lengths of runs down the columns, outside first."""
    inside_P = inside_HW.T.ravel()
    changes_N = np.flatnonzero(inside_P[1:] != inside_P[:-1]) + 1
    counts = np.diff([0, *changes_N.tolist(), inside_P.size]).tolist()
    return [0, *counts] if inside_P[0] else counts


def _box_around(inside_HW: NDArray[np.bool_]) -> list[float]:
    """Left, top, width and height of the pixels."""
    rows, columns = np.nonzero(inside_HW)
    left, top = float(columns.min()), float(rows.min())
    return [left, top, float(columns.max()) + 1 - left, float(rows.max()) + 1 - top]


def _numbered(names: list[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names, start=1)}


def _append(file: IO[str], count: int, values: Mapping[str, Any]) -> None:
    file.write((",\n" if count else "") + json.dumps(values))

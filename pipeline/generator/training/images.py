"""Training images: decoded once into one uint8 array on disk, then read in an order that a counter decides.

Shape suffixes: N images, B batch, C channels, H height, W width.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.process.files import made_whole, write_atomically
from labelmill.pipeline.process.log import log
from labelmill.schemas.errors import LabelmillError
from labelmill.schemas.training import DomainData, FolderData, ShardsData, TrainingData

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MOST_NAMED = 20
"""Files or kinds that a message names."""
PROGRESS_SECONDS = 10.0


class TrainingDataError(LabelmillError):
    """Images to train on are missing or unreadable."""


class TrainingImages:
    """images_NHWC uint8; batches by position in an endless stream of reshuffled epochs. sha256: of all pixels."""

    def __init__(self, images_NHWC: NDArray[np.uint8], *, seed: int, horizontal_flip: bool, sha256: str = "") -> None:
        self.images_NHWC, self.seed, self.horizontal_flip, self.sha256 = images_NHWC, seed, horizontal_flip, sha256
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.images_NHWC.shape[0])

    def batch(self, position: int, batch_size: int) -> Tensor:
        """float32 [B, 3, H, W] in [-1, 1]: the images at position, position + 1, ... of the stream."""
        images = np.stack([self._image(position + offset) for offset in range(batch_size)])
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0

    def _image(self, position: int) -> NDArray[np.uint8]:
        epoch, index = divmod(position, len(self))
        if epoch != self._epoch:
            random = np.random.RandomState([self.seed, epoch])
            self._epoch, self._order = epoch, random.permutation(len(self))
            self._mirrored = random.rand(len(self)) < (0.5 if self.horizontal_flip else 0.0)
        image_HWC = self.images_NHWC[self._order[index]]
        return image_HWC[:, ::-1] if self._mirrored[index] else image_HWC


@dataclass(frozen=True)
class LoadedImages:
    """Decoded images, and what was passed over."""

    images_NHWC: NDArray[np.uint8]
    """[N, resolution, resolution, 3] RGB, memory-mapped."""
    summary: str
    """What was found and skipped, for people."""
    sha256: str
    """Of all pixels."""


def load_images(data: TrainingData, resolution: int, cache: Path) -> LoadedImages:
    """The images that `data` names; decoded into `cache` when they are not there yet.

    Raises TrainingDataError where there are none, and one that names all files that are not readable, unless
    data.skip_unreadable is set.
    """
    path = cache / f"{_cache_name(data, resolution)}.npy"
    told = path.with_suffix(".json")
    if not told.exists():  # written last
        with made_whole(path) as unfinished, ImageFile(unfinished, resolution) as file:
            notes = _draw(data, file) if isinstance(data, DomainData) else _decode_all(data, file)
        write_atomically(told, json.dumps({"notes": notes, "sha256": file.sha256}).encode())
    images_NHWC = np.load(path, mmap_mode="r")
    known = json.loads(told.read_text())
    summary = f"{len(images_NHWC):,} images at {resolution} px from {_place(data)}"
    return LoadedImages(images_NHWC, "; ".join([summary, *known["notes"]]), known["sha256"])


def source_sha256(data: TrainingData) -> str | None:
    """SHA-256 of the files that `data` names, with their names in a folder; None for drawings, which its fields fix.

    Raises TrainingDataError where there are none.
    """
    if isinstance(data, DomainData):
        return None
    if isinstance(data, FolderData) and not data.path.is_dir():
        raise TrainingDataError(f"data.path: {data.path} is not a folder")
    files = _files(data) if isinstance(data, FolderData) else _shards(data)
    if not files:
        raise TrainingDataError(f"{_place(data)}: no images found; looked for {', '.join(IMAGE_SUFFIXES)}")
    digest = hashlib.sha256()
    for path in files:
        name = str(path.relative_to(data.path)) if isinstance(data, FolderData) else path.name
        with path.open("rb") as stream:
            digest.update(f"{name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _place(data: TrainingData) -> str:
    if isinstance(data, DomainData):
        return f"the domain {data.name}"
    return str(data.path) if isinstance(data, FolderData) else ", ".join(data.urls)


def _cache_name(data: TrainingData, resolution: int) -> str:
    fields = data.model_dump(mode="json", exclude={"num_processes"})
    if not isinstance(data, DomainData):
        files = _files(data) if isinstance(data, FolderData) else _shards(data)
        fields["files"] = [[str(path), (stat := path.stat()).st_size, stat.st_mtime_ns] for path in files]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
    return f"{data.kind}-{resolution}-{digest}"


def _draw(data: DomainData, file: "ImageFile") -> list[str]:
    jobs = [(seed, file.resolution) for seed in domain_seeds(data)]
    with get_context("spawn").Pool(data.num_processes) as pool:
        for image_HWC in pool.imap(_draw_avatar, jobs, chunksize=64):
            file.append(image_HWC)
    return []


class ImageFile:
    """An .npy file of images uint8 [N, resolution, resolution, 3] whose number is known at its end alone."""

    _HEADER_BYTES = 128

    def __init__(self, path: Path, resolution: int) -> None:
        self.path, self.resolution, self.num_images = path, resolution, 0
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of all pixels so far."""
        return self._hash.hexdigest()

    def __enter__(self) -> "ImageFile":
        self._stream = self.path.open("wb")
        self._stream.write(bytes(self._HEADER_BYTES))
        return self

    def append(self, image_HWC: NDArray[np.uint8]) -> None:
        assert image_HWC.shape == (self.resolution, self.resolution, 3) and image_HWC.dtype == np.uint8
        content = image_HWC.tobytes()
        self._stream.write(content)
        self._hash.update(content)
        self.num_images += 1

    def __exit__(self, *_: object) -> None:
        header = BytesIO()
        shape = (self.num_images, self.resolution, self.resolution, 3)
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        assert len(header.getvalue()) == self._HEADER_BYTES
        self._stream.seek(0)
        self._stream.write(header.getvalue())
        self._stream.close()


def domain_seeds(data: DomainData) -> list[int]:
    """Seeds of the drawings, in order."""
    from labelmill.pipeline.avatars.avatars import seeds_at_rates  # an extra: needed for this domain only

    rates = data.rates.model_dump(exclude_none=True)
    return list(islice(seeds_at_rates(data.first_seed, rates), data.num_images))


def _draw_avatar(job: tuple[int, int]) -> NDArray[np.uint8]:
    from labelmill.pipeline.avatars.avatars import render  # an extra: needed for this domain only

    cv2.setNumThreads(1)
    seed, resolution = job
    return render(seed, resolution).image_HWC


def _decode_all(data: FolderData | ShardsData, file: ImageFile) -> list[str]:
    """Write the readable images; returns what is to be said of the others."""
    unreadable: list[str] = []
    progress = _Progress()
    for name, content in _folder_bytes(data) if isinstance(data, FolderData) else _shard_bytes(data):
        image_HWC = _decode(content, file.resolution)
        if image_HWC is None:
            unreadable.append(name)
        else:
            file.append(image_HWC)
        progress.add()
    if unreadable and not data.skip_unreadable:
        raise TrainingDataError(
            f"{_place(data)}: {len(unreadable):,} of {file.num_images + len(unreadable):,} images are not readable: "
            f"{_listed(unreadable)}. Repair or remove them, or set data.skip_unreadable: true"
        )
    if file.num_images == 0:
        raise TrainingDataError(f"{_place(data)}: no images found; looked for {', '.join(IMAGE_SUFFIXES)}")
    notes = [f"skipped {len(unreadable):,} that are not readable: {_listed(unreadable)}"] if unreadable else []
    return notes + (_passed_over(data) if isinstance(data, FolderData) else [])


def _listed(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


class _Progress:
    """Says every ten seconds how many images are decoded."""

    def __init__(self) -> None:
        self._count, self._next = 0, time.monotonic() + PROGRESS_SECONDS

    def add(self) -> None:
        self._count += 1
        if time.monotonic() > self._next:
            log(f"data: {self._count:,} images decoded so far")
            self._next += PROGRESS_SECONDS


def _files(data: FolderData) -> list[Path]:
    """Image files by name; hidden ones, such as those macOS leaves beside each file, are none."""
    return sorted(path for path in data.path.rglob("*") if _is_image(path, data.path))


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()


def _passed_over(data: FolderData) -> list[str]:
    """Files of the folder that are not taken for images, by their endings."""
    others = Counter(path.suffix.lower() or path.name for path in data.path.rglob("*") if _is_other(path, data.path))
    if not others:
        return []
    kinds = ", ".join(f"{number:,} {ending}" for ending, number in others.most_common(MOST_NAMED))
    return [f"skipped {others.total():,} other files: {kinds}"]


def _is_other(path: Path, folder: Path) -> bool:
    return path.is_file() and not _is_image(path, folder)


def _folder_bytes(data: FolderData) -> Iterator[tuple[str, bytes]]:
    if not data.path.is_dir():
        raise TrainingDataError(f"data.path: {data.path} is not a folder")
    for path in _files(data):
        yield str(path), path.read_bytes()


def _shards(data: ShardsData) -> list[Path]:
    patterns = [Path(url) for url in data.urls]
    paths = [match for pattern in patterns for match in sorted(pattern.parent.glob(pattern.name))]
    if not paths:
        raise TrainingDataError(f"data.urls: no file matches {', '.join(data.urls)}")
    return paths


def _shard_bytes(data: ShardsData) -> Iterator[tuple[str, bytes]]:
    import webdataset

    urls = [str(path) for path in _shards(data)]
    for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False):
        for suffix in IMAGE_SUFFIXES:
            if suffix[1:] in sample:
                yield f"{sample['__url__']}: {sample['__key__']}{suffix}", sample[suffix[1:]]
                break


def _decode(content: bytes, resolution: int) -> NDArray[np.uint8] | None:
    """Centre square of an image file as uint8 RGB [resolution, resolution, 3]; None where it is not readable."""
    image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        return None
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    method = cv2.INTER_AREA if side >= resolution else cv2.INTER_CUBIC
    resized = cv2.resize(square, (resolution, resolution), interpolation=method)
    return np.ascontiguousarray(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB), dtype=np.uint8)

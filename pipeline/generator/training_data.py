"""Training images: decoded once into one uint8 array on disk, then read in an order that a counter decides.

Shape suffixes: N images, B batch, C channels, H height, W width.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schemas.errors import LabelmillError
from schemas.training import DomainData, FolderData, ShardsData, TrainingData

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class TrainingDataError(LabelmillError):
    """Images to train on are missing or unreadable."""


class TrainingImages:
    """images_NHWC uint8; batches by position in an endless stream of reshuffled epochs."""

    def __init__(self, images_NHWC: NDArray[np.uint8], *, seed: int, horizontal_flip: bool) -> None:
        self.images_NHWC, self.seed, self.horizontal_flip = images_NHWC, seed, horizontal_flip
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


def load_images(data: TrainingData, resolution: int, cache: Path) -> NDArray[np.uint8]:
    """uint8 [N, resolution, resolution, 3] RGB, memory-mapped; decoded into `cache` when not there yet."""
    path = cache / f"{_cache_name(data, resolution)}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        images = _draw(data, resolution) if isinstance(data, DomainData) else _decode_all(data, resolution)
        temporary = path.with_suffix(".partial.npy")
        np.save(temporary, images)
        temporary.replace(path)
    return np.load(path, mmap_mode="r")


def _cache_name(data: TrainingData, resolution: int) -> str:
    fields = data.model_dump(mode="json", exclude={"num_processes"})
    if isinstance(data, FolderData):
        fields["files"] = [str(path.name) for path in _files(data)]
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
    return f"{data.kind}-{resolution}-{digest}"


def _draw(data: DomainData, resolution: int) -> NDArray[np.uint8]:
    seeds = domain_seeds(data)
    images = np.empty((len(seeds), resolution, resolution, 3), dtype=np.uint8)
    jobs = [(seed, resolution) for seed in seeds]
    with get_context("spawn").Pool(data.num_processes) as pool:
        for index, image_HWC in enumerate(pool.imap(_draw_avatar, jobs, chunksize=64)):
            images[index] = image_HWC
    return images


def domain_seeds(data: DomainData) -> list[int]:
    """Seeds of the drawings, in order."""
    from pipeline.benchmark.avatars import seeds_at_rates  # an extra: needed for this domain only

    rates = data.rates.model_dump(exclude_none=True)
    return list(islice(seeds_at_rates(data.first_seed, rates), data.num_images))


def _draw_avatar(job: tuple[int, int]) -> NDArray[np.uint8]:
    from pipeline.benchmark.avatars import render  # an extra: needed for this domain only

    cv2.setNumThreads(1)
    seed, resolution = job
    return render(seed, resolution).image_HWC


def _decode_all(data: FolderData | ShardsData, resolution: int) -> NDArray[np.uint8]:
    files = _folder_bytes(data) if isinstance(data, FolderData) else _shard_bytes(data)
    images = [_decode(name, content, resolution) for name, content in files]
    if not images:
        place = data.path if isinstance(data, FolderData) else ", ".join(data.urls)
        raise TrainingDataError(f"{place}: no images found; looked for {', '.join(IMAGE_SUFFIXES)}")
    return np.stack(images)


def _files(data: FolderData) -> list[Path]:
    return sorted(path for path in data.path.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def _folder_bytes(data: FolderData) -> Iterator[tuple[str, bytes]]:
    if not data.path.is_dir():
        raise TrainingDataError(f"data.path: {data.path} is not a folder")
    for path in _files(data):
        yield str(path), path.read_bytes()


def _shard_bytes(data: ShardsData) -> Iterator[tuple[str, bytes]]:
    import webdataset

    patterns = [Path(url) for url in data.urls]
    urls = [str(match) for pattern in patterns for match in sorted(pattern.parent.glob(pattern.name))]
    if not urls:
        raise TrainingDataError(f"data.urls: no file matches {', '.join(data.urls)}")
    for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False):
        for suffix in IMAGE_SUFFIXES:
            if suffix[1:] in sample:
                yield f"{sample['__url__']}: {sample['__key__']}{suffix}", sample[suffix[1:]]
                break


def _decode(name: str, content: bytes, resolution: int) -> NDArray[np.uint8]:
    """Centre square of an image file as uint8 RGB [resolution, resolution, 3]."""
    image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), cv2.IMREAD_COLOR) if content else None
    if image is None:
        raise TrainingDataError(f"{name}: not a readable image; remove it or repair it")
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side]
    method = cv2.INTER_AREA if side >= resolution else cv2.INTER_CUBIC
    resized = cv2.resize(square, (resolution, resolution), interpolation=method)
    return np.ascontiguousarray(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB), dtype=np.uint8)

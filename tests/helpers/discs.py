"""A dataset that can be learned: discs of two colours on a textured ground, 16 px, three classes."""

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from helpers.small_dataset import (
    CHECKPOINT,
    RESOLUTION,
    config_of,
    context_of,
    publish,
    records_of,
    sample_of,
    samples_of,
    tar_of,
)
from torch import Tensor, nn

from labelmill.pipeline.dataset.finish import finish_dataset
from labelmill.pipeline.dataset.plan import shard_tasks
from labelmill.pipeline.store.store import Store
from labelmill.schemas.fingerprint import identity
from labelmill.schemas.manifest import RunFile
from labelmill.schemas.sample import OptionalFile, Sample
from labelmill.schemas.shard import ShardTask


def disc(seed: int, side: int = RESOLUTION) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask: class 2 the upper half of a disc, reddish, class 1 the lower one, bluish, 0 a greenish ground."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side
    row, column = random.uniform(0.4, 0.6, 2)
    inside = np.hypot(rows - row, columns - column) < random.uniform(0.25, 0.35)
    mask_HW = np.where(inside, np.where(rows < row, 2, 1), 0).astype(np.uint8)
    colours = np.array([[60, 180, 60], [60, 60, 200], [200, 60, 60]])
    image_HWC = colours[mask_HW] + random.integers(-40, 41, (side, side, 3))
    return image_HWC.astype(np.uint8), mask_HW


def _disc_samples(task: ShardTask, run: str, optional_files: Collection[OptionalFile]) -> Iterator[Sample]:
    for painted in samples_of(task, run):
        seed = painted.metadata.candidate.seed
        sample = sample_of(seed, *disc(seed), painted.metadata.dropped_before, run)
        yield replace(
            sample,
            alpha_HW=alpha_of(sample.mask_HW) if "alpha.png" in optional_files else None,
            probabilities_KHW=levels_of(sample.mask_HW) if "probabilities.png" in optional_files else None,
        )


def write_discs(
    folder: Path, samples: int = 39, first_seed: int = 100, optional_files: tuple[OptionalFile, ...] = ()
) -> str:
    """A finished dataset in shards of four, the last one shorter."""
    config = config_of(folder, samples=samples)
    config = config.model_copy(update={"dataset": config.dataset.model_copy(update={"first_seed": first_seed})})
    context, store = context_of(config, optional_files), Store.open(str(folder))
    store.create("run.json", RunFile(identity=identity(config, CHECKPOINT.sha256, {})).model_dump_json().encode())
    with ThreadPoolExecutor(2) as threads:
        for task in shard_tasks(config):
            samples_in = _disc_samples(task, context.fingerprint, optional_files)
            tar = tar_of(samples_in, threads, optional_files=optional_files)
            publish(store, task, tar, context.fingerprint, optional_files=optional_files)
    finish_dataset(store, records_of(store, config, optional_files=optional_files), context)
    return str(folder)


def write_photos(folder: Path, sizes: Mapping[str, tuple[int, int]]) -> Path:
    """Photos of several (height, width) in `photos`, which is returned, and their true masks beside it in `truth`."""
    for name in ("photos", "truth"):
        (folder / name).mkdir()
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        image_HWC, mask_HW = disc(seed, 64)
        image_HWC = cv2.resize(image_HWC, (width, height), interpolation=cv2.INTER_AREA)
        mask_HW = cv2.resize(mask_HW, (width, height), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / "photos" / f"{name}.png"), image_HWC[:, :, ::-1])
        cv2.imwrite(str(folder / "truth" / f"{name}.png"), mask_HW)
    return folder / "photos"


class ByColour(nn.Module):
    """A network to which green, blue and red pixels are classes 0, 1 and 2: right on discs without noise."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, [1, 2, 0]]


def alpha_of(mask_HW: np.ndarray) -> np.ndarray:
    """The upper half of the disc 200, the lower one 100."""
    return (mask_HW * 100).astype(np.uint8)


def levels_of(mask_HW: np.ndarray) -> np.ndarray:
    """Of 255, 235 for the pixel's class and 10 for each of the other two."""
    return np.where(np.arange(3)[:, None, None] == mask_HW, 235, 10).astype(np.uint8)

"""Trainings of generators that take seconds: discs at 16 px, on one thread."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.generator.training.images import TrainingImages
from labelmill.pipeline.generator.training.saving import restore
from labelmill.pipeline.generator.training.start import find_start
from labelmill.pipeline.generator.training.trainer import GeneratorTrainer
from labelmill.schemas.training import TrainGeneratorConfig

RESOLUTION = 16


def discs(count: int) -> NDArray[np.uint8]:
    """uint8 [count, 16, 16, 3]: a coloured disc on another colour."""
    random = np.random.RandomState(0)
    images = np.empty((count, RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:RESOLUTION, :RESOLUTION]
    for image in images:
        centre, radius = random.uniform(6, 10, 2), random.uniform(3, 5)
        inside = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        image[:] = random.randint(0, 90, 3)
        image[inside] = random.randint(150, 256, 3)
    return images


def make_config(folder: Path, output: Path, **changes: object) -> TrainGeneratorConfig:
    values: dict[str, object] = {
        "data": {"kind": "folder", "path": str(folder)},
        "output": str(output),
        "network": {
            "resolution": RESOLUTION,
            "channel_base": 512,
            "channel_max": 32,
            "z_dim": 16,
            "w_dim": 32,
            "mapping_layers": 2,
        },
        "optimisation": {
            "batch_size": 8,
            "average_half_life_images": 500,
            "path_length_interval": 4,
            "augmentation": "none",
        },
        "device": "cpu",
        "monitor": {"num_images": 8},
        "threads": 1,
        "total_images": 8 * 24,
        "log_interval_steps": 5,
    }
    for key, change in changes.items():
        current = values.get(key)
        values[key] = {**current, **change} if isinstance(current, dict) and isinstance(change, dict) else change
    return TrainGeneratorConfig.model_validate(json.loads(json.dumps(values, default=str)))


def losses(output: Path) -> list[dict[str, float]]:
    """The log without timings."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


def write_discs(folder: Path, count: int = 256) -> None:
    """As PNG files."""
    for index, image in enumerate(discs(count)):
        cv2.imwrite(str(folder / f"{index:03d}.png"), image)


def open_trainer(config: TrainGeneratorConfig) -> GeneratorTrainer:
    """Ready for its next step, on the discs that `write_discs` writes."""
    pixels = np.ascontiguousarray(discs(256)[:, :, :, ::-1])  # OpenCV wrote them as BGR
    sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
    data = TrainingImages(pixels, seed=0, horizontal_flip=True, sha256=sha256)
    trainer = GeneratorTrainer(config, find_start(config), data)
    restore(trainer)
    return trainer

"""A small annotated set, made by a real generator."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.annotations.write import write_mask, write_set
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.schemas.annotations import AnnotationSet, GeneratorDraw
from labelmill.schemas.config import GeneratorConfig, NumericsConfig

CLASSES = ("background", "dark", "bright")


def sampler_of(checkpoint: Path, **generator: object) -> Sampler:
    """The generator of a file on the CPU, four images at once. generator: keys of the run file's section."""
    config = GeneratorConfig.model_validate({"checkpoint": str(checkpoint), **generator})
    return Sampler(open_checkpoint(str(checkpoint)).generator, config, NumericsConfig(batch_size=4, threads=1), "cpu")


def sha256_of(checkpoint: Path) -> str:
    return hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def about_of(sampler: Sampler, checkpoint_sha256: str) -> AnnotationSet:
    """A set without images."""
    return AnnotationSet(
        checkpoint_sha256=checkpoint_sha256,
        image_shape=sampler.generator.spec.image_shape,
        draw=GeneratorDraw.of(sampler.config),
        classes=CLASSES,
        images=(),
    )


def write_small_annotations(
    folder: Path, checkpoint: Path, seeds: Sequence[int] = (3, 1, 8, 40, 7), scale: int = 4, **generator: object
) -> AnnotationSet:
    """A set whose last image has no labels. The others': the darkest fifth is `dark`, the brightest `bright`, what lies
    between background, and a border of two pixels says nothing."""
    sampler = sampler_of(checkpoint, **generator)
    about = write_set(folder, sampler, about_of(sampler, sha256_of(checkpoint)), seeds, scale)
    for start in range(0, len(seeds) - 1, 4):
        keys = about.keys[start : min(start + 4, len(seeds) - 1)]
        batch = sampler.sample(seeds[start : start + len(keys)])
        for key, image_CHW in zip(keys, batch.images_BCHW.numpy(), strict=True):
            write_mask(folder, key, _mask(image_CHW))
    return about


def _mask(image_CHW: NDArray[np.float32]) -> NDArray[np.uint8]:
    gray_HW = image_CHW.mean(axis=0)
    low, high = np.quantile(gray_HW, (0.2, 0.8))
    mask_HW = np.where(gray_HW < low, 1, np.where(gray_HW > high, 2, 0)).astype(np.uint8)
    mask_HW[:2], mask_HW[-2:], mask_HW[:, :2], mask_HW[:, -2:] = 255, 255, 255, 255
    return mask_HW

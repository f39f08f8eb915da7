"""Images for the oracles to judge: what a generator makes of seeds, held-out renders, and hand-labeled images.

Shape suffixes: B batch, C channels, H height, W width, N images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.avatars.avatars import render
from labelmill.pipeline.avatars.renders import RESOLUTION
from labelmill.pipeline.benchmark.oracle.oracle import bundled_resolutions
from labelmill.pipeline.generator.checkpoints import LoadedCheckpoint, open_checkpoint
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.errors import LabelmillError

GENERATOR = "bundled:avatars-32"
"""What benchmarks and nobody else take without being told."""
_HAND_LABELS = Path(__file__).resolve().parent / "hand_labels"


@dataclass(frozen=True)
class HandLabel:
    """A generated image whose foreground a person has drawn."""

    seed: int
    """Of the bundled generator of these images' size, at the default truncation, with constant noise."""
    image_HWC: NDArray[np.uint8]
    """RGB."""
    mask_HW: NDArray[np.uint8]
    """0 background, 1 foreground, 255 undecided."""


def open_portraits(checkpoint: str, device: torch.device) -> LoadedCheckpoint:
    """The generator of `--checkpoint`. Raises CheckpointError, or LabelmillError where its images are not of the
    drawings' kind, square and RGB."""
    loaded = open_checkpoint(checkpoint, device)
    spec = loaded.generator.spec
    if spec.image_size != (spec.resolution, spec.resolution) or spec.img_channels != 3:
        colours = "RGB" if spec.img_channels == 3 else "gray"
        raise LabelmillError(
            f"--checkpoint {checkpoint}: makes {colours} images of {spec.size_in_words}; the drawings "
            f"that benchmarks compare with are square RGB portraits, such as {GENERATOR} makes"
        )
    return loaded


def open_judged(checkpoint: str, device: torch.device) -> LoadedCheckpoint:
    """The generator of `--checkpoint`. Raises CheckpointError, or LabelmillError where the oracles do not take its
    images."""
    loaded = open_portraits(checkpoint, device)
    judged = bundled_resolutions()
    if loaded.generator.spec.resolution not in judged:
        raise LabelmillError(
            f"--checkpoint {checkpoint}: makes images of {loaded.generator.spec.resolution} px; the oracles judge "
            f"portraits of {' and '.join(map(str, judged))} px, such as {GENERATOR}"
        )
    return loaded


def generated_images(seeds: Sequence[int], checkpoint: str = GENERATOR, truncation_psi: float | None = None) -> Tensor:
    """images_BCHW float32, nominally in [-1, 1], of a generator with constant noise, at the default truncation if
    none is given."""
    settings = {} if truncation_psi is None else {"truncation_psi": truncation_psi}
    config, numerics = GeneratorConfig(checkpoint=checkpoint, noise="const", **settings), NumericsConfig()
    sampler = Sampler(open_checkpoint(checkpoint).generator, config, numerics, "cpu")
    return torch.cat([batch.images_BCHW for batch in sampler.batches(seeds)])


def rendered_images(seeds: Sequence[int], resolution: int = RESOLUTION) -> tuple[Tensor, NDArray[np.uint8]]:
    """Exact renders: images_BCHW float32 in [-1, 1] and their masks_NHW, uint8 class ids."""
    avatars = [render(seed, resolution) for seed in seeds]
    images_BCHW = as_images(np.stack([avatar.image_HWC for avatar in avatars]))
    return images_BCHW, np.stack([avatar.mask_HW for avatar in avatars])


def hand_labels(resolution: int) -> list[HandLabel]:
    """The bundled hand-labeled images of a resolution, by seed; none where nobody has drawn any."""
    labels, folder = [], _HAND_LABELS / str(resolution)
    for path in sorted(folder.glob("*.mask.png")):
        key = path.name.split(".")[0]
        mask_HW = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), np.uint8)
        image_HWC = np.asarray(cv2.imread(str(folder / f"{key}.png"), cv2.IMREAD_COLOR), np.uint8)[:, :, ::-1]
        labels.append(HandLabel(int(key), image_HWC, mask_HW))
    return labels


def as_images(images_NHWC: NDArray[np.uint8]) -> Tensor:
    """uint8 RGB to float32 [N, C, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(images_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1

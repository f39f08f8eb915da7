"""A set's images made again by the generator, compared with what people saw before any feature is trusted.

Shape suffixes: B batch, N images, H height, W width, C channels.
"""

from collections.abc import Collection, Iterator
from itertools import groupby

import numpy as np
import torch

from labelmill.pipeline.annotations.read import Annotations
from labelmill.pipeline.generator.sampling import Batch, Sampler, to_uint8
from labelmill.schemas.errors import ConfigError

MOST_LEVELS = 2
"""Of 255: other processors, threads and batch sizes round differently by one level in some pixels."""


def check_checkpoint(annotations: Annotations, checkpoint_sha256: str) -> None:
    """Raises ConfigError, with both hashes, unless the set was made with this checkpoint."""
    theirs = annotations.about.checkpoint_sha256
    if theirs != checkpoint_sha256:
        raise ConfigError(
            f"the annotations belong to another checkpoint: theirs has SHA-256 {theirs}, this generator's "
            f"{checkpoint_sha256}. Use the checkpoint that they were made with, or pick and annotate images of this one"
        )


def regenerate(
    annotations: Annotations, sampler: Sampler, layers: Collection[str], checkpoint_sha256: str | None
) -> Iterator[Batch]:
    """Synthesise the annotated images in order, up to `sampler`'s batch size at once, tapping `layers`, with the set's
    own psi, cutoff, noise and classes; photos from their latents.

    checkpoint_sha256: of the sampler's generator; None for one that came from no file, which is told by its images
    alone. Raises ConfigError for another checkpoint, or where an image differs from the annotated one by more than
    MOST_LEVELS levels: the message, after all batches that agree, lists all that do not.
    """
    if checkpoint_sha256 is not None:
        check_checkpoint(annotations, checkpoint_sha256)
    own = Sampler(
        sampler.generator, annotations.about.draw.config(sampler.config.checkpoint), sampler.numerics, sampler.device
    )
    different: list[str] = []
    start = 0
    for batch in _batches(annotations, own, layers):
        different += _different(annotations, start, batch)
        start += len(batch)
        if not different:
            yield batch
    if different:
        raise ConfigError(
            "\n".join(
                [
                    f"{len(different)} annotated images come out differently here; pick and annotate them again with "
                    f"this generator and these numerics:",
                    *(f"  {line}" for line in different),
                ]
            )
        )


def _batches(annotations: Annotations, sampler: Sampler, layers: Collection[str]) -> Iterator[Batch]:
    for is_photo, images in groupby(annotations.images, key=lambda image: image.photo is not None):
        group = list(images)
        if is_photo:
            ws_NLD = torch.stack([annotations.photos[image.key].ws_LD for image in group])
            for ws_BLD in ws_NLD.split(sampler.numerics.batch_size):
                yield sampler.of_ws(ws_BLD, layers)
        else:
            yield from sampler.batches([image.seed for image in group if image.seed is not None], layers)


def _different(annotations: Annotations, start: int, batch: Batch) -> Iterator[str]:
    """One line for each image of the batch that is not the annotated one, the batch's first at `start` of the set."""
    images_BHWC = to_uint8(batch.images_BCHW).cpu().numpy().astype(np.int16)
    for offset, image_HWC in enumerate(images_BHWC):
        image = annotations.images[start + offset]
        if batch.class_ids[offset] != image.class_id:
            yield f"{image.key}: of class {image.class_id} in the set, {batch.class_ids[offset]} here"
            continue
        is_photo = image.key in annotations.photos
        seen_HWC = annotations.photos[image.key].made_HWC if is_photo else annotations.images_NHWC[start + offset]
        levels = int(np.abs(image_HWC - seen_HWC).max())
        if levels > MOST_LEVELS:
            yield f"{image.key}: by up to {levels} levels of 255, at most {MOST_LEVELS} are rounding"

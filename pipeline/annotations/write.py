"""Writing a set: its images with the description that ties them to the generator, and masks.

Shape suffixes: N images, H height, W width, C channels.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.generator.sampling import Sampler, to_uint8
from labelmill.pipeline.pictures.png import encode_gray, encode_picture
from labelmill.pipeline.process.files import write_atomically
from labelmill.schemas.annotations import (
    SET_FILE,
    AnnotatedImage,
    AnnotationSet,
    GeneratorDraw,
    enlarged_path,
    image_path,
    mask_path,
    parse_set,
)
from labelmill.schemas.errors import OutputError
from labelmill.schemas.sample import sample_key

Pixels = NDArray[np.uint8]


def image_sha256(image_HWC: Pixels) -> str:
    """SHA-256 over an image's pixels, as annotation sets hold it."""
    return hashlib.sha256(np.ascontiguousarray(image_HWC).tobytes()).hexdigest()


def enlarged(image_HWC: Pixels, scale: int) -> Pixels:
    """Each pixel as a square of `scale` x `scale`."""
    return np.repeat(np.repeat(image_HWC, scale, axis=0), scale, axis=1)


def write_set(
    folder: Path,
    sampler: Sampler,
    checkpoint_sha256: str,
    seeds: Sequence[int],
    scale: int,
    classes: Sequence[str] = (),
) -> AnnotationSet:
    """Synthesise these seeds and write them as a set to annotate, `annotations.json` last.

    Writing the same set again changes nothing; one that was interrupted is finished. Raises OutputError where the
    folder holds another set or other files.
    """
    images_NHWC: list[Pixels] = []
    class_ids: list[int | None] = []
    for batch in sampler.batches(seeds):
        images_NHWC.extend(to_uint8(batch.images_BCHW).cpu().numpy())
        class_ids.extend(batch.class_ids)
    about = AnnotationSet(
        checkpoint_sha256=checkpoint_sha256,
        image_shape=sampler.generator.spec.image_shape,
        draw=GeneratorDraw.of(sampler.config),
        classes=tuple(classes),
        images=tuple(
            AnnotatedImage(
                key=sample_key(seed), seed=seed, class_id=class_id, image_sha256=image_sha256(image_HWC), scale=scale
            )
            for seed, class_id, image_HWC in zip(seeds, class_ids, images_NHWC, strict=True)
        ),
    )
    if not check_free(folder, about):
        return about
    for key, image_HWC in zip(about.keys, images_NHWC, strict=True):
        write_atomically(folder / image_path(key), encode_picture(image_HWC))
        write_atomically(folder / enlarged_path(key), encode_picture(enlarged(image_HWC, scale)))
    write_description(folder, about)
    return about


def write_description(folder: Path, about: AnnotationSet) -> None:
    """Write `annotations.json`, over an older one if there is one."""
    write_atomically(folder / SET_FILE, about.to_bytes())


def write_mask(folder: Path, key: str, mask_HW: Pixels) -> None:
    """Write the labels of one image: class indices at the generator's resolution, 255 where nothing is known."""
    write_atomically(folder / mask_path(key), encode_gray(mask_HW))


def check_free(folder: Path, about: AnnotationSet) -> bool:
    """Whether this set is still to be written: False where it is there already.

    Raises OutputError where a folder holds another set, or files that no interrupted writing of this one left.
    """
    path = folder / SET_FILE
    if path.exists():
        there = parse_set(path.read_bytes(), str(path))
        if there.model_copy(update={"classes": about.classes, "rest": about.rest}) == about:
            return False
        raise OutputError(f"{folder}: holds another annotation set; choose another folder, or remove this one")
    own = {folder / place(key) for key in about.keys for place in (image_path, enlarged_path)}
    strange = [file for file in sorted(folder.rglob("*")) if not file.is_dir() and file not in own]
    strange = [file for file in strange if not file.name.endswith(".tmp")]
    if strange:
        raise OutputError(f"{folder}: holds other files, such as {strange[0]}; choose an empty or a new folder")
    return True

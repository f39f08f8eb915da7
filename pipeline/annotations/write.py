"""Writing a set: its images with the description that ties them to the generator, and masks.

Shape suffixes: N images, H height, W width, C channels.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from labelmill.pipeline.generator.sampling import Sampler, to_uint8
from labelmill.pipeline.pictures.png import encode_gray, encode_picture
from labelmill.pipeline.process.files import write_atomically
from labelmill.schemas.annotations import (
    SET_FILE,
    AnnotatedImage,
    AnnotationSet,
    enlarged_path,
    image_path,
    latents_path,
    made_path,
    mask_path,
    parse_set,
)
from labelmill.schemas.errors import OutputError
from labelmill.schemas.sample import ImageShape, sample_key

Pixels = NDArray[np.uint8]

_COMFORTABLE_SIDE = 512
_ROWS = "ws"


def image_sha256(image_HWC: Pixels) -> str:
    """SHA-256 over an image's pixels, as annotation sets hold it."""
    return hashlib.sha256(np.ascontiguousarray(image_HWC).tobytes()).hexdigest()


def enlarged(image_HWC: Pixels, scale: int) -> Pixels:
    """Each pixel as a square of `scale` x `scale`."""
    return np.repeat(np.repeat(image_HWC, scale, axis=0), scale, axis=1)


def comfortable_scale(shape: ImageShape) -> int:
    """The least power of two that makes an image's shorter side at least 512 pixels; 1 for larger ones."""
    return 2 ** max(0, (-(-_COMFORTABLE_SIDE // min(shape.size)) - 1).bit_length())


def write_set(folder: Path, sampler: Sampler, about: AnnotationSet, seeds: Sequence[int], scale: int) -> AnnotationSet:
    """Synthesise these seeds and write them as a set to annotate, `annotations.json` last. Returns what is there.

    about: the set without images. Writing the same set again changes nothing; one that was interrupted is finished.
    Raises OutputError where the folder holds another set or other files.
    """
    there = check_free(folder, about)
    if there is not None and there.keys == tuple(map(sample_key, seeds)):
        return there
    if there is not None:
        raise another_set(folder)
    images = []
    for batch in sampler.batches(seeds):
        images_BHWC = to_uint8(batch.images_BCHW).cpu().numpy()
        for seed, class_id, image_HWC in zip(batch.seeds, batch.class_ids, images_BHWC, strict=True):
            key, sha256 = sample_key(seed), image_sha256(image_HWC)
            write_image(folder, key, image_HWC, scale)
            images.append(AnnotatedImage(key=key, seed=seed, class_id=class_id, image_sha256=sha256, scale=scale))
    whole = about.model_copy(update={"images": tuple(images)})
    write_description(folder, whole)
    return whole


def write_image(folder: Path, key: str, image_HWC: Pixels, scale: int) -> None:
    """Write an image, and enlarged for people."""
    write_atomically(folder / image_path(key), encode_picture(image_HWC))
    write_atomically(folder / enlarged_path(key), encode_picture(enlarged(image_HWC, scale)))


def write_photo(folder: Path, key: str, ws_LD: Tensor, made_HWC: Pixels) -> None:
    """Write a photo's rows of w, and what the generator makes of them."""
    write_atomically(folder / latents_path(key), save({_ROWS: ws_LD.float().cpu().contiguous()}))
    write_atomically(folder / made_path(key), encode_picture(made_HWC))


def read_rows(content: bytes) -> Tensor | None:
    """The rows of w [L, D] float32 of a file that `write_photo` wrote; None for any other."""
    try:
        tensors = load(content)
    except SafetensorError:
        return None
    rows = tensors.get(_ROWS)
    return rows if rows is not None and rows.dim() == 2 and rows.dtype == torch.float32 else None


def rows_sha256(ws_LD: Tensor) -> str:
    """SHA-256 over rows of w, as annotation sets hold it."""
    return hashlib.sha256(ws_LD.float().cpu().contiguous().numpy().tobytes()).hexdigest()


def write_description(folder: Path, about: AnnotationSet) -> None:
    """Write `annotations.json`, over an older one if there is one."""
    write_atomically(folder / SET_FILE, about.to_bytes())


def write_mask(folder: Path, key: str, mask_HW: Pixels) -> None:
    """Write the labels of one image: class indices at the generator's resolution, 255 where nothing is known."""
    write_atomically(folder / mask_path(key), encode_gray(mask_HW))


def check_free(folder: Path, about: AnnotationSet) -> AnnotationSet | None:
    """The set that is there if it was made with these settings; None where it is still to be written.

    about: the set without images. Raises OutputError where a folder holds another set, or files that no interrupted
    writing of a set left.
    """
    path = folder / SET_FILE
    if path.exists():
        there = parse_set(path.read_bytes(), str(path))
        later = {"classes": about.classes, "rest": about.rest, "images": about.images}
        if there.model_copy(update=later) == about:
            return there
        raise another_set(folder)
    strange = [file for file in sorted(folder.rglob("*")) if not file.is_dir() and not _is_own(folder, file)]
    if strange:
        raise OutputError(f"{folder}: holds other files, such as {strange[0]}; choose an empty or a new folder")
    return None


def _is_own(folder: Path, file: Path) -> bool:
    """Whether a file may be of a set that was not finished."""
    if file.name.startswith(".") and file.name.endswith(".tmp"):
        return True
    key = file.stem
    own = [path(key) for path in (image_path, enlarged_path, latents_path, made_path)]
    return key.isdecimal() and file.relative_to(folder).as_posix() in own


def another_set(folder: Path) -> OutputError:
    """What is raised for a folder that holds other images than those asked for."""
    return OutputError(f"{folder}: holds another annotation set; choose another folder, or remove this one")

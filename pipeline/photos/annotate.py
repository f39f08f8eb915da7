"""`labelmill annotate photos`: inverted photos as annotated images, which teach labelers as generated ones do.

A mask of a photo labels what the generator makes of the photo's latents (HandsOff, Xu et al., CVPR 2023, section 3:
labels of real images beside the generator's features at their inversions). The mask follows the photo, the features the
reconstruction: where the two differ, so do mask and features.

Shape suffixes: H, W height and width; h, w of the generator's images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from labelmill.pipeline.annotations.paint import bring_down
from labelmill.pipeline.annotations.read import raise_problems, read_mask
from labelmill.pipeline.annotations.write import (
    another_set,
    check_free,
    comfortable_scale,
    image_sha256,
    rows_sha256,
    write_description,
    write_image,
    write_mask,
    write_photo,
)
from labelmill.pipeline.generator.sampling import to_uint8
from labelmill.pipeline.photos.frame import Frame, shape_problem
from labelmill.pipeline.photos.invert import Inversion, framed, invert_checked
from labelmill.pipeline.photos.latents_file import read_latents
from labelmill.pipeline.pictures.checked_photos import CheckedPhoto, CheckedPhotos, check_photos
from labelmill.pipeline.pictures.mask_png import MaskError, decode_mask
from labelmill.pipeline.pictures.photos import Pixels
from labelmill.pipeline.pictures.png import read_png_header
from labelmill.pipeline.process.log import warn
from labelmill.schemas.annotations import (
    FIRST_PHOTO,
    AnnotatedImage,
    AnnotatedPhoto,
    AnnotationSet,
    GeneratorDraw,
    mask_path,
)
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.sample import IGNORE

_FINER = 4
"""How many times finer than the frame a mask is read per direction, before the largest class of each pixel is taken."""


@dataclass(frozen=True)
class PhotoSet:
    """What was written."""

    about: AnnotationSet
    num_masks: int


def annotate_photos(
    inversion: Inversion, photos: Path, folder: Path, classes: tuple[str, ...], masks: Path | None
) -> PhotoSet:
    """Write a folder's photos as an annotation set, inverting first what has no latents yet.

    masks: a folder of PNG masks of the photos' names and sizes, with values of `classes`; photos without one stay to be
    labeled. Raises PhotoError and OutputError kinds as `labelmill segment` does, and ConfigError that lists all masks
    that cannot be used, before any work.
    """
    checked = check_photos(photos, folder, warn, shape_problem)
    found = _read_masks(inversion, checked, masks, classes)
    about = AnnotationSet(
        checkpoint_sha256=inversion.claim.checkpoint_sha256,
        image_shape=inversion.sampler.generator.spec.image_shape,
        draw=GeneratorDraw.of(inversion.sampler.config),
        classes=classes,
        images=(),
    )
    there = check_free(folder, about)
    if there is not None and classes and there.classes not in ((), classes):
        raise ConfigError(f"--classes {','.join(classes)}: {folder} has {', '.join(there.classes)} already")
    done, failed = invert_checked(inversion, checked.good)
    images = tuple(_image(inversion, photo, FIRST_PHOTO + number, folder) for number, photo in enumerate(done))
    if there is not None and there.images != images:
        raise another_set(folder)
    whole = (there or about).model_copy(update={"images": images, "classes": classes or (there or about).classes})
    named = {image.key: found[photo.name] for image, photo in zip(images, done, strict=True) if photo.name in found}
    _refuse_others(folder, whole, named)
    for key, mask_hw in named.items():
        write_mask(folder, key, mask_hw)
    write_description(folder, whole)
    checked.raise_problems(f"the other {len(done)} are in {folder}", tuple(failed))
    return PhotoSet(whole, len(found))


def _refuse_others(folder: Path, about: AnnotationSet, masks: Mapping[str, Pixels]) -> None:
    """Raises ConfigError where an image has another mask already, perhaps one that a person has painted."""
    there = {key: read_mask(folder, about, key) for key in masks}
    others = [key for key, mask_hw in there.items() if mask_hw is not None and not np.array_equal(mask_hw, masks[key])]
    raise_problems(str(folder), [f"{mask_path(key)}: is another mask; remove it to take the photo's" for key in others])


def _image(inversion: Inversion, photo: CheckedPhoto, number: int, folder: Path) -> AnnotatedImage:
    """Write a photo's files; its row of the description."""
    key, ws_LD = f"{number:010d}", _rows(inversion, photo)
    image_HWC = _pixels(framed(inversion, photo))
    made_HWC = _pixels(inversion.sampler.of_ws(ws_LD[None]).images_BCHW[0])
    scale = comfortable_scale(inversion.sampler.generator.spec.image_shape)
    write_image(folder, key, image_HWC, scale)
    write_photo(folder, key, ws_LD, made_HWC)
    return AnnotatedImage(
        key=key,
        seed=None,
        class_id=None,
        image_sha256=image_sha256(image_HWC),
        scale=scale,
        photo=AnnotatedPhoto(
            name=photo.name,
            photo_sha256=photo.sha256,
            latents_sha256=rows_sha256(ws_LD),
            made_sha256=image_sha256(made_HWC),
        ),
    )


def _rows(inversion: Inversion, photo: CheckedPhoto) -> Tensor:
    """[L, D] of the last space, which is nearest to the photo."""
    found = read_latents(inversion.output, photo.name, inversion.shape)
    assert found is not None, photo.name
    return found[1][inversion.settings.spaces[-1]]


def _pixels(image_CHW: Tensor) -> Pixels:
    return np.asarray(to_uint8(image_CHW[None])[0].cpu().numpy(), np.uint8)


def _read_masks(
    inversion: Inversion, checked: CheckedPhotos, folder: Path | None, classes: Sequence[str]
) -> dict[str, Pixels]:
    """Masks [h, w] at the generator's resolution by the photo's name."""
    masks, problems = dict[str, Pixels](), list[str]()
    if folder is None:
        return masks
    for photo in checked.good:
        path = folder / f"{photo.name}.png"
        if not path.exists():
            continue
        problem = _problem(path, photo, len(classes))
        if problem is None:
            masks[photo.name] = mask_in_frame(decode_mask(path.read_bytes()), inversion.frame(photo.size))
        else:
            problems.append(f"{path}: {problem}")
    if not masks and not problems:
        problems.append(f"holds no mask of these photos; {checked.good[0].name}.png would be one")
    raise_problems(str(folder), problems)
    return masks


def _problem(path: Path, photo: CheckedPhoto, num_classes: int) -> str | None:
    """Why a mask cannot be used; None if it can."""
    png = path.read_bytes()
    header = read_png_header(png)
    if header is not None and (header.height, header.width) != photo.size:
        return f"is {header.width} x {header.height}, its photo {photo.size[1]} x {photo.size[0]} (upright)"
    try:
        values = np.unique(decode_mask(png))
    except MaskError as error:
        return str(error)
    strange = [int(value) for value in values if num_classes <= value < IGNORE]
    if strange:
        return f"holds {', '.join(map(str, strange[:8]))}; --classes names 0 to {num_classes - 1}, 255 is not labeled"
    return None


def mask_in_frame(mask_HW: Pixels, frame: Frame) -> Pixels:
    """A photo's mask at the generator's resolution [h, w]: of each pixel the largest class; 255 where most of it is not
    labeled, or shows a mirror image."""
    finer = Frame(frame.photo, (frame.size[0] * _FINER, frame.size[1] * _FINER), frame.fit)
    return bring_down(finer.put_mask(mask_HW), _FINER)

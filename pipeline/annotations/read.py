"""Reading a set: its images and masks, checked against its description, nothing decoded before its size is known.

Shape suffixes: N images, H height, W width, C channels.
"""

import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from labelmill.pipeline.annotations.write import image_sha256, read_rows, rows_sha256
from labelmill.pipeline.pictures.mask_png import MaskError, decode_shard_mask
from labelmill.pipeline.pictures.png import decode_picture, read_png_header
from labelmill.pipeline.store.store import Store
from labelmill.schemas.annotations import (
    SET_FILE,
    AnnotatedImage,
    AnnotationSet,
    image_path,
    key_of,
    latents_path,
    made_path,
    mask_path,
    parse_set,
)
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.fingerprint import canonical_json
from labelmill.schemas.sample import IGNORE

Pixels = NDArray[np.uint8]

_MOST_DESCRIPTION_BYTES = 8 * 2**20
_MOST_PIXEL_BYTES = 2**31
"""Of all images and masks that are read into memory."""
_PNG_OVERHEAD = 2**16
_MOST_LATENTS_BYTES = 2**24
MOST_PROBLEMS = 50


@dataclass(frozen=True)
class PhotoLatents:
    """What stands for a photo in the generator."""

    ws_LD: Tensor
    """Rows of w, float32."""
    made_HWC: Pixels
    """uint8: what the generator made of them."""


@dataclass(frozen=True)
class Annotations:
    """Images of a set with their masks: those that have a labeled pixel, unless all were asked for."""

    about: AnnotationSet
    """The whole set, images without labels included."""
    images: tuple[AnnotatedImage, ...]
    """Those that are annotated, in the set's order."""
    images_NHWC: Pixels
    """uint8, at the generator's resolution: what people saw."""
    masks_NHW: Pixels
    """uint8 class indices; 255 where nothing is known."""
    photos: Mapping[str, PhotoLatents]
    """What makes the photos among the images, by key."""
    sha256: str
    """Over the description of the annotated images and the pixels of their masks: part of a run's identity."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(image.key for image in self.images)


def raise_problems(source: str, problems: Sequence[str]) -> None:
    """Raises ConfigError that lists them, if there are any."""
    if not problems:
        return
    more = len(problems) - MOST_PROBLEMS
    shown = [*problems[:MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    raise ConfigError("\n".join([f"{source}: {count}", *(f"  {line}" for line in shown)]))


def read_description(folder: str | Path) -> AnnotationSet:
    """`annotations.json` of a folder or bucket. Raises ConfigError with every mistake in it."""
    return _description(Store.open(str(folder)))


def read_annotations(folder: str | Path) -> Annotations:
    """The annotated images of a set in a folder or a bucket.

    Raises ConfigError that lists all problems: files that are missing, of another size, of a strange name or damaged;
    values that are no class; no labels at all, or of one class only.
    """
    store = Store.open(str(folder))
    about = _description(store)
    problems: list[str] = []
    if not about.classes:
        problems.append(f"{SET_FILE}: names no classes yet; import annotations first")
    masks = dict(_masks(store, about, problems))
    labeled = [image for image in about.images if image.key in masks]
    images, photos = list(_images(store, about, labeled, problems)), dict(_photos(store, about, labeled, problems))
    _check_labels(about, masks, problems)
    raise_problems(str(folder), problems)
    masks_NHW = np.stack([masks[image.key] for image in labeled])
    identity = _identity(about, labeled, masks_NHW)
    return Annotations(about, tuple(labeled), np.stack(images), masks_NHW, photos, identity)


def read_whole_set(folder: str | Path, about: AnnotationSet) -> Annotations:
    """All images of a set, to be annotated further: masks are 255 where nothing is known, all of them if need be.

    about: the set's description, perhaps with classes that it has only now. Raises ConfigError that lists all problems.
    """
    store = Store.open(str(folder))
    problems: list[str] = [] if about.images else [f"{SET_FILE}: lists no images"]
    masks = dict(_masks(store, about, problems))
    everything = list(about.images)
    images = list(_images(store, about, everything, problems))
    photos = dict(_photos(store, about, everything, problems))
    raise_problems(str(folder), problems)
    nothing_HW = np.full(about.image_shape.size, IGNORE, np.uint8)
    masks_NHW = np.stack([masks.get(key, nothing_HW) for key in about.keys])
    identity = _identity(about, everything, masks_NHW)
    return Annotations(about, about.images, np.stack(images), masks_NHW, photos, identity)


def read_mask(folder: str | Path, about: AnnotationSet, key: str) -> Pixels | None:
    """The mask [H, W] of an image, as it is in the set; None where there is none. Raises ConfigError."""
    path = mask_path(key)
    try:
        png = Store.open(str(folder)).read(path)
    except FileNotFoundError:
        return None
    problems: list[str] = []
    mask_HW = _mask(png, path, about, problems)
    raise_problems(str(folder), problems)
    return mask_HW


def nearest(name: str, names: tuple[str, ...]) -> str:
    """The names that are most like a strange one, as the end of a sentence."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or list(names[:3])
    return f"the nearest of its {len(names)} images: {', '.join(close)}" if close else "it has no images"


def _description(store: Store) -> AnnotationSet:
    try:
        content = store.read(SET_FILE)
    except FileNotFoundError:
        raise ConfigError(
            f"{store.url}: holds no {SET_FILE}; `labelmill annotate pick RUN.YAML --out {store.url}` makes a set"
        ) from None
    if len(content) > _MOST_DESCRIPTION_BYTES:
        raise ConfigError(f"{store.url}/{SET_FILE}: has {len(content):,} bytes; at most {_MOST_DESCRIPTION_BYTES:,}")
    return parse_set(content, f"{store.url}/{SET_FILE}")


def _masks(store: Store, about: AnnotationSet, problems: list[str]) -> Iterator[tuple[str, Pixels]]:
    """Masks [H, W] by key that label any pixel."""
    most_bytes, known = 2 * about.image_shape.num_pixels + _PNG_OVERHEAD, set(about.keys)
    for file in store.list("masks"):
        key = key_of(file.path)
        if file.path != mask_path(key):
            problems.append(f"{file.path}: is no PNG right below masks/; remove it")
        elif key not in known:
            problems.append(f"{file.path}: the set has no such image; {nearest(key, about.keys)}")
        elif file.num_bytes > most_bytes:
            problems.append(f"{file.path}: has {file.num_bytes:,} bytes; at most {most_bytes:,} at this size")
        else:
            mask_HW = _mask(store.read(file.path), file.path, about, problems)
            if mask_HW is not None and (mask_HW != IGNORE).any():
                yield key, mask_HW


def _mask(png: bytes, path: str, about: AnnotationSet, problems: list[str]) -> Pixels | None:
    header = read_png_header(png)
    if header is not None and (header.height, header.width) != about.image_shape.size:
        problems.append(
            f"{path}: is {header.width} x {header.height}; the images are {about.image_shape.size_in_words}"
        )
        return None
    try:
        mask_HW = decode_shard_mask(png)
    except MaskError as error:
        problems.append(f"{path}: {error}")
        return None
    strange = [int(value) for value in np.unique(mask_HW) if len(about.classes) <= value < IGNORE]
    if strange and about.classes:
        problems.append(
            f"{path}: holds {', '.join(map(str, strange))}; allowed are 0 to {len(about.classes) - 1} "
            f"({', '.join(about.classes)}) and {IGNORE} (nothing known)"
        )
        return None
    return mask_HW


def _images(store: Store, about: AnnotationSet, labeled: list[AnnotatedImage], problems: list[str]) -> Iterator[Pixels]:
    """Images [H, W, C] in order; none where there is a problem."""
    height, width = about.image_shape.size
    size = height * width * (about.image_shape.channels + 1) * len(labeled)
    if size > _MOST_PIXEL_BYTES:
        problems.append(
            f"{len(labeled)} annotated images of {about.image_shape.size_in_words} take {size:,} bytes; at most "
            f"{_MOST_PIXEL_BYTES:,}: use fewer of them"
        )
        return
    sizes = {file.path: file.num_bytes for file in store.list("images")}
    for image in labeled:
        image_HWC = _image(store, image_path(image.key), image.image_sha256, sizes, about, problems)
        if image_HWC is not None:
            yield image_HWC


def _image(
    store: Store, path: str, sha256: str, sizes: Mapping[str, int], about: AnnotationSet, problems: list[str]
) -> Pixels | None:
    """[H, W, C] uint8; None where there is a problem. sizes: bytes by path."""
    if path not in sizes:
        problems.append(f"{path}: is missing")
        return None
    is_small = sizes[path] <= 2 * about.image_shape.num_pixels * about.image_shape.channels + _PNG_OVERHEAD
    image_HWC = _decoded(store.read(path), about) if is_small else None
    if image_HWC is None or image_sha256(image_HWC) != sha256:
        problems.append(f"{path}: is not the image that {SET_FILE} describes; pick the set again")
        return None
    return image_HWC


def _photos(
    store: Store, about: AnnotationSet, labeled: Sequence[AnnotatedImage], problems: list[str]
) -> Iterator[tuple[str, PhotoLatents]]:
    """What makes the photos, by key."""
    known = [(image.key, image.photo) for image in labeled if image.photo is not None]
    sizes = {file.path: file.num_bytes for part in ("made", "latents") for file in store.list(part)} if known else {}
    for key, photo in known:
        made_HWC = _image(store, made_path(key), photo.made_sha256, sizes, about, problems)
        path = latents_path(key)
        is_small = sizes.get(path, _MOST_LATENTS_BYTES + 1) <= _MOST_LATENTS_BYTES
        ws_LD = read_rows(store.read(path)) if is_small else None
        if ws_LD is None or rows_sha256(ws_LD) != photo.latents_sha256:
            problems.append(f"{path}: is missing, or not the latents that {SET_FILE} describes; make the set again")
        elif made_HWC is not None:
            yield key, PhotoLatents(ws_LD, made_HWC)


def _decoded(png: bytes, about: AnnotationSet) -> Pixels | None:
    """[H, W, C] uint8; None for what is no 8-bit PNG of the set's size."""
    header = read_png_header(png)
    if header is None or (header.height, header.width) != about.image_shape.size or header.bit_depth != 8:
        return None
    return decode_picture(png, about.image_shape.channels)


def _check_labels(about: AnnotationSet, masks: dict[str, Pixels], problems: list[str]) -> None:
    if not masks and not problems:
        problems.append("no image has labels yet; import annotations first")
    found = set[int]().union(*(np.unique(mask_HW).tolist() for mask_HW in masks.values())) - {IGNORE}
    if len(found) == 1 and about.classes:
        name = about.classes[found.pop()]
        problems.append(f"all labels are {name}: there is nothing to tell it apart from; label another class too")


def _identity(about: AnnotationSet, labeled: list[AnnotatedImage], masks_NHW: Pixels) -> str:
    """Of what is learned from. Where the images came from and how large people saw them is no part of it."""
    learned = about.model_copy(update={"images": tuple(labeled)})
    values = learned.model_dump(
        mode="json", exclude={"picked": True, "rest": True, "images": {"__all__": {"scale": True, "photo": {"name"}}}}
    )
    for image in values["images"]:
        if image["photo"] is None:
            del image["photo"]
    hashed = hashlib.sha256(canonical_json(values))
    hashed.update(np.ascontiguousarray(masks_NHW).tobytes())
    return hashed.hexdigest()

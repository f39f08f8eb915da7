"""Pictures of the report, inlined as data URIs.

Shape suffixes: H, W height and width; C the channels red, green, blue.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labelmill.pipeline.pictures.overlay import (
    PALETTE,
    Pixels,
    class_colours,
    colour_mask,
    overlay,
    resize,
    resize_mask,
    rgb,
)
from labelmill.pipeline.pictures.png import encode_picture
from labelmill.pipeline.report.data import Picture
from labelmill.pipeline.shards.sample_files import ALPHA, SampleFile
from labelmill.pipeline.shards.writer import encode_image
from labelmill.schemas.sample import IGNORE

_LIGHT, _DARK = 240, 24
# The page stays below 10 MB: pictures that take more than this, in base64, are made smaller.
_MAX_PICTURE_BYTES = 8_000_000
_MIN_EDGE = 128  # smaller pictures are enlarged: masks in crisp squares, images smoothly
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Triple:
    """A sample as the page shows it; the pictures are data URIs."""

    picture: Picture
    image: str
    mask: str
    overlay: str
    shares: list[tuple[str, float]]
    """Classes in the mask and their shares of it, the largest first."""
    others: list[tuple[str, str]]
    """Names and pictures of the optional files."""


@dataclass(frozen=True)
class BannerTile:
    """A sample in the page's head, as a data URI."""

    seed: int
    uri: str


def fitting_edge(pictures: Sequence[Picture], colours: Pixels) -> int:
    """The shorter side, in pixels, at which all pictures together are small enough."""
    edge = max(min(picture.mask_HW.shape) for picture in pictures)
    edge *= math.ceil(_MIN_EDGE / edge)
    while edge > _MIN_EDGE and sum(_num_bytes(picture, colours, edge) for picture in pictures) > _MAX_PICTURE_BYTES:
        edge = max(_MIN_EDGE, edge * 3 // 4)
    return edge


def _num_bytes(picture: Picture, colours: Pixels, edge: int) -> int:
    others = (uri for _, uri in _others(picture, edge))
    return sum(len(uri) for uri in (*_views(picture, colours, edge), *others))


def show_triple(picture: Picture, classes: Sequence[str], colours: Pixels, edge: int) -> Triple:
    counts = np.bincount(picture.mask_HW.ravel(), minlength=IGNORE + 1) / picture.mask_HW.size
    names = {**dict(enumerate(classes)), IGNORE: "ignore"}
    shares = sorted(((name, float(counts[value])) for value, name in names.items()), key=lambda item: -item[1])
    return Triple(
        picture,
        *_views(picture, colours, edge),
        shares=[item for item in shares if item[1] > 0],
        others=_others(picture, edge),
    )


def _views(picture: Picture, colours: Pixels, edge: int) -> tuple[str, str, str]:
    """Image, mask and overlay as data URIs."""
    image_HWC, mask_HW = resize(picture.image_HWC, edge), resize_mask(picture.mask_HW, edge)
    return (
        _jpeg_uri(image_HWC),
        _png_uri(colour_mask(mask_HW, colours)),
        _jpeg_uri(overlay(image_HWC, mask_HW, colours)),
    )


def _others(picture: Picture, edge: int) -> list[tuple[str, str]]:
    """Name and data URI of each optional file; where there is alpha, also of the foreground on other grounds."""
    shown = [(file.name, _png_uri(_painted(pixels, file, edge))) for file, pixels in picture.others]
    alphas = [pixels for file, pixels in picture.others if file == ALPHA]
    return shown + [("composite", _jpeg_uri(_on_other_grounds(picture.image_HWC, alpha, edge))) for alpha in alphas]


def _on_other_grounds(image_HWC: Pixels, alpha_HW: Pixels, edge: int) -> Pixels:
    """The foreground on a light ground, left, and a dark one, right: what it keeps of its own shows on either."""
    shown_HWC, alpha_HWC = resize(image_HWC, edge), resize(alpha_HW, edge)[:, :, None] / 255
    shown_HWC = shown_HWC if shown_HWC.ndim == 3 else rgb(shown_HWC[:, :, None])
    ground_HWC = np.full(shown_HWC.shape, _LIGHT, np.float64)
    ground_HWC[:, shown_HWC.shape[1] // 2 :] = _DARK
    return np.rint(ground_HWC + alpha_HWC * (shown_HWC - ground_HWC)).astype(np.uint8)


def _painted(pixels: Pixels, file: SampleFile, edge: int) -> Pixels:
    """Numbers in colours, shades in grays, colours as they are."""
    if file.holds_indices:
        return colour_mask(resize_mask(pixels, edge), class_colours(len(PALETTE)))
    resized = resize(pixels, edge)
    return resized if resized.ndim == 3 else rgb(resized[:, :, None])


def banner_tile(picture: Picture, colours: Pixels, edge: int) -> BannerTile:
    """A sample as the page's head shows it: image on the left half, overlay on the right."""
    image_HWC, mask_HW = resize(picture.image_HWC, edge), resize_mask(picture.mask_HW, edge)
    middle = image_HWC.shape[1] // 2
    right_HWC = overlay(image_HWC, mask_HW, colours)[:, middle:]
    return BannerTile(picture.row.seed, _jpeg_uri(np.concatenate([image_HWC[:, :middle], right_HWC], axis=1)))


def _jpeg_uri(image_HWC: Pixels) -> str:
    return _uri("jpeg", encode_image(image_HWC, "jpg", _JPEG_QUALITY))


def _png_uri(image_HWC: Pixels) -> str:
    return _uri("png", encode_picture(image_HWC))


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"

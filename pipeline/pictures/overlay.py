"""Pictures of samples for people: coloured masks, masks laid over images, contact sheets.

Shape suffixes: H, W height and width; C the channels red, green, blue; N classes.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.schemas.errors import LabelmillError
from labelmill.schemas.sample import IGNORE, Sample

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

# The first class is the background, in a dark neutral. The rest were searched for so that every pair, with white
# as well, stays 0.1 apart in OKLab under protanopia, deuteranopia and tritanopia (Machado et al., 2009).
PALETTE = (
    "#262a33", "#7896ff", "#f0a500", "#5ad296", "#e15ab4", "#4b4ba5",
    "#ff0000", "#2d8769", "#b4ff00", "#a500ff", "#872d00", "#f0b4ff",
)  # fmt: skip
IGNORE_COLOUR, IGNORE_HATCH = (255, 255, 255), (168, 174, 186)
HATCH_PERIOD = 4  # pixels between the diagonal lines on ignored areas

_TINT = 0.45  # share of the class colour in an overlay; the rest is image
_DIMMED = 0.55  # brightness left to the background in an overlay
_GAP, _CAPTION_HEIGHT, _LEGEND_ROW = 12, 22, 30
_PAPER, _INK, _ALARM = (255, 255, 255), (38, 42, 51), (190, 30, 30)


def class_colours(num_classes: int) -> Pixels:
    """The colour of each class, uint8 [N, 3] RGB. A class keeps its colour however many follow it."""
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in PALETTE[:num_classes]]
    for index in range(len(PALETTE), num_classes):
        # The golden angle never repeats a hue; the lightness cycles so that neighbours in hue differ too.
        hue, lightness = index * 0.6180339887 % 1, (0.38, 0.72, 0.55)[index % 3]
        colours.append(tuple(round(255 * value) for value in colorsys.hls_to_rgb(hue, lightness, 0.75)))
    return np.array(colours, dtype=np.uint8).reshape(-1, 3)


def colour_mask(mask_HW: Pixels, colours: Pixels) -> Pixels:
    """A mask in its classes' colours, uint8 [H, W, 3]; ignored pixels are white with grey hatching.

    Raises LabelmillError where the mask holds a value that has no colour.
    """
    _check_values(mask_HW, len(colours))
    table = np.full((256, 3), IGNORE_COLOUR, dtype=np.uint8)
    table[: len(colours)] = colours
    coloured_HWC = table[mask_HW]
    rows_HW, columns_HW = np.indices(mask_HW.shape)
    hatched_HW = (mask_HW == IGNORE) & ((rows_HW + columns_HW) % HATCH_PERIOD == 0)
    coloured_HWC[hatched_HW] = IGNORE_HATCH
    return coloured_HWC


def blend(levels_NHW: Pixels, colours: Pixels) -> Pixels:
    """The classes' colours [N, 3], each as strong as its class's level of 255 [N, H, W]; uint8 [H, W, 3]."""
    blended_HWC = np.tensordot(levels_NHW, colours.astype(np.float32), axes=(0, 0)) / 255
    return np.clip(np.rint(blended_HWC), 0, 255).astype(np.uint8)


def overlay(image_HWC: Pixels, mask_HW: Pixels, colours: Pixels) -> Pixels:
    """An image tinted by its mask: class 0 is dimmed to grey, other classes are tinted, with solid edges.

    Takes an image uint8 [H, W, 3] RGB, a mask uint8 [H, W] and colours [N, 3] (`class_colours`); returns such
    an image.

    Raises LabelmillError where the mask holds a value that has no colour.
    """
    assert image_HWC.shape[:2] == mask_HW.shape, f"image {image_HWC.shape} and mask {mask_HW.shape} differ"
    coloured_HWC = colour_mask(mask_HW, colours)
    background_HW = mask_HW == 0
    tint_HW1 = np.where(edges(mask_HW) & ~background_HW, 0.95, _TINT)[..., None]
    tinted_HWC = image_HWC * (1 - tint_HW1) + coloured_HWC * tint_HW1
    grey_HW1 = image_HWC.mean(axis=2, keepdims=True)
    dimmed_HWC = _DIMMED * (0.35 * image_HWC + 0.65 * grey_HW1)
    blended_HWC = np.where(background_HW[..., None], dimmed_HWC, tinted_HWC)
    return np.rint(blended_HWC).astype(np.uint8)


def edges(mask_HW: Pixels) -> NDArray[np.bool_]:
    """True [H, W] where a pixel's class differs from that of one of its four neighbours."""
    edges_HW = np.zeros(mask_HW.shape, dtype=bool)
    across, down = mask_HW[:, 1:] != mask_HW[:, :-1], mask_HW[1:] != mask_HW[:-1]
    edges_HW[:, 1:] |= across
    edges_HW[:, :-1] |= across
    edges_HW[1:] |= down
    edges_HW[:-1] |= down
    return edges_HW


def rgb(image_HWC: Pixels) -> Pixels:
    """An image as RGB [H, W, 3]: gray ones [H, W, 1] get three equal channels."""
    return np.repeat(image_HWC, 3 // image_HWC.shape[2], axis=2)


def resize(image_HWC: Pixels, edge: int) -> Pixels:
    """An image whose shorter side is `edge` pixels: smoothly, averaging when smaller."""
    interpolation = cv2.INTER_AREA if edge < min(image_HWC.shape[:2]) else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image_HWC, _at_edge(image_HWC, edge), interpolation=interpolation), dtype=np.uint8)


def resize_mask(mask_HW: Pixels, edge: int) -> Pixels:
    """A mask whose shorter side is `edge` pixels, each pixel the class of the nearest one."""
    size = _at_edge(mask_HW, edge)
    return np.asarray(cv2.resize(mask_HW, size, interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)


def _at_edge(pixels: Pixels, edge: int) -> tuple[int, int]:
    """Width and height whose lesser one is `edge`."""
    height, width = pixels.shape[:2]
    return round(width * edge / min(height, width)), round(height * edge / min(height, width))


def contact_sheet(samples: Sequence[Sample], columns: int = 8, edge: int = 128) -> Pixels:
    """A sheet of samples, each as image | overlay with a caption, under a legend of the classes.

    Returns uint8 [H, W, 3] RGB. `edge` is the shorter side of a picture in pixels. Captions of dropped samples give the
    reason.
    """
    if not samples or columns < 1:
        raise LabelmillError(f"a sheet needs samples and columns, got {len(samples)} samples, {columns} columns")
    classes = samples[0].metadata.candidate.classes
    return sheet([_captioned(sample) for sample in samples], classes, columns, edge)


@dataclass(frozen=True)
class Captioned:
    """An image and its mask on a sheet."""

    image_HWC: Pixels
    mask_HW: Pixels
    caption: str
    is_alarm: bool = False


def sheet(pictures: Sequence[Captioned], classes: Sequence[str], columns: int, edge: int) -> Pixels:
    """A sheet of one picture or more, as `contact_sheet` describes it."""
    colours = class_colours(len(classes))
    cells = [_cell(picture, colours, edge) for picture in pictures]
    columns = min(columns, len(cells))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.concatenate(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    body_HWC = np.concatenate(rows)
    has_ignore = any(bool((picture.mask_HW == IGNORE).any()) for picture in pictures)
    legend_HWC = _legend(classes, colours, body_HWC.shape[1], has_ignore)
    sheet_HWC = np.concatenate([legend_HWC, body_HWC])
    return np.pad(sheet_HWC, ((_GAP, 0), (_GAP, 0), (0, 0)), constant_values=255)


def _captioned(sample: Sample) -> Captioned:
    candidate = sample.metadata.candidate
    ending = f"confidence {candidate.confidence:.2f}" if candidate.kept else candidate.drop_reason
    caption = f"seed {candidate.seed}  ·  {ending}"
    return Captioned(sample.image_HWC, sample.mask_HW, caption, is_alarm=not candidate.kept)


def _cell(picture: Captioned, colours: Pixels, edge: int) -> Pixels:
    """Image and overlay side by side over a caption, with a gap to the right and below."""
    image_HWC = resize(rgb(picture.image_HWC), edge)
    overlay_HWC = overlay(image_HWC, resize_mask(picture.mask_HW, edge), colours)
    pair_HWC = np.concatenate([image_HWC, overlay_HWC], axis=1)
    cell_HWC = np.pad(pair_HWC, ((0, _CAPTION_HEIGHT + _GAP), (0, _GAP), (0, 0)), constant_values=255)
    return _write(cell_HWC, picture.caption, (0, len(pair_HWC) + 16), _ALARM if picture.is_alarm else _INK, 13)


def _legend(classes: Sequence[str], colours: Pixels, width: int, has_ignore: bool) -> Pixels:
    """A swatch and a name for each class, in as many rows as they need."""
    swatches = [np.full((16, 16, 3), colour, dtype=np.uint8) for colour in colours]
    names = list(classes)
    if has_ignore:
        swatches.append(colour_mask(np.full((16, 16), IGNORE, np.uint8), colours))
        names.append("ignore")
    places, x, y = [], 0, 0
    for name in names:
        entry_width = 24 + _text_width(name, 15) + 20
        if x and x + entry_width > width:
            x, y = 0, y + _LEGEND_ROW
        places.append((x, y))
        x += entry_width
    legend_HWC = np.full((y + _LEGEND_ROW, width, 3), _PAPER, dtype=np.uint8)
    for name, swatch_HWC, (x, y) in zip(names, swatches, places, strict=True):
        legend_HWC[y : y + 16, x : x + 16] = swatch_HWC[:, : max(0, width - x)]
        legend_HWC = _write(legend_HWC, name, (x + 24, y + 13), _INK, 15)
    return legend_HWC


def _write(canvas_HWC: Pixels, text: str, origin: tuple[int, int], colour: tuple[int, int, int], size: int) -> Pixels:
    """The canvas with text on it; `origin` is (x, y) of the first letter's baseline."""
    _, written_HWC = cv2.putText(canvas_HWC.copy(), text, origin, colour, cv2.FontFace("sans"), size, 400)
    return np.asarray(written_HWC, dtype=np.uint8)


def _text_width(text: str, size: int) -> int:
    left, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace("sans"), size, 400)
    return int(left + width)


def _check_values(mask_HW: Pixels, num_classes: int) -> None:
    wrong = (mask_HW >= num_classes) & (mask_HW != IGNORE)
    if wrong.any():
        value = int(mask_HW[wrong][0])
        raise LabelmillError(
            f"a mask holds the value {value}; allowed are 0 to {num_classes - 1} (the classes) and {IGNORE} (ignore)"
        )

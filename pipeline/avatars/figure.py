"""From a figure's shape and flat colours to pixels: the avataaars drawing, once painted and once as classes.

Both pictures come from the same definition file with other fills, through the same transform and rasteriser,
so that the mask fits the painted figure to the pixel. avataaars is by Pablo Stanley (free for personal and
commercial use), the definition file and the SVG builder by DiceBear (MIT).

Shape suffixes: H, W height and width; C colour channels.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.resources
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dicebear import Style

CLASSES: tuple[str, ...] = (
    "background", "skin", "hair", "eyes", "brows", "nose", "mouth", "clothes", "glasses", "beard", "hat",
)  # fmt: skip
CLASS_INDEX: dict[str, int] = {name: index for index, name in enumerate(CLASSES)}

CANVAS_UNITS = 280.0  # the side of the drawing; every length below that is not in pixels is in these units
HATS: tuple[str, ...] = ("hat", "hijab", "turban", "winterHat02", "winterHat03", "winterHat04", "winterHat1")

Element: TypeAlias = dict[str, Any]  # one node of the definition file
# (class, leaf) -> the leaf with other fills, or nothing
Paint: TypeAlias = Callable[[str, Element], Element | None]

_COMPONENT_CLASS = {
    "eyes": "eyes", "eyebrows": "brows", "nose": "nose", "mouth": "mouth", "clothes": "clothes",
    "clothesGraphic": "clothes", "accessories": "glasses", "facialHair": "beard",
}  # fmt: skip
# Fixed colours of the drawing that become colours of the palette, by class. White eyes and teeth stay white.
_LITERAL_COLOURS = {
    "clothes": {"#e6e6e6": "clothesInner", "#f2f2f2": "clothesInner", "#f4f4f4": "clothesInner",
                "white": "clothesInner"},
    "hat": {"#f4f4f4": "hatTrim", "#edece3": "hatTrim"},
    "glasses": {"#2f383b": "lens"},
    "mouth": {"#ff4f6d": "tongue"},
}  # fmt: skip
COLOUR_NAMES: tuple[str, ...] = (
    "skin", "hair", "hat", "clothes", "accessories", "facialHair", "brows", "clothesInner", "hatTrim", "lens",
    "tongue",
)  # fmt: skip
# Each colour stands in the painted drawing as a mark that text replacement turns into the palette's: building
# a drawing costs as much as rasterising it, so it is built once for all palettes.
_COLOUR_MARKS = {name: f"#fedc{index:02x}" for index, name in enumerate(COLOUR_NAMES)}
_GREY_STEP = 20  # class index * 20 is its grey: apart, so that a blended pixel hardly passes for a class
_DRAWN_OPACITY = 0.5  # leaves fainter than this are shading on what lies beneath
_CLIP = re.compile(r' clip-path="url\(#clip-[0-9a-f]+\)"')


@dataclass(frozen=True)
class Pose:
    """Where the figure stands: mirrored, scaled and turned about the middle of the canvas, then shifted."""

    scale: float
    rotation_degrees: float
    shift_x: float  # fractions of the picture's side, positive to the right
    shift_y: float  # positive downwards
    flipped: bool


@dataclass(frozen=True)
class Figure:
    """The variant of each component; None where there is none."""

    top: str
    clothes: str
    clothes_graphic: str
    eyes: str
    eyebrows: str
    mouth: str
    facial_hair: str | None
    accessories: str | None
    pose: Pose


@dataclass(frozen=True)
class _Styles:
    """The two definitions, parsed and validated (a third of a second: once a process)."""

    painted: Style
    classes: Style


def rasterise_figure(figure: Figure, colours: Mapping[str, str], resolution: int) -> NDArray[np.uint8]:
    """The figure in flat colours and its own faint shading, anti-aliased, on nothing.

    `colours` maps each of COLOUR_NAMES to "#rrggbb". Returns uint8 [H, W, 4], RGB with straight alpha.
    """
    svg = _draw(figure, painted=True)
    for name, mark in _COLOUR_MARKS.items():
        svg = svg.replace(mark, colours[name])
    bgra = _rasterise(svg, resolution)
    return np.ascontiguousarray(bgra[:, :, [2, 1, 0, 3]])


def rasterise_classes(figure: Figure, resolution: int) -> NDArray[np.uint8]:
    """The class of each pixel's centre, uint8 [H, W] of indices into CLASSES."""
    bgra = _rasterise(_draw(figure, painted=False), resolution)
    classes_HW, alpha_HW = bgra[:, :, 0] // _GREY_STEP, bgra[:, :, 3]
    exact_HW = (bgra[:, :, :3] == (classes_HW * _GREY_STEP)[:, :, None]).all(axis=2)
    assert exact_HW.all() and np.isin(alpha_HW, (0, 255)).all(), f"{figure} has blended pixels in its mask"
    assert classes_HW.max() < len(CLASSES), f"{figure} has a class beyond {CLASSES[-1]} in its mask"
    return classes_HW


@functools.cache
def load_styles() -> _Styles:
    """Both definitions. Raises ImportError naming the extra where its packages are missing."""
    try:
        from dicebear import Style

        folder = importlib.resources.files("dicebear_styles")
        importlib.import_module("resvg_py")
    except ImportError as error:
        raise ImportError(
            f"the avatars domain draws with dicebear-core, dicebear-styles and resvg-py ({error}); "
            "install them with: pip install 'labelmill[benchmark]'"
        ) from error
    definition: Element = json.loads((folder / "avataaars.json").read_text(encoding="utf-8"))
    painted = _repaint(definition, _palette_fills)
    painted["colors"] = {name: {"values": [mark]} for name, mark in _COLOUR_MARKS.items()}
    classes = _repaint(definition, _class_fills)
    classes["colors"] = {}
    classes["attributes"] = {**definition["attributes"], "shape-rendering": "crispEdges"}
    return _Styles(painted=Style(painted), classes=Style(classes))


def _options(figure: Figure) -> dict[str, Any]:
    """The builder's options that fix every choice it would otherwise draw itself."""
    pose = figure.pose
    variants: dict[str, str | None] = {
        "top": figure.top, "clothes": figure.clothes, "clothesGraphic": figure.clothes_graphic,
        "eyes": figure.eyes, "eyebrows": figure.eyebrows, "mouth": figure.mouth, "nose": "default",
        "facialHair": figure.facial_hair, "accessories": figure.accessories,
    }  # fmt: skip
    options: dict[str, Any] = {
        "seed": "figure", "flip": ["horizontal" if pose.flipped else "none"], "scale": pose.scale,
        "rotate": pose.rotation_degrees, "translateX": 100 * pose.shift_x, "translateY": 100 * pose.shift_y,
    }  # fmt: skip
    for component, variant in variants.items():
        if variant is not None:
            options[f"{component}Variant"] = [variant]
    # Every other component is always drawn, and checking an option costs as much as drawing a part.
    for component in ("facialHair", "accessories"):
        options[f"{component}Probability"] = 0 if variants[component] is None else 100
    return options


@functools.lru_cache(maxsize=16)
def _draw(figure: Figure, painted: bool) -> str:
    """The figure's SVG, its fills colour marks or class greys."""
    styles = load_styles()
    from dicebear import Avatar

    svg = Avatar(styles.painted if painted else styles.classes, _options(figure)).to_string()
    # The clip to the canvas is what the picture's edge does anyway, at the price of one more layer.
    return _CLIP.sub("", svg)


def _rasterise(svg: str, resolution: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 4], BGR with straight alpha."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, width=resolution, height=resolution, skip_system_fonts=True)
    bgra = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert bgra is not None and bgra.shape == (resolution, resolution, 4), "resvg returned another picture"
    return np.asarray(bgra, np.uint8)


def _repaint(definition: Element, paint: Paint) -> Element:
    """The definition with each drawn leaf passed through `paint`, which is told the leaf's class."""
    repainted = copy.deepcopy(definition)
    canvas = repainted["canvas"]
    canvas["elements"] = _repaint_elements(canvas["elements"], "skin", paint)
    for component, entry in repainted["components"].items():
        for variant, drawing in entry["variants"].items():
            top_class = "hat" if variant in HATS else "hair"
            class_name = _COMPONENT_CLASS.get(component, top_class)
            drawing["elements"] = _repaint_elements(drawing["elements"], class_name, paint)
    return repainted


def _repaint_elements(elements: list[Element], class_name: str, paint: Paint) -> list[Element]:
    repainted: list[Element] = []
    for element in elements:
        if element["type"] != "element" or element["name"] == "defs":
            repainted.append(element)
        elif element.get("children"):
            group = paint(class_name, element) or element
            group["children"] = _repaint_elements(element["children"], class_name, paint)
            repainted.append(group)
        elif (leaf := paint(class_name, element)) is not None:
            repainted.append(leaf)
    return repainted


def _palette_fills(class_name: str, leaf: Element) -> Element:
    """Fixed colours become palette colours; brows and nose, faint veils in the original, become visible."""
    attributes = leaf["attributes"]
    fill = attributes.get("fill")
    if class_name == "brows":
        attributes.update({"fill": _reference("brows"), "fill-opacity": ".9"})
    elif class_name == "nose":
        attributes["fill-opacity"] = ".26"
    elif isinstance(fill, str) and _opacity(leaf) == 1:
        name = _LITERAL_COLOURS.get(class_name, {}).get(fill.lower())
        if name is not None:
            attributes["fill"] = _reference(name)
    return leaf


def _class_fills(class_name: str, leaf: Element) -> Element | None:
    """The leaf in its class's grey; None for shading, which belongs to what it darkens."""
    attributes = leaf["attributes"]
    # The nose is drawn as a shadow and nothing else. Blended leaves are glints on lenses drawn before.
    is_shading = _opacity(leaf) < _DRAWN_OPACITY and class_name != "nose"
    if is_shading or "mix-blend-mode" in attributes.get("style", ""):
        return None
    grey = "#" + 3 * f"{CLASS_INDEX[class_name] * _GREY_STEP:02x}"
    for paint in ("fill", "stroke"):
        if attributes.get(paint, "none") != "none":
            attributes[paint] = grey
        attributes.pop(f"{paint}-opacity", None)
    attributes.pop("opacity", None)
    return leaf


def _opacity(leaf: Element) -> float:
    attributes = leaf["attributes"]
    return float(attributes.get("fill-opacity", 1)) * float(attributes.get("opacity", 1))


def _reference(colour: str) -> Element:
    return {"type": "color", "name": colour}

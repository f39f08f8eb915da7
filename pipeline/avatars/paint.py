"""Paint over a flat figure what keeps colour from giving its parts away: texture, light, a busy background.

Everything is laid out in canvas units from random numbers drawn before the resolution matters, so one seed is
the same picture at every size. `shape` generators decide where things are, the palette what colour they have.

Shape suffixes: H, W height and width; C colour channels. Images are float32 RGB in [0, 1] here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.avatars.figure import CANVAS_UNITS, CLASS_INDEX, Pose

Floats: TypeAlias = NDArray[Any]  # float32, which numpy's types lose in arithmetic with numbers
Colour: TypeAlias = tuple[float, float, float]

_CROWN = (140.0, 62.0)  # where the strands of hair radiate from
MAX_BLOBS = 6
_GRAIN = 0.006
_SOFT_SIDE = 64  # pixels across which suffice for what is out of focus: it is painted small and enlarged
_FACE = tuple(CLASS_INDEX[name] for name in ("skin", "nose", "mouth", "eyes", "brows"))
_HEADWEAR = tuple(CLASS_INDEX[name] for name in ("hair", "hat", "beard", "glasses"))
_TEXTURES = ("skin", "hair", "clothes", "beard", "hat")


@dataclass(frozen=True)
class Light:
    """One soft lamp: where it comes from, how fast it falls off, its tint, how dark its shadows are."""

    angle_radians: float
    fall_off: float
    tint: Colour
    shadow: float
    vignette: float


@dataclass(frozen=True)
class Backdrop:
    """The colours behind the figure: two ends of a gradient, a cloud over it, the blurred objects."""

    gradient: tuple[Colour, Colour]
    cloud: Colour
    blobs: tuple[Colour, ...]


@dataclass(frozen=True)
class Finish:
    """What a palette adds to flat colours: how far each texture swings each channel, light and backdrop."""

    textures: dict[str, Colour]
    light: Light
    backdrop: Backdrop


def paint(
    figure_HWC: NDArray[np.uint8], classes_HW: NDArray[np.uint8], pose: Pose, finish: Finish,
    shape: np.random.Generator, grain: np.random.Generator,
) -> NDArray[np.uint8]:  # fmt: skip
    """Figure (uint8 RGBA) and its classes (uint8 [H, W]) to the finished picture, uint8 [H, W, 3] RGB."""
    resolution = classes_HW.shape[0]
    backdrop_HWC = paint_backdrop(resolution, finish.backdrop, shape)
    person_HWC = figure_HWC[:, :, :3].astype(np.float32) / np.float32(255)
    person_HWC = apply_textures(person_HWC, classes_HW, pose, finish.textures, shape)
    alpha_HW = figure_HWC[:, :, 3].astype(np.float32) / 255
    person_HWC *= shade_person(classes_HW, alpha_HW, finish.light)[:, :, None]
    backdrop_HWC *= 1 - finish.light.shadow * cast(alpha_HW, finish.light, 16, 0.07)[:, :, None]
    image_HWC = backdrop_HWC + alpha_HW[:, :, None] * (person_HWC - backdrop_HWC)
    image_HWC *= illumination(resolution, finish.light)
    image_HWC = np.asarray(cv2.GaussianBlur(image_HWC, (3, 3), 0.2 + 0.0015 * resolution), np.float32)
    image_HWC += _GRAIN * grain.standard_normal((resolution, resolution, 1), np.float32)
    image_HWC += 0.4 * _GRAIN * grain.standard_normal(image_HWC.shape, np.float32)
    return (np.clip(image_HWC, 0, 1) * 255 + 0.5).astype(np.uint8)


def canvas_grid(resolution: int) -> tuple[Floats, Floats]:
    """x_HW and y_HW of the pixels' centres in canvas units."""
    axis = (np.arange(resolution, dtype=np.float32) + 0.5) * np.float32(CANVAS_UNITS / resolution)
    x_HW, y_HW = np.meshgrid(axis, axis)
    return x_HW, y_HW


def figure_grid(x_HW: Floats, y_HW: Floats, pose: Pose) -> tuple[Floats, Floats]:
    """The same points in the figure's own units, its pose undone: texture sticks to the figure."""
    middle = CANVAS_UNITS / 2
    x_HW = x_HW - np.float32(middle + pose.shift_x * CANVAS_UNITS)
    y_HW = y_HW - np.float32(middle + pose.shift_y * CANVAS_UNITS)
    angle = np.deg2rad(pose.rotation_degrees)
    cos, sin = np.float32(np.cos(angle) / pose.scale), np.float32(np.sin(angle) / pose.scale)
    u_HW, v_HW = cos * x_HW + sin * y_HW, cos * y_HW - sin * x_HW
    return (-u_HW if pose.flipped else u_HW) + np.float32(middle), v_HW + np.float32(middle)


def noise(column_HW: Floats, row_HW: Floats, shape: np.random.Generator, side: int = 32) -> Floats:
    """Smooth noise of about unit variance: a wrapped table of random numbers read at (row, column)."""
    table = shape.standard_normal((side, side), np.float32)
    return cv2.remap(table, column_HW, row_HW, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def apply_textures(
    person_HWC: Floats, classes_HW: NDArray[np.uint8], pose: Pose, textures: dict[str, Colour],
    shape: np.random.Generator,
) -> Floats:  # fmt: skip
    """Swing each part's colour by its own pattern, each channel as far as the palette says."""
    u_HW, v_HW = figure_grid(*canvas_grid(classes_HW.shape[0]), pose)
    pixels_per_unit = classes_HW.shape[0] / CANVAS_UNITS * pose.scale
    seeds = dict(zip(_TEXTURES, shape.integers(0, 2**32, len(_TEXTURES)), strict=True))
    swing_HWC = np.zeros_like(person_HWC)
    for name, seed in seeds.items():
        part_HW = in_classes(classes_HW, _FACE if name == "skin" else (CLASS_INDEX[name],))
        if not part_HW.any():
            continue
        pattern = np.random.default_rng(int(seed))
        field_HW = _PATTERNS[name](u_HW, v_HW, pattern, pixels_per_unit)
        swing_HWC += (part_HW * field_HW)[:, :, None] * np.asarray(textures[name], np.float32)
    # Dark colours would swallow a purely proportional texture.
    return person_HWC + swing_HWC * (np.float32(0.25) + np.float32(0.6) * person_HWC)


def strands(u_HW: Floats, v_HW: Floats, shape: np.random.Generator, pixels_per_unit: float) -> Floats:
    """Hair: streaks that run out from the crown, wavering a little, each of limited length."""
    du_HW, dv_HW = u_HW - np.float32(_CROWN[0]), v_HW - np.float32(_CROWN[1])
    angle_HW = np.arctan2(du_HW, dv_HW) / np.float32(2 * np.pi)  # the seam points up, where hair is shortest
    radius_HW = np.hypot(du_HW, dv_HW)
    angle_HW = angle_HW + np.float32(0.018) * noise(u_HW / 40, v_HW / 40, shape)
    fine_HW = noise(angle_HW * 40, radius_HW / 60, shape)
    broad_HW = noise(angle_HW * 16, radius_HW / 90, shape)
    return np.float32(0.6 * fade(7, pixels_per_unit)) * fine_HW + np.float32(0.6) * broad_HW


def mottling(u_HW: Floats, v_HW: Floats, shape: np.random.Generator, pixels_per_unit: float) -> Floats:
    """Skin: soft patches with finer ones on them."""
    coarse_HW = noise(u_HW / 34, v_HW / 34, shape)
    return coarse_HW + np.float32(0.5 * fade(11, pixels_per_unit)) * noise(u_HW / 11, v_HW / 11, shape)


def stubble(u_HW: Floats, v_HW: Floats, shape: np.random.Generator, pixels_per_unit: float) -> Floats:
    """Beard: short upright streaks."""
    return np.float32(fade(6, pixels_per_unit)) * noise(u_HW / 5, v_HW / 16, shape)


def weave(u_HW: Floats, v_HW: Floats, shape: np.random.Generator, pixels_per_unit: float) -> Floats:
    """Clothes: plain weave, stripes, checks or dots at some angle, over broad folds."""
    kind = int(shape.integers(4))
    angle = shape.choice([0.0, 0.0, np.pi / 2, shape.uniform(-0.6, 0.6)])
    period = shape.uniform(13, 24)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    turn = np.float32(2 * np.pi / period)
    warp_HW = np.cos((cos * u_HW + sin * v_HW) * turn)
    weft_HW = np.cos((cos * v_HW - sin * u_HW) * turn)
    patterns = (warp_HW * weft_HW, np.tanh(3 * weft_HW), np.tanh(2 * warp_HW + 2 * weft_HW),
                np.tanh(4 * (warp_HW + weft_HW - 1)))  # fmt: skip
    folds_HW = noise(u_HW / 30, v_HW / 60, shape)
    return np.float32(fade(period / 2, pixels_per_unit)) * patterns[kind] + np.float32(0.5) * folds_HW


def knit(u_HW: Floats, v_HW: Floats, shape: np.random.Generator, pixels_per_unit: float) -> Floats:
    """Hat: ribs that lean apart towards the sides."""
    period = shape.uniform(9, 16)
    lean_HW = (u_HW - np.float32(140)) * (1 + (np.float32(60) - v_HW) / np.float32(400))
    bumps_HW = noise(u_HW / 25, v_HW / 25, shape)
    ribs_HW = np.sin(lean_HW * np.float32(2 * np.pi / period))
    return np.float32(fade(period / 2, pixels_per_unit)) * ribs_HW + np.float32(0.5) * bumps_HW


_PATTERNS = {"skin": mottling, "hair": strands, "clothes": weave, "beard": stubble, "hat": knit}


def fade(feature_units: float, pixels_per_unit: float) -> float:
    """1 where a feature spans pixels enough to be seen, 0 where it would only alias."""
    return float(np.clip(feature_units * pixels_per_unit - 0.8, 0, 1))


def shade_person(classes_HW: NDArray[np.uint8], alpha_HW: Floats, light: Light) -> Floats:
    """Soft shading across parts: a round body, headwear's shadow on the face, the head's on the clothes."""
    headwear_HW, face_HW = in_classes(classes_HW, _HEADWEAR), in_classes(classes_HW, _FACE)
    clothes_HW = in_classes(classes_HW, (CLASS_INDEX["clothes"],))
    shade_HW = 1 - np.float32(0.55 * light.shadow) * face_HW * cast(headwear_HW, light, 8, 0.03)
    shade_HW *= 1 - np.float32(0.7 * light.shadow) * clothes_HW * cast(alpha_HW - clothes_HW, light, 12, 0.05)
    # A round body is brighter where its blurred silhouette thins out towards the light.
    away_HW, towards_HW = cast(alpha_HW, light, 20, 0.06), cast(alpha_HW, light, 20, -0.06)
    return shade_HW * (1 + np.float32(0.4) * (away_HW - towards_HW))


def in_classes(classes_HW: NDArray[np.uint8], indices: tuple[int, ...]) -> Floats:
    """1 where the class is one of `indices`, else 0."""
    member = np.zeros(len(CLASS_INDEX), np.float32)
    member[list(indices)] = 1
    return member[classes_HW]


def cast(mask_HW: Floats, light: Light, blur_units: float, distance: float) -> Floats:
    """The mask blurred and moved away from the light by a fraction of the picture's side."""
    resolution, side = mask_HW.shape[0], min(mask_HW.shape[0], _SOFT_SIDE)
    small_HW = cv2.resize(mask_HW, (side, side), interpolation=cv2.INTER_AREA)
    sigma = blur_units * side / CANVAS_UNITS
    small_HW = cv2.GaussianBlur(small_HW, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    dx, dy = (-distance * side * turn(light.angle_radians) for turn in (np.cos, np.sin))
    move = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    small_HW = cv2.warpAffine(small_HW, move, (side, side), borderMode=cv2.BORDER_REPLICATE)
    return cv2.resize(small_HW, (resolution, resolution), interpolation=cv2.INTER_LINEAR)


def illumination(resolution: int, light: Light) -> Floats:
    """A factor for each pixel and channel [H, W, 3]: brighter to the lamp, tinted, darker in the corners."""
    x_HW, y_HW = (axis_HW / np.float32(CANVAS_UNITS / 2) - 1 for axis_HW in canvas_grid(resolution))
    ramp_HW = x_HW * np.float32(np.cos(light.angle_radians)) + y_HW * np.float32(np.sin(light.angle_radians))
    corner_HW = x_HW * x_HW + y_HW * y_HW
    level_HW = 1 + np.float32(light.fall_off) * ramp_HW - np.float32(light.vignette / 2) * corner_HW
    return level_HW[:, :, None] * np.asarray(light.tint, np.float32)


def paint_backdrop(resolution: int, backdrop: Backdrop, shape: np.random.Generator) -> Floats:
    """A turned gradient, a cloud of noise over it and some blurred ellipses and boxes, float32 [H, W, 3]."""
    side = min(resolution, _SOFT_SIDE)
    x_HW, y_HW = canvas_grid(side)
    angle, num_blobs = shape.uniform(0, 2 * np.pi), int(shape.integers(2, MAX_BLOBS + 1))
    x0_HW, y0_HW = x_HW - np.float32(CANVAS_UNITS / 2), y_HW - np.float32(CANVAS_UNITS / 2)
    ramp_HW = x0_HW * np.float32(np.cos(angle)) + y0_HW * np.float32(np.sin(angle))
    start, end = (np.asarray(colour, np.float32) for colour in backdrop.gradient)
    image_HWC = start + np.clip(ramp_HW / 300 + np.float32(0.5), 0, 1)[:, :, None] * (end - start)
    clouds_HW = noise(x_HW / 60, y_HW / 60, shape) + np.float32(0.3) * noise(x_HW / 26, y_HW / 26, shape)
    weight_HW = np.clip(np.float32(0.25) + np.float32(0.22) * clouds_HW, 0, 0.7)
    image_HWC += weight_HW[:, :, None] * (np.asarray(backdrop.cloud, np.float32) - image_HWC)
    for colour in backdrop.blobs[:num_blobs]:
        weight_HW = blob(x_HW, y_HW, shape)
        image_HWC += weight_HW[:, :, None] * (np.asarray(colour, np.float32) - image_HWC)
    return cv2.resize(image_HWC, (resolution, resolution), interpolation=cv2.INTER_LINEAR)


def blob(x_HW: Floats, y_HW: Floats, shape: np.random.Generator) -> Floats:
    """Coverage of one out-of-focus object, between an ellipse and a box, [H, W] in [0, 1]."""
    centre_x, centre_y = shape.uniform(0, CANVAS_UNITS), shape.uniform(-10, 0.8 * CANVAS_UNITS)
    half_width, half_height = shape.uniform(18, 62, size=2)
    power, softness = shape.choice([2.0, 2.0, 5.0]), shape.uniform(0.25, 0.6)
    strength, angle = shape.uniform(0.45, 0.9), shape.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    dx_HW, dy_HW = x_HW - np.float32(centre_x), y_HW - np.float32(centre_y)
    u_HW = np.abs(cos * dx_HW + sin * dy_HW) / np.float32(half_width)
    v_HW = np.abs(cos * dy_HW - sin * dx_HW) / np.float32(half_height)
    distance_HW = (u_HW ** np.float32(power) + v_HW ** np.float32(power)) ** np.float32(1 / power)
    edge_HW = np.clip((1 + softness - distance_HW) / (2 * softness), 0, 1).astype(np.float32)
    return np.float32(strength) * edge_HW * edge_HW * (3 - 2 * edge_HW)

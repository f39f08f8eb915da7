"""A domain with exact truth: cartoon portraits, each with the class of every pixel and its attributes.

A seed decides two things apart: the shape (parts, pose, where texture and background objects lie) and the
palette (every colour, the light). Drawing the palette anew is style mixing as a perfect generator would do
it, which is what `recolourings` is for. Flat colour must not give parts away, so they are textured and lit
together, and backgrounds hold blurred objects in the colours of skin, hair and clothes.

Shape suffixes: N variants; H, W height and width; C colour channels.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.avatars.figure import CLASSES, HATS, Figure, Pose, rasterise_classes, rasterise_figure
from labelmill.pipeline.avatars.paint import MAX_BLOBS, Backdrop, Colour, Finish, Light, paint

__all__ = ["CLASSES", "RATES", "Avatar", "AvatarAttributes", "recolourings", "render", "seeds_at_rates"]

MIN_RESOLUTION = 16
RATES = {"hat": 0.15, "glasses": 0.10, "beard": 0.05}
"""Shares of portraits with a rare part."""

# Variants, repeated by how often they are drawn. Left out: what belongs to no class (tears, an eyepatch,
# flowers or a band in the hair), what is unpleasant, brows and cheeks of a colour that no palette reaches.
_HAIR = (
    "bigHair", "bob", "bun", "curly", "curvy", "dreads", "dreads01", "dreads02", "frizzle", "fro",
    "longButNotTooLong", "miaWallace", "shaggy", "shaggyMullet", "shavedSides", "shortCurly", "shortFlat",
    "shortRound", "shortWaved", "sides", "straight01", "straight02", "straightAndStrand", "theCaesar",
    "theCaesarAndSidePart",
)  # fmt: skip
_CLOTHES = (
    "blazerAndShirt", "blazerAndSweater", "collarAndSweater", "graphicShirt", "hoodie", "overall",
    "shirtCrewNeck", "shirtScoopNeck", "shirtVNeck",
)  # fmt: skip
_GRAPHICS = ("bat", "bear", "deer", "diamond", "pizza", "skull", "skullOutline")  # words would be mirrored
_GLASSES = ("kurt", "prescription01", "prescription02", "round", "sunglasses", "wayfarers")
_BEARDS = ("beardLight", "beardMajestic", "beardMedium", "moustacheFancy", "moustacheMagnum")
_BROWS = (
    "default", "default", "defaultNatural", "defaultNatural", "flatNatural", "raisedExcited",
    "raisedExcitedNatural", "raisedExcitedNatural", "upDown", "upDownNatural", "frownNatural",
)  # fmt: skip
_EYES = (
    "default", "default", "default", "default", "happy", "happy", "side", "squint", "surprised", "surprised",
    "wink", "closed",
)  # fmt: skip
_MOUTHS = (
    "default", "default", "smile", "smile", "smile", "smile", "twinkle", "twinkle", "twinkle", "serious",
    "serious", "tongue", "disbelief", "concerned",
)  # fmt: skip

_SKIN_TONES = ("#6b4430", "#85553a", "#a66c42", "#c08352", "#d29866", "#e2ad80", "#edc09a", "#f5d0b0")
_HAIR_TONES = ("#241c1a", "#3a2620", "#5a3825", "#7c4c2a", "#a5682f", "#c99a53", "#e3c587", "#8f2f18",
               "#b9b4ae")  # fmt: skip


@dataclass(frozen=True)
class Colours:
    """Flat colours of the parts, "#rrggbb"."""

    skin: str
    hair: str
    brows: str
    beard: str
    clothes: str
    clothes_inner: str
    hat: str
    hat_trim: str
    glasses: str


@dataclass(frozen=True)
class AvatarAttributes:
    """What is in the picture, by the names of the avataaars definition."""

    top: str
    clothes: str
    eyes: str
    brows: str
    mouth: str
    facial_hair: str | None
    glasses: str | None
    has_hat: bool
    has_glasses: bool
    has_beard: bool
    colours: Colours
    pose: Pose


@dataclass(frozen=True)
class Avatar:
    """image_HWC uint8 RGB; mask_HW uint8, indices into CLASSES; attributes."""

    image_HWC: NDArray[np.uint8]
    mask_HW: NDArray[np.uint8]
    attributes: AvatarAttributes


def render(seed: int, resolution: int) -> Avatar:
    """The portrait of a seed. Same arguments, same bytes, in any process.

    Raises ValueError on a negative seed or a resolution below 16, ImportError without the benchmark extra.
    """
    _check(seed, resolution)
    figure = draw_figure(seed)
    colours, finish = draw_palette(seed, variant=0)
    mask_HW = rasterise_classes(figure, resolution)
    image_HWC = _paint(seed, 0, figure, colours, finish, mask_HW)
    return Avatar(image_HWC, mask_HW, _attributes(figure, colours))


def recolourings(seed: int, resolution: int, variants: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Ideal style mixing: the seed's shape in `variants` palettes, the first of them `render`'s own.

    Returns images uint8 [N, H, W, 3] RGB and their one mask uint8 [H, W]. Raises as `render` does.
    """
    _check(seed, resolution)
    if variants < 1:
        raise ValueError(f"variants: must be at least 1, got {variants}")
    figure = draw_figure(seed)
    mask_HW = rasterise_classes(figure, resolution)
    images = [_paint(seed, v, figure, *draw_palette(seed, v), mask_HW) for v in range(variants)]
    return np.stack(images), mask_HW


def seeds_at_rates(first_seed: int, rates: Mapping[str, float]) -> Iterator[int]:
    """Seeds from the first on, without those that other rates than the domain's would have too often; endless.

    rates: shares in (0, 1) by names of RATES; those left out are the domain's. Rejection sampling: the seeds that stay
    are a sample of the domain in which each rare part is as frequent as told, and no matter with which others.
    """
    odds = {name: (rate / RATES[name], (1 - rate) / (1 - RATES[name])) for name, rate in rates.items()}
    for seed in count(first_seed):
        figure = draw_figure(seed)
        has = {"hat": figure.top in HATS, "glasses": bool(figure.accessories), "beard": bool(figure.facial_hair)}
        kept = math.prod((own if has[name] else without) / max(own, without) for name, (own, without) in odds.items())
        if _generator(seed, "choice").random() < kept:
            yield seed


def draw_figure(seed: int) -> Figure:
    """Which parts and which pose a seed has."""
    rng = _generator(seed, "figure")
    has_hat, has_glasses, has_beard = rng.random(3) < tuple(RATES.values())
    hat, hair, glasses, beard = (_pick(rng, names) for names in (HATS, _HAIR, _GLASSES, _BEARDS))
    return Figure(
        top=hat if has_hat else hair,
        clothes=_pick(rng, _CLOTHES),
        clothes_graphic=_pick(rng, _GRAPHICS),
        eyes=_pick(rng, _EYES),
        eyebrows=_pick(rng, _BROWS),
        mouth=_pick(rng, _MOUTHS),
        facial_hair=beard if has_beard else None,
        accessories=glasses if has_glasses else None,
        pose=_draw_pose(rng),
    )


def _draw_pose(rng: np.random.Generator) -> Pose:
    scale, rotation = rng.uniform(0.86, 1.04), float(np.clip(rng.normal(0, 3.5), -8, 8))
    # The shoulders are cut off by the picture's lower edge, never by the end of the drawing.
    turned = np.deg2rad(rotation)
    lowest = 0.5 - 0.5 * scale * np.cos(turned) + 0.5 * abs(np.sin(turned))
    return Pose(
        scale=round(float(scale), 4),
        rotation_degrees=round(rotation, 4),
        shift_x=round(float(rng.uniform(-0.05, 0.05)), 4),
        shift_y=round(float(max(lowest, 0.0) + rng.uniform(0.0, 0.05)), 4),
        flipped=bool(rng.random() < 0.5),
    )


def draw_palette(seed: int, variant: int) -> tuple[dict[str, str], Finish]:
    """Flat colours by the names that the drawing uses, and the finish painted over them."""
    rng = _generator(seed, "palette", variant)
    skin = _jitter(rng, _pick(rng, _SKIN_TONES), 0.025)
    hair = _vivid(rng) if rng.random() < 0.2 else _jitter(rng, _pick(rng, _HAIR_TONES), 0.05)
    clothes = _jitter(rng, _hex(skin), 0.10) if rng.random() < 0.15 else _vivid(rng)
    hat = _jitter(rng, _hex(hair), 0.08) if rng.random() < 0.15 else _vivid(rng)
    beard = _jitter(rng, _hex(hair) if rng.random() < 0.8 else _pick(rng, _HAIR_TONES), 0.05)
    flat = {
        "skin": skin, "hair": hair, "hat": hat, "clothes": clothes, "facialHair": beard,
        "accessories": _mix(_vivid(rng), (0.1, 0.1, 0.12), rng.uniform(0.3, 1.0)),
        "brows": _mix(_mix(hair, skin, 0.15), (0.1, 0.07, 0.06), rng.uniform(0.3, 0.6)),
        "clothesInner": _mix(_vivid(rng), (0.96, 0.95, 0.92), rng.uniform(0.3, 1.0)),
        "hatTrim": _mix(_vivid(rng), (0.96, 0.95, 0.92), rng.uniform(0.3, 1.0)),
        "lens": _mix(_vivid(rng), (0.1, 0.12, 0.15), 0.7),
        "tongue": _mix((1.0, 0.31, 0.43), _vivid(rng), 0.15),
    }  # fmt: skip
    parts = (skin, hair, clothes, hat)
    finish = Finish(_draw_textures(rng), _draw_light(rng), _draw_backdrop(rng, parts))
    return {name: _hex(colour) for name, colour in flat.items()}, finish


def _draw_textures(rng: np.random.Generator) -> dict[str, Colour]:
    swings = {"skin": (0.02, 0.05), "hair": (0.10, 0.22), "clothes": (0.06, 0.18), "beard": (0.10, 0.2)}
    swings["hat"] = (0.06, 0.16)
    return {name: _colour(rng.uniform(*swing) * rng.uniform(0.6, 1.4, 3)) for name, swing in swings.items()}


def _draw_light(rng: np.random.Generator) -> Light:
    return Light(
        angle_radians=float(rng.uniform(-np.pi * 0.95, -np.pi * 0.05)),  # from above
        fall_off=float(rng.uniform(0.03, 0.13)),
        tint=_colour(rng.uniform(1.01, 1.08) + rng.uniform(-0.03, 0.03, 3)),
        shadow=float(rng.uniform(0.12, 0.36)),
        vignette=float(rng.uniform(0.03, 0.15)),
    )


def _draw_backdrop(rng: np.random.Generator, parts: tuple[Colour, ...]) -> Backdrop:
    """A background near skin, hair or clothes in almost half of the pictures, objects near parts in most."""
    kind = rng.random()
    if kind < 0.45:
        near = parts[int(np.digitize(kind, (0.22, 0.34)))]
        start = _jitter(rng, _hex(_mix(near, _vivid(rng), rng.uniform(0.1, 0.35))), 0.06)
    else:
        start = _soft(rng)
    end = _jitter(rng, _hex(_mix(start, _soft(rng), rng.uniform(0.15, 0.7))), 0.05)
    blobs = []
    for near, other in zip(rng.integers(0, len(parts), MAX_BLOBS), rng.random(MAX_BLOBS), strict=True):
        blobs.append(_soft(rng) if other < 0.3 else _jitter(rng, _hex(parts[near]), 0.07))
    return Backdrop((start, end), _mix(start, _soft(rng), 0.6), tuple(blobs))


def _paint(
    seed: int,
    variant: int,
    figure: Figure,
    colours: dict[str, str],
    finish: Finish,
    mask_HW: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    figure_HWC = rasterise_figure(figure, colours, mask_HW.shape[0])
    layout, grain = _generator(seed, "layout"), _generator(seed, "grain", variant)
    return paint(figure_HWC, mask_HW, figure.pose, finish, layout, grain)


def _attributes(figure: Figure, colours: dict[str, str]) -> AvatarAttributes:
    return AvatarAttributes(
        top=figure.top, clothes=figure.clothes, eyes=figure.eyes, brows=figure.eyebrows, mouth=figure.mouth,
        facial_hair=figure.facial_hair, glasses=figure.accessories, has_hat=figure.top in HATS,
        has_glasses=figure.accessories is not None, has_beard=figure.facial_hair is not None,
        colours=Colours(
            skin=colours["skin"], hair=colours["hair"], brows=colours["brows"], beard=colours["facialHair"],
            clothes=colours["clothes"], clothes_inner=colours["clothesInner"], hat=colours["hat"],
            hat_trim=colours["hatTrim"], glasses=colours["accessories"],
        ),
        pose=figure.pose,
    )  # fmt: skip


_PURPOSES = ("figure", "palette", "layout", "grain", "choice")


def _generator(seed: int, purpose: str, variant: int = 0) -> np.random.Generator:
    """Independent numbers for each purpose, so that a change in one draw moves nothing else."""
    return np.random.default_rng([seed, _PURPOSES.index(purpose), variant])


def _check(seed: int, resolution: int) -> None:
    if seed < 0:
        raise ValueError(f"seed: must be 0 or more, got {seed}")
    if resolution < MIN_RESOLUTION:
        raise ValueError(f"resolution: must be at least {MIN_RESOLUTION} pixels, got {resolution}")


def _pick(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]


def _vivid(rng: np.random.Generator) -> Colour:
    """A colour for cloth: any hue, from muted to bright, now and then nearly grey."""
    saturation = rng.uniform(0.0, 0.15) if rng.random() < 0.2 else rng.uniform(0.35, 0.85)
    return colorsys.hsv_to_rgb(rng.random(), saturation, rng.uniform(0.4, 0.97))


def _soft(rng: np.random.Generator) -> Colour:
    """A colour for walls and skies: any hue, mild."""
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.12, 0.55), rng.uniform(0.65, 1.0))


def _jitter(rng: np.random.Generator, colour: str, spread: float) -> Colour:
    """The colour made lighter or darker as a whole, and a little off in each channel."""
    base = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return _colour(np.clip(base + rng.normal(0, spread) + rng.normal(0, spread / 2, 3), 0.03, 0.98))


def _mix(first: Colour, second: Colour, weight: float) -> Colour:
    """`weight` of the second colour in the first."""
    return _colour(np.asarray(first) * (1 - weight) + np.asarray(second) * weight)


def _colour(values: NDArray[np.float64]) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _hex(colour: Colour) -> str:
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in colour)

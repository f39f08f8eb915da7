"""Captions of avatars, true by construction: made from what a render is known to hold.

A caption is its text and the literals that make it true, so that the truth of any caption about any view is known,
or known to be unknown: a contrastive loss needs to guess no negatives.

Shape suffixes: V views, K captions.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.avatars.figure import CLASSES, Figure
from labelmill.pipeline.avatars.words import split_words

PART_WORDS: dict[str, tuple[str, ...]] = {
    "background": ("background", "backdrop"),
    "skin": ("skin", "face"),
    "hair": ("hair", "hairstyle"),
    "eyes": ("eyes", "eye"),
    "brows": ("brows", "eyebrows", "eyebrow"),
    "nose": ("nose",),
    "mouth": ("mouth", "lips"),
    "clothes": ("clothes", "clothing", "garment"),
    "glasses": ("glasses", "eyeglasses", "spectacles"),
    "beard": ("beard", "facial hair"),
    "hat": ("hat", "headwear"),
}
"""What a part may be called, by class."""

# Variants of the drawing by what they are called: part -> words -> names of the avataaars definition.
KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "glasses": {"sunglasses": ("kurt", "sunglasses", "wayfarers"), "round glasses": ("round",)},
    "beard": {"moustache": ("moustacheFancy", "moustacheMagnum"), "mustache": ("moustacheFancy", "moustacheMagnum")},
    "hat": {
        "turban": ("turban",),
        "hijab": ("hijab",),
        "winter hat": ("winterHat02", "winterHat03", "winterHat04", "winterHat1"),
        "beanie": ("winterHat02", "winterHat03", "winterHat04", "winterHat1"),
    },
    "hair": {
        "curly hair": ("curly", "fro", "shortCurly", "bigHair", "frizzle"),
        "short hair": (
            "shortCurly", "shortFlat", "shortRound", "shortWaved", "sides", "theCaesar", "theCaesarAndSidePart",
            "shavedSides", "frizzle", "dreads01", "dreads02", "shaggyMullet", "shaggy",
        ),
        "long hair": (
            "bob", "bigHair", "curvy", "dreads", "longButNotTooLong", "miaWallace", "straight01", "straight02",
            "straightAndStrand", "curly",
        ),
        "dreads": ("dreads", "dreads01", "dreads02"),
    },
    "clothes": {"hoodie": ("hoodie",), "overall": ("overall",), "blazer": ("blazerAndShirt", "blazerAndSweater"),
                "shirt": ("graphicShirt", "shirtCrewNeck", "shirtScoopNeck", "shirtVNeck")},
}  # fmt: skip
COLOURED = ("hair", "clothes", "hat")
COLOURS = ("black", "white", "grey", "red", "orange", "brown", "yellow", "blond", "green", "blue", "purple", "pink")
ACCESSORIES = ("hat", "glasses", "beard")
"""Parts that a person may be without."""

PART_FRAMES = (
    "{}", "{}", "{}", "a {}", "the {}", "a photo of {}", "a photo of a {}", "a photo of the {}",
    "this is a photo of a {}", "this is a photo of {}", "a picture of {}", "a picture of a {}", "an image of {}",
    "an image of a {}", "a close-up of {}", "a close-up of a {}", "a cartoon of {}", "the {} of a person",
    "a person's {}", "a drawing of {}",
)  # fmt: skip
PERSON_FRAMES = ("a person", "a person", "a person", "a photo of a person", "a portrait of a person",
                 "a cartoon of a person", "a picture of a person", "an image of a person",
                 "this is a photo of a person", "a drawing of a person", "someone")  # fmt: skip
_BARE = 0.06  # share of captions of persons that say no more than that
_WITH, _WITHOUT = ("with", "with", "wearing", "who has"), ("without", "without", "with no")

LITERALS: tuple[str, ...] = (
    "person",
    *CLASSES,
    *(f"{part}={words}" for part, kinds in KINDS.items() for words in kinds),
    *(f"{part}={colour}" for part in COLOURED for colour in COLOURS),
)
"""What can be true of a view: a person is whole in it; a part is in it; that part is of a kind or colour."""
LITERAL_INDEX = {literal: index for index, literal in enumerate(LITERALS)}
UNKNOWN = 0.5


@dataclass(frozen=True)
class Caption:
    """A text that is true exactly when each literal has its sign."""

    text: str
    literals: tuple[tuple[str, bool], ...]


def traits_of(figure: Figure, colours: Mapping[str, str]) -> frozenset[str]:
    """The literals of kind and colour that hold where their part is seen. Colours "#rrggbb" by the drawing's names."""
    variants = {
        "glasses": figure.accessories, "beard": figure.facial_hair, "hat": figure.top, "hair": figure.top,
        "clothes": figure.clothes,
    }  # fmt: skip
    kinds = {
        f"{part}={words}" for part, all_words in KINDS.items() for words, names in all_words.items()
        if variants[part] in names
    }  # fmt: skip
    return frozenset(kinds | {f"{part}={colour_name(colours[part], part)}" for part in COLOURED})


def facts(parts: NDArray[np.floating], traits: frozenset[str], person: float) -> NDArray[np.float32]:
    """The truth of each literal about a view, float32 [len(LITERALS)]: 1, 0 or UNKNOWN.

    parts holds the truth of each class's presence; a kind or colour is true of a part that is there and has it.
    """
    present = dict(zip(CLASSES, parts, strict=True))
    values = [person, *parts]
    for literal in LITERALS[1 + len(CLASSES) :]:
        values.append(present[literal.split("=")[0]] if literal in traits else 0.0)
    return np.asarray(values, np.float32)


def truths(facts_VL: NDArray[np.float32], captions: Sequence[Caption]) -> NDArray[np.float32]:
    """The truth of each caption about each view, float32 [V, K]: the least of its literals', 1 - x where negated."""
    columns = []
    for caption in captions:
        values = [
            facts_VL[:, LITERAL_INDEX[literal]] if sign else 1 - facts_VL[:, LITERAL_INDEX[literal]]
            for literal, sign in caption.literals
        ]
        columns.append(np.min(values, axis=0))
    return np.stack(columns, axis=1)


def part_caption(part: str, traits: frozenset[str], random: np.random.Generator) -> Caption:
    """A text about one part: "a photo of a hat", "blond hair"."""
    literal, words = _noun(part, traits, random)
    literals = ((part, True),) if literal is None else ((part, True), (literal, True))
    return Caption(_choose(PART_FRAMES, random).format(words), literals)


def person_caption(present: frozenset[str], traits: frozenset[str], random: np.random.Generator) -> Caption:
    """A text about a person, true where `present` are the person's parts: "a person with a hat and no glasses"."""
    if random.random() < _BARE:
        return Caption(_choose(PERSON_FRAMES, random), (("person", True),))
    accessories = [part for part in ACCESSORIES if random.random() < 0.6]
    parts = [part for part in ("hair", "clothes") if part in present and random.random() < 0.25]
    order = [*accessories, *parts]
    random.shuffle(order)
    order = order[:2] or [ACCESSORIES[int(random.integers(len(ACCESSORIES)))]]
    text, literals = _choose(PERSON_FRAMES, random), [("person", True)]
    for index, part in enumerate(order):
        join = " and " if index else " "
        if part in present:
            literal, words = _noun(part, traits, random)
            verb = "with" if part == "hair" else _choose(_WITH, random)
            text += f"{join}{verb} {_article(words, random)}"
            literals += [(part, True)] if literal is None else [(part, True), (literal, True)]
        else:
            text += f"{join}{_choose(_WITHOUT, random)} {_article(_choose(PART_WORDS[part], random), random)}"
            literals.append((part, False))
    return Caption(text.replace("with no a ", "with no "), tuple(literals))


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption may hold, sorted."""
    texts = [*PART_FRAMES, *PERSON_FRAMES, *_WITH, *_WITHOUT, *COLOURS, "and", "a"]
    texts += [words for all_words in (*PART_WORDS.values(), *KINDS.values()) for words in all_words]
    return tuple(sorted({word for text in texts for word in split_words(text.replace("{}", " "))}))


def colour_name(colour: str, part: str) -> str:
    """The word for "#rrggbb", one of COLOURS; only hair is blond."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    if value < 0.22:
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.85 else "grey"
    degrees = 360 * hue
    if degrees < 50 and value < 0.62 and saturation > 0.2:
        return "brown" if degrees > 14 else "red"
    if part == "hair" and 25 <= degrees < 60:
        return "blond"
    bounds = ((14, "red"), (44, "orange"), (70, "yellow"), (165, "green"), (255, "blue"), (295, "purple"))
    return next((name for bound, name in bounds if degrees < bound), "pink" if degrees < 345 else "red")


def _noun(part: str, traits: frozenset[str], random: np.random.Generator) -> tuple[str | None, str]:
    """A literal of kind or colour, or none, and words that hold where it does."""
    own = sorted(trait for trait in traits if trait.startswith(f"{part}="))
    plain = _choose(PART_WORDS[part], random) if random.random() < 0.35 else PART_WORDS[part][0]
    if not own or random.random() < 0.7:
        return None, plain
    literal = _choose(own, random)
    trait = literal.split("=")[1]
    return literal, f"{trait} {plain}" if trait in COLOURS else trait


def _article(words: str, random: np.random.Generator) -> str:
    """With an article where most would write one."""
    plural = words.endswith(("hair", "es", "s"))
    return words if plural or random.random() < 0.1 else f"a {words}"


def _choose(items: Sequence[str], random: np.random.Generator) -> str:
    return items[int(random.integers(len(items)))]

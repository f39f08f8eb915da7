"""Captions of avatars: each is true of what it was made from, and its truth about anything else is known."""

from __future__ import annotations

import numpy as np
import pytest

from labelmill.pipeline.avatars.avatars import draw_figure, draw_palette
from labelmill.pipeline.avatars.captions import (
    COLOURED,
    LITERALS,
    UNKNOWN,
    Caption,
    colour_name,
    facts,
    part_caption,
    person_caption,
    traits_of,
    truths,
    vocabulary,
)
from labelmill.pipeline.avatars.figure import CLASSES, HATS
from labelmill.pipeline.avatars.words import split_words
from labelmill.pipeline.prompt_models.avatars_networks import MAX_WORDS

SEEDS = range(7_400_000, 7_400_200)


def parts_of(*names: str) -> np.ndarray:
    return np.asarray([float(name in names) for name in CLASSES])


def test_captions_are_true_of_what_they_were_made_from() -> None:
    random = np.random.default_rng(0)
    for seed in SEEDS:
        figure = draw_figure(seed)
        traits = traits_of(figure, draw_palette(seed, 0)[0])
        worn = {"hat": figure.top in HATS, "glasses": figure.accessories, "beard": figure.facial_hair}
        present = {"background", "skin", "clothes", *(part for part, variant in worn.items() if variant)}
        present |= set() if worn["hat"] else {"hair"}
        view = facts(parts_of(*present), traits, person=1.0)[None]
        captions = [person_caption(frozenset(present), traits, random) for _ in range(5)]
        captions += [part_caption(part, traits, random) for part in sorted(present)]
        assert (truths(view, captions) == 1.0).all()


def test_texts_say_what_the_literals_say() -> None:
    random = np.random.default_rng(1)
    present = frozenset({"hair", "clothes", "beard"})
    for _ in range(300):
        caption = person_caption(present, frozenset({"hair=red", "beard=moustache"}), random)
        literals = dict(caption.literals)
        for part, words in (("hat", ("hat", "headwear")), ("glasses", ("glasses", "eyeglasses", "spectacles"))):
            assert literals.get(part) in (None, False)
            named = [word for word in words if word in split_words(caption.text)]
            assert bool(named) == (part in literals)
            if named:
                before = caption.text.split(named[0])[0].split()[-2:]
                assert {"without", "no"} & set(before), caption.text
        assert ("moustache" in caption.text) == ("beard=moustache" in literals)


def test_truth_is_the_least_of_the_literals() -> None:
    views = np.stack(
        [
            facts(parts_of("hat"), frozenset({"hat=red"}), person=1.0),
            facts(parts_of("beard"), frozenset({"hat=red"}), person=1.0),
            facts(parts_of("hat"), frozenset(), person=UNKNOWN),
        ]
    )
    captions = [
        Caption("a hat", (("hat", True),)),
        Caption("a red hat", (("hat", True), ("hat=red", True))),
        Caption("a person with a hat", (("person", True), ("hat", True))),
        Caption("a person without a hat", (("person", True), ("hat", False))),
    ]
    expected = [[1, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0.5, 0]]
    assert truths(views, captions).tolist() == expected


def test_every_caption_is_in_the_vocabulary_and_fits() -> None:
    random, words = np.random.default_rng(2), set(vocabulary())
    for seed in SEEDS:
        traits = traits_of(draw_figure(seed), draw_palette(seed, 0)[0])
        present = frozenset(name for name in CLASSES if random.random() < 0.5)
        captions = [part_caption(part, traits, random) for part in CLASSES]
        captions += [person_caption(present, traits, random) for _ in range(20)]
        for caption in captions:
            said = split_words(caption.text)
            assert set(said) <= words and len(said) <= MAX_WORDS, caption.text


@pytest.mark.parametrize(
    ("colour", "name"),
    [("#101010", "black"), ("#fafafa", "white"), ("#808080", "grey"), ("#ff2010", "red"), ("#20c030", "green"),
     ("#2040e0", "blue"), ("#6b4430", "brown"), ("#e0d020", "yellow"), ("#e040b0", "pink")],
)  # fmt: skip
def test_colours_are_called_as_people_call_them(colour: str, name: str) -> None:
    assert colour_name(colour, "clothes") == name


def test_only_hair_is_blond() -> None:
    assert colour_name("#e3c587", "hair") == "blond" and colour_name("#e3c587", "hat") != "blond"


def test_each_coloured_part_has_one_colour() -> None:
    for seed in SEEDS:
        traits = traits_of(draw_figure(seed), draw_palette(seed, 0)[0])
        assert traits <= set(LITERALS)
        colours = [colour_name("#000000", part) for part in COLOURED]
        assert colours == ["black"] * 3
        for part in COLOURED:
            own = colour_name(draw_palette(seed, 0)[0][part], part)
            assert f"{part}={own}" in traits


def test_words_are_parted_by_what_is_no_letter() -> None:
    assert split_words("A Photo,of  a close-up (hat)!") == ["a", "photo", "of", "a", "close-up", "hat"]
    assert split_words(" - ' ") == []

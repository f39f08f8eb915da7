"""Shapes become the pixels that the tools they come from make of them, all of them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from labelmill.pipeline.annotations.formats.coco import read_coco
from labelmill.pipeline.annotations.formats.drawn import Canvas, DrawnImage, Findings
from labelmill.pipeline.annotations.formats.label_studio import read_label_studio
from labelmill.pipeline.annotations.formats.labelme import read_labelme
from labelmill.pipeline.annotations.paint import paint
from labelmill.pipeline.pictures.png import decode_gray

GOLDENS = Path(__file__).parent / "goldens"
INDICES = {"_background_": 0, "hair": 1, "skin": 2, "eye": 3}
Read = Callable[[Any, str, Findings], list[DrawnImage]]


def _read(name: str, read: Read) -> list[DrawnImage]:
    findings = Findings()
    drawn = read(json.loads((GOLDENS / name).read_text()), name, findings)
    assert not findings.problems
    return drawn


def _painted(drawn: DrawnImage) -> NDArray[np.uint8]:
    """The mask at the size that was drawn on, as a generator of that size would have it."""
    findings = Findings()
    canvas = Canvas(*drawn.size, scale=1, stroke=10)
    painted = paint(drawn, canvas, INDICES, findings, rest_is_background=True)
    assert not findings.problems
    return painted.mask_HW


def _check(drawn: Sequence[DrawnImage], name: str) -> None:
    assert drawn
    for number, each in enumerate(drawn):
        golden_HW = decode_gray((GOLDENS / name.format(number)).read_bytes())
        assert golden_HW is not None and f"{number:010d}" in each.picture
        assert np.array_equal(_painted(each), golden_HW), each.picture


@pytest.mark.parametrize("number", range(6))
def test_labelme(number: int) -> None:
    (drawn,) = _read(f"labelme-{number}.json", read_labelme)
    golden_HW = decode_gray((GOLDENS / f"labelme-{number}.png").read_bytes())
    assert golden_HW is not None and len(drawn.regions) >= 6
    assert np.array_equal(_painted(drawn), golden_HW)


def test_the_goldens_of_labelme_hold_all_its_shapes() -> None:
    files = [json.loads((GOLDENS / f"labelme-{number}.json").read_text()) for number in range(6)]
    assert {shape["shape_type"] for file in files for shape in file["shapes"]} == {
        "polygon", "rectangle", "circle", "line", "linestrip", "point", "mask", "oriented_rectangle"
    }  # fmt: skip


def test_coco() -> None:
    _check(_read("coco.json", read_coco), "coco-{}.png")


def test_label_studio() -> None:
    _check(_read("label-studio.json", read_label_studio), "label-studio-{}.png")

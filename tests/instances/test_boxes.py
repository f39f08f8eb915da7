"""Boxes that can be used, and those that cannot."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from labelmill.pipeline.instances.box_file import read_boxes
from labelmill.pipeline.instances.boxes import FoundBox, TooManyInstancesError, usable_boxes
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.instances import BoxFileConfig

SIZE = (20, 30)
NAN = float("nan")


def boxes_of(content: str, folder: Path) -> BoxFileConfig:
    (folder / "boxes").write_text(content)
    return TypeAdapter(BoxFileConfig).validate_python(
        {"kind": "file", "path": "boxes"}, context={"folder": str(folder)}
    )


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ([3, 3, 0, 5], "is empty"),
        ([3, 3, 1, 1], "covers one pixel"),
        ([29, 3, 5, 1], "covers one pixel"),
        ([NAN, 3, 4, 5], "no finite numbers"),
        ([1e308, 3, 1e308, 5], "no finite numbers"),
        ([9, 9, -4, 5], "has swapped corners"),
        ([30, 3, 4, 5], "lies outside the image of 30 x 20 pixels"),
        ([-9, 3, 9, 5], "lies outside"),
        ([3, 3, 4], "is not four numbers"),
        (["3", 3, 4, 5], "is not four numbers"),
        (None, "is not four numbers"),
    ],
)
def test_a_bad_box_is_one_line_and_leaves_the_others(box: object, problem: str) -> None:
    good = FoundBox("cat", 0.5, [1, 2, 10, 12])
    boxes, problems = usable_boxes([FoundBox("cat", 0.9, box), good], SIZE, "0000000007")
    assert [each.corner_and_size for each in boxes] == [(1, 2, 10, 12)]
    assert len(problems) == 1 and problem in problems[0] and "0000000007: box 1 " in problems[0]


@pytest.mark.parametrize("score", [NAN, -0.1, 1.5, "high", True])
def test_a_score_is_from_0_to_1(score: object) -> None:
    boxes, problems = usable_boxes([FoundBox("cat", score, [1, 2, 10, 12])], SIZE, "7")
    assert not boxes and "is not from 0 to 1" in problems[0]


def test_of_duplicates_the_one_of_highest_score_stays() -> None:
    low, high = FoundBox("cat", 0.5, [1, 2, 10, 12]), FoundBox("cat", 0.8, [1, 2.1, 10, 12])
    other = FoundBox("dog", 0.6, [1, 2, 10, 12])
    boxes, problems = usable_boxes([low, high, other], SIZE, "7")
    assert [(each.label, each.score) for each in boxes] == [("cat", 0.8), ("dog", 0.6)]
    assert len(problems) == 1 and "score 0.5" in problems[0] and "is there already" in problems[0]


def test_boxes_end_at_the_border() -> None:
    boxes, problems = usable_boxes([FoundBox("cat", 1, [-5, -5, 100, 10])], SIZE, "7")
    assert boxes[0].corner_and_size == (0, 0, 30, 5) and not problems


def test_254_instances_are_numbered_and_more_refused_by_name() -> None:
    found = [FoundBox("ant", 1, [x % 28, x // 28, 2, 2]) for x in range(255)]
    assert len(usable_boxes(found[:254], SIZE, "7")[0]) == 254
    with pytest.raises(TooManyInstancesError, match=r"^0000000007: has 255 boxes, and at most 254"):
        usable_boxes(found, SIZE, "0000000007")


def test_coco_and_lines_say_the_same(tmp_path: Path) -> None:
    coco = {
        "images": [
            {"id": 5, "file_name": "images/0000000007.jpg", "height": 20, "width": 30},
            {"id": 6, "file_name": "0000000008.png"},
        ],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 3, "bbox": [1, 2, 10, 12], "score": 0.5, "area": 1}],
    }
    lines = [
        {"key": "0000000007", "instances": [{"class": "cat", "score": 0.5, "box": [1, 2, 10, 12]}]},
        {"key": "0000000008", "instances": []},
    ]
    read = read_boxes(boxes_of(json.dumps(coco), tmp_path), SIZE)
    assert read == read_boxes(boxes_of("\n".join(map(json.dumps, lines)), tmp_path), SIZE)
    assert {key: [box.corner_and_size for box in boxes] for key, boxes in read.boxes.items()} == {
        "0000000007": [(1, 2, 10, 12)],
        "0000000008": [],
    }


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    lines = ['{"key": "1", "instances": []}', "{", '{"key": "1", "instances": []}', '{"instances": 3}']
    with pytest.raises(ConfigError) as caught:
        read_boxes(boxes_of("\n".join(lines), tmp_path), SIZE)
    text = str(caught.value)
    assert text.startswith(f"instances.detector.path: {tmp_path}/boxes: cannot be used:")
    for mistake in ("line 2: is no JSON", "line 3: key 1 is there twice", "line 4: key:", "line 4: instances:"):
        assert mistake in text


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        ({"images": [{"id": 1, "file_name": "7.png", "height": 40, "width": 60}]}, "7.png has 60 x 40 pixels"),
        ({"annotations": [{"image_id": 2, "category_id": 1}]}, "annotation 1 is of image 2, which"),
        ({"annotations": [{"image_id": 1, "category_id": 2}]}, "annotation 1 is of category 2, which"),
        ({"categories": 3}, "categories: "),
    ],
)
def test_coco_files_of_other_images_are_refused(tmp_path: Path, change: dict[str, object], mistake: str) -> None:
    sound = {"images": [{"id": 1, "file_name": "7.png"}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    assert read_boxes(boxes_of(json.dumps(sound), tmp_path), SIZE).boxes == {"7": ()}
    with pytest.raises(ConfigError, match=mistake):
        read_boxes(boxes_of(json.dumps({**sound, **change}), tmp_path), SIZE)

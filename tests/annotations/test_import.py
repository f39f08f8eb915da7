"""`labelmill annotate import`: labels of other tools become masks of a set, or everything wrong is told at once."""

import base64
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.random_sampler import make_sampler
from helpers.small_annotations import about_of, sampler_of, sha256_of, write_small_annotations
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from labelmill.pipeline.annotations.formats.drawn import crosses_itself
from labelmill.pipeline.annotations.paint import bring_down
from labelmill.pipeline.annotations.read import read_annotations, read_description
from labelmill.pipeline.annotations.write import write_set
from labelmill.pipeline.cli import app
from labelmill.pipeline.pictures.png import encode_gray, encode_picture
from labelmill.schemas.errors import ConfigError, OutputError

SEEDS = (3, 1, 8, 40)
KEYS = tuple(f"{seed:010d}" for seed in SEEDS)
HALF = [[0, 0], [64, 0], [64, 128], [0, 128]]
"""The left half of an image that is enlarged by 4, to 128 px."""
CORNER = [[0, 0], [32, 0], [32, 32], [0, 32]]
Pixels = NDArray[np.uint8]


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A set of four images of 32 px, without labels or classes."""
    sampler = sampler_of(tiny_checkpoint)
    about = about_of(sampler, sha256_of(tiny_checkpoint)).model_copy(update={"classes": ()})
    write_set(tmp_path / "set", sampler, about, SEEDS, 4)
    return tmp_path / "set"


def _run(folder: Path, *arguments: object) -> str:
    done = CliRunner().invoke(app, ["annotate", "import", str(folder), *map(str, arguments)], catch_exceptions=False)
    return done.output


def _refused(folder: Path, *arguments: object) -> str:
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError) as error:
        _run(folder, *arguments)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    return str(error.value)


def _mask(folder: Path, index: int = 0) -> Pixels:
    annotations = read_annotations(folder)
    return annotations.masks_NHW[annotations.keys.index(KEYS[index])]


def _labelme(
    path: Path, shapes: Sequence[tuple[str, str, Any]], index: int = 0, size: int = 128, **more: object
) -> Path:
    values = {
        "version": "6.3.1",
        "shapes": [{"label": label, "shape_type": kind, "points": points} for label, kind, points in shapes],
        "imagePath": f"../enlarged/{KEYS[index]}.png",
        "imageHeight": size,
        "imageWidth": size,
        **more,
    }
    path.write_text(json.dumps(values))
    return path


def _zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _quarters() -> Pixels:
    """0 and 1 above, 2 and 255 below."""
    mask_HW = np.zeros((32, 32), np.uint8)
    mask_HW[:16, 16:], mask_HW[16:, :16], mask_HW[16:, 16:] = 1, 2, 255
    return mask_HW


def test_a_square_is_of_its_largest_class_if_more_than_half_is_of_any() -> None:
    square_HW = np.full((4, 4), 255, np.uint8)
    square_HW[:2] = 1
    assert bring_down(square_HW, 4).tolist() == [[255]]
    square_HW[2, 0] = 2
    assert bring_down(square_HW, 4).tolist() == [[1]]
    square_HW[2:] = 2
    assert bring_down(square_HW, 4).tolist() == [[1]], "of equals the first"
    square_HW[0, 0] = 2
    assert bring_down(square_HW, 4).tolist() == [[2]]
    rng = np.random.default_rng(0)
    values_HW = rng.choice(np.array([0, 1, 2, 255], np.uint8), (12, 21))
    brought_HW = bring_down(values_HW, 3)
    for row, column in np.ndindex(4, 7):
        counts = np.bincount(values_HW[3 * row : 3 * row + 3, 3 * column : 3 * column + 3].ravel(), minlength=256)
        expected = counts[:255].argmax() if counts[:255].sum() > 4.5 else 255
        assert brought_HW[row, column] == expected


def test_labelme_with_all_that_it_can_say(folder: Path, tmp_path: Path) -> None:
    shapes = [
        ("_background_", "polygon", HALF),
        ("hair", "polygon", CORNER),
        ("__ignore__", "rectangle", [[96, 96], [127, 127]]),
        ("skin", "line", [[2, 62], [126, 62]]),
    ]
    told = _run(folder, _labelme(tmp_path / "a.json", shapes))
    assert "classes as the files have them: background, hair, skin" in told and "1 mask imported" in told
    assert "overlap in" in told
    mask_HW = _mask(folder)
    expected_HW = np.full((32, 32), 255, np.uint8)
    expected_HW[:, :16], expected_HW[:8, :8], expected_HW[15] = 0, 1, 2
    assert np.array_equal(mask_HW, expected_HW)


def test_what_nobody_covers_is_background_on_request_but_not_what_is_ignored(folder: Path, tmp_path: Path) -> None:
    shapes = [("hair", "polygon", CORNER), ("ignore", "rectangle", [[96, 96], [127, 127]])]
    told = _run(folder, _labelme(tmp_path / "a.json", shapes), "--classes", "background,hair")
    assert "no pixel is background: --rest background labels what no shape covers" in told
    with pytest.raises(ConfigError, match="all labels are hair"):
        read_annotations(folder)
    _run(folder, tmp_path / "a.json", "--rest", "background", "--replace")
    expected_HW = np.zeros((32, 32), np.uint8)
    expected_HW[:8, :8], expected_HW[24:, 24:] = 1, 255
    assert np.array_equal(_mask(folder), expected_HW) and read_description(folder).rest == "background"


@pytest.mark.parametrize(("width", "pixels"), [(None, 14), (12, 42)])
def test_scribbles_label_the_pixels_that_they_pass(
    folder: Path, tmp_path: Path, width: int | None, pixels: int
) -> None:
    # Along the border between two rows of the generator's pixels, thinner than one of them.
    shapes = [("hair", "linestrip", [[8, 40], [60, 40]]), ("background", "point", [[100.9, 20.2]])]
    _run(folder, _labelme(tmp_path / "a.json", shapes), *(() if width is None else ("--width", width)))
    mask_HW = _mask(folder)
    assert (mask_HW == 1).sum() == pixels and mask_HW[10, 2] == 1
    assert mask_HW[5, 25] == 0 and (mask_HW == 0).sum() == (1 if width is None else 5)


def test_index_masks_come_back_exactly(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    gray_HW, palette_HW, large_HW = (_quarters(), _quarters().T.copy(), np.rot90(_quarters()).copy())
    (tmp_path / f"in/{KEYS[0]}.png").write_bytes(encode_gray(gray_HW))
    image = Image.fromarray(palette_HW, "P")
    image.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    image.save(tmp_path / f"in/{KEYS[1]}.mask.png")
    enlarged_HW = np.repeat(np.repeat(large_HW, 4, axis=0), 4, axis=1)
    (tmp_path / f"in/{KEYS[2]}.png").write_bytes(encode_gray(enlarged_HW))
    assert "3 masks imported" in _run(folder, tmp_path / "in", "--classes", "background,hair,skin")
    for index, expected_HW in enumerate((gray_HW, palette_HW, large_HW)):
        assert np.array_equal(_mask(folder, index), expected_HW)


def test_a_zip_of_masks_with_its_classes(folder: Path, tmp_path: Path) -> None:
    masks = {f"masks/{key}.png": encode_gray(_quarters()) for key in KEYS[:2]}
    classes = json.dumps({"classes": ["background", "hair", "skin"]}).encode()
    archive = _zip(tmp_path / "download.bin", {"classes.json": classes, **masks})
    assert "2 masks imported" in _run(folder, archive)
    assert read_description(folder).classes == ("background", "hair", "skin")
    assert np.array_equal(_mask(folder, 1), _quarters())
    other = _zip(tmp_path / "other.zip", {"classes.json": b'["background", "skin", "hair"]', **masks})
    assert "lists the classes background, skin, hair; here they are background, hair, skin" in _refused(folder, other)


def test_colours_of_a_labelmap_and_no_instances(folder: Path, tmp_path: Path) -> None:
    colours_N3 = np.array([[0, 0, 0], [250, 50, 83], [51, 221, 255]], np.uint8)
    quarters_HW = np.where(_quarters() == 255, 0, _quarters())
    coloured = encode_picture(np.repeat(np.repeat(colours_N3[quarters_HW], 4, axis=0), 4, axis=1))
    labelmap = b"# label:color_rgb:parts:actions\nbackground:0,0,0::\nHair:250,50,83::\nskin:51,221,255::\n"
    files = {
        "labelmap.txt": labelmap,
        f"SegmentationClass/{KEYS[0]}.png": coloured,
        f"SegmentationObject/{KEYS[0]}.png": encode_picture(np.full((128, 128, 3), 9, np.uint8)),
        "ImageSets/Segmentation/default.txt": KEYS[0].encode(),
        f"JPEGImages/{KEYS[0]}.png": (folder / f"enlarged/{KEYS[0]}.png").read_bytes(),
    }
    told = _run(folder, _zip(tmp_path / "cvat.zip", files), "--map", "Hair=hair")
    assert "skipped 2 files without labels" in told
    assert read_description(folder).classes == ("background", "hair", "skin")
    assert np.array_equal(_mask(folder), quarters_HW)
    del files["labelmap.txt"]
    assert "no labelmap.txt says which colours" in _refused(folder, _zip(tmp_path / "bare.zip", files))


def test_cvat_xml(folder: Path, tmp_path: Path) -> None:
    runs = ", ".join(["0"] + ["4", "4"] * 7 + ["4", "4"])
    (tmp_path / "a.xml").write_text(f"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels><label><name>hair</name></label></labels></task></meta>
<image id="0" name="{KEYS[0]}.png" width="128" height="128">
  <box label="hair" xtl="0" ytl="0" xbr="64" ybr="64" z_order="1"/>
  <polygon label="skin" points="0,0;128,0;128,128;0,128" z_order="0"/>
  <mask label="eye" rle="{runs}" left="96" top="96" width="8" height="8" z_order="2"/>
  <polyline label="eye" points="96,2;126,2" z_order="2"/>
  <ellipse label="background" cx="100" cy="60" rx="12" ry="12" z_order="0"/>
  <tag label="night"/>
</image>
<image id="1" name="other.png" width="9" height="9"/>
</annotations>""")
    _run(folder, tmp_path / "a.xml")
    assert read_description(folder).classes == ("background", "eye", "hair", "skin")
    mask_HW = _mask(folder)
    expected_HW = np.full((32, 32), 3, np.uint8)
    expected_HW[:16, :16], expected_HW[24:26, 24], expected_HW[0, 24:] = 2, 1, 1
    rows_HW, columns_HW = np.mgrid[:32, :32]
    disc_HW = (rows_HW - 14.6) ** 2 + (columns_HW - 24.6) ** 2 < 2.2**2
    assert (mask_HW[disc_HW] == 0).all() and 20 < (mask_HW == 0).sum() < 45
    assert np.array_equal(mask_HW[mask_HW != 0], expected_HW[mask_HW != 0])


def test_one_png_per_class(folder: Path, tmp_path: Path) -> None:
    quarters_HW = _quarters()
    for index, name in enumerate(("background", "hair")):
        inside_HW = np.where(quarters_HW == index, 255, 0).astype(np.uint8)
        (tmp_path / f"{KEYS[0]}-{name}.png").write_bytes(encode_gray(inside_HW))
    _run(folder, tmp_path / f"{KEYS[0]}-background.png", tmp_path / f"{KEYS[0]}-hair.png")
    assert np.array_equal(_mask(folder), np.where(quarters_HW == 2, 255, quarters_HW))


def test_label_studios_png_name_no_image(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "task-7-annotation-3-by-me-tag-hair-0.png"
    file.write_bytes(encode_gray(_quarters()))
    assert "name tasks instead of images; export JSON" in _refused(folder, file, "--classes", "background,hair")


def test_a_rerun_changes_nothing_and_others_need_replace(folder: Path, tmp_path: Path) -> None:
    file = _labelme(tmp_path / "a.json", [("background", "polygon", HALF), ("hair", "polygon", CORNER)])
    _run(folder, file)
    before = read_annotations(folder)
    _run(folder, file)
    assert read_annotations(folder).sha256 == before.sha256
    _labelme(file, [("background", "polygon", HALF), ("hair", "rectangle", [[64, 64], [127, 127]])])
    assert f"{KEYS[0]}: has another mask already; --replace writes over it" in _refused(folder, file)
    _run(folder, file, "--replace")
    assert read_annotations(folder).sha256 != before.sha256


def test_an_interrupted_import_is_finished(folder: Path, tmp_path: Path) -> None:
    shapes = [("background", "polygon", HALF), ("hair", "polygon", CORNER)]
    files = [_labelme(tmp_path / f"{index}.json", shapes, index=index) for index in range(3)]
    _run(folder, *files)
    whole = {file: file.read_bytes() for file in folder.rglob("*.*")}
    (folder / f"masks/{KEYS[1]}.png").unlink()
    _run(folder, *files)
    assert {file: file.read_bytes() for file in folder.rglob("*.*")} == whole


def test_more_classes_may_follow_but_none_may_change(folder: Path, tmp_path: Path) -> None:
    _run(folder, _labelme(tmp_path / "a.json", [("background", "polygon", HALF), ("hair", "polygon", CORNER)]))
    more = _labelme(tmp_path / "b.json", [("hat", "polygon", CORNER)], index=1)
    assert "'hat' is no class; they are background, hair, and ignore; did you mean" not in _refused(folder, more)
    assert "the set has background, hair, which its masks are numbered by" in _refused(
        folder, more, "--classes", "background,hat,hair"
    )
    _run(folder, more, "--classes", "background,hair,hat")
    assert (_mask(folder, 1)[:8, :8] == 2).all() and (_mask(folder, 0)[:8, :8] == 1).all()


@pytest.mark.parametrize(
    "picture",
    [
        "0000000003.png",
        "..\\enlarged\\0000000003.png",
        "/data/upload/2/4f9c2b1a-0000000003.png",
        "/data/local-files/?d=sets/0000000008/0000000003.png",
        "https://bucket.host/0000000001/0000000003.png?Expires=0000000008&Signature=a/b",
        "s3://bucket/a%2F0000000003.png",
    ],
)
def test_images_are_known_by_their_file_however_it_is_named(folder: Path, tmp_path: Path, picture: str) -> None:
    shapes = [("background", "polygon", HALF), ("hair", "polygon", CORNER)]
    _run(folder, _labelme(tmp_path / "a.json", shapes, imagePath=picture))
    assert read_annotations(folder).keys == KEYS[:1]


def test_a_folder_that_is_named_like_an_image_names_none(folder: Path, tmp_path: Path) -> None:
    file = _labelme(tmp_path / "a.json", [("hair", "polygon", CORNER)], imagePath="0000000003/0000000009.png")
    assert "labels '0000000009.png', which the set does not have" in _refused(folder, file)


def test_gray_and_rectangular_images(tmp_path: Path) -> None:
    sampler = make_sampler(resolution=16, const_size=(4, 8), img_channels=1)
    about = about_of(sampler, "0" * 64).model_copy(update={"classes": ()})
    write_set(tmp_path / "set", sampler, about, SEEDS, 2)
    picture = base64.b64encode((tmp_path / f"set/enlarged/{KEYS[0]}.png").read_bytes()).decode()
    shapes = [("background", "rectangle", [[0, 0], [63, 15]]), ("hair", "rectangle", [[32, 16], [63, 31]])]
    sides = {"imageHeight": 32, "imageWidth": 64, "imageData": picture}
    assert "skipped 8 files" in _run(
        tmp_path / "set",
        _labelme(tmp_path / "a.json", shapes, **sides),
        tmp_path / "set/enlarged",
        tmp_path / "set/images",
    )
    mask_HW = read_annotations(tmp_path / "set").masks_NHW[0]
    expected_HW = np.full((16, 32), 255, np.uint8)
    expected_HW[:8], expected_HW[8:, 16:] = 0, 1
    assert np.array_equal(mask_HW, expected_HW)


def test_labels_that_cannot_be_classes(folder: Path, tmp_path: Path) -> None:
    file = _labelme(tmp_path / "a.json", [("Bärte", "polygon", CORNER), ("background", "polygon", HALF)])
    assert "'Bärte' cannot name a class: a letter, then letters" in _refused(folder, file)
    _run(folder, file, "--map", "Bärte=beard")
    assert read_description(folder).classes == ("background", "beard")
    alone = _labelme(tmp_path / "b.json", [("background", "polygon", HALF)])
    assert "1 mask imported" in _run(folder, alone, "--replace")


def test_one_label_alone_makes_no_classes(folder: Path, tmp_path: Path) -> None:
    file = _labelme(tmp_path / "a.json", [("background", "polygon", HALF)])
    assert "classes background: a set needs two to 255, each once" in _refused(folder, file)


def test_files_beside_the_pictures_are_found(folder: Path, tmp_path: Path) -> None:
    _labelme(folder / f"enlarged/{KEYS[0]}.json", [("background", "polygon", HALF), ("hair", "polygon", CORNER)])
    assert "skipped 9 files" in _run(folder, folder)
    assert read_annotations(folder).keys == KEYS[:1]
    assert "skipped 9 files" in _run(folder, folder), "the set's own masks are no labels to import"


def test_a_picture_within_a_file_must_be_the_sets(folder: Path, tmp_path: Path) -> None:
    right, wrong = ((folder / f"enlarged/{KEYS[index]}.png").read_bytes() for index in (0, 1))
    shapes = [("background", "polygon", HALF), ("hair", "polygon", CORNER)]
    file = _labelme(tmp_path / "a.json", shapes, imageData=base64.b64encode(wrong).decode())
    assert "was drawn on another picture than the set's 0000000003" in _refused(folder, file)
    _run(folder, _labelme(tmp_path / "a.json", shapes, imageData=base64.b64encode(right).decode()))


def test_all_that_is_wrong_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    known = ("hair", "polygon", CORNER)
    _labelme(tmp_path / "size.json", [known], size=100)
    _labelme(tmp_path / "name.json", [known], imagePath="0000000004.png")
    _labelme(tmp_path / "typo.json", [("hiar", "polygon", CORNER)], index=1)
    bad = [
        ("hair", "polygon", [[0, 0], [float("nan"), 0], [1, 1]]),
        ("hair", "polygon", [[0, 0], [1, 1]]),
        ("hair", "line", [[200, 200], [220, 220]]),
        ("hair", "rectangle", [[-1e9, 0], [5, 5]]),
        ("hair", "blob", CORNER),
        ("hair", "mask", [[0, 0], [3, 3]]),
    ]
    _labelme(tmp_path / "shapes.json", bad, index=2)
    for name in ("one.json", "two.json"):
        _labelme(tmp_path / name, [known], index=3)
    (tmp_path / "cut.json").write_text('{"shapes": [')
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "strange.json").write_text('{"a": 1}')
    names = ("size", "name", "typo", "shapes", "one", "two", "cut", "strange")
    files = [*(tmp_path / f"{name}.json" for name in names), tmp_path / "notes.txt", tmp_path / "absent.png"]
    message = _refused(folder, *files, "--classes", "background,hair")
    for problem in (
        "size.json: was drawn on 100 x 100 pixels; 0000000003 has 32 x 32, or 128 x 128 enlarged by 4: draw on ",
        "name.json: labels '0000000004.png', which the set does not have; the nearest of its 4 images: 0000000040",
        "typo.json: 'hiar' is no class; they are background, hair, and ignore; did you mean hair? --map hiar=hair",
        "shapes.json: shape 1 (hair): has a coordinate that is not a finite number",
        "shapes.json: shape 2 (hair): has 2 points; 3 to 20,000",
        "shapes.json: shape 3 (hair): lies outside of its image, which is 128 x 128",
        "shapes.json: shape 4 (hair): reaches far outside",
        "shapes.json: shape 5 (hair): is of the type 'blob'; these have pixels: mask, polygon",
        "shapes.json: shape 6 (hair): is a mask without pixels",
        f"{KEYS[3]}: is labeled twice, in {tmp_path}/one.json and in {tmp_path}/two.json",
        "cut.json: is not JSON",
        "strange.json: is of no known format",
        "notes.txt: is of no known format; known are LabelMe's JSON",
        "absent.png: does not exist",
    ):
        assert problem in message, f"{problem}\n{message}"
    assert message.startswith(f"{folder}: 14 problems")


def test_oddities_are_told_and_kept(folder: Path, tmp_path: Path) -> None:
    shapes = [
        ("background", "polygon", HALF),
        ("hair", "polygon", [[0, 0], [64, 64], [64, 0], [0, 64]]),
        ("hair", "polygon", [[100, 100], [140, 100], [140, 140], [100, 140]]),
    ]
    empty = _labelme(tmp_path / "empty.json", [("hair", "polygon", [[3, 3], [4, 3], [4, 4]])], index=1)
    told = _run(folder, _labelme(tmp_path / "a.json", shapes), empty, "--classes", "background,hair")
    assert "shape 2 (hair): crosses itself; what lies inside follows the even-odd rule" in told
    assert "shape 3 (hair): reaches outside of its image, where it is cut off" in told
    assert "empty.json: labels no pixel; 0000000001 is left out" in told
    assert "a.json: shapes of different classes overlap in" in told
    assert read_annotations(folder).keys == KEYS[:1]
    assert (_mask(folder)[25:, 25:] == 1).all()


@pytest.mark.parametrize(
    ("points", "crosses"),
    [
        ([[0, 0], [1, 1], [1, 0], [0, 1]], True),
        ([[0, 0], [1, 0], [1, 1], [0, 1]], False),
        ([[0, 0], [2, 0], [1, 1]], False),
        ([[0, 0], [4, 0], [4, 4], [2, -1], [0, 4]], True),
        ([[0, 0], [4, 0], [4, 4], [2, 1], [0, 4]], False),
    ],
)
def test_polygons_that_cross_themselves(points: list[list[float]], crosses: bool) -> None:
    assert crosses_itself(np.array(points, np.float64)) == crosses


def _bomb(width: int, height: int, bits: bytes = b"\x08\x00") -> bytes:
    """A PNG of a few bytes that claims a large picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">II", width, height) + bits + b"\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _bombs() -> Iterator[tuple[str, bytes, str]]:
    shape = {"label": "hair", "shape_type": "mask", "points": [[0, 0], [31, 31]]}
    about = {"imagePath": f"{KEYS[0]}.png", "imageHeight": 32, "imageWidth": 32}
    bomb = base64.b64encode(_bomb(60_000, 60_000)).decode()
    yield "png", _bomb(60_000, 60_000), "says that its image is 60000 x 60000; sides are from 1 to 8192"
    yield "png", _bomb(60_000, 60_000, b"\x08\x02"), "says that its image is 60000 x 60000"
    masked = {**about, "shapes": [{**shape, "mask": bomb}]}
    yield "json", json.dumps(masked).encode(), "is a mask whose PNG is not of its corners' size, 32 x 32"
    masked = {**about, "shapes": [{**shape, "mask": "A" * 10**6}]}
    yield "json", json.dumps(masked).encode(), "in 1,000,000 characters, which is too many"
    counts = {"size": [32, 32], "counts": "0" * (2**24 + 1)}
    coco = {
        "images": [{"id": 1, "file_name": f"{KEYS[0]}.png", "height": 32, "width": 32}],
        "categories": [{"id": 1, "name": "hair"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": counts}],
    }
    yield "json", json.dumps(coco).encode(), "has run lengths of 16,777,217 characters; at most"
    coco["annotations"][0]["segmentation"] = {"size": [32, 32], "counts": [0, 10**15]}  # type: ignore[index,call-overload]
    yield "json", json.dumps(coco).encode(), "has run lengths of 1000000000000000 pixels in all; its image has 1024"
    coco["annotations"][0]["segmentation"] = []  # type: ignore[index,call-overload]
    yield "json", json.dumps(coco).encode(), "a box alone has no pixels"
    result = {
        "type": "brushlabels",
        "original_width": 32,
        "original_height": 32,
        "value": {"rle": [255, 255, 255, 255, 58, 9, 9, 9, 9], "brushlabels": ["hair"]},
    }
    task = {"id": 5, "data": {"image": f"{KEYS[0]}.png"}, "annotations": [{"result": [result]}]}
    yield "json", json.dumps([task]).encode(), "task 5: result 1 (hair): is a brush of 4294967295 bytes"
    twice = {**task, "annotations": [{"result": [result]}, {"result": [result]}]}
    yield "json", json.dumps([twice]).encode(), "task 5: has 2 annotations; keep one"
    entities = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "y">]><annotations><image/></annotations>'
    yield "xml", entities, "is XML with a document type or entities"
    yield "json", b"[" * 100_000, "is not JSON"
    yield "json", b'[{"id": 1, "image": "a.png"}]', "is of no known format"


@pytest.mark.parametrize(("ending", "content", "problem"), list(_bombs()))
def test_what_is_too_large_is_refused_before_it_is_decoded(
    folder: Path, tmp_path: Path, ending: str, content: bytes, problem: str
) -> None:
    file = tmp_path / f"{KEYS[0]}.{ending}"
    file.write_bytes(content)
    assert problem in _refused(folder, file, "--classes", "background,hair")


def test_archives_that_lie(folder: Path, tmp_path: Path) -> None:
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{KEYS[0]}.png", bytes(129 * 2**20))
    (tmp_path / "big.zip").write_bytes(stored.getvalue())
    assert "has 135,266,304 bytes; at most 134,217,728 are read" in _refused(folder, tmp_path / "big.zip")
    damaged = bytearray(_zip(tmp_path / "a.zip", {f"{KEYS[0]}.png": encode_gray(_quarters())}).read_bytes())
    damaged[60] ^= 255
    (tmp_path / "damaged.zip").write_bytes(damaged)
    assert f"{KEYS[0]}.png: cannot be unpacked" in _refused(folder, tmp_path / "damaged.zip")


def test_one_class_only_is_imported_and_refused_where_it_is_learned(folder: Path, tmp_path: Path) -> None:
    _run(folder, _labelme(tmp_path / "a.json", [("hair", "polygon", CORNER)]))
    with pytest.raises(ConfigError, match="all labels are hair: there is nothing to tell it apart from"):
        read_annotations(folder)


def test_masks_of_a_set_come_back_through_every_format(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """What one set says, another one of the same images says after an import of its masks."""
    write_small_annotations(tmp_path / "a", tiny_checkpoint)
    annotations = read_annotations(tmp_path / "a")
    sampler = sampler_of(tiny_checkpoint)
    write_set(
        tmp_path / "b", sampler, about_of(sampler, sha256_of(tiny_checkpoint)), [*map(int, annotations.about.keys)], 4
    )
    _run(tmp_path / "b", tmp_path / "a" / "masks")
    assert read_annotations(tmp_path / "b").sha256 == annotations.sha256


def test_to_replace_by_nothing_is_to_erase(folder: Path, tmp_path: Path) -> None:
    """As the page does with an image whose labels were all taken away."""
    shapes = [("left", "polygon", HALF), ("corner", "polygon", CORNER)]
    both = [_labelme(tmp_path / f"{index}.json", shapes, index=index) for index in (0, 1)]
    _run(folder, *both, "--classes", "rest,left,corner")
    assert read_annotations(folder).keys == KEYS[:2]
    nothing = tmp_path / f"{KEYS[0]}.png"
    nothing.write_bytes(encode_gray(np.full((32, 32), 255, np.uint8)))
    assert "is left out" in _run(folder, nothing) and len(read_annotations(folder)) == 2
    _run(folder, nothing, "--replace")
    assert read_annotations(folder).keys == (KEYS[1],)


def test_a_run_beyond_64_bits_is_told(folder: Path, tmp_path: Path) -> None:
    coco, lengths = tmp_path / "coco.json", {"size": [32, 32], "counts": [10**30, 3]}
    values = {
        "images": [{"id": 1, "file_name": f"{KEYS[0]}.png", "width": 32, "height": 32}],
        "categories": [{"id": 1, "name": "hair"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": lengths}],
    }
    coco.write_text(json.dumps(values))
    assert "has a run that is longer than any image" in _refused(folder, coco)


@pytest.mark.parametrize("command", ["pick", "page"])
def test_places_that_cannot_be_written_are_named(
    folder: Path, tmp_path: Path, command: str, write_run_file: Any
) -> None:
    run_file = write_run_file()
    if command == "pick":
        place = tmp_path / "file"
        place.write_text("")
        arguments = ["pick", run_file, "--choose", "random", "--count", 2, "--out", place / "set"]
    else:
        (folder / "page.html").mkdir()
        arguments = ["page", folder, "--run", run_file, "--classes", "a,b"]
    with pytest.raises(OutputError, match="cannot be written"):
        CliRunner().invoke(app, ["annotate", *map(str, arguments)], catch_exceptions=False)

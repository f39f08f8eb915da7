"""The click page: what `labelmill annotate page` writes, clicked through in a browser, and imported."""

import base64
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import Page, open_browser
from helpers.small_annotations import CLASSES, about_of, sampler_of, sha256_of, write_small_annotations
from helpers.tiny_run import save_tiny_generator
from numpy.typing import NDArray
from typer.testing import CliRunner

from labelmill.pipeline.annotate import page as page_module
from labelmill.pipeline.annotate.page import runs
from labelmill.pipeline.annotations.read import read_annotations, read_description
from labelmill.pipeline.annotations.write import write_set
from labelmill.pipeline.cli import app
from labelmill.schemas.errors import ConfigError

SEEDS = (3, 1, 8)
KEYS = tuple(f"{seed:010d}" for seed in SEEDS)
SIDE = 32
COARSE, MEDIUM, FINE = 0, 1, 2
Pixels = NDArray[np.int64]


def _run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["annotate", *map(str, arguments)], catch_exceptions=False)
    return " ".join(done.output.split())


def _decoded(text: str) -> Pixels:
    """Numbers of runs, read by another way than the page's: bit by bit."""
    numbers, number, shift = [], 0, 0
    for byte in base64.b64decode(text):
        number += (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(number)
            number, shift = 0, 0
    return np.repeat(numbers[::2], numbers[1::2]).reshape(SIDE, SIDE)


def _data(file: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text("utf-8"), re.DOTALL)
    assert found is not None
    values = json.loads(found[1])
    assert isinstance(values, dict)
    return values


@pytest.fixture(scope="module")
def run_file(write_run_file_in: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_file_in(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, run_file: Path) -> Path:
    """A set of three images without labels, with its page; tests only read it."""
    folder = tmp_path_factory.mktemp("sets") / "faces"
    sampler = sampler_of(tiny_checkpoint)
    about = about_of(sampler, sha256_of(tiny_checkpoint)).model_copy(update={"classes": ()})
    write_set(folder, sampler, about, SEEDS, 4)
    _run("page", folder, "--run", run_file, "--classes", ",".join(CLASSES))
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with open_browser(tmp_path_factory.mktemp("browser")) as page:
        page.resize(1280, 800)
        yield page


@pytest.fixture
def page(browser: Page, folder: Path) -> Iterator[Page]:
    """The set's page, with nothing kept from other tests, in a window of a desktop."""
    browser.open(folder / "page.html")
    browser.run("localStorage.clear()")
    browser.open(folder / "page.html")
    yield browser
    assert not browser.console


def _place(page: Page, row: int, column: int) -> tuple[float, float]:
    """Middle of a pixel of the image, in the window."""
    x, y, scale = page.run("(box => [box.x + view.x, box.y + view.y, view.scale])(canvas.getBoundingClientRect())")
    return x + scale * (column + 0.5), y + scale * (row + 0.5)


def _click(page: Page, row: int, column: int) -> None:
    page.drag([_place(page, row, column)])


def _mask(page: Page, index: int = 0) -> Pixels:
    return np.array(page.run(f"[...images[{index}].mask]")).reshape(SIDE, SIDE)


def _segments(folder: Path, level: int, index: int = 0) -> Pixels:
    return _decoded(_data(folder / "page.html")["images"][index]["segments"][level])


def _nothing() -> Pixels:
    return np.full((SIDE, SIDE), 256)


def test_clicked_through_downloaded_and_imported(
    page: Page, folder: Path, run_file: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    expected_NHW = np.stack([_nothing()] * 3)

    # Segments by clicks, classes by keys and buttons, two levels.
    medium_HW, coarse_HW = _segments(folder, MEDIUM), _segments(folder, COARSE)
    page.key("2")
    _click(page, 10, 12)
    expected_NHW[0][medium_HW == medium_HW[10, 12]] = 2
    page.click_on("[data-label='1']")
    page.click_on("[data-level='0']")
    _click(page, 30, 3)
    expected_NHW[0][coarse_HW == coarse_HW[30, 3]] = 1
    assert np.array_equal(_mask(page), expected_NHW[0])

    # A drag over several segments is one step of undo.
    page.key("l")
    page.key("l")
    fine_HW = _segments(folder, FINE)
    page.drag([_place(page, 20, 4), _place(page, 20, 28)])
    dragged_HW = np.isin(fine_HW, np.unique(fine_HW[20, 4:29]))
    assert len(np.unique(fine_HW[dragged_HW])) > 1
    painted_HW = np.where(dragged_HW, 1, expected_NHW[0])
    assert np.array_equal(_mask(page), painted_HW)
    page.key("z", ctrl=True)
    assert np.array_equal(_mask(page), expected_NHW[0])
    page.click_on("#redo")
    assert np.array_equal(_mask(page), painted_HW)
    page.click_on("#undo")

    # Brush and eraser by single pixels; ignore by the brush.
    page.key("b")
    page.key("i")
    page.run("setSize(1)")
    _click(page, 0, 31)
    expected_NHW[0][0, 31] = 255
    page.key("e")
    row, column = np.argwhere(expected_NHW[0] == 2)[0].tolist()
    _click(page, row, column)
    expected_NHW[0][row, column] = 256
    assert np.array_equal(_mask(page), expected_NHW[0])

    # The next image: all that has no label becomes background.
    page.key("n")
    page.key("1")
    _click(page, 16, 16)
    medium_HW = _segments(folder, FINE, index=1)
    expected_NHW[1][:] = 0
    expected_NHW[1][medium_HW == medium_HW[16, 16]] = 1
    page.key("0")
    page.key("r")
    assert np.array_equal(_mask(page, 1), expected_NHW[1])
    assert "1 of 3 images finished" in page.run("document.getElementById('progress-shown').textContent")

    page.click_on("#download")
    archive = tmp_path / "masks.zip"
    archive.write_bytes(page.downloaded("faces-masks.zip"))
    with zipfile.ZipFile(archive) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == ["classes.json", *(f"masks/{key}.png" for key in KEYS[:2])]
    assert "2 masks downloaded, 1 images have no labels" in page.run("document.getElementById('status').textContent")

    copied = tmp_path / "faces"
    sampler = sampler_of(tiny_checkpoint)
    write_set(copied, sampler, about_of(sampler, sha256_of(tiny_checkpoint)), SEEDS, 4)
    _run("import", copied, archive)
    annotations = read_annotations(copied)
    assert annotations.keys == KEYS[:2] and annotations.about.classes == CLASSES
    assert np.array_equal(annotations.masks_NHW, np.minimum(expected_NHW[:2], 255))


def test_a_large_brush_paints_discs_along_its_way(page: Page) -> None:
    page.key("b")
    page.key("2")
    page.run("setSize(6)")
    page.drag([_place(page, 8, 8), _place(page, 8, 24)])
    rows_HW, columns_HW = np.indices((SIDE, SIDE))
    distance_HW = np.hypot(rows_HW - 8, columns_HW - np.clip(columns_HW, 8, 24))
    mask_HW = _mask(page)
    assert (mask_HW[distance_HW <= 2.8] == 2).all() and (mask_HW[distance_HW > 3.01] == 256).all()


def test_labels_can_be_protected(page: Page) -> None:
    page.key("b")
    page.key("1")
    page.run("setSize(1)")
    _click(page, 5, 5)
    page.key("k")
    page.key("2")
    page.drag([_place(page, 5, 3), _place(page, 5, 7)])
    assert _mask(page)[5, 3:8].tolist() == [2, 2, 1, 2, 2]
    page.key("e")
    _click(page, 5, 5)
    assert _mask(page)[5, 5] == 256, "the eraser erases"


def test_zoom_and_moves_keep_clicks_exact(page: Page, folder: Path) -> None:
    fine_HW = _segments(folder, FINE)
    page.key("l")
    page.key("1")
    page.wheel(*_place(page, 9, 11), delta=-500)
    assert page.run("view.scale") > 2 * page.run("canvas.getBoundingClientRect().height") / SIDE
    start = _place(page, 9, 11)
    page.key("h")
    page.drag([start, (start[0] + 40, start[1] + 25)])
    assert _place(page, 9, 11) == pytest.approx((start[0] + 40, start[1] + 25))
    assert (_mask(page) == 256).all()
    page.key("s")
    _click(page, 9, 11)
    assert np.array_equal(_mask(page) == 1, fine_HW == fine_HW[9, 11])
    page.key("Home")
    assert page.run("view.scale") == pytest.approx(page.run("canvas.getBoundingClientRect().height") / SIDE)


def test_keys_alone_paint(page: Page, folder: Path) -> None:
    page.run("canvas.focus()")
    medium_HW = _segments(folder, MEDIUM)
    page.key("2")
    page.key("ArrowUp", shift=True)
    page.key("ArrowLeft")
    page.key("Enter")
    assert np.array_equal(_mask(page) == 2, medium_HW == medium_HW[8, 15])
    assert page.run("document.getElementById('status').textContent") == "Row 9, column 16: no label yet"


def test_work_is_kept_and_imported_labels_do_not_bury_it(
    page: Page, folder: Path, run_file: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    page.key("1")
    _click(page, 16, 16)
    painted_HW = _mask(page)
    page.open(folder / "page.html")
    assert (painted_HW == 1).any() and np.array_equal(_mask(page), painted_HW)

    # The same set, whose images but the last have labels now: another page of the same images and classes.
    copied = tmp_path / "faces"
    write_small_annotations(copied, tiny_checkpoint, SEEDS)
    imported_HW = read_annotations(copied).masks_NHW[0].astype(np.int64)
    assert "open it in a browser; 3 images, 3 classes" in _run("page", copied, "--run", run_file)
    page.open(copied / "page.html")
    shown_HW = np.where(imported_HW == 255, 256, imported_HW)
    assert np.array_equal(_mask(page), shown_HW)
    assert "undo shows what you had painted" in page.run("document.getElementById('status').textContent")
    page.key("z")
    assert np.array_equal(_mask(page), painted_HW)
    page.key("y")
    page.click_on("#download")
    (tmp_path / "again.zip").write_bytes(page.downloaded("faces-masks.zip"))
    before = {file: file.read_bytes() for file in (copied / "masks").iterdir()}
    _run("import", copied, tmp_path / "again.zip")
    assert len(before) == 2 and {file: file.read_bytes() for file in (copied / "masks").iterdir()} == before


def test_a_browser_that_keeps_nothing_is_told_of(page: Page, folder: Path) -> None:
    assert page.run("document.getElementById('unkept').hidden")
    page.run("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }")
    _click(page, 16, 16)
    assert not page.run("document.getElementById('unkept').hidden")
    page.open(folder / "page.html")
    assert page.dialogs == ["beforeunload"], "closing such a page is asked about"


def test_shown_on_a_desk_and_on_a_phone(page: Page) -> None:
    """Nothing passes the edge, nothing is fetched, everything has a name, no text is tiny."""
    shown = """(() => {
      const all = [...document.querySelectorAll("body *")].filter(each => each.checkVisibility());
      return {
        past: all.filter(each =>
          !each.closest(".images") && each.getBoundingClientRect().right > innerWidth + 1).length,
        overflow: document.scrollingElement.scrollWidth - innerWidth,
        nameless: all.filter(each => each.matches("button, input") &&
          !(each.ariaLabel || each.textContent.trim() || each.closest("label")?.textContent.trim())).length,
        smallest: Math.min(...all.filter(each => each.textContent.trim())
          .map(each => parseFloat(getComputedStyle(each).fontSize))),
        canvas: canvas.getBoundingClientRect().width, page: getComputedStyle(document.body).backgroundColor,
      };
    })()"""
    desk = page.run(shown)
    page.resize(390, 844)
    page.wait_for("canvas.width == Math.round(canvas.getBoundingClientRect().width * devicePixelRatio)")
    phone = page.run(shown)
    _click(page, 16, 16)
    assert (_mask(page) == 1).any()
    page.resize(1280, 800)
    page.prefer(dark=True)
    dark = page.run(shown)
    page.prefer(dark=False)
    assert desk["page"] != dark["page"]
    for measured in (desk, phone):
        assert measured["past"] == 0 and measured["overflow"] <= 0 and measured["nameless"] == 0
        assert measured["smallest"] >= 12
    assert desk["canvas"] > 800 and phone["canvas"] > 330
    assert all(url.startswith(("file:", "data:", "blob:")) for url in page.requests)


def test_masks_of_another_set_are_refused(page: Page, folder: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Seeds are the same, but the images are of another psi."""
    _click(page, 16, 16)
    page.click_on("#download")
    archive = tmp_path / "masks.zip"
    archive.write_bytes(page.downloaded("faces-masks.zip"))
    sampler = sampler_of(tiny_checkpoint, truncation_psi=0.3)
    write_set(tmp_path / "other", sampler, about_of(sampler, sha256_of(tiny_checkpoint)), SEEDS, 4)
    with pytest.raises(ConfigError, match=rf"masks/{KEYS[0]}.png: was drawn on another picture than the set's"):
        _run("import", tmp_path / "other", archive)


def test_the_command_names_classes_and_adds_to_them(folder: Path, run_file: Path, tmp_path: Path) -> None:
    assert read_description(folder).classes == CLASSES
    with pytest.raises(ConfigError, match=r"--classes background,bright: .* has background, dark, bright, which"):
        _run("page", folder, "--run", run_file, "--classes", "background,bright")


def test_what_cannot_be_shown_is_refused(
    folder: Path, run_file: Path, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = sampler_of(tiny_checkpoint)
    about = about_of(sampler, sha256_of(tiny_checkpoint)).model_copy(update={"classes": ()})
    write_set(tmp_path / "set", sampler, about, SEEDS, 4)
    with pytest.raises(ConfigError, match="has no classes yet; name them: --classes background,skin,hair"):
        _run("page", tmp_path / "set", "--run", run_file)
    (tmp_path / "set" / f"images/{KEYS[1]}.png").unlink()
    with pytest.raises(ConfigError, match=f"images/{KEYS[1]}.png: is missing"):
        _run("page", tmp_path / "set", "--run", run_file, "--classes", "background,hair")
    assert not (tmp_path / "set/page.html").exists() and read_description(tmp_path / "set").classes == ()
    other = tmp_path / "other.safetensors"
    save_tiny_generator(other, img_channels=1)
    with pytest.raises(ConfigError, match="belong to another checkpoint"):
        _run("page", folder, "--run", run_file, "--set", f"generator.checkpoint={other}")
    monkeypatch.setattr(page_module, "MOST_PIXELS", 2 * SIDE * SIDE)
    with pytest.raises(ConfigError, match="has 3 images of 32 x 32 pixels; one page holds at most 2"):
        _run("page", folder, "--run", run_file)


def test_runs_of_numbers() -> None:
    values_HW = np.array([[0, 0, 300], [300, 7, 7]], np.int32)
    assert base64.b64decode(runs(values_HW)) == bytes([0, 2, 300 & 127 | 128, 2, 2, 7, 2])
    assert base64.b64decode(runs(np.full((20, 20), 5, np.int32))) == bytes([5, 400 & 127 | 128, 3])

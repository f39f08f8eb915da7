"""`labelmill evaluate`: every kind of source gives the same scores; what does not fit is refused by name."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.s3_server import S3Server
from helpers.small_dataset import CLASSES, write_dataset
from PIL import Image
from typer.testing import CliRunner

from labelmill.pipeline.cli import app, run_command
from labelmill.pipeline.pictures.mask_png import MaskError
from labelmill.pipeline.segmentation import mask_source
from labelmill.pipeline.segmentation.evaluate import evaluate, given_classes
from labelmill.pipeline.segmentation.mask_source import open_masks
from labelmill.pipeline.segmentation.matching import Matching
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import LabelmillError
from labelmill.schemas.scores import Scores

SIZE = 12
Masks = Mapping[str, np.ndarray]


def write(folder: Path, masks: Masks, ending: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask_HW in masks.items():
        assert cv2.imwrite(str(folder / f"{name}{ending}"), mask_HW)
    return folder


def pack(path: Path, masks: Masks) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, mask_HW in masks.items():
            content = cv2.imencode(".png", mask_HW)[1].tobytes()
            for member, data in ((f"{name}.jpg", b"an image"), (f"{name}.mask.png", content)):
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return path


def random_masks(seed: int, values: tuple[int, ...] = (0, 1, 2), count: int = 4) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {f"{index:03d}": random.choice(values, (SIZE, SIZE)).astype(np.uint8) for index in range(count)}


def score(pred: Path, truth: Path, **options: object) -> Scores:
    return evaluate(open_masks(str(pred)), open_masks(str(truth)), **options)  # type: ignore[arg-type]


def expected(pred: Masks, truth: Masks, classes: tuple[str, ...] | None = None) -> Scores:
    evaluator = MaskEvaluator(classes)
    for name in sorted(truth):
        evaluator.add(pred[name], truth[name])
    return evaluator.scores()


def refusal(pred: Path, truth: Path, **options: object) -> str:
    with pytest.raises(MaskError) as caught:
        score(pred, truth, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


# Sources


@pytest.mark.parametrize("pred_kind", ["png", "mask.png", "tar", "tars"])
@pytest.mark.parametrize("truth_kind", ["png", "mask.png", "tar", "tars"])
def test_every_kind_of_source_gives_the_same_scores(tmp_path: Path, pred_kind: str, truth_kind: str) -> None:
    pred, truth = random_masks(1), random_masks(2, (0, 1, 2, 255))

    def place(folder: Path, kind: str, masks: dict[str, np.ndarray]) -> Path:
        if kind == "tar":
            return pack(folder / "all.tar", masks)
        if kind == "tars":
            pack(folder / "b.tar", {name: masks[name] for name in ("000", "002")})
            return pack(folder / "a.tar", {name: masks[name] for name in ("003", "001")}).parent
        return write(folder, masks, f".{kind}")

    assert score(place(tmp_path / "p", pred_kind, pred), place(tmp_path / "t", truth_kind, truth)) == expected(
        pred, truth
    )


def test_a_dataset_its_tars_and_its_unpacked_masks_are_the_same(tmp_path: Path) -> None:
    output = tmp_path / "dataset"
    write_dataset(output)
    unpacked = tmp_path / "unpacked"
    for tar in sorted((output / "shards").glob("*.tar")):
        with tarfile.open(tar) as archive:
            archive.extractall(unpacked, filter="data")
    truth = {file.name.split(".")[0]: cv2.imread(str(file), -1) for file in unpacked.glob("*.mask.png")}
    shifted = {name: np.where(mask_HW == 255, 0, (mask_HW + 1) % 3).astype(np.uint8) for name, mask_HW in truth.items()}
    pred = write(tmp_path / "pred", shifted)
    assert len(truth) == 11
    # Images lie beside the masks in the unpacked folder, and are PNG files too.
    assert len(list(unpacked.glob("*.png"))) == 22
    named = score(pred, output)
    assert list(named.iou) == list(CLASSES)
    assert named == expected(shifted, truth, CLASSES)
    assert score(pred, output / "shards") == named
    assert list(score(pred, unpacked).iou) == ["0", "1", "2"]
    assert score(pred, unpacked).miou == named.miou
    perfect = score(output, unpacked)
    assert list(perfect.iou) == list(CLASSES)
    assert perfect.miou == perfect.trimap_3px.miou == 1


def test_names_in_a_tar_are_the_same_with_and_without_dot_slash(tmp_path: Path) -> None:
    masks = random_masks(1)
    dotted = pack(tmp_path / "a.tar", {f"./{name}": mask_HW for name, mask_HW in masks.items()})
    assert score(dotted, write(tmp_path / "t", masks)).miou == 1


def test_a_dataset_in_a_bucket(tmp_path: Path, s3: S3Server) -> None:
    local, _ = write_dataset(tmp_path / "dataset")
    s3.create_bucket("evaluated")
    remote = Store.open("s3://evaluated/masks")
    for file in local.list():
        remote.create(file.path, local.read(file.path))
    source = open_masks("s3://evaluated/masks")
    assert source.classes == CLASSES
    pred = {key: np.zeros((16, 16), np.uint8) for key in source.keys}
    folder = write(tmp_path / "pred", pred)
    assert evaluate(open_masks(str(folder)), source) == score(folder, tmp_path / "dataset")
    assert evaluate(source, open_masks(str(tmp_path / "dataset"))).miou == 1


def test_one_shard_of_a_bucket_is_in_memory_at_a_time(tmp_path: Path) -> None:
    store, manifest = write_dataset(tmp_path / "dataset")
    tars = [file.path for file in store.list("shards") if file.path.endswith(".tar")]
    last = mask_source._LastShard(store)
    source = mask_source._shards("s3://bucket", tars, last, tuple(manifest.classes))
    for key in source.keys:
        source.read(key)
    assert len(last._content) == (tmp_path / "dataset" / tars[-1]).stat().st_size


def test_masks_that_need_not_be_square(tmp_path: Path) -> None:
    pred, truth = {"a": np.zeros((3, 9), np.uint8)}, {"a": np.zeros((3, 9), np.uint8)}
    truth["a"][0] = 1
    assert score(write(tmp_path / "p", pred), write(tmp_path / "t", truth)) == expected(pred, truth)


# Foreground of 255


def test_masks_of_0_and_255_need_positive(tmp_path: Path) -> None:
    pred, truth = random_masks(1, (0, 1)), random_masks(2, (0, 1))
    pred_255, truth_255 = ({name: mask_HW * np.uint8(255) for name, mask_HW in m.items()} for m in (pred, truth))
    folders = write(tmp_path / "p", pred_255), write(tmp_path / "t", truth_255)
    message = refusal(*folders)
    assert "every mask holds only 0 and 255" in message and "--positive 255" in message
    assert "p/000.png" in message
    assert score(*folders, positive=255) == expected(pred, truth)
    # One side may hold 0 and 1 already.
    indices = write(tmp_path / "indices", pred)
    assert "t/000.png" in refusal(indices, folders[1])
    assert score(indices, folders[1], positive=255) == expected(pred, truth)


def test_positive_leaves_a_dataset_alone(tmp_path: Path) -> None:
    store, _ = write_dataset(tmp_path / "dataset")
    source = open_masks(str(tmp_path / "dataset"))
    pred = {key: np.full((16, 16), 255, np.uint8) for key in source.keys}
    found = score(write(tmp_path / "pred", pred), Path(store.url), positive=255)
    truth = {key: source.read(key) for key in source.keys}
    assert found == expected({key: np.ones((16, 16), np.uint8) for key in pred}, truth, CLASSES)


def test_positive_refuses_other_values(tmp_path: Path) -> None:
    truth = write(tmp_path / "t", random_masks(2, (0, 255)))
    for values, held in (((0, 7, 255), "holds 0, 7, 255"), ((0, 1, 255), "holds 0, 1, 255")):
        message = refusal(write(tmp_path / "p", random_masks(1, values)), truth, positive=255)
        assert "p/000.png: " + held in message


def test_a_true_0_and_255_beside_classes_is_ignore(tmp_path: Path) -> None:
    pred, truth = random_masks(1, (0, 1)), random_masks(2, (0, 1))
    truth["000"][:] = np.where(truth["000"] == 1, 255, 0)
    assert score(write(tmp_path / "p", pred), write(tmp_path / "t", truth)) == expected(pred, truth)


# Refusals


def change_none(pred: Path, truth: Path) -> None:
    pass


def remove(pred: Path, truth: Path) -> None:
    (pred / "002.png").unlink()


def add(pred: Path, truth: Path) -> None:
    for name in ("x", "y"):
        cv2.imwrite(str(pred / f"{name}.png"), np.zeros((SIZE, SIZE), np.uint8))


def cut(pred: Path, truth: Path) -> None:
    (pred / "001.png").write_bytes((pred / "001.png").read_bytes()[:-30])


def empty(pred: Path, truth: Path) -> None:
    (pred / "001.png").write_bytes(b"")


def as_jpeg(pred: Path, truth: Path) -> None:
    (pred / "001.png").write_bytes(cv2.imencode(".jpg", np.zeros((SIZE, SIZE), np.uint8))[1].tobytes())


def as_rgb(pred: Path, truth: Path) -> None:
    cv2.imwrite(str(truth / "001.png"), np.zeros((SIZE, SIZE, 3), np.uint8))
    cv2.imwrite(str(truth / "003.png"), np.zeros((SIZE, SIZE, 4), np.uint8))


def as_16_bit(pred: Path, truth: Path) -> None:
    cv2.imwrite(str(truth / "001.png"), np.full((SIZE, SIZE), 257, np.uint16))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(bit_depth: int, colour_type: int, extra: bytes = b"") -> bytes:
    """A black PNG of one sample a pixel."""
    header = struct.pack(">IIBBBBB", SIZE, SIZE, bit_depth, colour_type, 0, 0, 0)
    rows = (b"\0" * (1 + -(-SIZE * bit_depth // 8))) * SIZE
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def as_gray_palette(pred: Path, truth: Path) -> None:
    """What tools that shrink PNG files make of a mask of 0 and 255, or of 0 and 1."""
    (truth / "001.png").write_bytes(raw_png(8, 3, chunk(b"PLTE", b"\1\1\1\0\0\0")))


def as_short_palette(pred: Path, truth: Path) -> None:
    (truth / "001.png").write_bytes(raw_png(8, 3, chunk(b"PLTE", b"")))


def as_4_bit(pred: Path, truth: Path) -> None:
    (truth / "001.png").write_bytes(raw_png(4, 0))


def with_transparency(pred: Path, truth: Path) -> None:
    (truth / "001.png").write_bytes(raw_png(8, 0, chunk(b"tRNS", b"\0\0")))


def resized(pred: Path, truth: Path) -> None:
    for name in ("000", "002"):
        cv2.imwrite(str(pred / f"{name}.png"), np.zeros((SIZE, SIZE + 1), np.uint8))


def another_class(pred: Path, truth: Path) -> None:
    mask_HW = cv2.imread(str(pred / "001.png"), -1)
    mask_HW[3, 3] = 7
    cv2.imwrite(str(pred / "001.png"), mask_HW)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (change_none, None),
        (remove, ["holds 3 masks", " 4; their names must be the same", "t: 002"]),
        (add, ["holds 6 masks", "p: x, y"]),
        (cut, ["p/001.png: is a PNG that cannot be decoded"]),
        (empty, ["p/001.png: is not a PNG"]),
        (as_jpeg, ["p/001.png: is not a PNG", "8-bit gray"]),
        (as_rgb, ["t/001.png: is a 8-bit RGB PNG", "t/003.png: is a 8-bit RGB with alpha PNG"]),
        (as_16_bit, ["t/001.png: is a 16-bit gray PNG that holds 257", "uint8"]),
        (as_gray_palette, ["t/001.png: is a palette PNG of grays that differ from their indices", "uint8"]),
        (as_short_palette, ["t/001.png: is a palette PNG that"]),
        (as_4_bit, ["t/001.png: is a 4-bit gray PNG", "uint8"]),
        (with_transparency, None),
        (resized, ["p/000.png: is 13 x 12 pixels", "t/000.png 12 x 12", "p/002.png: is 13 x 12"]),
        (another_class, ["p/001.png: holds 7", "is above 2", "--classes"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[Path, Path], None], parts: list[str] | None
) -> None:
    pred, truth = write(tmp_path / "p", random_masks(1)), write(tmp_path / "t", random_masks(2))
    change(pred, truth)
    if parts is None:
        score(pred, truth)
        return
    message = refusal(pred, truth)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize("kind", ["palette", "small palette", "gray palette", "1-bit", "16-bit"])
def test_pngs_that_can_only_mean_indices_are_read(tmp_path: Path, kind: str) -> None:
    values = (0, 1) if kind == "1-bit" else (0, 1, 2) if kind == "small palette" else (0, 1, 2, 255)
    pred, truth = random_masks(1, tuple(value for value in values if value != 255)), random_masks(2, values)
    folder = tmp_path / "t"
    folder.mkdir()
    for name, mask_HW in truth.items():
        if kind == "16-bit":
            cv2.imwrite(str(folder / f"{name}.png"), mask_HW.astype(np.uint16))
            continue
        image = Image.fromarray(mask_HW)
        if kind == "1-bit":
            image = Image.fromarray(mask_HW.astype(bool))
        else:
            ramp = kind == "gray palette"
            image.putpalette([level for i in range(256) for level in ((i, i, i) if ramp else (i, 77, 255 - i))])
        image.save(folder / f"{name}.png", bits=2 if kind == "small palette" else 8)
    assert score(write(tmp_path / "p", pred), folder) == expected(pred, truth)


def blurred(mask_HW: np.ndarray) -> np.ndarray:
    """Antialiased: enlarged, smoothed and shrunk again."""
    large = cv2.resize(mask_HW * np.uint8(255), (80, 80), interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.resize(cv2.GaussianBlur(large, (0, 0), 6), (40, 40), interpolation=cv2.INTER_AREA))


def through_jpeg(mask_HW: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", mask_HW * np.uint8(255))[1], cv2.IMREAD_GRAYSCALE))


@pytest.mark.parametrize("change", [blurred, through_jpeg, lambda mask_HW: mask_HW * np.uint8(128)])
@pytest.mark.parametrize("sides", ["both", "truth"])
def test_gray_levels_are_no_classes(tmp_path: Path, change: Callable[[np.ndarray], np.ndarray], sides: str) -> None:
    """On either side: such a truth was hundreds of classes once, and scored without a word."""
    gray = {name: change(mask_HW) for name, mask_HW in random_masks(2, (0, 1), count=30).items()}
    plain = {name: (mask_HW > 100).astype(np.uint8) for name, mask_HW in gray.items()}
    truth = write(tmp_path / "t", gray)
    pred = write(tmp_path / "p", gray if sides == "both" else plain)
    message = refusal(pred, truth)
    assert "Gray levels" in message and "threshold" in message and "--classes" in message
    assert "Gray levels" in refusal(pred, truth, classes=["ground", "figure"])
    assert "Gray levels" in refusal(write(tmp_path / "clusters", plain), truth, matching=Matching.ONE_TO_ONE)


def test_a_class_that_no_mask_holds_must_be_told(tmp_path: Path) -> None:
    pred, truth = random_masks(1, (0, 1, 3)), random_masks(2, (0, 1, 3))
    folders = write(tmp_path / "p", pred), write(tmp_path / "t", truth)
    message = refusal(*folders)
    assert "t/000.png: holds 3, and no mask 2." in message and "--classes 4" in message
    assert score(*folders, classes=given_classes("4")) == expected(pred, truth, ("0", "1", "2", "3"))
    assert "1 to 255 different names" in refusal(*folders, classes=given_classes("300"))
    filled = random_masks(1, (0, 1, 2, 3))
    assert score(write(tmp_path / "q", filled), folders[1]) == expected(filled, truth)


def test_of_many_offenders_five_are_named(tmp_path: Path) -> None:
    pred = write(tmp_path / "p", random_masks(1, count=9))
    for file in pred.iterdir():
        file.write_bytes(b"not a PNG")
    message = refusal(pred, write(tmp_path / "t", random_masks(2, count=9)))
    assert [line.split("/")[-1][:3] for line in message.splitlines()[1:]] == ["000", "001", "002", "003", "004"]
    message = refusal(write(tmp_path / "q", random_masks(1, count=1)), tmp_path / "t")
    assert "001, 002, 003, 004, 005 and 3 more" in message


def test_named_classes(tmp_path: Path) -> None:
    pred, truth = random_masks(1, (0, 1, 2)), random_masks(2, (0, 1))
    folders = write(tmp_path / "p", pred), write(tmp_path / "t", truth)
    assert "holds 2" in refusal(*folders)
    assert score(*folders, classes=["sky", "road", "car", "boat"]) == expected(
        pred, truth, ("sky", "road", "car", "boat")
    )
    assert "p/000.png: holds 2, but there are 2 classes, 0 to 1" in refusal(*folders, classes=["sky", "road"])
    assert "different names" in refusal(*folders, classes=["sky", "sky"])


def test_datasets_of_other_classes_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "a")
    monkeypatch.setattr("helpers.small_dataset.CLASSES", ("background", "skin", "hat"))
    write_dataset(tmp_path / "b")
    message = refusal(tmp_path / "b", tmp_path / "a")
    assert "(background, skin, hat)" in message and "(background, skin, hair)" in message
    assert score(tmp_path / "b", tmp_path / "a", classes=["x", "y", "z"]).miou == 1


def test_places_that_hold_no_masks(tmp_path: Path) -> None:
    truth = write(tmp_path / "t", random_masks(2))
    (tmp_path / "empty").mkdir()
    both = write(tmp_path / "both", random_masks(1))
    pack(both / "a.tar", random_masks(1))
    cut_tar = pack(tmp_path / "cut.tar", random_masks(1))
    content = cut_tar.read_bytes()
    cut_tar.write_bytes(content[: content.rindex(b"003.jpg")])
    (tmp_path / "note.txt").write_text("x")
    twice = pack(tmp_path / "twice" / "a.tar", random_masks(1)).parent
    pack(twice / "b.tar", random_masks(1))
    unfinished = tmp_path / "unfinished"
    write_dataset(unfinished)
    (unfinished / "manifest.json").unlink()
    messages = {
        "empty": "holds no mask",
        "nowhere": "does not exist",
        "both": "holds both",
        "cut.tar": "is cut, or broken",
        "note.txt": "not a readable tar",
        "twice": "another mask has the same name",
        "unfinished": "has no manifest.json",
    }
    for name, message in messages.items():
        with pytest.raises(LabelmillError, match=message):
            score(tmp_path / name, truth)


# Clusters


def test_clusters_are_matched_over_the_whole_dataset(tmp_path: Path) -> None:
    truth = random_masks(2, (0, 1, 2))
    renamed = np.array([9, 4, 17], np.uint8)
    clusters = {name: renamed[mask_HW] for name, mask_HW in truth.items()}
    folders = write(tmp_path / "p", clusters), write(tmp_path / "t", truth)
    found = score(*folders, matching=Matching.ONE_TO_ONE)
    assert found == expected(truth, truth)
    assert found.miou == found.image_miou == found.trimap_3px.miou == 1

    split = {name: np.where(np.indices((SIZE, SIZE))[0] < 6, mask_HW, mask_HW + 20) for name, mask_HW in truth.items()}
    halves = write(tmp_path / "halves", {name: mask_HW.astype(np.uint8) for name, mask_HW in split.items()})
    assert score(halves, folders[1], matching=Matching.MANY_TO_ONE).miou == 1
    one = score(halves, folders[1], matching=Matching.ONE_TO_ONE)
    assert 0.3 < (one.miou or 0) < 0.7


# The command


def test_the_command(tmp_path: Path) -> None:
    pred, truth = random_masks(1), random_masks(2)
    folders = [str(write(tmp_path / "p", pred)), str(write(tmp_path / "t", truth))]
    printed = CliRunner().invoke(app, ["evaluate", *folders, "--json"], catch_exceptions=False).stdout
    assert json.loads(printed) == expected(pred, truth).model_dump()
    table = CliRunner().invoke(app, ["evaluate", *folders, "--classes", "sky, road,car"], catch_exceptions=False).stdout
    wanted = expected(pred, truth, ("sky", "road", "car"))
    assert f"road   {100 * (wanted.iou['road'] or 0):6.2f}" in table
    assert f"F1 {100 * (wanted.f1 or 0):.2f}" in table and "4 images, 576 pixels" in table
    renamed = write(tmp_path / "q", {name: mask_HW + np.uint8(5) for name, mask_HW in truth.items()})
    for option in ("--match", "--match-many"):
        arguments = ["evaluate", str(renamed), folders[1], "--json", option]
        assert json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)["miou"] == 1
    positive = write(tmp_path / "b", {name: (mask_HW > 0) * np.uint8(255) for name, mask_HW in truth.items()})
    arguments = ["evaluate", str(positive), str(positive), "--json", "--positive", "255"]
    assert json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).stdout)["iou"] == {"0": 1, "1": 1}


def test_the_command_ends_with_2_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(write(tmp_path / name, random_masks(1, (0, 255)))) for name in ("p", "t")]
    monkeypatch.setattr("sys.argv", ["labelmill", "evaluate", *folders])
    with pytest.raises(SystemExit) as ended:
        run_command()
    assert ended.value.code == 2
    assert "--positive 255" in capsys.readouterr().err

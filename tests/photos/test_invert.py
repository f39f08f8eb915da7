"""Photos to latents: what one is made of, that it depends on nothing else, and a killed run."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers.tiny_run import save_tiny_generator

from labelmill.pipeline.photos.encoder import ENCODER_FILE
from labelmill.pipeline.photos.invert import Inversion, invert_folder
from labelmill.pipeline.photos.latents_file import read_latents
from labelmill.pipeline.photos.projector import psnr
from labelmill.pipeline.pictures.photos import PhotoError, UnreadablePhotosError
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.inversion import InversionConfig
from labelmill.schemas.yaml_file import validate

SMALL = {
    "steps": {"w": 3, "w_plus": 3},
    "encoder": {"samples": 66, "batch_size": 2},
    "batch_size": 4,
    "precision": "float32",
    "threads": 1,
}


def make_config(folder: Path, output: Path, **settings: object) -> InversionConfig:
    values = {
        "generator": {"checkpoint": str(folder / "tiny.safetensors")},
        "photos": str(folder / "photos"),
        "output": str(output),
        "settings": {**SMALL, **settings},
        "device": "cpu",
    }
    return validate(values, "test", InversionConfig)


def write_photo(path: Path, seed: int, height: int = 32, width: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    small_HWC = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(small_HWC, (width, height), interpolation=cv2.INTER_LINEAR))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and ".encoder" not in path.parts
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator and six photos, and `done`: what an inversion of them left."""
    folder = tmp_path_factory.mktemp("photos")
    save_tiny_generator(folder / "tiny.safetensors")
    for number, size in enumerate([(32, 32), (32, 32), (40, 90), (90, 40), (32, 32)]):
        write_photo(folder / "photos" / f"{number}.png", number, *size)
    write_photo(folder / "photos" / "more" / "5.jpg", 5)
    assert invert_folder(make_config(folder, folder / "done")) == 6
    return folder


def test_an_output_holds_latents_encoder_and_sheets(folder: Path) -> None:
    names = [f"latents/{name}.safetensors" for name in ("0", "1", "2", "3", "4", "more/5")]
    sheets = [name.replace("latents", "sheets").replace("safetensors", "png") for name in names]
    assert set(files_of(folder / "done")) == {*names, *sheets, "inversion.json", ENCODER_FILE}
    found = read_latents(folder / "done", "2", (8, 32))
    assert found is not None
    about, ws = found
    assert (about.height, about.width) == (40, 90)
    assert torch.equal(ws["w"], ws["w"][:1].expand(8, -1))
    assert not torch.equal(ws["w_plus"], ws["w_plus"][:1].expand(8, -1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_latents_depend_on_neither_neighbours_nor_place(folder: Path, precision: str) -> None:
    config = make_config(folder, folder / "done", precision=precision, encoder=None)
    inversion = Inversion(config.generator, config.settings, config.output, "cpu")
    photos_BCHW = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    hashes = ["a", "b", "c", "d"]
    whole = inversion.invert(photos_BCHW, hashes)
    for order in ([2], [3, 2, 0], [2, 1, 3, 0]):
        some = inversion.invert(photos_BCHW[order], [hashes[each] for each in order])
        for space in ("w", "w_plus"):
            assert torch.equal(some[space], whole[space][order])
    other = inversion.invert(photos_BCHW[:1], ["another"])
    assert not torch.equal(other["w"], whole["w"][:1]), "noise follows from the photo"


def test_optimisation_comes_nearer_to_an_image_of_the_generator(folder: Path) -> None:
    config = make_config(folder, folder / "done", steps={"w": 25, "w_plus": 25}, encoder=None)
    inversion = Inversion(config.generator, config.settings, config.output, "cpu")
    images_BCHW = inversion.sampler.sample([3, 4]).images_BCHW
    guess_BLD = inversion.guess(images_BCHW)
    found = inversion.invert(images_BCHW, ["3", "4"])
    before_B = psnr(inversion.sampler.of_ws(guess_BLD).images_BCHW, images_BCHW)
    for space in ("w", "w_plus"):
        assert (psnr(inversion.sampler.of_ws(found[space]).images_BCHW, images_BCHW) > before_B + 1).all()


def test_features_of_the_encoder_are_part_of_the_loss(folder: Path) -> None:
    config = make_config(folder, folder / "done")
    plain = Inversion(config.generator, config.settings, config.output, "cpu")
    weighted = config.settings.model_copy(update={"loss": config.settings.loss.model_copy(update={"perceptual": 1.0})})
    perceptual = Inversion(config.generator, weighted, config.output, "cpu")
    images_BCHW = plain.sampler.sample([3, 4]).images_BCHW
    assert not torch.equal(*(each.invert(images_BCHW, ["3", "4"])["w"] for each in (plain, perceptual)))


def test_a_photo_that_leaves_the_numbers_fails_alone(folder: Path) -> None:
    config = make_config(folder, folder / "done", encoder=None)
    inversion = Inversion(config.generator, config.settings, config.output, "cpu")
    photos_BCHW = inversion.sampler.sample([3, 4]).images_BCHW
    whole = inversion.invert(photos_BCHW, ["3", "4"])["w"]
    broken = photos_BCHW.clone()
    broken[1, 0, 0, 0] = torch.nan
    found = inversion.invert(broken, ["3", "4"])["w"]
    assert torch.equal(found[0], whole[0])
    assert not torch.isfinite(found[1]).any()


def test_a_rerun_does_only_what_is_missing_or_changed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    done = tmp_path / "copy" / "done"
    before = files_of(done)
    (done / "latents" / "1.safetensors").unlink()
    (done / "latents" / ".1.safetensors.77.tmp").write_bytes(b"half")
    config = make_config(tmp_path / "copy", done)
    invert_folder(config)
    assert "inverted 1 of 1 photos" in capsys.readouterr().err
    assert files_of(done) == before
    write_photo(tmp_path / "copy" / "photos" / "0.png", 100)
    invert_folder(config)
    assert "0.png: has changed since it was inverted; inverting it again" in capsys.readouterr().err
    changed = {name for name, content in files_of(done).items() if content != before[name]}
    assert changed == {"latents/0.safetensors", "sheets/0.png"}


def test_other_settings_and_foreign_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"settings\.seed: 7 in the run file, 0 in the output"):
        invert_folder(make_config(folder, folder / "done", seed=7))
    (tmp_path / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"holds other files, such as notes\.txt"):
        invert_folder(make_config(folder, tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": {"checkpoint": "x", "noise": "per_seed"}}, "per_seed, but photos have no seed"),
        ({"settings": {"spaces": ["w", "w"]}}, "names one twice"),
        ({"settings": {"encoder": None, "loss": {"perceptual": 1.0}}}, "needs the encoder's features"),
        ({"settings": {"loss": {"pixel": 0.0, "gradient": 0.0}}}, "nothing would be compared"),
    ],
)
def test_settings_that_contradict_each_other(change: dict[str, object], message: str) -> None:
    values = {"generator": {"checkpoint": "x"}, "photos": "p", "output": "o", **change}
    with pytest.raises(ConfigError, match=message):
        validate(values, "test", InversionConfig)


def test_bad_photos_are_named_at_once_and_the_others_done(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    photos = tmp_path / "copy" / "photos"
    (photos / "corrupt.png").write_bytes((photos / "0.png").read_bytes()[:60])
    (photos / "empty.jpg").touch()
    cv2.imwrite(str(photos / "long.png"), np.zeros((10, 20_000, 3), np.uint8))
    cv2.imwrite(str(photos / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    write_photo(photos / "1.jpg", 9)
    cv2.imwrite(str(photos / "deep.png"), np.full((32, 32, 3), 40_000, np.uint16))
    with pytest.raises(UnreadablePhotosError) as caught:
        invert_folder(make_config(tmp_path / "copy", tmp_path / "copy" / "done"))
    head, *problems = str(caught.value).splitlines()
    assert head.endswith(f"6 of 12 photos cannot be used; the latents of the other 6 are in {tmp_path}/copy/done:")
    assert {problem.strip().removeprefix(f"{photos}/").split(":")[0] for problem in problems} == {
        "corrupt.png", "empty.jpg", "long.png", "dot.png", "1.jpg", "1.png",
    }  # fmt: skip
    warned = capsys.readouterr().err
    assert warned.index("corrupt.png") < warned.index("inverted 1 of 1 photos")
    with pytest.raises(PhotoError, match="is the folder of the photos"):
        invert_folder(make_config(tmp_path / "copy", photos))


KILLED = """
import os, signal, sys
from pathlib import Path
from labelmill.pipeline.photos.invert import invert_folder
from labelmill.schemas.inversion import InversionConfig
from labelmill.schemas.yaml_file import load_config

def killed_at(write):
    replace = Path.replace
    def dying(self, target, left=[write]):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)
    Path.replace = dying
    invert_folder(load_config(sys.argv[1], InversionConfig))
    os._exit(0)

ends = []
for write in map(int, sys.argv[2:]):
    child = os.fork() or killed_at(write)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(*ends)
"""


def test_a_run_that_is_killed_leaves_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Killed five times before some write of a file: of the claim, the encoder's states, the encoder, photos' files."""
    config = make_config(folder, tmp_path / "out")
    (tmp_path / "invert.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    writes = (2, 5, 4, 6, 3)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "invert.yaml"), *map(str, writes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(writes)
    invert_folder(config)
    assert files_of(tmp_path / "out") == files_of(folder / "done")

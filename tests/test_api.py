"""labelmill from Python: what README shows, against what the command makes."""

import os
import pickle
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_dataset import CLASSES, write_dataset
from helpers.tars import repacked
from helpers.tiny_run import tiny_run
from PIL import Image
from torch.utils.data import DataLoader

import labelmill
from labelmill.pipeline import api
from labelmill.pipeline.dataset.manifest import read_manifest
from labelmill.pipeline.generator.sampling import Sampler, to_uint8
from labelmill.pipeline.labelers.base import Labeler
from labelmill.pipeline.pictures.overlay import class_colours
from labelmill.pipeline.process import settings
from labelmill.pipeline.segmentation.reading import LabeledImage
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import CheckpointError, ConfigError, OutputError
from labelmill.schemas.yaml_file import validate

EXAMPLE = Path(__file__).resolve().parent.parent / "deploy" / "examples" / "from_python.py"


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 23 samples in shards of 4. Not to be changed."""
    folder = tmp_path_factory.mktemp("painted") / "out"
    write_dataset(folder, samples=23)
    return folder


@pytest.fixture(scope="module")
def fitted() -> tuple[Sampler, Labeler]:
    """The bundled generator, and a labeler that has seen few images of it."""
    sampler = labelmill.open_generator("bundled:avatars-32", device="cpu", truncation_psi=0.5)
    torch.set_num_threads(1)
    cheap = {"variants": 4, "fit_samples": 16, "restarts": 1, "crossover": 4}
    return sampler, labelmill.fit_labeler(sampler, "style_mixing", **cheap)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """`open_generator` sets the threads of the process, which the suite shares."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_generator_samples_labels_and_repeats(fitted: tuple[Sampler, Labeler]) -> None:
    sampler, labeler = fitted
    batches = list(labelmill.label(sampler, labeler, range(20)))
    assert [len(batch) for batch, _ in batches] == [16, 4] and labeler.classes == ("background", "foreground")
    for batch, labels in batches:
        assert labels.masks_BHW.shape == (len(batch), 32, 32) and labels.masks_BHW.dtype == torch.uint8
        assert 0.1 < labels.masks_BHW.float().mean() < 0.9
    again = sampler.sample([3])
    assert torch.equal(again.images_BCHW[0], batches[0][0].images_BCHW[3])
    assert to_uint8(again.images_BCHW).shape == (1, 32, 32, 3)


def test_a_dataset_is_read_whole_or_by_split(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    manifest = read_manifest(Store.open(str(tmp_path)))
    samples = list(labelmill.read_dataset(str(tmp_path)))
    assert len(samples) == manifest.num_samples
    assert next(labelmill.read_dataset(tmp_path)).key == samples[0].key
    assert samples[0].image_HWC.shape == (*manifest.image_shape.size, 3)
    assert set(np.unique(samples[0].mask_HW)) <= {*range(len(manifest.classes)), 255}
    by_split = [
        sample.key for split in manifest.samples_by_split for sample in labelmill.read_dataset(str(tmp_path), split)
    ]
    assert sorted(by_split) == [sample.key for sample in samples]


def test_a_checkpoint_is_named_by_a_path_object_too() -> None:
    bundled = Path(labelmill.__path__[0]) / "pipeline/generator/bundled/avatars-32.safetensors"
    assert labelmill.open_generator(bundled, device="cpu").generator.spec.image_shape.size == (32, 32)


def test_numbers_of_numpy_are_numbers() -> None:
    sampler = labelmill.open_generator(
        "bundled:avatars-32", truncation_psi=np.float64(0.5), truncation_cutoff=np.int64(3)
    )
    assert (sampler.config.truncation_psi, sampler.config.truncation_cutoff) == (0.5, 3)
    with pytest.raises(ConfigError, match=r"^truncation_psi: a Tensor is not a setting; give a number"):
        labelmill.open_generator("bundled:avatars-32", truncation_psi=torch.tensor(0.5))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"truncation_psl.*truncation_psi"):
        labelmill.open_generator("bundled:avatars-32", truncation_psl=0.5)
    with pytest.raises(CheckpointError, match="avatars-31"):
        labelmill.open_generator("bundled:avatars-31")
    with pytest.raises(OutputError, match=str(tmp_path)):
        labelmill.read_dataset(str(tmp_path))
    sampler = labelmill.open_generator("bundled:avatars-32", device="cpu")
    with pytest.raises(ConfigError, match=r"labeler\.crossover: 40"):
        labelmill.fit_labeler(sampler, "style_mixing", crossover=40)
    with pytest.raises(ConfigError, match="alpha_networc"):
        labelmill.fit_labeler(sampler, "alpha_networc")


def test_importing_it_takes_no_pytorch() -> None:
    code = "import sys, labelmill; print(labelmill.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [labelmill.__version__, "False"]


def test_what_is_labeled_is_shown(fitted: tuple[Sampler, Labeler]) -> None:
    sampler, labeler = fitted
    [(batch, labels)] = labelmill.label(sampler, labeler, range(3))
    picture = labelmill.show([(batch, labels)], labeler.classes, columns=3, edge=32)
    assert isinstance(picture, Image.Image) and picture.mode == "RGB"
    pixels_HWC = np.asarray(picture)
    found = np.lib.stride_tricks.sliding_window_view(pixels_HWC, (32, 32, 3))[:, :, 0]
    for image_HWC in to_uint8(batch.images_BCHW).numpy():
        assert (found == image_HWC).all(axis=(2, 3, 4)).any()
    with pytest.raises(ConfigError, match="there are no samples"):
        labelmill.show([], labeler.classes)


def test_samples_of_a_dataset_are_shown(painted: Path) -> None:
    samples = list(islice(labelmill.read_dataset(painted), 2))
    one, both = (labelmill.show(shown, CLASSES, columns=1, edge=16) for shown in (samples[:1], samples))
    assert both.height > one.height and both.width == one.width
    swatch = tuple(int(value) for value in class_colours(len(CLASSES))[1])
    assert swatch in {colour for _, colour in one.getcolors(2**16)}  # type: ignore[union-attr]


def test_a_dataset_for_pytorch(painted: Path) -> None:
    stored = list(labelmill.read_dataset(painted))
    dataset = labelmill.open_dataset(painted)
    assert len(dataset) == len(stored) == 23 and dataset.classes == CLASSES
    for index in (22, 0, 7, -1):
        image_CHW, mask_HW = dataset[index]
        assert image_CHW.dtype == torch.float32 and mask_HW.dtype == torch.int64
        assert np.array_equal((image_CHW * 255).round().byte().permute(1, 2, 0).numpy(), stored[index].image_HWC)
        assert np.array_equal(mask_HW.numpy(), stored[index].mask_HW)
        assert dataset.sample(index).key == stored[index].key
    with pytest.raises(IndexError):
        dataset[23]
    as_stored = labelmill.open_dataset(painted, transform=lambda sample: sample)
    assert [as_stored[index].key for index in (4, 2)] == [stored[4].key, stored[2].key]
    by_split = [len(labelmill.open_dataset(painted, split)) for split in ("train", "val")]
    assert sum(by_split) == 23


def _key(sample: LabeledImage) -> int:
    return int(sample.key)


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_see_every_sample_once(painted: Path, workers: int) -> None:
    dataset = labelmill.open_dataset(painted, transform=_key)
    dataset.sample(5)  # opened by this process before others are started
    loader = DataLoader(dataset, batch_size=4, shuffle=True, num_workers=workers)
    keys = sorted(int(key) for batch in loader for key in batch)
    assert keys == [int(sample.key) for sample in labelmill.read_dataset(painted)]


def test_an_order_uses_few_shards_at_a_time_and_repeats(painted: Path) -> None:
    dataset = pickle.loads(pickle.dumps(labelmill.open_dataset(painted)))
    orders = [dataset.order(seed=1, epoch=epoch, shuffle_shards=2) for epoch in (0, 1)]
    assert orders[0] != orders[1] and all(sorted(order) == list(range(23)) for order in orders)
    assert orders[0] == dataset.order(seed=1, epoch=0, shuffle_shards=2)
    shards = [index // 4 for index in orders[0]]
    assert max(len({*shards[start : start + 3]}) for start in range(20)) <= 3
    assert len(set(shards[:7])) <= 3 and len({*shards}) == 6


def test_shards_that_are_not_as_they_should_be(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    tar = tmp_path / "shards/painted-000000.tar"
    whole, first = tar.read_bytes(), next(labelmill.read_dataset(tmp_path)).key
    tar.write_bytes(repacked(whole, lambda members: dict(list(members.items())[:-3])))
    with pytest.raises(OutputError, match=r"painted-000000\.tar: holds 3 samples, index\.json says 4"):
        labelmill.open_dataset(tmp_path)[0]
    tar.write_bytes(repacked(whole, lambda members: {**dict(list(members.items())[:-3]), f"{first}.more": b""}))
    with pytest.raises(OutputError, match="the files of a sample do not stand together"):
        labelmill.open_dataset(tmp_path)[0]
    dataset = labelmill.open_dataset(tmp_path)
    tar.unlink()
    with pytest.raises(OutputError, match=r"painted-000000\.tar: cannot be read: No such file"):
        dataset[0]
    tar.write_bytes(whole)
    assert dataset[0] is not None
    tar.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(OutputError, match=r"painted-000000\.tar: "):
        dataset[3]


def test_a_run_from_its_values_its_file_and_its_configuration(tiny_checkpoint: Path, tmp_path: Path) -> None:
    dataset = {"samples": np.int64(6), "samples_per_shard": 3}
    values = {**tiny_run(tiny_checkpoint, tmp_path / "out"), "dataset": dataset}
    output = labelmill.make_dataset(values)
    assert output == str(tmp_path / "out") and len(labelmill.open_dataset(output)) == 6
    config = validate({**values, "dataset": {**dataset, "samples": 6}}, "here", RunConfig)
    assert len(labelmill.open_dataset(labelmill.make_dataset(config, overrides=["dataset.samples=9"]))) == 9
    assert dataset == {"samples": 6, "samples_per_shard": 3}
    with pytest.raises(ConfigError, match="nowhere"):
        labelmill.make_dataset(tmp_path / "nowhere.yaml")
    with pytest.raises(labelmill.LabelmillError, match=r"dataset\.samplez: unknown key; did you mean samples\?"):
        labelmill.make_dataset(values, overrides=["dataset.samplez=9"])


def test_signals_are_pythons_own_again(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path, tmp_path: Path) -> None:
    values = tiny_run(tiny_checkpoint, tmp_path / "out")
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(api, "generate", lambda config: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="rerun the same command to resume"):
        labelmill.make_dataset(values)
    assert signal.getsignal(signal.SIGINT) is before
    done: list[str] = []
    monkeypatch.setattr(api, "generate", lambda config: None)
    thread = threading.Thread(target=lambda: done.append(labelmill.make_dataset(values)))
    thread.start()
    thread.join()
    assert done == [str(tmp_path / "out")]


def test_settings_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os; from labelmill.pipeline.process.settings import take_process_settings; take_process_settings(); "
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['MALLOC_TRIM_THRESHOLD_'])"
    )
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "5"}
    environment.pop("OMP_WAIT_POLICY", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["PASSIVE", "5"]
    taken: list[bool] = []
    monkeypatch.setattr(settings, "take_process_settings", lambda: taken.append(True))
    assert labelmill.show is api.show and taken and "show" in dir(labelmill)


def test_the_package_is_typed() -> None:
    assert (Path(labelmill.__file__).parent / "py.typed").is_file()
    project = (EXAMPLE.parent.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert 'labelmill = ["py.typed", ' in project


def test_the_example_leaves_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--quick", "--out", str(tmp_path)])
    values = runpy.run_path(str(EXAMPLE))
    assert 0 < len(values["training"]) < 16 and 0 < values["agreements"][0] <= 1
    for name in ("1-labels.png", "2-predicted.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 500 and picture.height > 100

"""Datasets whose labeler gives more than masks: the files go all the way from Labels to whoever reads a shard."""

import base64
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import cv2
import mlcroissant
import numpy as np
import pytest
import torch
import webdataset
from etils import epath
from helpers.random_sampler import make_sampler
from helpers.small_dataset import CHECKPOINT, KIND, claim, config_of, context_of, origin_of, write_dataset
from helpers.tars import repacked

from labelmill.pipeline.dataset.existing_shards import existing_records
from labelmill.pipeline.dataset.finish import finish_dataset
from labelmill.pipeline.dataset.manifest import read_manifest
from labelmill.pipeline.dataset.plan import shard_tasks
from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.generator.sampling import Batch
from labelmill.pipeline.labelers.base import Labels
from labelmill.pipeline.labelers.style_mixing.labeler import StyleMixingLabeler
from labelmill.pipeline.make_shard import LoadedRun, candidates, make_shard
from labelmill.pipeline.nightly.measure import measure_snapshot
from labelmill.pipeline.process.stopwatch import Stopwatch
from labelmill.pipeline.report.report import write_report
from labelmill.pipeline.segmentation.mask_source import open_masks
from labelmill.pipeline.segmentation.reading import open_split, read_samples, training_loader
from labelmill.pipeline.segmentation.train import train
from labelmill.pipeline.shards.check import ShardOrigin
from labelmill.pipeline.shards.publisher import publish_shard, read_record
from labelmill.pipeline.shards.sample_files import OPTIONAL_FILES, SAMPLE_FILES, optional_endings, sample_files
from labelmill.pipeline.shards.writer import ShardWriter
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import QualityConfig, RunConfig
from labelmill.schemas.errors import OutputError
from labelmill.schemas.manifest import Manifest
from labelmill.schemas.nightly import SamplingConfig
from labelmill.schemas.sample import OptionalFile, Sample
from labelmill.schemas.segmentation import SegmentationTrainingConfig
from labelmill.schemas.yaml_file import load_config, validate
from labelmill.workers.generate import generate

ALL: tuple[OptionalFile, ...] = ("alpha.png", "instances.png", "probabilities.png")
SIDE = 16
TAR, KEY = "shards/painted-000001.tar", "0000000117"  # the second sample of the second shard


@dataclass(frozen=True)
class Matting:
    """Opacity is the image's brightness, and so is a thing's probability; the mask is where it is above a half, an
    instance each column of that."""

    optional_files: tuple[OptionalFile, ...] = ALL
    classes: tuple[str, ...] = ("background", "thing")
    layers: tuple[str, ...] = ()

    def label(self, batch: Batch) -> Labels:
        alpha_BHW = ((batch.images_BCHW.mean(dim=1) + 1) / 2).clamp(0, 1)
        masks_BHW = (alpha_BHW > 0.5).byte()
        first_B11 = torch.tensor([1000 * (seed % 2) + 1 for seed in batch.seeds])[:, None, None]
        return Labels(
            masks_BHW,
            torch.ones(len(batch)),
            alpha_BHW if "alpha.png" in self.optional_files else None,
            masks_BHW.long() * (first_B11 + torch.arange(SIDE)) if "instances.png" in self.optional_files else None,
            torch.stack([1 - alpha_BHW, alpha_BHW], dim=1) if "probabilities.png" in self.optional_files else None,
        )


def config_in(output: Path) -> RunConfig:
    return config_of(output).model_copy(update={"quality": QualityConfig(enabled=False)})


def origin_in(config: RunConfig, labeler: Matting) -> ShardOrigin:
    origin = origin_of(context_of(config).fingerprint, optional_files=labeler.optional_files)
    return replace(origin, classes=labeler.classes)


def loaded_run_of(config: RunConfig, labeler: Matting, threads: ThreadPoolExecutor) -> LoadedRun:
    return LoadedRun(
        config, make_sampler(SIDE, batch_size=16), labeler, CHECKPOINT.sha256, context_of(config).fingerprint, threads
    )


def write_matted(output: Path, labeler: Matting) -> tuple[Store, Manifest]:
    """The whole way from seeds to manifest.json."""
    config = config_in(output)
    store, origin = Store.open(str(output)), origin_in(config, labeler)
    claim(store, config)
    with ThreadPoolExecutor(2) as threads:
        for task in shard_tasks(config):
            made = make_shard(task, loaded_run_of(config, labeler, threads)).finish()
            publish_shard(store, task, made.tar, origin=origin, seconds_by_stage={}, attempts=1, host="here", kind=KIND)
    context = replace(context_of(config, labeler.optional_files), classes=labeler.classes)
    return store, finish_dataset(store, existing_records(store, config, origin, repair=False), context)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    return write_matted(tmp_path_factory.mktemp("matted") / "out", Matting())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A dataset to damage."""
    return write_matted(tmp_path / "out", Matting())[0]


def drawn(seeds: list[int]) -> Iterator[tuple[Labels, int]]:
    """What the labeler gives, and the row of each seed in it."""
    for seed in seeds:
        yield Matting().label(make_sampler(SIDE).sample([seed], ())), seed


def test_the_table_names_fields_and_files_that_exist() -> None:
    of_sample = {field.name: field.default for field in dataclasses.fields(Sample)}
    of_labels = {field.name for field in dataclasses.fields(Labels)}
    assert {file.field for file in SAMPLE_FILES} == of_sample.keys() - {"key"}
    assert {file.labels_field for file in SAMPLE_FILES if file.bit_depths} == of_labels - {
        "confidence_B",
        "uncertain_B",
        "instances_B",
    }
    assert tuple(file.ending for file in OPTIONAL_FILES) == get_args(OptionalFile) == optional_endings({*ALL, "txt"})
    assert all((of_sample[file.field] is None) == file.is_optional for file in SAMPLE_FILES)


def test_names_in_a_shard_are_the_image_the_mask_the_metadata_then_what_is_optional() -> None:
    def names(*optional: OptionalFile) -> list[str]:
        return [file.member("7") for file in sample_files("webp", optional)]

    assert names() == ["7.webp", "7.mask.png", "7.json"]
    assert names("instances.png") == ["7.webp", "7.mask.png", "7.json", "7.instances.png"]
    optional = [f"7.{ending}" for ending in ALL]
    assert names(*ALL) == ["7.webp", "7.mask.png", "7.json", *optional]


def test_plain_webdataset_reads_what_the_labeler_gave(dataset: tuple[Store, Manifest]) -> None:
    store, _ = dataset

    def gray(data: bytes) -> np.ndarray:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)

    urls = [str(path) for path in sorted(Path(store.url).glob("shards/*.tar"))]
    handlers = [webdataset.handle_extension(ending, gray) for ending in ("mask.png", *ALL)]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode(*handlers, "rgb8"))
    assert len(read) == 11
    depths = set()
    for sample, (labels, seed) in zip(read, drawn([int(sample["__key__"]) for sample in read]), strict=True):
        files = [ending for ending in sample if not ending.startswith("__")]
        assert files == ["png", "mask.png", "json", *ALL]
        assert labels.alpha_BHW is not None and labels.instances_BHW is not None
        assert np.array_equal(sample["mask.png"], labels.masks_BHW[0])
        assert sample["alpha.png"].dtype == np.uint8
        assert np.array_equal(sample["alpha.png"], np.rint(labels.alpha_BHW[0].numpy() * 255))
        assert np.array_equal(sample["instances.png"], labels.instances_BHW[0])
        depths.add((seed % 2, sample["instances.png"].dtype))
        levels_KHW = sample["probabilities.png"].reshape(2, SIDE, SIDE)
        assert (levels_KHW.sum(axis=0, dtype=int) == 255).all()
        assert np.array_equal(levels_KHW[1], sample["alpha.png"])
    assert depths == {(0, np.dtype(np.uint8)), (1, np.dtype(np.uint16))}


def test_the_code_in_the_card_reads_them(dataset: tuple[Store, Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = dataset
    monkeypatch.chdir(store.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(Path(store.url).parent / "cache"))
    card = store.read("README.md").decode()
    assert "| `KEY.alpha.png` | 8-bit gray: how opaque the foreground is, 255 fully |" in card
    assert "| `KEY.probabilities.png` | 8-bit gray: 255 times the probability of each class, " in card
    blocks = [block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "obstore" not in block]
    assert len(blocks) == 2
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        assert np.asarray(names["image"]).shape == (SIDE, SIDE, 3)
        mask_HW, alpha_HW, instances_HW = (np.asarray(names[name]) for name in ("mask", "alpha", "instances"))
        assert np.array_equal(mask_HW > 0, instances_HW > 0) and 0 < mask_HW.sum() < mask_HW.size
        assert np.array_equal(mask_HW > 0, alpha_HW > 127)
        assert np.array_equal(np.asarray(names["probabilities"])[SIDE:], alpha_HW)


def test_manifest_and_records_declare_the_files(dataset: tuple[Store, Manifest]) -> None:
    store, manifest = dataset
    assert manifest.optional_files == read_manifest(store).optional_files == ALL
    record = read_record(store, 0)
    assert record is not None and record.optional_files == ALL
    assert verify(store).problems == ()


def test_without_such_files_manifest_and_records_are_as_before(tmp_path: Path) -> None:
    store, manifest = write_dataset(tmp_path / "out")
    assert manifest.optional_files == ()
    for path in ("manifest.json", "records/000000.json"):
        assert b"optional_files" not in store.read(path)


def test_a_manifest_of_unknown_files_is_refused(store: Store) -> None:
    values = json.loads(store.read("manifest.json"))
    store.replace("manifest.json", json.dumps({**values, "optional_files": ["../depth.png"]}).encode())
    with pytest.raises(OutputError, match=r"manifest\.json: is not what labelmill writes"):
        read_manifest(store)


@pytest.mark.parametrize("optional_files", [("alpha.png",), ("instances.png",), ("probabilities.png",)])
def test_a_labeler_may_give_one_of_them(tmp_path: Path, optional_files: tuple[OptionalFile, ...]) -> None:
    store, manifest = write_matted(tmp_path / "out", Matting(optional_files))
    assert manifest.optional_files == optional_files
    assert verify(store).problems == ()


# Writing.


@pytest.mark.parametrize(
    ("given", "declared", "message"),
    [
        (ALL, ("alpha.png",), "instances.png: the labeler gives but does not declare it"),
        (ALL, ALL[:2], "probabilities.png: the labeler gives but does not declare it"),
        (("alpha.png",), ALL, "instances.png: the labeler declares but does not give it"),
    ],
)
def test_a_labeler_gives_what_it_declares(
    tmp_path: Path, given: tuple[OptionalFile, ...], declared: tuple[OptionalFile, ...], message: str
) -> None:
    config = config_in(tmp_path / "out")
    with ThreadPoolExecutor(1) as threads:
        run = loaded_run_of(config, Matting(given), threads)
        [sample] = candidates([100], run, Stopwatch())
        writer = ShardWriter("png", 95, threads, declared)
        with pytest.raises(AssertionError, match=re.escape(message)):
            writer.add(sample)
            writer.finish()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha_BHW": torch.full((1, SIDE, SIDE), 1.01)}, "alpha is from 0 to 1"),
        ({"alpha_BHW": torch.full((1, SIDE, SIDE), torch.nan)}, "alpha is from 0 to 1"),
        ({"instances_BHW": torch.full((1, SIDE, SIDE), -1)}, "not -1 to -1"),
        ({"instances_BHW": torch.full((1, SIDE, SIDE), 2**16)}, "not 65536 to 65536"),
        ({"probabilities_BKHW": torch.full((1, 2, SIDE, SIDE), 0.51)}, "probabilities are from 0 to 1 and sum to 1"),
        ({"probabilities_BKHW": torch.full((1, 2, SIDE, SIDE), torch.nan)}, "probabilities are from 0 to 1"),
    ],
)
def test_values_that_no_file_can_hold_are_refused(
    tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    class Wrong(Matting):
        def label(self, batch: Batch) -> Labels:
            return replace(super().label(batch), **change)

    with ThreadPoolExecutor(1) as threads, pytest.raises(AssertionError, match=message):
        list(candidates([100], loaded_run_of(config_in(tmp_path / "out"), Wrong(), threads), Stopwatch()))


# Damages.


def repack(store: Store, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Write the second shard's tar as if it had been made with this content; record and index are lost."""
    store.replace(TAR, repacked(store.read(TAR), change))
    store.delete("records/000001.json")


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def gray_of(side: int, dtype: type) -> np.ndarray:
    return np.zeros((side, side), dtype)


DAMAGES: dict[str, tuple[str, bytes | None, str]] = {
    "no alpha": ("alpha.png", None, f"sample {KEY} lacks {KEY}.alpha.png: the dataset declares alpha.png"),
    "no instances": ("instances.png", None, f"sample {KEY} lacks {KEY}.instances.png: the dataset declares instances"),
    "alpha of 16 bits": (
        "alpha.png",
        png(gray_of(SIDE, np.uint16)),
        f"{KEY}.alpha.png: is no 8-bit gray PNG of 16 x 16",
    ),
    "alpha in colour": (
        "alpha.png",
        png(np.zeros((SIDE, SIDE, 3), np.uint8)),
        f"{KEY}.alpha.png: is no 8-bit gray PNG",
    ),
    "small alpha": ("alpha.png", png(gray_of(8, np.uint8)), f"{KEY}.alpha.png: is no 8-bit gray PNG of 16 x 16"),
    "cut alpha": ("alpha.png", png(gray_of(SIDE, np.uint8))[:50], f"{KEY}.alpha.png: is no 8-bit gray PNG of 16 x 16"),
    "instances in colour": (
        "instances.png",
        png(np.zeros((SIDE, SIDE, 3), np.uint8)),
        f"{KEY}.instances.png: is no 8-bit or 16-bit gray PNG of 16 x 16",
    ),
    "no probabilities": (
        "probabilities.png",
        None,
        f"sample {KEY} lacks {KEY}.probabilities.png: the dataset declares probabilities.png",
    ),
    "probabilities of one class": (
        "probabilities.png",
        png(gray_of(SIDE, np.uint8)),
        f"{KEY}.probabilities.png: is no 8-bit gray PNG of 2 maps of 16 x 16 pixels",
    ),
    "probabilities of 254 in all": (
        "probabilities.png",
        png(np.full((2 * SIDE, SIDE), 127, np.uint8)),
        f"{KEY}.probabilities.png: its maps sum to 254 instead of 255 in row 0, column 0",
    ),
    "large instances": (
        "instances.png",
        png(gray_of(2 * SIDE, np.uint16)),
        f"{KEY}.instances.png: is no 8-bit or 16-bit gray PNG of 16 x 16",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_optional_file_is_found_and_named(store: Store, damage: str) -> None:
    ending, content, message = DAMAGES[damage]

    def changed(members: dict[str, bytes]) -> dict[str, bytes]:
        others = {name: data for name, data in members.items() if name != f"{KEY}.{ending}"}
        return (
            others
            if content is None
            else {name: content if name == f"{KEY}.{ending}" else members[name] for name in members}
        )

    repack(store, changed)
    store.delete("index.json")
    assert any(message in problem and problem.startswith(f"{TAR}: ") for problem in verify(store).problems)
    config = config_in(Path(store.url))
    with pytest.raises(OutputError, match=re.escape(message)):  # so does a resume
        existing_records(store, config, origin_in(config, Matting()), repair=True)


def test_an_undeclared_file_is_found_and_named(tmp_path: Path) -> None:
    store, _ = write_matted(tmp_path / "out", Matting(()))

    def changed(members: dict[str, bytes]) -> dict[str, bytes]:
        return {**members, f"{KEY}.alpha.png": png(gray_of(SIDE, np.uint8))}

    def beside_its_image(members: dict[str, bytes]) -> dict[str, bytes]:
        names = list(changed(members))
        names.insert(names.index(f"{KEY}.png"), names.pop())
        return {name: changed(members)[name] for name in names}

    for change in (changed, beside_its_image):
        repack(store, change)
        message = f"sample {KEY} holds {KEY}.alpha.png: the dataset does not declare alpha.png"
        assert any(message in problem for problem in verify(store).problems)
        with pytest.raises(
            OutputError, match=rf"sample {KEY} holds {KEY}\.alpha\.png: manifest\.json does not declare"
        ):
            list(read_samples(open_split(store.url, None)))


def test_a_training_refuses_probabilities_that_do_not_sum_to_one(store: Store) -> None:
    """In the last pixel: nothing may be learned from a file that is damaged or is something else."""
    wrong_HW = np.repeat([100, 155], SIDE)[:, None].repeat(SIDE, axis=1).astype(np.uint8)
    wrong_HW[-1, -1] += 1
    repack(store, lambda members: {**members, f"{KEY}.probabilities.png": png(wrong_HW)})
    message = rf"{TAR}: {KEY}\.probabilities\.png: its 2 maps sum to 256 instead of 255 in row 15, column 15"
    with pytest.raises(OutputError, match=message):
        list(read_samples(open_split(store.url, None)))


def test_a_resume_refuses_shards_with_other_files(store: Store) -> None:
    """Though records are sound and their fingerprint is right."""
    config = config_in(Path(store.url))
    with pytest.raises(OutputError, match=r"sample 0000000100 holds 0000000100\.instances\.png: the dataset does not"):
        existing_records(store, config, origin_in(config, Matting(("alpha.png",))), repair=False)


def test_a_record_that_hides_a_file_is_repaired(store: Store) -> None:
    record = read_record(store, 0)
    assert record is not None
    store.replace("records/000000.json", record.model_copy(update={"optional_files": ()}).model_dump_json().encode())
    assert verify(store).problems != ()
    assert verify(store, repair=True).problems == ()
    repaired = read_record(store, 0)
    assert repaired is not None and repaired.optional_files == ALL


def test_a_run_carries_them_from_the_labeler_to_the_manifest(
    write_run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the driver and its workers; the same command with a labeler that gives none is refused."""
    config = load_config(write_run_file(dataset={"samples": 4, "samples_per_shard": 2}), RunConfig)
    hard = StyleMixingLabeler.label

    def soft(labeler: StyleMixingLabeler, batch: Batch) -> Labels:
        labels = hard(labeler, batch)
        return replace(labels, alpha_BHW=labels.masks_BHW / 255)

    with monkeypatch.context() as patched:
        patched.setattr(StyleMixingLabeler, "label", soft)
        patched.setattr(StyleMixingLabeler, "optional_files", ("alpha.png",))
        generate(config)
        store = Store.open(config.output)
        assert read_manifest(store).optional_files == ("alpha.png",)
        assert verify(store).problems == ()
        store.delete("shards/tiny-000001.tar")
        generate(config)
        assert verify(store).problems == ()
    with pytest.raises(OutputError, match=r"sample 0000000000 holds 0000000000\.alpha\.png: the dataset does not"):
        generate(config)


# Reading.


def last_loss(store: Store, output: Path, targets: str) -> float:
    """Of a training of one step."""
    values = {
        "data": {"dataset": store.url, "split": None},
        "output": str(output),
        "model": {"architecture": "deeplabv3_mobilenet_v3_large", "upscale": 2},
        "optimisation": {"batch_size": 4, "steps": 1},
        "targets": targets,
        "augmentation": {"flip": 0, "scale": [1, 1], "colour_jitter": 0},
        "workers": 0,
        "device": "cpu",
        "log_interval_steps": 1,
    }
    train(validate(values, "train.yaml", SegmentationTrainingConfig))
    return float(json.loads((output / "log.jsonl").read_text().splitlines()[-1])["loss"])


def test_alpha_and_probabilities_are_what_a_training_learns(dataset: tuple[Store, Manifest], tmp_path: Path) -> None:
    store, _ = dataset
    split = open_split(store.url, None)
    for sample, (labels, _) in zip(read_samples(split), drawn(list(range(100, 104))), strict=False):
        assert labels.alpha_BHW is not None and sample.alpha_HW is not None and sample.probabilities_KHW is not None
        assert np.array_equal(sample.alpha_HW, np.rint(labels.alpha_BHW[0].numpy() * 255))
        assert np.array_equal(sample.probabilities_KHW, np.stack([255 - sample.alpha_HW, sample.alpha_HW]))
    (batch,) = training_loader(split, batch_size=4, seed=0, batches=range(1), shuffle_shards=2)
    assert batch.alphas_BHW is not None and batch.probabilities_BKHW is not None
    assert torch.equal(batch.probabilities_BKHW, torch.stack([255 - batch.alphas_BHW, batch.alphas_BHW], dim=1))
    (bare,) = training_loader(split.reading(), batch_size=4, seed=0, batches=range(1), shuffle_shards=2)
    assert bare.keys == batch.keys and bare.alphas_BHW is bare.probabilities_BKHW is None
    of_probabilities = last_loss(store, tmp_path / "probabilities", "auto")
    with_alpha, _ = write_matted(tmp_path / "out", Matting(("alpha.png",)))
    assert last_loss(with_alpha, tmp_path / "alpha", "soft") == pytest.approx(of_probabilities, rel=1e-5)
    assert last_loss(store, tmp_path / "mask", "mask") != pytest.approx(of_probabilities, rel=1e-2)


def test_masks_are_scored_and_nights_measured_as_ever(dataset: tuple[Store, Manifest]) -> None:
    store, manifest = dataset
    source = open_masks(store.url)
    assert len(source.keys) == 11 and source.read(source.keys[0]).shape == (SIDE, SIDE)
    assert measure_snapshot(store, SamplingConfig()).num_samples == manifest.num_samples


def test_the_report_shows_them(dataset: tuple[Store, Manifest]) -> None:
    store, _ = dataset
    with ThreadPoolExecutor(1) as threads:
        run = loaded_run_of(config_in(Path(store.url)), Matting(), threads)
        page = store.read(write_report(store, lambda seeds: list(candidates(seeds, run, Stopwatch())))).decode()
    shown = re.findall(r'src="data:image/png;base64,([^"]+)" alt="Probabilities of seed \d+"', page)
    assert len(shown) == 22
    for png_base64 in shown:  # from the tars and, of dropped candidates, made anew: in the classes' colours
        pixels_HWC = cv2.imdecode(np.frombuffer(base64.b64decode(png_base64), np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.ptp(pixels_HWC, axis=2).max() > 50
    composites = re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="Composite of seed \d+"', page)
    assert len(composites) == 22
    composite_HWC = cv2.imdecode(np.frombuffer(base64.b64decode(composites[0]), np.uint8), cv2.IMREAD_COLOR_RGB)
    light_HWC, dark_HWC = np.split(composite_HWC.astype(float), 2, axis=1)
    assert light_HWC.mean() > dark_HWC.mean() + 50
    assert len(re.findall(r'alt="Alpha of seed \d+"', page)) == len(re.findall(r'alt="Mask of seed \d+:', page)) == 22
    assert len(re.findall(r'alt="Instances of seed \d+"', page)) == 22
    assert "png + png mask, alpha, instances" in page


def test_the_report_shows_none_where_there_are_none(tmp_path: Path) -> None:
    store, _ = write_dataset(tmp_path / "out")
    page = store.read(write_report(store, None)).decode()
    assert "png + png mask</small>" in page and "Alpha of seed" not in page


# The rest is recommended, and left out: nothing is to be cited, and equal datasets are equal on every date.
RECOMMENDED = {"http://mlcommons.org/croissant/citeAs", "https://schema.org/datePublished"}


@pytest.mark.parametrize("optional_files", [(), ALL])
def test_mlcroissant_reads_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optional_files: tuple[OptionalFile, ...]
) -> None:
    # It unpacks shards in the home folder, one folder per relative URL.
    monkeypatch.setattr(
        "mlcroissant._src.operation_graph.operations.extract.EXTRACT_PATH", epath.Path(tmp_path / "unpacked")
    )
    store, manifest = write_matted(tmp_path / "out", Matting(optional_files))
    described = mlcroissant.Dataset(jsonld=f"{store.url}/croissant.json")
    issues = described.metadata.issues
    assert issues.errors == set()
    assert {re.findall(r'"(.*?)"', warning)[0] for warning in issues.warnings} == RECOMMENDED
    kept = [sample.key for sample in read_samples(open_split(store.url, None))]
    for file in sample_files("png", manifest.optional_files):
        if file.field != "metadata":
            name = f"{file.name.removesuffix('s')}s"
            records = list(described.records(name))
            size = (SIDE, SIDE * (len(manifest.classes) if file.is_per_class else 1))
            assert all(record[f"{name}/content"].size == size for record in records)
            assert sorted(record[f"{name}/key"].decode() for record in records) == kept
    assert [record["classes/name"] for record in described.records("classes")] == manifest.classes

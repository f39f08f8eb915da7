"""A run with a promise, from annotated images to the manifest: masks below it are those that the test has spoilt."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.small_annotations import sha256_of

from labelmill.pipeline.annotations.write import write_mask, write_set
from labelmill.pipeline.check_run import check_run
from labelmill.pipeline.generator.open import open_sampler
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.promise.calibrate import as_classes, image_miou
from labelmill.pipeline.shards.sealed import seal, unseal
from labelmill.schemas.annotations import AnnotationSet, GeneratorDraw, Pick
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.promise import Promise
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.generate import generate
from labelmill.workers.preview import preview_sheet

RunFileWriter = Callable[..., Path]

KEEP_ALL = {
    "enabled": True,
    "foreground_min": 0,
    "foreground_max": 1,
    "confidence_min": 0,
    "largest_component_min": 0,
}
SEEDS = tuple(range(5000, 5020))
NUM_SPOILT = 3


def copied(case: "Case", folder: Path) -> Path:
    """The set in another folder, to be changed there."""
    shutil.copytree(case.folder, folder)
    return folder


@dataclass(frozen=True)
class Case:
    """A set whose masks are the labeler's own, but for the least confident, which are turned round."""

    folder: Path
    confidences: dict[int, float]

    def promise(self, **changes: object) -> dict[str, object]:
        settings = {"annotations": str(self.folder), "miou": 0.9, "risk": 0.1, "share_samples": 64}
        return {**KEEP_ALL, "promise": {**settings, **changes}}


def draw_of(config: RunConfig) -> GeneratorDraw:
    return GeneratorDraw.of(config.generator)


@pytest.fixture(scope="module")
def case(write_run_file_in: RunFileWriter, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("promise")
    config = load_config(write_run_file_in(folder, quality=KEEP_ALL), RunConfig)
    sampler, _ = open_sampler(config)
    labeler = open_fitted(config.labeler, sampler, fit_to_bytes(config.labeler, sampler)).labeler
    batches = list(sampler.batches(SEEDS, labeler.layers))
    labels = [labeler.label(batch) for batch in batches]
    masks = {seed: mask for batch, found in zip(batches, labels, strict=True)
             for seed, mask in zip(batch.seeds, found.masks_BHW.numpy(), strict=True)}  # fmt: skip
    confidences = {seed: round(value, 6) for batch, found in zip(batches, labels, strict=True)
                   for seed, value in zip(batch.seeds, found.confidence_B.tolist(), strict=True)}  # fmt: skip
    about = AnnotationSet(
        checkpoint_sha256=sha256_of(tiny_checkpoint),
        image_shape=sampler.generator.spec.image_shape,
        draw=draw_of(config),
        classes=("background", "foreground"),
        images=(),
    )
    about = write_set(folder / "set", sampler, about, SEEDS, 1)
    spoilt = sorted(SEEDS, key=confidences.__getitem__)[:NUM_SPOILT]
    for key, seed in zip(about.keys, map(int, about.keys), strict=True):
        write_mask(folder / "set", key, 1 - masks[seed] if seed in spoilt else masks[seed])
    return Case(folder / "set", confidences)


def test_the_limit_drops_what_the_annotated_images_say_is_bad(
    case: Case, write_run_file: RunFileWriter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = write_run_file(quality=case.promise())
    config = load_config(run_file, RunConfig)
    generate(config)
    said = capsys.readouterr().err
    assert "Of the kept samples, at most 10.0% are expected to have a mask with an mIoU below 0.9" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    promise = manifest["promise"]
    assert (promise["num_masks"], promise["num_below"]) == (len(SEEDS), NUM_SPOILT)
    # Two bad ones kept would be 3 / 21 at least, which is more than a tenth.
    assert promise["num_kept_below"] <= 1 and promise["estimated_risk"] <= 0.1
    ranked = sorted(case.confidences.values())
    assert promise["confidence_min"] == pytest.approx(ranked[NUM_SPOILT - 1 - promise["num_kept_below"]] + 1e-6)
    assert promise["num_kept"] == sum(value >= promise["confidence_min"] for value in ranked)
    rows = [row for path in (tmp_path / "out").glob("shards/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["kept"] for row in rows} == {True, False}
    assert all(row["kept"] == (row["confidence"] >= promise["confidence_min"]) for row in rows)
    assert manifest["config"]["quality"]["confidence_min"] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "What is promised of the masks:" in card and f"Calibrated on {len(SEEDS)} annotated images" in card
    # Again: nothing is calibrated anew, nothing changes.
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.suffix in (".tar", ".json")}
    generate(config)
    assert "Calibrated on" not in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != "progress.json")
    assert preview_sheet(config, 8)
    kept = tmp_path / "out" / "labeler" / "promise.json"
    kept.write_bytes(kept.read_bytes().replace(b'"num_below": 3', b'"num_below": 2'))
    for command in (generate, check_run):
        with pytest.raises(OutputError, match=r"labeler/promise\.json: is damaged"):
            command(config)
    kept.unlink()
    generate(config)
    assert kept.read_bytes() == before[kept]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"risk": 0.5}, "is the promise of another run"),
        ({"annotations_sha256": "0" * 64}, "is the promise of another run"),
        ({"confidence_min": 0.0}, "is not the promise that manifest.json states"),
    ],
)
def test_a_foreign_promise_is_refused_whatever_its_seal(
    case: Case, write_run_file: RunFileWriter, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    config = load_config(write_run_file(quality=case.promise(), dataset={"samples": 6}), RunConfig)
    generate(config)
    kept = tmp_path / "out" / "labeler" / "promise.json"
    found = unseal(kept.read_bytes(), Promise)
    assert found is not None
    kept.write_bytes(seal(found.content.model_copy(update=change)))
    larger = config.model_copy(update={"dataset": config.dataset.model_copy(update={"samples": 12})})
    with pytest.raises(OutputError, match=words):
        generate(larger)
    # Gone before the dataset is complete: nobody knows the limit of the shards that are there.
    kept.unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(OutputError, match="is gone, and the shards that are there were made with its limit"):
        generate(larger)


def test_masks_that_are_hardly_begun_are_refused(case: Case, write_run_file: RunFileWriter, tmp_path: Path) -> None:
    other = copied(case, tmp_path / "other")
    mask_HW = np.full((32, 32), 255, np.uint8)
    mask_HW[:15, 0], mask_HW[0, 1:9] = 1, 0
    write_mask(other, f"{SEEDS[4]:010d}", mask_HW)
    with pytest.raises(
        ConfigError, match=rf"1 images have labels on less than 50% of their pixels \({SEEDS[4]:010d}\)"
    ):
        generate(load_config(write_run_file(quality=case.promise(annotations=str(other))), RunConfig))


def test_corrected_masks_are_another_run(case: Case, write_run_file: RunFileWriter, tmp_path: Path) -> None:
    here = copied(case, tmp_path / "moved")
    generate(load_config(write_run_file(quality=case.promise()), RunConfig))
    generate(load_config(write_run_file(quality=case.promise(annotations="moved")), RunConfig))  # the same content
    write_mask(here, f"{SEEDS[0]:010d}", np.zeros((32, 32), np.uint8))
    with pytest.raises(OutputError, match=r"inputs\.promise_annotations: sha256:"):
        generate(load_config(write_run_file(quality=case.promise(annotations="moved")), RunConfig))


@pytest.mark.parametrize(
    ("risk", "words"),
    [
        (0.01, "20 annotated images, of which 3 have masks below 0.9, do not carry a risk of 0.01; about "),
        (0.04, "do not carry a risk of 0.04; about "),
    ],
)
def test_too_few_masks_are_refused_with_the_number_that_would_do(
    case: Case, write_run_file: RunFileWriter, tmp_path: Path, risk: float, words: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        generate(load_config(write_run_file(quality=case.promise(risk=risk)), RunConfig))
    assert words in str(raised.value) and "annotated images would do" in str(raised.value)
    assert not list((tmp_path / "out").glob("shards/*"))


def test_a_promise_that_no_mask_keeps(case: Case, write_run_file: RunFileWriter, tmp_path: Path) -> None:
    set_of_nothing = copied(case, tmp_path / "wrong")
    for number, seed in enumerate(SEEDS):
        write_mask(set_of_nothing, f"{seed:010d}", np.full((32, 32), number % 2, np.uint8))
    with pytest.raises(ConfigError, match="more annotated images would not help"):
        generate(load_config(write_run_file(quality=case.promise(annotations=str(set_of_nothing))), RunConfig))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"draw": {"truncation_psi": 1.0}},
            r"made with other settings than the run's \(truncation_psi 1\.0 there, 0\.7",
        ),
        ({"picked": Pick(choose="coverage", count=20, pool=40, first_seed=0).model_dump()}, "chosen by coverage; a"),
        ({"checkpoint_sha256": "0" * 64}, "the annotations belong to another checkpoint"),
    ],
)
def test_images_that_are_no_random_sample_of_the_run_are_refused(
    case: Case, write_run_file: RunFileWriter, tmp_path: Path, change: dict[str, dict[str, object]], words: str
) -> None:
    other = copied(case, tmp_path / "other")
    about = json.loads((other / "annotations.json").read_text())
    for key, value in change.items():
        about[key] = {**(about[key] or {}), **value} if isinstance(value, dict) else value
    (other / "annotations.json").write_text(json.dumps(about))
    with pytest.raises(ConfigError, match=words):
        generate(load_config(write_run_file(quality=case.promise(annotations=str(other))), RunConfig))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.safetensors"))


def test_images_that_nobody_has_labeled_are_no_random_sample(
    case: Case, write_run_file: RunFileWriter, tmp_path: Path
) -> None:
    other = copied(case, tmp_path / "other")
    (other / "masks" / f"{SEEDS[0]:010d}.png").unlink()
    with pytest.raises(ConfigError, match="1 of its 20 images have no labels"):
        generate(load_config(write_run_file(quality=case.promise(annotations=str(other))), RunConfig))


def test_annotated_classes_are_those_of_the_labeler_by_name() -> None:
    masks_NHW = np.array([[[0, 1, 2, 255]]], np.uint8)
    swapped = as_classes(masks_NHW, ("background", "hat", "hair"), ("background", "hair", "hat"), "set")
    assert swapped.tolist() == [[[0, 2, 1, 255]]]
    merged = as_classes(masks_NHW, ("background", "hat", "hair"), ("background", "foreground"), "set")
    assert merged.tolist() == [[[0, 1, 1, 255]]]
    with pytest.raises(
        ConfigError, match="set: names hat, which the labeler does not know; its classes are background, h"
    ):
        as_classes(masks_NHW, ("background", "hat", "hair"), ("background", "hair", "skin"), "set")


def test_miou_of_an_image_counts_the_classes_that_either_shows() -> None:
    truth_HW = np.array([[0, 0, 1, 255]], np.uint8)
    assert image_miou(np.array([[0, 0, 1, 2]], np.uint8), truth_HW, ("a", "b", "c")) == 1.0
    assert image_miou(np.array([[0, 2, 1, 0]], np.uint8), truth_HW, ("a", "b", "c")) == pytest.approx((0.5 + 1 + 0) / 3)
    assert image_miou(np.array([[0, 0, 1, 0]], np.uint8), np.full((1, 4), 255, np.uint8), ("a", "b", "c")) == 1.0

"""A run file with instances, from seeds to a dataset."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.discs import disc, write_discs
from numpy.typing import NDArray
from typer.testing import CliRunner

from labelmill.pipeline.annotations.formats.coco_shapes import run_lengths
from labelmill.pipeline.check_run import check_run
from labelmill.pipeline.cli import app
from labelmill.pipeline.dataset.export_coco import export_coco
from labelmill.pipeline.dataset.manifest import read_manifest
from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.pictures.png import decode_gray
from labelmill.pipeline.shards.reader import members_in
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.instances import Instance
from labelmill.schemas.sample import SampleMetadata
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.generate import generate

LINES = [
    {
        "key": "0000000000",
        "instances": [
            {"class": "person", "score": 0.9, "box": [2, 2, 12, 20]},
            {"class": "hat", "score": 0.8, "box": [14, 4, 15, 22]},
        ],
    },
    {"key": "0000000001", "instances": [{"class": "hat", "score": 0.8, "box": [2, 2, 0, 5]}]},
    {"key": "0000000003", "instances": [{"class": "hat", "score": 0.7, "box": [3, 1, 25, 30]}]},
]
SECTION = {"detector": {"kind": "file", "path": "boxes.jsonl"}, "clusters": [4], "variants": 4, "fit_samples": 2}


def read_instances(store: Store) -> tuple[dict[str, NDArray[Any] | None], dict[str, tuple[Instance, ...] | None]]:
    """Pictures and records by key."""
    numbers, said = {}, {}
    for member in members_in(store.read("shards/tiny-000000.tar")):
        if member.ending == "instances.png":
            numbers[member.key] = decode_gray(member.data)
        elif member.ending == "json":
            said[member.key] = SampleMetadata.model_validate_json(bytes(member.data)).instances
    return numbers, said


def check_coco(store: Store, folder: Path) -> None:
    """An export says to the pixel what the dataset says, to our reader and to COCO's own."""
    done = CliRunner().invoke(app, ["export", store.url, str(folder), "--format", "coco"], catch_exceptions=False)
    assert done.exit_code == 0 and "6 images" in done.output
    coco = json.loads((folder / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    numbers, said = read_instances(store)
    assert [image["file_name"] for image in coco["images"]] == [f"{key}.jpg" for key in numbers]
    assert sorted(path.name for path in (folder / "images").iterdir()) == [f"{key}.jpg" for key in numbers]
    read: dict[str, list[Instance]] = {key: [] for key in numbers}
    for each in coco["annotations"]:
        key = f"{each['image_id']:010d}"
        number = len(read[key]) + 1
        inside_HW = run_lengths(each["segmentation"]["counts"], (32, 32))
        assert np.array_equal(inside_HW, numbers[key] == number) and each["area"] == inside_HW.sum()
        label = names[each["category_id"]]
        read[key].append(Instance(id=number, label=label, score=each["score"], box=tuple(each["bbox"])))
    assert read == {key: list(instances or ()) for key, instances in said.items()}


def test_pycocotools_reads_an_export(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    store = Store.open(write_discs(tmp_path / "out", samples=6))
    counts = export_coco(store, tmp_path / "coco", None)
    coco = COCO(str(tmp_path / "coco" / "annotations.json"))
    assert (counts.images, counts.annotations) == (6, len(coco.anns)) and len(coco.imgs) == 6
    for annotation in coco.anns.values():
        _, mask_HW = disc(annotation["image_id"])
        assert np.array_equal(coco.annToMask(annotation), mask_HW == annotation["category_id"])


def run_with(write: Callable[..., Path], folder: Path, **section: object) -> RunConfig:
    (folder / "boxes.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    path = write(instances={**SECTION, **section}, dataset={"samples": 6, "samples_per_shard": 6})
    return load_config(path, RunConfig)


@pytest.mark.parametrize("masks_from", ["clusters", "labeler"])
def test_samples_have_instances(
    write_run_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], masks_from: str
) -> None:
    config = run_with(write_run_file, tmp_path, masks_from=masks_from)
    generate(config)
    assert capsys.readouterr().err.count("0000000001: box 1 [2, 2, 0, 5] is empty") == 1
    store = Store.open(config.output)
    assert read_manifest(store).optional_files == ("instances.png",)
    assert not verify(store, deep=True).problems
    numbers, said = read_instances(store)
    assert len(numbers) == 6
    check_coco(store, tmp_path / "coco")
    for key, numbers_HW in numbers.items():
        assert numbers_HW is not None and numbers_HW.dtype == np.uint8 and numbers_HW.shape == (32, 32)
        assert [number for number in np.unique(numbers_HW) if number] == [each.id for each in said[key] or ()]
    assert not said["0000000001"] and not said["0000000002"]
    assert {each.label for each in (*(said["0000000000"] or ()), *(said["0000000003"] or ()))} >= {"hat"}


def test_what_cannot_be_is_refused_before_work(write_run_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"instances\.crossover: 8, but this generator has 8 rows of w; 1 to 7"):
        check_run(run_with(write_run_file, tmp_path, crossover=8))
    config = run_with(write_run_file, tmp_path)
    (tmp_path / "boxes.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"instances\.detector\.path: .*boxes\.jsonl: cannot be read"):
        check_run(config)
    with pytest.raises(ConfigError, match=r"instances\.detector\.kind: input should be one of 'file', 'transformers'"):
        run_with(write_run_file, tmp_path, detector={"kind": "function", "path": "os:system"})


def test_images_with_too_few_instances_are_dropped(write_run_file: Callable[..., Path], tmp_path: Path) -> None:
    config = run_with(write_run_file, tmp_path)
    quality = {"min_instances": 1, "foreground_min": 0, "foreground_max": 1, "confidence_min": 0}
    values = {**config.model_dump(), "quality": {**quality, "largest_component_min": 0, "allow_weak_labeler": True}}
    values["dataset"] = {"samples": 2, "samples_per_shard": 2, "max_candidates_per_sample": 2}
    values["instances"]["detector"]["path"] = str(tmp_path / "boxes.jsonl")
    generate(RunConfig.model_validate(values))
    manifest = read_manifest(Store.open(config.output))
    assert manifest.dropped_by_reason == {"too_few_instances": 2}
    with pytest.raises(ValueError, match=r"quality\.min_instances: set, but there are no `instances`"):
        RunConfig.model_validate({**values, "instances": None})


def test_boxes_are_part_of_a_runs_identity(write_run_file: Callable[..., Path], tmp_path: Path) -> None:
    from labelmill.pipeline.check_run import read_inputs
    from labelmill.schemas.fingerprint import identity

    config = run_with(write_run_file, tmp_path)
    before = identity(config, "c" * 64, read_inputs(config))
    assert "path" not in before["instances"]["detector"]
    (tmp_path / "boxes.jsonl").write_text("")
    assert identity(config, "c" * 64, read_inputs(config)) != before
    assert "instances" not in identity(config.model_copy(update={"instances": None}), "c" * 64, {})

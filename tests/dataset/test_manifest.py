"""Claiming an output, and describing a finished one."""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.small_dataset import CHECKPOINT, CLASSES, FITTED, config_of, context_of, paint, records_of, write_dataset

from labelmill.pipeline.dataset.claim import claim_output
from labelmill.pipeline.dataset.finish import finish_dataset
from labelmill.pipeline.dataset.manifest import read_index, read_manifest, read_run_file
from labelmill.pipeline.dataset.splits import assign_splits
from labelmill.pipeline.store.store import Store, Version
from labelmill.schemas.config import GeneratorConfig
from labelmill.schemas.errors import OutputError
from labelmill.schemas.fingerprint import identity

# Seeds 100 on, 16 a shard, of which 1 and 2 of every five are dropped; four are kept a shard, three in the last.
KEPT = [100, 103, 104, 105, 118, 119, 120, 123, 133, 134, 135]
DROPPED = [101, 102, 116, 117, 121, 122, 132]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "out"))


def test_a_new_output_is_claimed_once(store: Store, tmp_path: Path) -> None:
    ours = identity(config_of(tmp_path), CHECKPOINT.sha256, {})
    claim_output(store, ours)
    assert read_run_file(store).identity == ours
    before = store.read("run.json")
    store.create("shards/a.tar", b"")
    claim_output(store, ours)
    assert store.read("run.json") == before


def test_an_output_of_another_configuration_is_refused_with_the_differences(store: Store, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    claim_output(store, identity(config, CHECKPOINT.sha256, {}))
    before = store.read("run.json")
    changed = config.model_copy(
        update={
            "generator": GeneratorConfig(checkpoint="bundled:painted", truncation_psi=0.5),
            "dataset": config.dataset.model_copy(update={"samples": 400, "first_seed": 7}),
        }
    )
    with pytest.raises(OutputError) as error:
        claim_output(store, identity(changed, CHECKPOINT.sha256, {}))
    assert str(error.value).splitlines()[1:] == [
        "  dataset.first_seed: 7 in the run file, 100 in the output",
        "  generator.truncation_psi: 0.5 in the run file, 0.7 in the output",
    ]
    assert store.read("run.json") == before


def test_a_foreign_folder_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out" / "papers").mkdir(parents=True)
    (tmp_path / "out" / "papers" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"holds files that are not labelmill's, such as papers/thesis\.tex"):
        claim_output(store, identity(config_of(tmp_path), CHECKPOINT.sha256, {}))
    assert [file.path for file in store.list()] == ["papers/thesis.tex"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": "other"}', b"\xff"])
def test_a_foreign_run_file_is_refused(store: Store, tmp_path: Path, content: bytes) -> None:
    store.create("run.json", content)
    with pytest.raises(OutputError, match=r"out/run\.json: is not what labelmill writes"):
        claim_output(store, identity(config_of(tmp_path), CHECKPOINT.sha256, {}))


def test_of_two_claims_at_once_one_stands(tmp_path: Path) -> None:
    def claim(output: Path, psi: float) -> bool:
        config = config_of(output)
        generator = GeneratorConfig(checkpoint="bundled:painted", truncation_psi=psi)
        ours = identity(config.model_copy(update={"generator": generator}), CHECKPOINT.sha256, {})
        try:
            claim_output(Store.open(str(output)), ours)
        except OutputError as error:
            assert "generator.truncation_psi" in str(error)
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        for number in range(10):
            outputs = [tmp_path / str(number)] * 4
            assert sum(threads.map(claim, outputs, [0.1, 0.2, 0.3, 0.4])) == 1
            assert all(threads.map(claim, [tmp_path / f"same{number}"] * 4, [0.5] * 4))


def test_counts_and_statistics_are_those_of_the_samples(tmp_path: Path) -> None:
    store, manifest = write_dataset(tmp_path / "out")
    assert read_manifest(store) == manifest
    images_BHWC = np.stack([paint(seed)[0] for seed in KEPT]) / 255
    masks_BHW = np.stack([paint(seed)[1] for seed in KEPT])
    assert manifest.mean == pytest.approx(images_BHWC.mean((0, 1, 2)), abs=1e-6)
    assert manifest.std == pytest.approx(images_BHWC.std((0, 1, 2)), abs=1e-6)
    pixels = {name: int((masks_BHW == value).sum()) for value, name in enumerate(CLASSES)}
    assert manifest.class_pixels == {**pixels, "ignore": len(KEPT)}
    assert (manifest.num_samples, manifest.num_candidates, manifest.num_shards) == (11, len(KEPT + DROPPED), 3)
    assert manifest.dropped_by_reason == {"low_confidence": len(DROPPED)}
    assert manifest.num_bytes == sum(file.num_bytes for file in store.list("shards") if file.path.endswith(".tar"))
    assert manifest.labeler_sha256 == hashlib.sha256(FITTED).hexdigest()
    assert manifest.classes == list(CLASSES)
    assert manifest.samples_by_split.keys() == {"train", "val"} and sum(manifest.samples_by_split.values()) == 11


def test_manifests_of_former_versions_are_of_square_rgb_images(tmp_path: Path) -> None:
    store, manifest = write_dataset(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    values = json.loads(path.read_text())
    assert values.pop("image_shape") == {"height": 16, "width": 16, "channels": 3}
    path.write_text(json.dumps({**values, "resolution": 16}))
    assert read_manifest(store) == manifest
    path.write_text(json.dumps({**values, "resolution": -16}))
    with pytest.raises(OutputError, match=r"manifest\.json: is not what labelmill writes"):
        read_manifest(store)


def test_the_index_lists_every_shard_in_the_words_of_wids(tmp_path: Path) -> None:
    store, _ = write_dataset(tmp_path / "out")
    index = json.loads(store.read("index.json"))
    assert index["wids_version"] == 1
    splits = {"train": 0.9, "val": 0.1}
    assert [shard["nsamples"] for shard in index["shardlist"]] == [4, 4, 3]
    for number, shard in enumerate(index["shardlist"]):
        tar = store.read(shard["url"])
        assert shard["url"] == f"shards/painted-{number:06d}.tar"
        assert (shard["filesize"], shard["sha256"]) == (len(tar), hashlib.sha256(tar).hexdigest())
        assert shard["split"] == assign_splits(3, splits)[number]
        assert shard["url"] in index["splits"][shard["split"]]
    assert sum(len(urls) for urls in index["splits"].values()) == 3


def test_equal_datasets_get_equal_bytes_without_a_date(tmp_path: Path) -> None:
    first, _ = write_dataset(tmp_path / "first")
    second, _ = write_dataset(tmp_path / "second")
    for path in ("index.json", "README.md", "croissant.json", "manifest.json"):
        content = first.read(path)
        assert second.read(path) == content
        assert not re.search(rb"20\d\d-\d\d|first", content.replace(b"first_seed", b"").replace(b"fit_first", b""))


class _WatchedStore(Store):
    """The real store; notes what is written."""

    def compare_and_swap(self, path: str, data: bytes, version: Version | None) -> bool:
        self.__dict__.setdefault("written", []).append(path)
        return super().compare_and_swap(path, data, version)


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    store, _ = write_dataset(tmp_path / "out")
    config, watched = config_of(tmp_path / "out"), _WatchedStore.open(store.url)
    for path in ("index.json", "README.md", "croissant.json", "manifest.json"):
        store.replace(path, b"of an earlier run")
    finish_dataset(watched, records_of(store, config), context_of(config))
    assert watched.__dict__["written"] == ["index.json", "README.md", "croissant.json", "manifest.json"]


def test_extension_keeps_splits_and_lists_more(tmp_path: Path) -> None:
    store, _ = write_dataset(tmp_path / "out", samples=8)
    before = read_index(store)
    write_dataset(tmp_path / "out", samples=40)
    after = read_index(store)
    assert after.shardlist[:2] == before.shardlist and len(after.shardlist) == 10
    assert read_manifest(store).num_samples == 40


def test_the_checkpoint_is_named_as_it_was_read(tmp_path: Path) -> None:
    store, _ = write_dataset(tmp_path / "out")
    config, context = config_of(tmp_path / "out"), context_of(config_of(tmp_path / "out"))
    config = config.model_copy(update={"generator": GeneratorConfig(checkpoint="./here/g.pkl")})
    source = CHECKPOINT.model_copy(update={"reference": "/absolute/here/g.pkl"})
    finish_dataset(
        store, records_of(store, config_of(tmp_path / "out")), replace(context, config=config, checkpoint=source)
    )
    assert read_manifest(store).config["generator"]["checkpoint"] == "/absolute/here/g.pkl"


def test_an_unfinished_dataset_has_no_manifest_to_read(store: Store) -> None:
    with pytest.raises(OutputError, match=r"has no manifest\.json: not a labelmill dataset, or not complete"):
        read_manifest(store)

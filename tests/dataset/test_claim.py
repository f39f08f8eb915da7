"""An output belongs to one configuration and one fitted labeler; either claim vouches for the other."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.small_dataset import CHECKPOINT, FITTED, KIND, LABELER_PATH, config_of, records_of, write_dataset

from labelmill.pipeline.dataset.claim import (
    FINGERPRINT_PATH,
    check_claim,
    check_labeler_claim,
    claim_fingerprint,
    claim_output,
    read_claim,
    shard_splits,
)
from labelmill.pipeline.dataset.manifest import read_index, read_manifest
from labelmill.pipeline.dataset.splits import assign_splits
from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.shards.sealed import seal
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig
from labelmill.schemas.errors import OutputError
from labelmill.schemas.fingerprint import fingerprint, identity

OURS = hashlib.sha256(FITTED).hexdigest()
OTHER = "0" * 64


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sound") / "out"
    write_dataset(output)
    return output


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Store:
    return Store.open(str(shutil.copytree(sound, tmp_path / "out")))


@pytest.fixture
def ours(store: Store) -> Mapping[str, Any]:
    return identity(config_of(store.url), CHECKPOINT.sha256, {})


def claim(store: Store, run_identity: Mapping[str, Any], labeler_sha256: str) -> None:
    claim_fingerprint(store, run_identity, LABELER_PATH, labeler_sha256, KIND)


def test_the_first_labeler_is_the_outputs(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "out"))
    ours = identity(config_of(tmp_path), CHECKPOINT.sha256, {})
    claim_output(store, ours)
    claim(store, ours, OURS)
    found = read_claim(store)
    assert found is not None and (found.labeler_sha256, found.fingerprint) == (OURS, fingerprint(ours, OURS))
    claim(store, ours, OURS)
    assert read_claim(store) == found
    with pytest.raises(OutputError, match=r"safetensors: is not the labeler that fingerprint\.json names"):
        claim(store, ours, OTHER)
    assert read_claim(store) == found


@pytest.mark.parametrize("lost", [[], [FINGERPRINT_PATH], [FINGERPRINT_PATH, "manifest.json"]])
def test_another_labeler_is_refused_whatever_else_is_lost(
    store: Store, ours: Mapping[str, Any], lost: list[str]
) -> None:
    for path in lost:
        store.delete(path)
    names = {0: r"fingerprint\.json", 1: r"manifest\.json", 2: r"records/000000\.json"}[len(lost)]
    with pytest.raises(OutputError, match=rf"style_mixing\.safetensors: is not the labeler that {names} names"):
        claim(store, ours, OTHER)
    check_labeler_claim(store, ours, LABELER_PATH, OURS)
    claim(store, ours, OURS)
    found = read_claim(store)
    assert found is not None and found.labeler_sha256 == OURS


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_damaged_claim_is_written_anew(store: Store, ours: Mapping[str, Any], content: bytes) -> None:
    before = store.read(FINGERPRINT_PATH)
    store.replace(FINGERPRINT_PATH, content)
    assert any(FINGERPRINT_PATH in problem for problem in verify(store).problems)
    with pytest.raises(OutputError, match=r"is not the labeler that manifest\.json names"):
        claim(store, ours, OTHER)
    claim(store, ours, OURS)
    assert store.read(FINGERPRINT_PATH) == before
    assert verify(store).problems == ()


def test_a_damaged_claim_for_which_nothing_vouches_is_refused(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "out"))
    ours = identity(config_of(tmp_path), CHECKPOINT.sha256, {})
    claim_output(store, ours)
    store.create(FINGERPRINT_PATH, b"damaged")
    with pytest.raises(OutputError, match=r"fingerprint\.json: is damaged.*style_mixing\.safetensors.*Delete both"):
        claim(store, ours, OURS)
    store.delete(FINGERPRINT_PATH)
    claim(store, ours, OURS)


def test_a_claim_of_another_run_is_none(store: Store, ours: Mapping[str, Any]) -> None:
    found = read_claim(store)
    assert found is not None
    store.replace(FINGERPRINT_PATH, seal(found.model_copy(update={"fingerprint": "e" * 64})))
    assert any(FINGERPRINT_PATH in problem for problem in verify(store).problems)
    claim(store, ours, OURS)
    assert read_claim(store) == found


@pytest.mark.parametrize("content", [None, b"", b'{"format": "other"}', b"flipped"])
@pytest.mark.parametrize("witness", [FINGERPRINT_PATH, "manifest.json"])
def test_a_lost_or_damaged_run_file_is_written_anew(
    store: Store, ours: Mapping[str, Any], content: bytes | None, witness: str
) -> None:
    before = store.read("run.json")
    store.delete(({FINGERPRINT_PATH, "manifest.json"} - {witness}).pop())
    store.delete("run.json")
    if content is not None:
        flipped = before.replace(b'"truncation_psi": 0.7', b'"truncation_psi": 0.6')
        store.create("run.json", flipped if content == b"flipped" else content)
    claim_output(store, ours)
    assert store.read("run.json") == before


def test_a_lost_run_file_opens_the_output_to_nobody_else(store: Store) -> None:
    store.delete("run.json")
    generator = GeneratorConfig(checkpoint="bundled:painted", truncation_psi=0.5)
    changed = config_of(store.url).model_copy(update={"generator": generator})
    with pytest.raises(
        OutputError, match=r"has lost its run\.json, and its fingerprint\.json and manifest\.json are not"
    ):
        check_claim(store, identity(changed, CHECKPOINT.sha256, {}))


def test_datasets_of_earlier_versions_keep_their_splits_when_they_grow(tmp_path: Path) -> None:
    """Their index says where their shards went; they have no fingerprint.json."""
    store, _ = write_dataset(tmp_path / "out", samples=40)
    splits = {"train": 0.9, "val": 0.1}
    hashed = assign_splits(10, splits, num_hashed=10)
    assert hashed != assign_splits(10, splits)
    _as_earlier_versions(store, hashed)
    assert verify(store).problems == ()
    write_dataset(tmp_path / "out", samples=60)
    grown = [shard.split for shard in read_index(store).shardlist]
    assert grown[:10] == hashed and len(grown) == 15
    assert verify(store).problems == ()
    # Even if the index is lost afterwards.
    store.delete("index.json")
    assert shard_splits(store, 15, splits) == grown
    assert [record.index for record in records_of(store, config_of(store.url, samples=60))] == list(range(15))


@pytest.mark.parametrize("lost", ["index.json", "manifest.json"])
def test_index_or_manifest_alone_tells_an_earlier_versions_splits(tmp_path: Path, lost: str) -> None:
    store, _ = write_dataset(tmp_path / "out", samples=40)
    hashed = assign_splits(10, {"train": 0.9, "val": 0.1}, num_hashed=10)
    _as_earlier_versions(store, hashed)
    store.delete(lost)
    assert shard_splits(store, 10, {"train": 0.9, "val": 0.1}) == hashed


def _as_earlier_versions(store: Store, hashed: list[str]) -> None:
    """Without a claim, and with the splits that a hash of the index gives."""
    store.delete(FINGERPRINT_PATH)
    index, manifest = read_index(store), read_manifest(store)
    shards = [shard.model_copy(update={"split": split}) for shard, split in zip(index.shardlist, hashed, strict=True)]
    by_split = {name: [shard for shard in shards if shard.split == name] for name in index.splits}
    urls = {name: [shard.url for shard in some] for name, some in by_split.items()}
    changed = index.model_copy(update={"shardlist": shards, "splits": urls})
    store.replace("index.json", changed.model_dump_json(indent=1).encode() + b"\n")
    counts = {name: sum(shard.nsamples for shard in some) for name, some in by_split.items()}
    old = manifest.model_copy(update={"samples_by_split": counts})
    store.replace("manifest.json", old.model_dump_json(indent=1, exclude={"kinds", "labeler"}).encode() + b"\n")

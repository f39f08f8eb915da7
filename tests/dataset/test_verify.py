"""Every kind of damage is found, and what follows from the tars is rebuilt."""

import io
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.small_dataset import CLASSES, RESOLUTION, write_dataset
from helpers.tars import repacked

from labelmill.pipeline.dataset.verify import VerifyResult, verify
from labelmill.pipeline.shards.publisher import same_content
from labelmill.pipeline.shards.sealed import unseal
from labelmill.pipeline.store.store import Store
from labelmill.schemas.sample import SampleMetadata
from labelmill.schemas.shard import ShardRecord

TAR, PARQUET, RECORD = "shards/painted-000001.tar", "shards/painted-000001.parquet", "records/000001.json"
REDO = "delete it and run `labelmill generate` again"
# The second shard's samples, and the seeds dropped before them.
SEEDS = (118, 119, 120, 123)


@pytest.fixture(scope="session")
def sound_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("sound") / "out"
    write_dataset(output)
    return output


@pytest.fixture
def store(sound_dataset: Path, tmp_path: Path) -> Store:
    return Store.open(str(shutil.copytree(sound_dataset, tmp_path / "out")))


def only_problem(store: Store, *, deep: bool = True) -> str:
    result = verify(store, deep=deep)
    assert result.repaired == ()
    assert len(result.problems) == 1, result.problems
    return result.problems[0]


def files_of(store: Store) -> dict[str, bytes]:
    return {file.path: store.read(file.path) for file in store.list()}


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_a_sound_dataset_has_no_problems(tmp_path: Path, image_format: str) -> None:
    store, _ = write_dataset(tmp_path / "out", image_format)
    before = files_of(store)
    for repair in (False, True):
        assert verify(store, repair=repair) == VerifyResult(3, 11, (), ())
    assert verify(store, deep=False) == VerifyResult(3, 11, (), ())
    assert files_of(store) == before


def test_an_unfinished_dataset_is_not_verified(store: Store) -> None:
    store.delete("manifest.json")
    assert "has no manifest.json" in only_problem(store)
    assert "has no manifest.json" in only_problem(Store.open(f"{store.url}/nothing"))


# Damaged tars.


def rewrite(store: Store, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    """Write the second shard's tar, and all that follows from it, as if it had been made with this content."""
    store.replace(TAR, repacked(store.read(TAR), change))
    store.delete(RECORD)
    store.delete("index.json")


def problems_after(store: Store, change: Callable[[dict[str, bytes]], dict[str, bytes]], deep: bool = True) -> str:
    """What verify says of the second shard's content itself, its hash being right."""
    rewrite(store, change)
    problems = verify(store, deep=deep).problems
    assert problems and all(problem.startswith(f"{TAR}: ") and problem.endswith(REDO) for problem in problems)
    return "\n".join(problems)


@pytest.mark.parametrize("position", [0.0, 0.1, 0.37, 0.5, 0.73, 0.999])
def test_a_flipped_bit_anywhere_is_found_and_never_repaired_away(store: Store, position: float) -> None:
    tar = bytearray(store.read(TAR))
    tar[int(position * len(tar))] ^= 1
    store.replace(TAR, bytes(tar))
    before = files_of(store)
    for repair in (False, True):
        result = verify(store, repair=repair)
        assert result.problems[0] == (
            f"{TAR}: its {len(tar)} bytes are not those that index.json and its record name (another SHA-256); {REDO}"
        )
        assert (result.num_shards, result.num_samples, result.repaired) == (2, 7, ())
    assert files_of(store) == before


def test_random_damage_is_found(store: Store) -> None:
    tar, chance = store.read(TAR), random.Random(5)
    for _ in range(25):
        start = chance.randrange(len(tar))
        cut = chance.choice([tar[:start], tar[:start] + tar[start + 512 :], tar[start:], tar + tar[start:], b""])
        store.replace(TAR, cut)
        assert any(problem.startswith(TAR) for problem in verify(store).problems)


def test_a_missing_tar_is_found(store: Store) -> None:
    store.delete(TAR)
    for repair in (False, True):
        result = verify(store, repair=repair)
        assert result.problems == (f"{TAR}: is missing; run `labelmill generate` again",)
        assert result.num_samples == 7


def test_shards_in_each_others_place_are_found(store: Store) -> None:
    first, second = store.read("shards/painted-000000.tar"), store.read(TAR)
    store.replace(TAR, first)
    store.replace("shards/painted-000000.tar", second)
    problems = "\n".join(verify(store).problems)
    assert f"{TAR}: candidate 0 is seed 100 instead of 116; {REDO}" in problems
    assert "shards/painted-000000.tar: candidate 0 is seed 116 instead of 100" in problems


@pytest.mark.parametrize("ending", ["png", "mask.png", "json"])
def test_a_missing_member_is_found(store: Store, ending: str) -> None:
    def without(members: dict[str, bytes]) -> dict[str, bytes]:
        return {name: content for name, content in members.items() if name != f"0000000119.{ending}"}

    assert "where 0000000" in problems_after(store, without)


def test_a_missing_or_doubled_sample_is_found(store: Store) -> None:
    def without(members: dict[str, bytes]) -> dict[str, bytes]:
        return {name: content for name, content in members.items() if not name.startswith("0000000119")}

    found = problems_after(store, without)
    assert "it holds 3 samples instead of 4" in found
    assert "candidate 3 is seed 120 instead of 119" in found


@pytest.mark.parametrize("name", ["../../outside.png", "/etc/0000000118.png", "0000000118.jpg", "0000000118.a.png"])
def test_strange_and_hostile_names_are_found(store: Store, tmp_path: Path, name: str) -> None:
    def renamed(members: dict[str, bytes]) -> dict[str, bytes]:
        return {name if known == "0000000118.png" else known: content for known, content in members.items()}

    assert f"it holds {name}, 0000000118.mask.png, 0000000118.json where" in problems_after(store, renamed)
    assert not list(tmp_path.parent.glob("outside.png"))


def test_members_out_of_order_are_found(store: Store) -> None:
    assert "it holds " in problems_after(store, lambda members: dict(reversed(members.items())))


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def mask_of(members: dict[str, bytes]) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(members["0000000119.mask.png"], np.uint8), cv2.IMREAD_UNCHANGED)


def bits(mask_HW: np.ndarray) -> bytes:
    return cv2.imencode(".png", mask_HW & 1, [cv2.IMWRITE_PNG_BILEVEL, 1])[1].tobytes()


MASK_DAMAGES: dict[str, tuple[Callable[[np.ndarray], bytes], str]] = {
    "one pixel": (lambda mask: png(np.where(np.arange(256).reshape(16, 16) == 77, (mask + 1) % 3, mask)), "its pixels"),
    "unknown class": (lambda mask: png(np.where(mask == 2, len(CLASSES), mask)), "holds [3], which are not classes"),
    "colour": (lambda mask: png(np.dstack([mask] * 3)), "is no 8-bit gray PNG of 16 x 16"),
    "16 bit": (lambda mask: png(mask.astype(np.uint16)), "is no 8-bit gray PNG of 16 x 16"),
    "1 bit": (bits, "is no 8-bit gray PNG of 16 x 16"),
    "size": (lambda mask: png(mask[:8]), "is no 8-bit gray PNG of 16 x 16"),
    "cut": (lambda mask: png(mask)[:60], "0000000119.mask.png: "),
    "jpeg": (lambda mask: cv2.imencode(".jpg", mask)[1].tobytes(), "is no 8-bit gray PNG of 16 x 16"),
    "nothing": (lambda mask: b"", "is no 8-bit gray PNG of 16 x 16"),
}


@pytest.mark.parametrize("damage", MASK_DAMAGES)
def test_a_wrong_mask_is_found(store: Store, damage: str) -> None:
    make, message = MASK_DAMAGES[damage]

    def changed(members: dict[str, bytes]) -> dict[str, bytes]:
        return {**members, "0000000119.mask.png": make(mask_of(members).astype(np.uint8))}

    found = problems_after(store, changed)
    assert message in found and f"{TAR}: 0000000119.mask.png: " in found


def test_shallow_verification_leaves_pixels_unread(store: Store) -> None:
    rewrite(store, lambda members: {**members, "0000000119.mask.png": b""})
    assert verify(store, deep=True).problems[0].startswith(f"{TAR}: 0000000119.mask.png: ")
    assert [problem.split(":")[0] for problem in verify(store, deep=False).problems] == [RECORD, "index.json"]


@pytest.mark.parametrize("damage", ["cut", "size", "gray", "nothing", "unmarked"])
def test_a_wrong_image_is_found(store: Store, damage: str) -> None:
    def changed(members: dict[str, bytes]) -> dict[str, bytes]:
        content = members["0000000119.png"]
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        damaged = {
            "cut": content[:100],
            "size": png(pixels[:8]),
            "gray": png(pixels[:, :, 0]),
            "nothing": b"",
            "unmarked": png(pixels),
        }
        return {**members, "0000000119.png": damaged[damage]}

    expected = "is not marked as made by an algorithm" if damage == "unmarked" else "is no RGB image of 16 x 16 pixels"
    assert f"0000000119.png: {expected}" in problems_after(store, changed)


def with_metadata(change: Callable[[SampleMetadata], SampleMetadata]) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """Change the JSON of the sample of seed 119."""

    def changed(members: dict[str, bytes]) -> dict[str, bytes]:
        metadata = SampleMetadata.model_validate_json(members["0000000119.json"])
        return {**members, "0000000119.json": change(metadata).model_dump_json().encode()}

    return changed


def test_json_that_is_none_is_found(store: Store) -> None:
    found = problems_after(store, lambda members: {**members, "0000000119.json": b'{"key": "0000000119"}'}, deep=False)
    assert "0000000119.json: candidate: Field required" in found


METADATA_DAMAGES: dict[str, tuple[Callable[[SampleMetadata], SampleMetadata], str]] = {
    "key": (lambda m: m.model_copy(update={"key": "0000000118"}), "says that it is of sample 0000000118"),
    "seed": (
        lambda m: m.model_copy(update={"candidate": m.candidate.model_copy(update={"seed": 120})}),
        "is of seed 120, which does not go by this name",
    ),
    "fingerprint": (lambda m: m.model_copy(update={"fingerprint": "0" * 64}), "fingerprint 000000000000 instead of"),
    "checkpoint": (lambda m: m.model_copy(update={"checkpoint_sha256": "0" * 64}), "made by checkpoint 000000000000"),
    "kept": (
        lambda m: m.model_copy(update={"candidate": m.candidate.model_copy(update={"drop_reason": "fragmented"})}),
        "confuses kept and dropped",
    ),
    "extra candidate": (
        lambda m: m.model_copy(
            update={"dropped_before": (m.candidate.model_copy(update={"seed": 118, "drop_reason": "fragmented"}),)}
        ),
        "candidate 3 is seed 118 instead of 119",
    ),
    "pixels": (
        lambda m: m.model_copy(
            update={
                "candidate": m.candidate.model_copy(update={"class_pixels": {**m.candidate.class_pixels, "hair": 0}})
            }
        ),
        "do not sum to 16 x 16",
    ),
    "classes": (
        lambda m: m.model_copy(
            update={"candidate": m.candidate.model_copy(update={"class_pixels": {"background": RESOLUTION**2}})}
        ),
        "seed 119 has classes background",
    ),
}


@pytest.mark.parametrize("damage", METADATA_DAMAGES)
def test_wrong_metadata_is_found(store: Store, damage: str) -> None:
    change, message = METADATA_DAMAGES[damage]
    assert message in problems_after(store, with_metadata(change), deep=False)


def test_a_seed_outside_the_block_is_found(store: Store) -> None:
    """A shard of candidates in order that began before its block."""

    def shifted(members: dict[str, bytes]) -> dict[str, bytes]:
        first = SampleMetadata.model_validate_json(members["0000000118.json"])
        earlier = first.dropped_before[0].model_copy(update={"seed": 115})
        changed = first.model_copy(update={"dropped_before": (earlier, *first.dropped_before)})
        return {**members, "0000000118.json": changed.model_dump_json().encode()}

    assert "candidate 0 is seed 115 instead of 116" in problems_after(store, shifted, deep=False)


def test_many_problems_of_one_shard_are_cut_short(store: Store) -> None:
    rewrite(store, lambda members: {name: b"" if name.endswith("png") else c for name, c in members.items()})
    problems = verify(store).problems
    assert len(problems) == 6
    assert problems[5] == f"{TAR}: and 7 more problems"


# What follows from the tars.


@pytest.mark.parametrize(
    "lost", [[PARQUET], [RECORD], [PARQUET, RECORD], ["index.json"], ["README.md"], ["croissant.json"]]
)
def test_lost_files_are_found_and_rebuilt(store: Store, lost: list[str]) -> None:
    before = files_of(store)
    for path in lost:
        store.delete(path)
    assert [problem.split(":")[0] for problem in verify(store).problems] == lost
    result = verify(store, repair=True)
    assert result.problems == ()
    assert [line.split(",")[0] for line in result.repaired] == lost
    after = files_of(store)
    assert after.keys() == before.keys()
    for path in before:
        if path != RECORD:
            assert after[path] == before[path]
    assert same_content(*(record_in(files[RECORD]) for files in (before, after)))
    assert verify(store) == VerifyResult(3, 11, (), ())


def test_every_candidate_is_accounted_for_after_all_sidecars_are_lost(store: Store) -> None:
    before = files_of(store)
    for path in before:
        if path.endswith(".parquet") or path.startswith("records/"):
            store.delete(path)
    result = verify(store, repair=True)
    assert result.problems == () and len(result.repaired) == 6
    seeds = []
    for path, content in files_of(store).items():
        if path.endswith(".parquet"):
            assert content == before[path]
            seeds += pq.read_table(io.BytesIO(content)).column("seed").to_pylist()
    assert seeds == [*range(100, 106), *range(116, 124), *range(132, 136)]


def record_in(content: bytes) -> ShardRecord:
    found = unseal(content, ShardRecord)
    assert found is not None and found.is_sealed
    return found.content


@pytest.mark.parametrize("content", [b"", b"PAR1 not parquet", b"of another shard"])
def test_a_wrong_parquet_file_is_found_and_rebuilt(store: Store, content: bytes) -> None:
    before = store.read(PARQUET)
    store.replace(PARQUET, store.read("shards/painted-000002.parquet") if content == b"of another shard" else content)
    assert only_problem(store).startswith(f"{PARQUET}: is missing or not what its tar says")
    assert verify(store, repair=True).problems == ()
    assert store.read(PARQUET) == before


def test_swapped_records_are_found_and_rebuilt(store: Store) -> None:
    first, second = store.read("records/000000.json"), store.read(RECORD)
    store.replace(RECORD, first)
    store.replace("records/000000.json", second)
    assert [problem.split(":")[0] for problem in verify(store).problems] == ["records/000000.json", RECORD]
    assert verify(store, repair=True).problems == ()
    for path, record in (("records/000000.json", first), (RECORD, second)):
        assert same_content(*(record_in(content) for content in (store.read(path), record)))


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("index.json", b'"nsamples": 4', b'"nsamples": 5'),
        ("index.json", b'"wids_version": 1', b'"wids_version": 2'),
        ("manifest.json", b'"num_samples": 11', b'"num_samples": 12'),
        ("manifest.json", b'"low_confidence": 7', b'"low_confidence": 6'),
        ("manifest.json", b'"num_shards": 3', b'"num_shards": 4'),
    ],
)
def test_wrong_counts_are_found_and_rebuilt(store: Store, path: str, old: bytes, new: bytes) -> None:
    before = store.read(path)
    assert old in before
    store.replace(path, before.replace(old, new))
    assert only_problem(store).startswith(f"{path}: is missing or not what the shards say")
    result = verify(store, repair=True)
    assert (result.problems, result.repaired) == ((), (f"{path}, from the tars",))
    assert store.read(path) == before


def test_an_index_with_wrong_hashes_does_not_condemn_sound_tars(store: Store) -> None:
    before = store.read("index.json")
    store.replace("index.json", before.replace(b'"sha256": "', b'"sha256": "0'))
    assert verify(store, repair=True).problems == ()
    assert store.read("index.json") == before


@pytest.mark.parametrize("path", ["shards/painted-000003.tar", "shards/a.txt", "records/000009.json", "shards/a/b.tar"])
def test_files_that_are_not_part_of_the_dataset_are_found(store: Store, path: str) -> None:
    store.create(path, b"")
    assert only_problem(store).startswith(f"{path}: is not part of the dataset")


def test_another_labeler_or_run_is_found(store: Store) -> None:
    labeler, run = store.read("labeler/style_mixing.safetensors"), store.read("run.json")
    store.replace("labeler/style_mixing.safetensors", b"another")
    assert only_problem(store).startswith("labeler/style_mixing.safetensors: is not the labeler")
    store.delete("labeler/style_mixing.safetensors")
    assert only_problem(store).startswith("labeler/style_mixing.safetensors: is missing")
    store.create("labeler/style_mixing.safetensors", labeler)
    store.replace("run.json", run.replace(b'"truncation_psi": 0.7', b'"truncation_psi": 0.8'))
    assert only_problem(store).startswith("run.json: is not the run")
    store.delete("run.json")
    assert "has no run.json" in only_problem(store)


def test_a_manifest_that_is_none_is_found(store: Store) -> None:
    manifest = store.read("manifest.json")
    store.replace("manifest.json", b"{}")
    assert "manifest.json: is not what labelmill writes" in only_problem(store)
    store.replace("manifest.json", manifest.replace(b'"samples_per_shard": 4', b'"samples_per_shard": 0'))
    assert "dataset.samples_per_shard" in only_problem(store)


def test_several_at_once_verify_and_repair(store: Store) -> None:
    for path in (PARQUET, RECORD, "index.json"):
        store.delete(path)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: verify(store, repair=True), range(4)))
    assert all(result.problems == () for result in results)
    assert verify(store) == VerifyResult(3, 11, (), ())

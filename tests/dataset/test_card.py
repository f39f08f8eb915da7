"""The card and croissant.json: what they say is so, and the code in the card runs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.small_dataset import CHECKPOINT, CLASSES, RESOLUTION, paint, write_dataset
from huggingface_hub import DatasetCard

from labelmill.pipeline.dataset.card import dataset_card
from labelmill.pipeline.dataset.croissant import croissant
from labelmill.pipeline.dataset.manifest import read_index
from labelmill.pipeline.store.store import Store
from labelmill.schemas.manifest import Manifest


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    return write_dataset(tmp_path_factory.mktemp("dataset") / "out")


def header_of(card: str) -> dict[str, Any]:
    _, header, _ = card.split("---\n", 2)
    return yaml.safe_load(header)


def test_the_header_is_what_hugging_face_reads(dataset: tuple[Store, Manifest]) -> None:
    store, _ = dataset
    header = header_of(store.read("README.md").decode())
    assert header["license"] == "apache-2.0"
    assert header["task_categories"] == ["image-segmentation"]
    assert "synthetic" in header["tags"]
    assert header["size_categories"] == ["n<1K"]
    listed = {files["split"]: files["path"] for files in header["configs"][0]["data_files"]}
    assert listed == {split: urls for split, urls in read_index(store).splits.items() if urls}


def test_hugging_face_hub_takes_the_header_for_its_own(dataset: tuple[Store, Manifest]) -> None:
    text = dataset[0].read("README.md").decode()
    card = DatasetCard(text)
    assert card.data.to_dict() == header_of(text)
    assert (card.data.license, card.data.pretty_name) == ("apache-2.0", "painted")
    assert card.data.task_categories == ["image-segmentation"]


@pytest.mark.parametrize(
    ("num_samples", "category"), [(999, "n<1K"), (1000, "1K<n<10K"), (100_000, "100K<n<1M"), (10**6, "n>1M")]
)
def test_size_categories(dataset: tuple[Store, Manifest], num_samples: int, category: str) -> None:
    store, manifest = dataset
    card = dataset_card(manifest.model_copy(update={"num_samples": num_samples}), read_index(store))
    assert header_of(card)["size_categories"] == [category]


def test_the_card_states_classes_statistics_and_origin(dataset: tuple[Store, Manifest]) -> None:
    store, manifest = dataset
    card = store.read("README.md").decode()
    for value, name in enumerate(CLASSES):
        share = 100 * manifest.class_pixels[name] / (11 * RESOLUTION**2)
        assert f"| {value} | {name} | {share:.2f} % |" in card
    assert f"| 255 | ignore | {100 / RESOLUTION**2:.2f} % |" in card
    for split, count in manifest.samples_by_split.items():
        assert f"| {split} | {count} |" in card
    assert "low_confidence 7 |" in card
    assert ", ".join(str(value) for value in manifest.mean) in card
    for stated in (manifest.fingerprint, CHECKPOINT.sha256, "bundled:painted", "Apache-2.0", "A. Painter"):
        assert stated in card


def test_an_unknown_licence_is_told_in_words(dataset: tuple[Store, Manifest]) -> None:
    store, manifest = dataset
    words = "not stated in the file; ask: whoever trained it"
    source = CHECKPOINT.model_copy(update={"licence": words, "attribution": None})
    card = dataset_card(manifest.model_copy(update={"checkpoint": source}), read_index(store))
    header = header_of(card)
    assert (header["license"], header["license_name"]) == ("other", "see-card")
    assert f"Licence of the generator: {words}" in card and "Attribution" not in card


def test_the_code_in_the_card_runs(dataset: tuple[Store, Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = dataset
    assert store.folder is not None
    monkeypatch.chdir(store.folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(store.folder.parent / "cache"))
    blocks = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    blocks = [block for block in blocks if "obstore" not in block]
    assert len(blocks) == 2
    first_seed = int(next(url for urls in read_index(store).splits.values() for url in urls)[-10:-4]) * 16 + 100
    first_seed += {1: 2, 2: 1}.get(first_seed % 5, 0)
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        expected_HWC, expected_HW = paint(first_seed)
        image_HWC = np.asarray(names["image"])
        if image_HWC.dtype != np.uint8:
            image_HWC = image_HWC * 255
        assert np.allclose(image_HWC, expected_HWC, atol=1e-3)
        assert np.array_equal(np.asarray(names["mask"]), expected_HW)


def test_the_loader_in_the_card_takes_more_processes_than_shards(dataset: tuple[Store, Manifest]) -> None:
    store, manifest = dataset
    card = store.read("README.md").decode()
    block = next(block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "WebDataset" in block)
    loader = re.search(r"`(wds\.WebLoader\(pairs, batch_size=16, )num_workers=\d+\)`", card)
    assert loader is not None
    num_shards = len(next(urls for urls in read_index(store).splits.values() if urls))
    count = f"print(sum(len(images) for images, _ in {loader[1]}num_workers={num_shards + 1})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{block}\n{count}"], cwd=store.folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == next(count for count in manifest.samples_by_split.values() if count)


@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_loads_the_folder_by_its_card(
    dataset: tuple[Store, Manifest], streaming: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Splits, and masks as images whose pixels are class indices."""
    store, manifest = dataset
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from datasets import load_dataset

    loaded = load_dataset(store.url, streaming=streaming, cache_dir=str(tmp_path))
    rows = {split: list(samples) for split, samples in loaded.items()}
    counts = {split: len(samples) for split, samples in rows.items()}
    assert counts == {split: count for split, count in manifest.samples_by_split.items() if count}
    for row in (row for samples in rows.values() for row in samples):
        image_HWC, mask_HW = paint(int(row["__key__"].rpartition("/")[2]))
        assert row["mask.png"].mode == "L" and np.array_equal(np.asarray(row["mask.png"]), mask_HW)
        assert np.array_equal(np.asarray(row[manifest.image_format]), image_HWC)


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_croissant_names_files_that_exist_and_patterns_that_fit(
    dataset: tuple[Store, Manifest], image_format: str
) -> None:
    store, manifest = dataset
    manifest = manifest.model_copy(update={"image_format": image_format})
    described = json.loads(croissant(manifest, read_index(store)))
    assert described["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    assert described["license"] == "Apache-2.0"
    files = [node for node in described["distribution"] if node["@type"] == "cr:FileObject"]
    by_url = {shard.url: shard for shard in read_index(store).shardlist}
    assert {(f["contentUrl"], f["sha256"], f["contentSize"]) for f in files} == {
        (url, shard.sha256, f"{shard.filesize} B") for url, shard in by_url.items()
    }
    patterns = {node["@id"]: node["includes"] for node in described["distribution"] if node["@type"] == "cr:FileSet"}
    names = [f"0000000100.{image_format}", "0000000100.mask.png", "0000000100.json"]
    for file_set, wanted in zip(("image-files", "mask-files", "metadata-files"), names, strict=True):
        assert [name for name in names if Path(name).match(patterns[file_set])] == [wanted]
    for record_set, name in zip(described["recordSet"], names[:2], strict=False):
        pattern = record_set["field"][0]["source"]["transform"]["regex"]
        found = [re.match(pattern, other) for other in names]
        assert [match.group(1) for match in found if match] == ["0000000100"] and re.match(pattern, name)
    assert [row["classes/name"] for row in described["recordSet"][2]["data"]] == list(CLASSES)


def test_croissant_references_resolve(dataset: tuple[Store, Manifest]) -> None:
    store, _ = dataset
    described = json.loads(store.read("croissant.json"))
    described.pop("@context")
    defined, used = [], set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "@id" in node:
                (defined.append if "@type" in node else used.add)(node["@id"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(described)
    assert len(defined) == len(set(defined))
    assert used and used <= set(defined)


def test_words_of_a_checkpoint_are_shown_as_they_are(dataset: tuple[Store, Manifest]) -> None:
    store, manifest = dataset
    hostile = "MIT\n\n# Heading <script>alert(1)</script> [a](javascript:b) ![c](https://d) `e` *f* | g & _h_"
    checkpoint = CHECKPOINT.model_copy(
        update={"licence": hostile, "attribution": hostile, "reference": "a`\n\n# b <script>"}
    )
    card = dataset_card(manifest.model_copy(update={"checkpoint": checkpoint}), read_index(store))
    shown = (
        r"MIT # Heading &lt;script&gt;alert(1)&lt;/script&gt; \[a\](javascript:b) \!\[c\](https://d) \`e\` \*f\* "
        r"\| g &amp; \_h\_"
    )
    assert f"\n- Licence of the generator: {shown}\n- Attribution: {shown}\n" in card
    assert "from the generator `a' # b <script>` (" in card
    plain = CHECKPOINT.model_copy(update={"licence": "CC-BY-4.0", "attribution": "Ada (https://example.com/a-b)"})
    card = dataset_card(manifest.model_copy(update={"checkpoint": plain}), read_index(store))
    assert "generator: CC-BY-4.0\n- Attribution: Ada (https://example.com/a-b)\n" in card

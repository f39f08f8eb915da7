"""Shards read back exactly with the libraries that people use, none of which is labelmill."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from datasets import load_dataset

from labelmill.pipeline.shards.writer import ShardWriter
from labelmill.schemas.sample import Candidate, Sample, SampleMetadata, sample_key

CLASSES = ("background", "hair", "hat")
FIRST_DROPS = 20
"""Samples before this seed have no dropped candidates before them."""


def _sample(seed: int) -> Sample:
    random = np.random.default_rng(seed)
    image_HWC = random.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    mask_HW = random.choice([0, 1, 2, 255], (24, 24)).astype(np.uint8)
    candidate = Candidate(
        seed=seed,
        class_id=None,
        drop_reason=None,
        confidence=0.75,
        largest_component=1.0,
        class_pixels={**{name: int((mask_HW == i).sum()) for i, name in enumerate(CLASSES)}, "ignore": 0},
    )
    metadata = SampleMetadata(
        key=sample_key(seed),
        candidate=candidate,
        dropped_before=() if seed < FIRST_DROPS else (candidate.model_copy(update={"drop_reason": "fragmented"}),),
        channel_means=(0.5, 0.5, 0.5),
        channel_square_means=(0.3, 0.3, 0.3),
        truncation_psi=0.7,
        truncation_cutoff=None,
        noise="const",
        method="style_mixing",
        checkpoint_sha256="00",
        fingerprint="11",
    )
    return Sample(metadata.key, image_HWC, mask_HW, metadata)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    samples = [_sample(seed) for seed in range(7, 27)]
    with ThreadPoolExecutor(2) as threads:
        writer = ShardWriter("png", 95, threads)
        for sample in samples:
            writer.add(sample)
        tar = writer.finish()
    path = tmp_path_factory.mktemp("shard") / "run-000000.tar"
    path.write_bytes(tar)
    return path, samples


def _gray(data: bytes) -> np.ndarray:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return decoded


def test_plain_webdataset(shard: tuple[Path, list[Sample]]) -> None:
    path, samples = shard
    # The mask's handler stands first: "rgb8" would turn class ids into colours.
    read = list(
        webdataset.WebDataset(str(path), shardshuffle=False).decode(
            webdataset.handle_extension("mask.png", _gray), "rgb8"
        )
    )
    assert len(read) == len(samples)
    for found, sample in zip(read, samples, strict=True):
        assert found["__key__"] == sample.key
        assert np.array_equal(found["png"], sample.image_HWC)
        assert np.array_equal(found["mask.png"], sample.mask_HW)
        assert SampleMetadata.model_validate_json(json.dumps(found["json"])) == sample.metadata


@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets(
    shard: tuple[Path, list[Sample]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """Without streaming, too: every field has one type in all samples, whatever the first ones hold."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path, samples = shard
    data_files = [str(path)]
    read = list(
        load_dataset("webdataset", data_files=data_files, split="train", streaming=streaming, cache_dir=str(tmp_path))
    )
    assert len(read) == len(samples)
    for found, sample in zip(read, samples, strict=True):
        assert found["__key__"] == sample.key
        assert np.array_equal(np.asarray(found["png"]), sample.image_HWC)
        assert found["mask.png"].mode == "L"
        assert np.array_equal(np.asarray(found["mask.png"]), sample.mask_HW)
        assert SampleMetadata.model_validate_json(json.dumps(found["json"])) == sample.metadata


def test_samples_of_format_version_1_are_read(shard: tuple[Path, list[Sample]]) -> None:
    """They hold the dropped candidates as a list."""
    for sample in shard[1]:
        values = json.loads(sample.metadata.model_dump_json())
        values["dropped_before"] = [
            json.loads(candidate.model_dump_json()) for candidate in sample.metadata.dropped_before
        ]
        assert SampleMetadata.model_validate_json(json.dumps(values)) == sample.metadata

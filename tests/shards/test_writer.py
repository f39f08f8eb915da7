"""Samples to a tar and back: through our own reader, plain webdataset and Hugging Face datasets."""

import io
import json
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import webdataset as wds
from helpers.small_dataset import config_of, paint, sample_of, samples_of, tar_of, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from labelmill.pipeline.dataset.plan import shard_tasks
from labelmill.pipeline.shards.reader import DamagedTarError, candidates_of, members_in, metadata_in
from labelmill.pipeline.shards.writer import DIGITAL_SOURCE_TYPE, ShardWriter, encode_image, encode_metadata
from labelmill.schemas.sample import Sample
from labelmill.schemas.shard import ShardTask

TASK = ShardTask(index=0, name="painted-000000", num_samples=6, first_seed=100, num_seeds=24)


def decode_mask(data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def decode_rgb(data: bytes | memoryview) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@given(data=st.data(), seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True))
@settings(max_examples=25, deadline=None)
def test_a_tar_gives_back_what_went_in(data: st.DataObject, seeds: list[int]) -> None:
    height, width = data.draw(st.tuples(st.integers(1, 24), st.integers(1, 24)))
    samples = [
        sample_of(
            seed,
            data.draw(arrays(np.uint8, (height, width, 3))),
            data.draw(arrays(np.uint8, (height, width), elements=st.sampled_from([0, 1, 2, 255]))),
        )
        for seed in sorted(seeds)
    ]
    with ThreadPoolExecutor(2) as threads:
        tar = tar_of(iter(samples), threads)
        assert tar == tar_of(iter(samples), threads)
    members = list(members_in(tar))
    assert [m.name for m in members] == [f"{s.key}.{end}" for s in samples for end in ("png", "mask.png", "json")]
    for sample, image, mask in zip(samples, members[0::3], members[1::3], strict=True):
        assert np.array_equal(decode_rgb(image.data), sample.image_HWC)
        assert np.array_equal(decode_mask(bytes(mask.data)), sample.mask_HW)
    assert metadata_in(members) == [sample.metadata for sample in samples]


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_gray_images_are_gray_in_the_file_where_the_format_knows_gray(image_format: str) -> None:
    gray_HW = np.add.outer(np.arange(24), 3 * np.arange(40)).astype(np.uint8)
    content = encode_image(gray_HW[:, :, None], image_format, 95)
    stored = Image.open(io.BytesIO(content))
    assert stored.mode == ("RGB" if image_format == "webp" else "L")
    shown_HWC = decode_rgb(content).astype(int)
    assert shown_HWC.shape == (24, 40, 3)
    assert np.ptp(shown_HWC, axis=2).max() <= (1 if image_format == "webp" else 0)
    assert np.abs(shown_HWC - gray_HW[:, :, None]).max() <= (0 if image_format == "png" else 4)
    assert DIGITAL_SOURCE_TYPE.encode() in content


def test_bytes_depend_on_the_samples_alone() -> None:
    def build(num_threads: int) -> bytes:
        with ThreadPoolExecutor(num_threads) as threads:
            return tar_of(samples_of(TASK), threads, "jpg")

    tar = build(1)
    assert build(8) == tar
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert {member.mtime for member in archive} == {0}


def test_order_is_that_of_adding_though_encoding_times_differ() -> None:
    sizes = [(seed, 400 if seed % 3 == 0 else 8) for seed in range(40)]
    with ThreadPoolExecutor(4) as threads:
        tar = tar_of((sample_of(seed, *paint(seed, size)) for seed, size in sizes), threads)
    assert [sample.candidate.seed for sample in metadata_in(members_in(tar))] == list(range(40))


def test_every_candidate_is_in_the_tar() -> None:
    with ThreadPoolExecutor(1) as threads:
        tar = tar_of(samples_of(TASK), threads)
    # Seeds 100 on; 1 and 2 of every five are dropped; six kept ones end the shard.
    assert [(c.seed, c.kept) for c in candidates_of(metadata_in(members_in(tar)))] == [
        (100, True), (101, False), (102, False), (103, True), (104, True),
        (105, True), (106, False), (107, False), (108, True), (109, True),
    ]  # fmt: skip


def _broken_sample(seed: int) -> Sample:
    """Its JSON cannot be written: its confidence is not a number."""
    good = sample_of(seed, *paint(seed))
    candidate = good.metadata.candidate.model_copy(update={"confidence": float("nan")})
    return Sample(good.key, good.image_HWC, good.mask_HW, good.metadata.model_copy(update={"candidate": candidate}))


def test_an_error_in_a_thread_fails_the_shard() -> None:
    with ThreadPoolExecutor(2) as threads:
        writer = ShardWriter("png", 95, threads)
        writer.add(sample_of(0, *paint(0)))
        with pytest.raises(ValueError, match="Out of range float"):
            writer.add(_broken_sample(1))
            writer.add(sample_of(2, *paint(2)))
            writer.finish()
        with pytest.raises(ValueError, match="Out of range float"):
            writer.finish()


@pytest.mark.parametrize(("most_bytes", "most"), [(2**28, 33), (5 * 16 * 16 * 4, 6), (1, 2)])
def test_few_samples_are_in_flight_and_fewer_where_they_are_large(
    most_bytes: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelmill.pipeline.shards.writer._MAX_BYTES_IN_FLIGHT", most_bytes)
    gate, blocked = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(gate.wait)
        writer = ShardWriter("png", 95, threads)

        def add_many() -> None:
            for seed in range(100):
                writer.add(sample_of(seed, *paint(seed)))
            blocked.set()

        adder = threading.Thread(target=add_many)
        adder.start()
        assert not blocked.wait(0.5)
        assert writer.num_samples <= most
        gate.set()
        adder.join()
        assert writer.num_samples == 100
        assert len(metadata_in(members_in(writer.finish()))) == 100
        assert writer.num_samples == 100
        with pytest.raises(AssertionError, match="once"):
            writer.finish()


@pytest.mark.parametrize("change", ["size", "type", "key"])
def test_what_is_no_sample_is_refused(change: str) -> None:
    good = sample_of(0, *paint(0))
    bad = {
        "size": Sample(good.key, good.image_HWC[:8], good.mask_HW, good.metadata),
        "type": Sample(good.key, good.image_HWC, good.mask_HW.astype(np.int64), good.metadata),  # type: ignore[arg-type]
        "key": Sample("0000000001", good.image_HWC, good.mask_HW, good.metadata),
    }[change]
    with ThreadPoolExecutor(1) as threads:
        writer = ShardWriter("png", 95, threads)
        with pytest.raises(AssertionError):
            writer.add(bad)
            writer.finish()


@pytest.mark.parametrize("image_format", ["jpg", "png", "webp"])
def test_images_are_marked_where_readers_look(image_format: str) -> None:
    image_HWC, _ = paint(5)
    data = encode_image(image_HWC, image_format, 95)
    image = Image.open(io.BytesIO(data))
    image.load()
    xmp = image.info["xmp"]
    assert f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"'.encode() in xmp
    assert xmp.startswith(b"<?xpacket")
    # The mark is beside the pixels, not in them.
    plain = encode_plain(image_HWC, image_format)
    assert np.array_equal(decode_rgb(data), decode_rgb(plain))
    assert np.abs(decode_rgb(data).astype(int) - image_HWC).mean() < 3


def encode_plain(image_HWC: np.ndarray, image_format: str) -> bytes:
    parameters = {
        "jpg": [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444],
        "png": [],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, 95],
    }[image_format]
    return cv2.imencode(f".{image_format}", image_HWC[:, :, ::-1].copy(), parameters)[1].tobytes()


def test_jpeg_keeps_full_chroma() -> None:
    image_HWC, _ = paint(5)
    data = encode_image(image_HWC, "jpg", 95)
    frame = data.index(b"\xff\xc0")  # SOF0: length, precision, size, then id, sampling factors, table a component
    components = [data[frame + 10 + 3 * i : frame + 13 + 3 * i] for i in range(3)]
    assert [component[1] for component in components] == [0x11, 0x11, 0x11]
    assert encode_image(image_HWC, "jpg", 50) != data


def test_masks_are_8_bit_gray_png(tar: bytes) -> None:
    masks = [bytes(member.data) for member in members_in(tar) if member.ending == "mask.png"]
    assert len(masks) == TASK.num_samples
    assert {mask[24:26] for mask in masks} == {b"\x08\x00"}


def test_metadata_keeps_classes_in_mask_order() -> None:
    written = json.loads(encode_metadata(sample_of(0, *paint(0)).metadata))
    assert list(written["candidate"]["class_pixels"]) == ["background", "skin", "hair", "ignore"]


# Reading what is damaged.


@pytest.fixture(scope="module")
def tar() -> bytes:
    with ThreadPoolExecutor(1) as threads:
        return tar_of(samples_of(TASK), threads)


@given(position=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_a_cut_tar_is_noticed(tar: bytes, position: float) -> None:
    with pytest.raises(DamagedTarError):
        list(members_in(tar[: int(position * (len(tar) - 1))]))


def test_a_tar_cut_between_members_is_noticed(tar: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        starts = [member.offset for member in archive]
    assert len(starts) == 3 * TASK.num_samples
    for start in starts:
        with pytest.raises(DamagedTarError):
            list(members_in(tar[:start]))


def test_a_broken_header_is_noticed(tar: bytes) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        header = archive.getmembers()[7].offset
    for offset in (0, 124, 148, 156):  # name, size, checksum, type
        broken = bytearray(tar)
        broken[header + offset] ^= 1
        with pytest.raises(DamagedTarError):
            list(members_in(bytes(broken)))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_only_plain_files_are_read(kind: bytes) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        header = tarfile.TarInfo("0000000100.json")
        header.type, header.linkname = kind, "/etc/passwd"
        archive.addfile(header)
    with pytest.raises(DamagedTarError, match="is not a plain file"):
        metadata_in(members_in(stream.getvalue()))


def test_metadata_that_is_none_is_noticed() -> None:
    def metadata_of(content: bytes, name: str = "0000000000.json") -> Any:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
        return metadata_in(members_in(stream.getvalue()))

    good = encode_metadata(sample_of(0, *paint(0)).metadata)
    assert len(metadata_of(good)) == 1
    with pytest.raises(DamagedTarError, match=r"0000000001\.json says that it is of sample 0000000000"):
        metadata_of(good, "0000000001.json")
    for content in (b"", b"{}", b"\xff", good[:-1], good.replace(b'"const"', b"7")):
        with pytest.raises(DamagedTarError, match=r"0000000000\.json: "):
            metadata_of(content)


# Reading as a training loop does, without labelmill.


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("dataset") / "out"
    write_dataset(output)
    return output


def delivered(dataset: Path) -> list[tuple[str, np.ndarray, np.ndarray]]:
    samples = [sample for task in shard_tasks(config_of(dataset)) for sample in samples_of(task)]
    return [(sample.key, sample.image_HWC, sample.mask_HW) for sample in samples]


def test_plain_webdataset_reads_the_shards_exactly(dataset: Path) -> None:
    urls = [str(path) for path in sorted(dataset.glob("shards/*.tar"))]
    read = list(
        wds.WebDataset(urls, shardshuffle=False)
        .decode(wds.handle_extension("mask.png", decode_mask), "rgb8")
        .to_tuple("__key__", "png", "mask.png", "json")
    )
    expected = delivered(dataset)
    assert len(read) == len(expected) == 11
    for (key, image_HWC, mask_HW, metadata), (its_key, its_image_HWC, its_mask_HW) in zip(read, expected, strict=True):
        assert key == its_key == metadata["key"]
        assert metadata["candidate"]["seed"] == int(key)
        assert metadata["candidate"]["class_pixels"]["ignore"] == int((mask_HW == 255).sum()) == 1
        assert np.array_equal(image_HWC, its_image_HWC)
        assert mask_HW.dtype == np.uint8 and np.array_equal(mask_HW, its_mask_HW)


def test_hugging_face_datasets_reads_the_shards_exactly(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(dataset.parent / "cache"))
    from datasets import load_dataset

    urls = [str(path) for path in sorted(dataset.glob("shards/*.tar"))]
    read = list(load_dataset("webdataset", data_files=urls, split="train", streaming=True))
    expected = delivered(dataset)
    assert len(read) == len(expected)
    for sample, (key, image_HWC, mask_HW) in zip(read, expected, strict=True):
        assert sample["__key__"] == key == sample["json"]["key"]
        assert np.array_equal(np.asarray(sample["png"]), image_HWC)
        assert sample["mask.png"].mode == "L" and np.array_equal(np.asarray(sample["mask.png"]), mask_HW)

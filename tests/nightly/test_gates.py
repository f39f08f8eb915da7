"""The gates: their formulas against independent ones, what they are fed, and their verdicts."""

import io
import math
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.fft
import scipy.stats
from helpers.small_dataset import CLASSES, RESOLUTION, paint, write_dataset
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon

from labelmill.pipeline.nightly import measure as measuring
from labelmill.pipeline.nightly.gates import (
    GATES,
    PSI_FLOOR,
    ask_gates,
    jensen_shannon_divergence,
    population_stability_index,
)
from labelmill.pipeline.nightly.gates_page import figure
from labelmill.pipeline.nightly.measure import NUM_BINS, measure_snapshot, throughput
from labelmill.pipeline.nightly.perceptual_hash import near_duplicate_share, perceptual_hash
from labelmill.pipeline.shards.publisher import read_record, record_path
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.nightly import GatesConfig, SamplingConfig
from labelmill.schemas.nightly_files import GateResult, Measures
from labelmill.schemas.sample import IGNORE

amounts = st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=2, max_size=10)


@given(amounts)
def test_population_stability_is_both_divergences(pairs: list[tuple[int, int]]) -> None:
    expected, actual = (np.array(side, dtype=float) for side in zip(*pairs, strict=True))
    if min(expected / expected.sum()) < PSI_FLOOR or min(actual / actual.sum()) < PSI_FLOOR:
        return
    both = scipy.stats.entropy(actual, expected) + scipy.stats.entropy(expected, actual)
    assert population_stability_index(expected, actual) == pytest.approx(both, abs=1e-12)


def test_population_stability_by_hand() -> None:
    """(0.5 - 0.4) ln(0.5 / 0.4) + (0.5 - 0.6) ln(0.5 / 0.6)."""
    assert population_stability_index([40, 60], [5, 5]) == pytest.approx(0.1 * math.log(1.25) - 0.1 * math.log(5 / 6))
    # A share that is 0 counts as 0.0001.
    assert population_stability_index([0, 1], [1, 1]) == pytest.approx(
        (0.5 - 1e-4) * math.log(0.5 / 1e-4) + (0.5 - 1) * math.log(0.5)
    )


def test_something_instead_of_nothing_is_a_large_shift() -> None:
    """Twice (0.5 - 0.0001) ln(0.5 / 0.0001), from either side."""
    shift = 2 * (0.5 - 1e-4) * math.log(0.5 / 1e-4)
    assert population_stability_index([0, 0], [3, 3]) == pytest.approx(shift)
    assert population_stability_index([3, 3], [0, 0]) == pytest.approx(shift)
    assert population_stability_index([0, 0], [0, 0]) == 0


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=10))
def test_jensen_shannon_is_scipys_squared(pairs: list[tuple[int, int]]) -> None:
    expected, actual = zip(*pairs, strict=True)
    if not sum(expected) or not sum(actual):
        return
    assert jensen_shannon_divergence(expected, actual) == pytest.approx(
        np.nan_to_num(jensenshannon(expected, actual, base=2)) ** 2, abs=1e-9
    )


def test_disjoint_shares_diverge_by_one_bit() -> None:
    assert jensen_shannon_divergence([1, 0], [0, 7]) == pytest.approx(1)


def photo(seed: int, edge: int = 96) -> NDArray[np.uint8]:
    """A smooth random picture in gray."""
    noise = np.random.default_rng(seed).random((8, 8)).astype(np.float32)
    return (255 * cv2.resize(noise, (edge, edge), interpolation=cv2.INTER_CUBIC).clip(0, 1)).astype(np.uint8)


@pytest.mark.parametrize("edge", [32, 96, 128])
def test_the_hash_is_that_of_the_cosine_transform(edge: int) -> None:
    """Against SciPy's transform and a mean over blocks, which is what area interpolation is at whole factors."""
    for seed in range(20):
        gray_HW = photo(seed, edge)
        factor = edge // 32
        small_HW = np.rint(gray_HW.reshape(32, factor, 32, factor).mean(axis=(1, 3)))
        lowest = scipy.fft.dctn(small_HW, norm="ortho")[:8, :8].ravel()
        sure = np.abs(lowest - np.median(lowest)) > 20  # rounding moves the others
        assert sure.mean() > 0.8
        assert np.array_equal(perceptual_hash(gray_HW)[sure], (lowest > np.median(lowest))[sure])


def test_the_hash_forgives_what_eyes_forgive() -> None:
    for seed in range(20):
        gray_HW = photo(seed)
        _, encoded = cv2.imencode(".jpg", gray_HW, [cv2.IMWRITE_JPEG_QUALITY, 60])
        noise = np.random.default_rng(seed).normal(0, 4, gray_HW.shape)
        alike = [
            np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)),
            (gray_HW + noise).clip(0, 255).astype(np.uint8),
            cv2.resize(gray_HW, (256, 256)),
            (gray_HW * 0.8 + 20).astype(np.uint8),
        ]
        distances = [int((perceptual_hash(gray_HW) != perceptual_hash(image)).sum()) for image in alike]
        assert max(distances) <= 4
        assert (perceptual_hash(gray_HW) != perceptual_hash(photo(seed + 100))).sum() > 12


@given(st.integers(0, 40), st.integers(0, 64), st.integers(0, 2**32 - 1))
def test_near_duplicates_are_counted_like_by_hand(count: int, max_bits: int, seed: int) -> None:
    hashes_NB = np.random.default_rng(seed).random((count, 64)) < 0.2
    alike = [
        any((one != other).sum() <= max_bits for j, other in enumerate(hashes_NB) if j != i)
        for i, one in enumerate(hashes_NB)
    ]
    assert near_duplicate_share(hashes_NB, max_bits) == (sum(alike) / count if count > 1 else 0)


def test_near_duplicates_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelmill.pipeline.nightly.perceptual_hash._BLOCK", 7)
    hashes_NB = np.random.default_rng(0).random((50, 64)) < 0.5
    hashes_NB[43] = hashes_NB[2]
    assert near_duplicate_share(hashes_NB, 0) == 2 / 50


SAMPLING = SamplingConfig(images=6, shards=2, duplicate_bits=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_dataset(tmp_path_factory.mktemp("painted") / "out", "png")[0]


def contents(store: Store) -> list[tuple[int, NDArray[np.uint8], NDArray[np.uint8], float]]:
    """Seed, image, mask and confidence of all samples, from the tars alone."""
    found = []
    for file in store.list("shards"):
        if file.path.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(store.read(file.path))) as tar:
                for name in tar.getnames():
                    if name.endswith(".mask.png"):
                        seed = int(name.split(".")[0])
                        mask_HW = cv2.imdecode(np.frombuffer(tar.extractfile(name).read(), np.uint8), -1)  # type: ignore[union-attr]
                        found.append((seed, paint(seed)[0], np.asarray(mask_HW), round(0.25 + (seed % 7) / 10, 6)))
    return found


def test_measures_are_those_of_the_samples(dataset: Store) -> None:
    samples = contents(dataset)
    assert len(samples) == 11
    images = np.stack([image for _, image, _, _ in samples]) / 255
    masks = np.stack([mask for _, _, mask, _ in samples])
    foreground = ((masks != 0) & (masks != IGNORE)).mean(axis=(1, 2))
    measures = measure_snapshot(dataset, SAMPLING)
    assert measures.num_samples == 11
    values = {**dict(enumerate(CLASSES)), IGNORE: "ignore"}
    assert measures.class_pixels == {name: int((masks == value).sum()) for value, name in values.items()}
    assert measures.foreground_histogram == tuple(np.histogram(foreground, NUM_BINS, (0, 1))[0])
    assert measures.empty_masks == 0
    assert measures.confidence == pytest.approx(np.mean([confidence for *_, confidence in samples]))
    assert measures.brightness == pytest.approx(images.mean(), abs=1e-5)
    assert measures.contrast == pytest.approx(math.sqrt(images.reshape(-1, 3).var(axis=0).mean()), abs=1e-5)
    tars = [file.num_bytes for file in dataset.list("shards") if file.path.endswith(".tar")]
    assert measures.image_bytes == sum(tars) / 11
    assert measures.throughput == pytest.approx(11 / (3 * 1.5))
    assert measures.num_sampled == 6


@pytest.mark.parametrize(
    ("sampling", "shards", "positions"),
    [
        (SAMPLING, (0, 2), (0, 1, 2, 8, 9, 10)),
        (SamplingConfig(images=4, shards=3), (0, 1, 2), (1, 4, 6, 9)),
    ],
)
def test_the_sample_is_spread_and_bounded(
    sampling: SamplingConfig,
    shards: tuple[int, ...],
    positions: tuple[int, ...],
    dataset: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So many shards are read, one at a time, and so many images decoded, all of them different."""
    read: list[str] = []
    hashed: list[NDArray[np.uint8]] = []
    plain_read, plain_hash = Store.read, measuring.perceptual_hash
    monkeypatch.setattr(Store, "read", lambda self, path: read.append(path) or plain_read(self, path))
    monkeypatch.setattr(measuring, "perceptual_hash", lambda image: hashed.append(image) or plain_hash(image))
    measure_snapshot(dataset, sampling)
    assert [path for path in read if path.endswith(".tar")] == [f"shards/painted-{shard:06d}.tar" for shard in shards]
    seeds = [seed for seed, *_ in contents(dataset)]
    for image_HW, position in zip(hashed, positions, strict=True):
        gray = cv2.cvtColor(paint(seeds[position])[0], cv2.COLOR_RGB2GRAY).astype(int)
        assert image_HW.shape == (RESOLUTION, RESOLUTION) and np.abs(image_HW - gray).max() <= 1


def test_empty_masks_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_foreground(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        image_HWC, mask_HW = paint(seed)
        mask_HW[:] = 0 if seed % 2 else IGNORE
        mask_HW[3, 3] = 1 if seed % 5 == 3 else 0
        return image_HWC, mask_HW

    monkeypatch.setattr("helpers.small_dataset.paint", without_foreground)
    store, _ = write_dataset(tmp_path / "out")
    seeds = [seed for seed, *_ in contents(store)]
    assert measure_snapshot(store, SAMPLING).empty_masks == sum(seed % 5 != 3 for seed in seeds) / 11


def test_throughput_is_of_the_shards_that_tell(dataset: Store) -> None:
    records = [record for record in (read_record(dataset, index) for index in range(3)) if record]
    untold = records[0].model_copy(update={"seconds_by_stage": None})
    assert throughput([untold, *records[1:]]) == pytest.approx(7 / 3)
    assert throughput([untold]) is None


def test_a_damaged_dataset_is_not_measured(tmp_path: Path) -> None:
    store, _ = write_dataset(tmp_path / "out")
    tar = store.read("shards/painted-000002.tar")
    store.replace("shards/painted-000002.tar", tar[:2000])
    with pytest.raises(OutputError, match=r"painted-000002\.tar: cannot be measured"):
        measure_snapshot(store, SAMPLING)
    store.replace("shards/painted-000002.tar", tar)
    store.delete(record_path(1))
    with pytest.raises(OutputError, match="1 of 3 records are missing"):
        measure_snapshot(store, SAMPLING)


BASE = Measures(
    num_samples=100,
    optional_files=("alpha.png",),
    class_pixels={"background": 6000, "person": 4000, "ignore": 0},
    foreground_histogram=(0, 0, 10, 30, 40, 20, 0, 0, 0, 0),
    empty_masks=0.0,
    confidence=0.9,
    brightness=0.5,
    contrast=0.25,
    near_duplicates=0.02,
    num_sampled=100,
    image_bytes=1000.0,
    throughput=10.0,
)


def verdicts(tonight: Measures, live: Measures | None = BASE, **limits: float | None) -> dict[str, GateResult]:
    return {result.name: result for result in ask_gates(tonight, live, GatesConfig(**limits))}  # type: ignore[arg-type]


def test_the_same_again_passes_every_gate() -> None:
    assert {result.verdict for result in verdicts(BASE).values()} == {"passed"}
    assert {name for name, result in verdicts(BASE).items() if result.value != 0} == {"near_duplicates"}


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"num_samples": 80}, {"missing_samples": 0.2}),
        ({"optional_files": ()}, {"missing_files": 1.0}),
        ({"optional_files": ("instances.png",)}, {"missing_files": 1.0}),
        ({"empty_masks": 0.03}, {"empty_masks": 0.03}),
        ({"confidence": 0.7}, {"confidence_drop": 0.2}),
        ({"brightness": 0.4}, {"brightness_shift": 0.1}),
        ({"brightness": 0.6}, {"brightness_shift": 0.1}),
        ({"contrast": 0.2}, {"contrast_change": 0.2}),
        ({"contrast": 0.3}, {"contrast_change": 0.2}),
        ({"near_duplicates": 0.09}, {"near_duplicates_rise": 0.07}),
        ({"near_duplicates": 0.2}, {"near_duplicates": 0.2, "near_duplicates_rise": 0.18}),
        ({"image_bytes": 500.0}, {"image_bytes_change": 0.5}),
        ({"throughput": 0.5}, {"throughput_drop": 0.95}),
        (
            {"class_pixels": {"background": 5000, "person": 5000, "ignore": 0}},
            {
                "class_psi": 0.1 * math.log(1.25) - 0.1 * math.log(5 / 6),
                "class_js": jensenshannon([0.6, 0.4], [0.5, 0.5], base=2) ** 2,
            },
        ),
        (
            {"foreground_histogram": (0, 0, 20, 40, 20, 20, 0, 0, 0, 0)},
            {"foreground_psi": 0.1 * math.log(2) + 0.1 * math.log(4 / 3) - 0.2 * math.log(0.5)},
        ),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else "",
)
def test_each_gate_stops_what_it_is_for(changes: dict[str, object], values: dict[str, float]) -> None:
    results = verdicts(BASE.model_copy(update=changes))
    failed = {name: result.value for name, result in results.items() if result.verdict == "failed"}
    assert failed == pytest.approx(values)


@pytest.mark.parametrize("name", [gate.name for gate in GATES])
def test_a_gates_limit_is_the_highest_value_that_passes(name: str) -> None:
    tonight = BASE.model_copy(
        update={
            "num_samples": 75,
            "optional_files": (),
            "class_pixels": {"background": 5000, "person": 5000},
            "foreground_histogram": (0, 0, 20, 40, 20, 20, 0, 0, 0, 0),
            "empty_masks": 0.25,
            "confidence": 0.5,
            "brightness": 0.75,
            "contrast": 0.5,
            "near_duplicates": 0.5,
            "image_bytes": 1500.0,
            "throughput": 2.5,
        }
    )
    value = verdicts(tonight)[name].value
    assert value is not None and value > 0
    assert verdicts(tonight, **{name: value})[name].verdict == "passed"
    assert verdicts(tonight, **{name: math.nextafter(value, 0)})[name].verdict == "failed"
    off = verdicts(tonight, **{name: None})[name]
    assert (off.verdict, off.value, off.limit) == ("off", value, None)


def test_more_samples_and_more_confidence_are_no_fault() -> None:
    better = {"num_samples": 200, "confidence": 0.99, "near_duplicates": 0.0, "throughput": 20.0}
    assert {result.verdict for result in verdicts(BASE.model_copy(update=better)).values()} == {"passed"}


def test_the_first_night_has_nothing_to_be_compared_with() -> None:
    results = verdicts(BASE.model_copy(update={"empty_masks": 0.5}), None)
    asked = {name for name, result in results.items() if result.verdict != "skipped"}
    assert asked == {"empty_masks", "near_duplicates"}
    assert results["empty_masks"].verdict == "failed"
    assert "nothing is live to compare with" in results["class_psi"].meaning


def test_times_that_nobody_tells_are_not_compared() -> None:
    result = verdicts(BASE.model_copy(update={"throughput": None}))["throughput_drop"]
    assert (result.verdict, result.value) == ("skipped", None)
    assert verdicts(BASE, BASE.model_copy(update={"throughput": None}))["throughput_drop"].verdict == "skipped"


def test_other_classes_are_another_dataset() -> None:
    renamed = BASE.model_copy(update={"class_pixels": {"background": 6000, "dog": 4000, "ignore": 0}})
    results = verdicts(renamed)
    assert results["class_psi"].verdict == results["class_js"].verdict == "failed"
    assert results["class_js"].value == pytest.approx(0.4)


def test_what_is_not_a_number_does_not_pass() -> None:
    results = verdicts(BASE, BASE.model_copy(update={"contrast": 0.0}))
    assert (results["contrast_change"].verdict, results["contrast_change"].value) == ("failed", None)
    both_flat = BASE.model_copy(update={"contrast": 0.0})
    assert verdicts(both_flat, both_flat)["contrast_change"].verdict == "passed"


@pytest.mark.parametrize("field", ["confidence", "brightness", "contrast", "near_duplicates", "image_bytes"])
def test_nor_does_what_nobody_can_compute(field: str) -> None:
    for tonight, live in ((math.nan, 0.02), (0.02, math.nan)):
        results = verdicts(BASE.model_copy(update={field: tonight}), BASE.model_copy(update={field: live}))
        failed = [name for name, result in results.items() if result.verdict == "failed"]
        assert failed and all(results[name].value is None for name in failed)


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (0.0, "0"), (0.03561, "0.0356"), (1234567.0, "1,234,567"), (6826.66, "6,826.7")]
)
def test_figures_are_short(value: float | None, shown: str) -> None:
    assert figure(value) == shown

"""The mask benchmark: controls by hand, figures by formula, and a whole sweep of the tiny generator."""

import itertools
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from typer.testing import CliRunner

from labelmill.pipeline.benchmark.masks import run as mask_benchmark
from labelmill.pipeline.benchmark.masks.methods import (
    _OfVariants,
    _Taught,
    border_fill,
    fitted_method,
    framed,
    grabcut,
    shuffled,
)
from labelmill.pipeline.benchmark.masks.plots import confidence_plot
from labelmill.pipeline.benchmark.masks.results import (
    Counts,
    Difference,
    ImageResult,
    MaskBenchmark,
    MasksRowResult,
    MasksSettings,
    confidence_curve,
    difference,
    interval,
)
from labelmill.pipeline.benchmark.masks.rows import DEFAULT, MODES, MaskRow, axes_of, base_of, combined_row, mask_rows
from labelmill.pipeline.benchmark.masks.subjects import (
    FIRST_SEED,
    GeneratorSubject,
    Pictures,
    PicturesAlone,
    RememberingGenerator,
    SplitName,
    Truth,
)
from labelmill.pipeline.benchmark.masks.sweep import (
    NUM_SHOWN,
    MasksExtent,
    MaskSweep,
    best_of_each_axis,
    picture_path,
    result_path,
)
from labelmill.pipeline.benchmark.masks.tables import PUBLISHED, markdown
from labelmill.pipeline.cli import app
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.networks import Generator
from labelmill.pipeline.generator.sampling import Batch, Sampler, noise_of_seeds
from labelmill.pipeline.generator.spec import GeneratorSpec, channels_by_resolution
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.labelers.style_mixing.mixing import mix
from labelmill.pipeline.labelers.style_mixing.variant_clusters import VariantClusterer
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, NumericsConfig
from labelmill.schemas.errors import LabelmillError
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

CPU = torch.device("cpu")
SPEC = GeneratorSpec(
    resolution=32, z_dim=8, w_dim=8, c_dim=0, mapping_layers=1,
    channels=channels_by_resolution(32, channel_base=128, channel_max=8),
)  # fmt: skip
ROWS = {row.name: row for row in mask_rows(SPEC, None, quick=False)}


# Rows


@pytest.mark.parametrize("mode", MODES)
def test_each_axis_varies_one_setting_around_the_default(mode: str) -> None:
    axes = {axis.field: axis.rows for axis in axes_of(list(ROWS.values())) if axis.mode == mode}
    default = StyleMixingConfig(masks_from=mode)  # type: ignore[arg-type]
    assert {field: [getattr(row.labeler, field) for row in rows] for field, rows in axes.items()} == {
        "variants": [2, 4, 8, 16, 32],
        "clusters": [2, 4, 8, 16],
        "normalisation": ["centred", "none", "standardised"],
        "crossover": [1, 2, 3, 4, 5, 6, 7, "auto"],
        "variant_resolution": [8, 16, None, "auto"],
    }
    for field, rows in axes.items():
        assert base_of(mode) in [row.name for row in rows]  # type: ignore[arg-type]
        for row in rows:
            assert row.labeler.model_dump() | {field: getattr(default, field)} == default.model_dump()


def test_names_and_titles_tell_rows_apart() -> None:
    rows = mask_rows(SPEC, None, quick=False)
    assert len({row.name for row in rows}) == len(rows)
    assert len({(row.subject, row.title) for row in rows}) == len(rows)


def test_a_quick_run_measures_less() -> None:
    quick, full = ({row.name for row in mask_rows(SPEC, None, quick=quick)} for quick in (True, False))
    assert quick < full
    assert not any(name.startswith("untruncated") for name in quick)
    assert "default-clusters" in quick and "variants-4" in quick and "variants-4-clusters" not in quick


def test_a_generator_that_cannot_stop_lower_has_no_lower_resolutions() -> None:
    rows = mask_rows(replace(SPEC, architecture="orig"), None, quick=False)
    assert {row.labeler.variant_resolution for row in rows} == {"auto", None}


def test_the_combined_row_takes_each_axis_best() -> None:
    best = {"variants": ROWS["variants-32"], "clusters": ROWS["clusters-4"], "crossover": ROWS["crossover-5"]}
    combined = combined_row(best, ROWS[DEFAULT]).labeler
    assert combined == StyleMixingConfig(variants=32, clusters=4, crossover=5)


# Controls


def test_shuffling_keeps_each_pixels_colours_and_destroys_correlation() -> None:
    signal_N = torch.linspace(-1, 1, 16)
    variants_BNCHW = signal_N.view(1, 16, 1, 1, 1) * torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1, 1)
    variants_BNCHW = variants_BNCHW.expand(2, 16, 3, 8, 8)
    mixed_BNCHW = shuffled(variants_BNCHW)
    assert torch.equal(mixed_BNCHW.sort(dim=1).values, variants_BNCHW.sort(dim=1).values)
    # Channels of a colour stay together; pixels had the same series, now they correlate like random ones.
    torch.testing.assert_close(mixed_BNCHW[:, :, 2], 3 * mixed_BNCHW[:, :, 0])
    series = mixed_BNCHW[0, :, 0].flatten(1).T
    correlation = torch.corrcoef(series)
    off_diagonal = correlation[~torch.eye(64, dtype=torch.bool)]
    assert off_diagonal.mean().abs() < 0.05
    assert off_diagonal.abs().mean() < 0.4
    assert torch.equal(shuffled(variants_BNCHW), mixed_BNCHW)


def disc(size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on a green slope, and its mask."""
    row, column = np.mgrid[:size, :size]
    mask_HW = ((row - size / 2) ** 2 + (column - size / 2) ** 2 < (size / 4) ** 2).astype(np.uint8)
    image_HWC = np.stack([20 + 0 * row, 100 + 3 * row, 40 + 0 * row], axis=-1).astype(np.uint8)
    image_HWC[mask_HW == 1] = (210, 30, 40)
    return image_HWC, mask_HW


def test_border_fill_and_grabcut_find_a_disc() -> None:
    image_HWC, mask_HW = disc()
    assert np.array_equal(border_fill(image_HWC, 4), mask_HW)
    # Below the slope's step of 3 a fill never leaves its row; there is a seed in each row, and on both sides.
    assert np.array_equal(border_fill(image_HWC, 2), mask_HW)
    assert not border_fill(image_HWC, 255).any()
    found_HW = grabcut(image_HWC, framed(32, 32, 2))
    assert (found_HW == mask_HW).mean() > 0.99
    assert not found_HW[:2].any() and not found_HW[:, -2:].any()
    assert np.array_equal(grabcut(image_HWC, framed(32, 32, 2)), found_HW)


def test_a_fill_comes_through_a_gap() -> None:
    image_HWC = np.zeros((9, 9, 3), np.uint8)
    image_HWC[2:7, 2:7] = 200
    image_HWC[3:6, 3:6] = 0
    closed_HW = border_fill(image_HWC, 10)
    assert closed_HW.sum() == 25
    image_HWC[2, 4] = 0
    opened_HW = border_fill(image_HWC, 10)
    assert opened_HW.sum() == 25 - 9 - 1


def pictures_of(images_BCHW: Tensor, foreground_BHW: Tensor) -> Pictures:
    count = len(images_BCHW)
    batch = Batch(tuple(range(count)), (None,) * count, torch.empty(count, 0, 0), images_BCHW, "none")
    return Pictures(batch, Truth(foreground_BHW, foreground_BHW))


class Discs:
    """Discs in the middle, recoloured; in the image itself they may be of the background's colour."""

    device = CPU

    def __init__(self, hidden: bool) -> None:
        self.source, self.hidden = torch.Generator().manual_seed(5), hidden
        self._variants: dict[int, Tensor] = {}
        self.splits: dict[SplitName, list[Pictures]] = {"fit": [self._draw(12)], "test": [self._draw(8)]}

    def variants(self, batch: Batch, count: int) -> Tensor:
        return self._variants[id(batch)][:, :count]

    def _draw(self, count: int) -> Pictures:
        row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
        radius_B11 = 6 + 5 * torch.rand(count, 1, 1, generator=self.source)
        mask_BHW = (row - 16) ** 2 + (column - 16) ** 2 < radius_B11**2
        colours_BN2C = torch.rand(count, 17, 2, 3, generator=self.source) * 2 - 1
        if self.hidden:
            colours_BN2C[:, 0, 1] = colours_BN2C[:, 0, 0]
        pixels = torch.where(
            mask_BHW[:, None, None], colours_BN2C[:, :, 1, :, None, None], colours_BN2C[:, :, 0, :, None, None]
        )
        pixels = pixels + 0.05 * torch.randn(pixels.shape, generator=self.source)
        pictures = pictures_of(pixels[:, 0], mask_BHW.byte())
        self._variants[id(pictures.batch)] = pixels[:, 1:]
        return pictures

    def share_right(self, row: str) -> float:
        pictures = self.splits["test"][0]
        masks_BHW = fitted_method(ROWS[row], self).label(pictures).masks_BHW
        return (masks_BHW == pictures.truth.foreground_BHW).float().mean().item()


def test_what_methods_see() -> None:
    seen, hidden = Discs(hidden=False), Discs(hidden=True)
    discs = seen.splits["test"][0].truth.foreground_BHW.float().mean().item()
    assert 0.1 < discs < 0.3
    for subject in (seen, hidden):
        # The paper's k = 2 and the default's 8 see the variants, and need no colour in the image.
        assert subject.share_right("drawings-clusters") > 0.97
        assert subject.share_right("drawings-paper") > 0.97
        assert subject.share_right("ceiling") > 0.97
        assert subject.share_right("shuffled") < 0.9
        assert subject.share_right("all-background") == pytest.approx(1 - discs, abs=0.05)
        assert 1 - discs < subject.share_right("average-mask") < 0.97
    for row in ("single-image-2", "average-grabcut", "grabcut-2"):
        assert seen.share_right(row) > 0.95
        assert hidden.share_right(row) < seen.share_right(row) - 0.02


def test_single_images_need_no_variants() -> None:
    subject = Discs(hidden=False)
    pictures = subject.splits["test"][0]
    alone = fitted_method(ROWS["single-image-2"], PicturesAlone(CPU, subject.splits))
    wanted = fitted_method(ROWS["single-image-2"], subject)
    assert torch.equal(alone.label(pictures).masks_BHW, wanted.label(pictures).masks_BHW)
    with pytest.raises(ValueError, match="no variants"):
        fitted_method(ROWS["shuffled"], PicturesAlone(CPU, subject.splits))


def test_merging_by_the_truth_is_the_best_merging() -> None:
    subject = Discs(hidden=False)
    pictures = pictures_of(subject.splits["test"][0].batch.images_BCHW, (torch.rand(8, 32, 32) < 0.4).byte())
    labeler = ROWS["single-image-ceiling"].labeler.model_copy(update={"clusters": 4})
    row = ROWS["single-image-ceiling"].model_copy(update={"labeler": labeler})
    masks_BHW = fitted_method(row, subject).label(pictures).masks_BHW
    clusters = VariantClusterer(labeler).of_colours(pictures.batch.images_BCHW)
    for index, truth_HW in enumerate(pictures.truth.foreground_BHW):
        assignment_HW = clusters.assignment_BP[index].view(32, 32)
        right = max(
            (torch.tensor(sides, dtype=torch.uint8)[assignment_HW] == truth_HW).sum()
            for sides in itertools.product((0, 1), repeat=4)
        )
        assert (masks_BHW[index] == truth_HW).sum() == right


def test_the_other_judge_is_the_first_one_where_they_agree() -> None:
    foreground_BHW = torch.tensor([[[0, 1, 0, 1]]], dtype=torch.uint8)
    agreed_BHW = torch.tensor([[[0, 1, 255, 255]]], dtype=torch.uint8)
    pictures = Pictures(pictures_of(torch.zeros(1, 3, 1, 4), foreground_BHW).batch, Truth(foreground_BHW, agreed_BHW))
    method = fitted_method(ROWS["other-judge"], Discs(hidden=False))
    assert method.label(pictures).masks_BHW.tolist() == [[[0, 1, 1, 0]]]


# Variants are shared


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many variants each synthesis made that a remembering generator had to compute."""
    counts: list[int] = []
    synthesize = Generator.synthesize

    def counting(generator: Generator, ws_BLD: Tensor, *args: object, **settings: object) -> object:
        if isinstance(generator, RememberingGenerator):
            counts.append(len(ws_BLD))
        return synthesize(generator, ws_BLD, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Generator, "synthesize", counting)
    return counts


def test_a_remembered_synthesis_is_the_same_to_the_bit(sampler: Sampler, computed: list[int]) -> None:
    remembering = RememberingGenerator(sampler.generator).eval()
    batch, (donors_NLD, _) = sampler.sample(range(4)), sampler.ws(range(10, 14))
    wanted = mix(sampler.generator, batch, donors_NLD, 3)
    for _ in range(2):
        assert torch.equal(mix(remembering, batch, donors_NLD, 3), wanted)
    assert sum(computed) == 16
    assert torch.equal(mix(remembering, batch, donors_NLD, 4), mix(sampler.generator, batch, donors_NLD, 4))
    lower = mix(remembering, batch, donors_NLD, 3, 16)
    assert torch.equal(lower, mix(sampler.generator, batch, donors_NLD, 3, 16))
    other = sampler.sample(range(1, 5))
    assert torch.equal(mix(remembering, other, donors_NLD, 3), mix(sampler.generator, other, donors_NLD, 3))
    assert sum(computed) == 64
    with remembering.forgetful():
        assert torch.equal(mix(remembering, batch, donors_NLD, 3), wanted)
    drawn = noise_of_seeds(range(4), sampler.generator.spec)
    noisy = replace(batch, noise=drawn)
    assert torch.equal(mix(remembering, noisy, donors_NLD, 3), mix(sampler.generator, noisy, donors_NLD, 3))
    assert sum(computed) == 96


def test_what_is_remembered_is_bounded(sampler: Sampler, computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelmill.pipeline.benchmark.masks.subjects._MOST_BYTES", 2 * 16 * 3 * 32 * 32 * 4)
    remembering = RememberingGenerator(sampler.generator).eval()
    donors_NLD, _ = sampler.ws(range(10, 14))
    batches = [sampler.sample(range(first, first + 4)) for first in (0, 4, 8)]
    for batch in batches:
        mix(remembering, batch, donors_NLD, 3)
    mix(remembering, batches[2], donors_NLD, 3)
    mix(remembering, batches[1], donors_NLD, 3)
    assert sum(computed) == 3 * 16
    mix(remembering, batches[0], donors_NLD, 3)
    assert sum(computed) == 4 * 16


# Figures


def image_results(seed: int, count: int) -> list[ImageResult]:
    random = np.random.default_rng(seed)
    rows = random.multinomial(100, (0.3, 0.1, 0.1, 0.5), size=count).tolist()
    return [
        ImageResult(seed=index, confidence=float(random.random()), tp=tp, fp=fp, fn=fn, tn=tn)
        for index, (tp, fp, fn, tn) in enumerate(rows)
    ]


def miou(images: list[ImageResult]) -> float:
    """By the evaluator, from masks that have these counts."""
    evaluator = MaskEvaluator(("background", "foreground"))
    for image in images:
        counts = (image.tp, image.fp, image.fn, image.tn)
        pred, truth = (np.repeat(np.array(values, np.uint8), counts)[None] for values in ((1, 1, 0, 0), (1, 0, 1, 0)))
        evaluator.add(pred, truth)
    found = evaluator.scores().miou
    assert found is not None
    return found


def row_result(images: list[ImageResult], row: MaskRow = ROWS[DEFAULT], dev: float = 0.5) -> MasksRowResult:
    evaluator = MaskEvaluator(("background", "foreground"))
    evaluator.add(np.array([[0, 1]], np.uint8), np.array([[0, 1]], np.uint8))
    scores = evaluator.scores().model_copy(update={"miou": dev})
    split = {"scores": scores, "agreed": scores}
    return MasksRowResult.model_validate(
        {
            "row": row, "key": "", "crossover": 4, "dev": split, "test": split, "interval": (0, 1),
            "seconds_per_image": None, "images": images,
        }
    )  # fmt: skip


def test_miou_of_counts_is_the_evaluators() -> None:
    images = image_results(1, 9)
    assert Counts.of(images).miou(np.ones(9)) == pytest.approx(miou(images), abs=1e-12)
    assert Counts.of(images).miou(np.array([2, 1, 0, 0, 0, 0, 0, 0, 0.0])) == pytest.approx(
        miou([images[0], images[0], images[1]]), abs=1e-12
    )
    assert Counts.of(images).mious_of_images().tolist() == pytest.approx([miou([image]) for image in images])
    empty = [ImageResult(seed=0, confidence=1, tp=0, fp=0, fn=0, tn=9)]
    assert Counts.of(empty).miou(np.ones(1)) == 1


def test_the_page_of_the_published_results_has_the_papers_figures_beside_ours() -> None:
    results = Path(mask_benchmark.__file__).parent / "measured" / "masks.json"
    benchmark = MaskBenchmark.model_validate_json(results.read_bytes())
    table = markdown(benchmark).partition("## Published")[2].partition("## ")[0]
    ours = benchmark.result(benchmark.default).test.scores
    figures = [ours.iou["foreground"], ours.iou["background"], ours.miou]
    assert f"| {' | '.join(f'{100 * (figure or 0):.1f}' for figure in figures)} |" in table
    assert "| network-free style mixing | nothing | FFHQ generator, 1024 px | 87 | 73 | 80 |" in table
    assert table.count("\n| ") == 2 + 2 + len(PUBLISHED)


def test_what_confidence_predicts_is_shown_where_it_was_counted() -> None:
    results = Path(mask_benchmark.__file__).parent / "measured" / "masks.json"
    curve = confidence_curve(row_result(image_results(2, 40)))
    for curves in ([curve, curve], [curve.model_copy(update={"bins": ()})]):
        assert confidence_plot(curves).startswith(b"\x89PNG")
        benchmark = MaskBenchmark.model_validate_json(results.read_bytes()).model_copy(update={"confidence": curves})
        lowest = f"| confidence, tenths of the images | {100 * curve.bins[0].confidence:.1f} |"
        assert (lowest in markdown(benchmark)) == bool(curves[0].bins)


def test_the_confidence_curve_by_plain_loops() -> None:
    images = image_results(2, 40)
    curve = confidence_curve(row_result(images))
    by_confidence = sorted(images, key=lambda image: image.confidence)
    by_quality = sorted(images, key=lambda image: miou([image]))
    for share, found, best in zip(curve.dropped_share, curve.by_confidence, curve.at_best, strict=True):
        dropped = round(share * 40)
        assert found == pytest.approx(miou(by_confidence[dropped:]))
        assert best == pytest.approx(miou(by_quality[dropped:]))
    assert curve.dropped_share[0] == 0 and curve.dropped_share[-1] == 0.5
    wanted = stats.spearmanr([image.confidence for image in images], [miou([image]) for image in images]).statistic
    assert curve.rank_correlation == pytest.approx(wanted)
    for number, group in enumerate(curve.bins):
        part = by_confidence[4 * number : 4 * number + 4]
        assert group.num_images == 4
        assert group.confidence == pytest.approx(np.mean([image.confidence for image in part]))
        assert group.miou == pytest.approx(np.mean([miou([image]) for image in part]))
    assert len(curve.bins) == 10
    constant = [image.model_copy(update={"confidence": 1.0}) for image in images]
    assert confidence_curve(row_result(constant)).rank_correlation is None


def test_intervals() -> None:
    images = image_results(3, 200)
    low, high = interval(images)
    assert low < miou(images) < high
    # The interval of a mean of many is as wide as its standard error says; mIoU of equal images is nearly one.
    width = 2 * 1.96 * np.std([miou([image]) for image in images]) / np.sqrt(200)
    assert high - low == pytest.approx(width, rel=0.15)
    assert interval(images[:1]) == pytest.approx((miou(images[:1]),) * 2)
    worse = [image.model_copy(update={"tp": image.tp - 2, "fn": image.fn + 2}) for image in images]
    against = difference(worse, images)
    assert against.miou == pytest.approx(miou(worse) - miou(images))
    assert against.interval[0] < against.miou < against.interval[1] < 0
    # Resampled together, the difference is far surer than each of the two.
    assert against.interval[1] - against.interval[0] < (high - low) / 4
    assert difference(images, images) == Difference(miou=0, interval=(0, 0))
    with pytest.raises(AssertionError):
        difference(images[1:], images[:-1])


def test_the_best_value_of_each_axis_is_that_on_dev() -> None:
    better = {"variants-4": 0.7, "clusters-16": 0.6, "crossover-2": 0.8, "crossover-3": 0.55, "shuffled": 0.99}
    better["variants-8-clusters"] = 0.9  # of the other mode
    results = [row_result(image_results(0, 2), row, better.get(name, 0.5)) for name, row in ROWS.items()]
    combined = best_of_each_axis(results)
    assert combined is not None
    assert combined.labeler == StyleMixingConfig(variants=4, clusters=16, crossover=2)
    alone = [row_result(image_results(0, 2), row, 0.6 if name == "variants-8" else 0.5) for name, row in ROWS.items()]
    assert best_of_each_axis(alone) is None


# A sweep


ONLY = {
    "default", "default-clusters", "variants-2", "variants-4", "variants-32", "variants-2-clusters",
    "variants-32-clusters", "clusters-2-clusters", "crossover-6", "variant_resolution-16-clusters", "paper", "ceiling",
    "other-judge", "shuffled", "shuffled-readout", "single-image-8", "single-image-readout", "average-mask",
    "average-grabcut", "grabcut-1", "grabcut-2", "border-fill-8", "all-background", "untruncated-readout",
    "untruncated-clusters", "drawings-clusters", "drawings-average-mask", "combined",
}  # fmt: skip
EXTENT = MasksExtent(num_dev=4, num_test=10, drawings={"fit": 4, "dev": 2, "test": 2}, timed_batches=1, fit_samples=16)
CIRCUMSTANCES = MasksSettings(
    checkpoint="tiny", checkpoint_sha256="c" * 64, resolution=16, judges="brightness", truncation_psi=0.7, device="cpu",
    threads=1, versions={},
)  # fmt: skip


def judge(images_BCHW: Tensor) -> Truth:
    """The brighter half of each image; the upper rows are in dispute."""
    bright_BHW = images_BCHW.mean(dim=1)
    foreground_BHW = (bright_BHW > bright_BHW.flatten(1).median(dim=1).values[:, None, None]).byte()
    agreed_BHW = foreground_BHW.clone()
    agreed_BHW[:, :4] = 255
    return Truth(foreground_BHW, agreed_BHW)


@pytest.fixture(scope="module")
def sampler(tiny_checkpoint: Path) -> Sampler:
    generator = open_checkpoint(str(tiny_checkpoint)).generator
    return Sampler(generator, GeneratorConfig(checkpoint="tiny"), NumericsConfig(batch_size=8, threads=1), "cpu")


@pytest.fixture(scope="module")
def swept(sampler: Sampler, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, MaskBenchmark, list[str]]:
    store, told = Store.open(str(tmp_path_factory.mktemp("sweep"))), []
    benchmark = mask_benchmark.run_sweep(store, sampler, judge, CIRCUMSTANCES, EXTENT, told.append, ONLY)
    return store, benchmark, told


def sweep_again(store: Store, sampler: Sampler) -> list[str]:
    """Names of the rows that are measured."""
    told: list[str] = []
    MaskSweep(store, sampler, judge, CIRCUMSTANCES, EXTENT, ONLY).run(told.append)
    return [line.split(":")[0] for line in told]


def kept_masks(store: Store, row: str) -> list[np.ndarray]:
    strip_HW = cv2.imdecode(np.frombuffer(store.read(picture_path(row)), np.uint8), cv2.IMREAD_UNCHANGED)
    assert strip_HW is not None
    return np.split(strip_HW, NUM_SHOWN, axis=1)


@pytest.mark.parametrize("name", [DEFAULT, "default-clusters", "variants-4", "paper", "variant_resolution-16-clusters"])
@pytest.mark.slow
def test_a_rows_masks_are_those_of_a_run_to_the_bit(
    swept: tuple[Store, MaskBenchmark, list[str]], sampler: Sampler, name: str
) -> None:
    store, benchmark, _ = swept
    config = benchmark.result(name).row.labeler
    labeler = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler
    batch = sampler.sample(range(FIRST_SEED["test"], FIRST_SEED["test"] + 8), labeler.layers)
    wanted_BHW = labeler.label(batch).masks_BHW.numpy()
    assert len(set(wanted_BHW.sum(axis=(1, 2)).tolist())) > 1
    for found_HW, wanted_HW in zip(kept_masks(store, name), wanted_BHW, strict=True):
        assert np.array_equal(found_HW, wanted_HW)


def test_a_read_out_is_taught_as_the_labeler_teaches_its_own(sampler: Sampler) -> None:
    config = StyleMixingConfig(fit_samples=16, crossover=4, variant_resolution=None)
    subject = GeneratorSubject(sampler, judge, config, {"fit": 16, "dev": 8, "test": 8})
    row = ROWS[DEFAULT].model_copy(update={"labeler": config})
    method = _Taught(_OfVariants(row, subject), subject)
    labeler = open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler
    pictures = subject.splits["test"][0]
    batch = sampler.sample(pictures.batch.seeds, labeler.layers)
    ours, theirs = (m.label(p).masks_BHW for m, p in ((method, Pictures(batch, pictures.truth)), (labeler, batch)))
    # The labeler teaches masks before they are snapped to edges, this control after.
    assert (ours == theirs).float().mean() > 0.95


@pytest.mark.slow
def test_scores_are_those_of_the_kept_masks(swept: tuple[Store, MaskBenchmark, list[str]], sampler: Sampler) -> None:
    store, _, _ = swept
    result = MasksRowResult.model_validate_json(store.read(result_path("grabcut-2")))
    assert [image.seed for image in result.images] == list(range(FIRST_SEED["test"], FIRST_SEED["test"] + 10))
    assert (result.dev.scores.num_images, result.test.scores.num_images) == (4, 10)
    truth = judge(sampler.sample(range(FIRST_SEED["test"], FIRST_SEED["test"] + 8)).images_BCHW)
    for image, mask_HW, truth_HW in zip(
        result.images, kept_masks(store, "grabcut-2"), truth.foreground_BHW.numpy(), strict=False
    ):
        assert image.tp == int(((mask_HW == 1) & (truth_HW == 1)).sum())
        assert image.fp == int(((mask_HW == 1) & (truth_HW == 0)).sum())
        assert image.tp + image.fp + image.fn + image.tn == 32 * 32
    assert Counts.of(result.images).miou(np.ones(10)) == pytest.approx(result.test.scores.miou)
    assert result.test.agreed.num_pixels == 10 * 28 * 32


@pytest.mark.slow
def test_what_is_written(swept: tuple[Store, MaskBenchmark, list[str]]) -> None:
    store, benchmark, told = swept
    assert len(told) == len(benchmark.rows)
    read = MaskBenchmark.model_validate_json(store.read("masks.json"))
    assert read.rows == tuple(result.model_copy(update={"images": ()}) for result in benchmark.rows)
    assert read.against_default[DEFAULT].miou == 0
    page = store.read("masks.md").decode()
    for result in benchmark.rows:
        assert f"| {result.row.title}" in page
    for name in ("settings", "controls", "cost", "confidence", "examples"):
        assert f"(masks-{name}.png)" in page
        picture = cv2.imdecode(np.frombuffer(store.read(f"masks-{name}.png"), np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None and picture.std() > 5


@pytest.mark.slow
def test_the_table_of_variants_begins_with_one(swept: tuple[Store, MaskBenchmark, list[str]]) -> None:
    store, _, _ = swept
    table = store.read("masks.md").decode().split("### variants")[1].split("###")[0]
    titles = [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]]
    assert [title.split(" (")[0] for title in titles] == [
        "read-out taught by those of N = 1", "variants 2, read-out", "variants 4, read-out", "style mixing, read-out",
        "variants 32, read-out",
        "N = 1: the image's colours, k = 8", "variants 2, clusters", "style mixing, clusters", "variants 32, clusters",
    ]  # fmt: skip


@pytest.mark.gpu
def test_on_a_gpu(sampler: Sampler, tmp_path: Path) -> None:
    generator = deepcopy(sampler.generator)
    on_gpu = Sampler(generator, sampler.config, sampler.numerics, "cuda")
    store = Store.open(str(tmp_path))
    circumstances = CIRCUMSTANCES.model_copy(update={"device": "cuda"})
    benchmark = mask_benchmark.run_sweep(store, on_gpu, judge, circumstances, EXTENT, lambda line: None, ONLY)
    assert all(result.test.scores.num_images == 10 for result in benchmark.rows if result.row.subject == "generator")


@pytest.mark.slow
def test_which_rows_are_timed(swept: tuple[Store, MaskBenchmark, list[str]]) -> None:
    _, benchmark, _ = swept
    for result in benchmark.rows:
        can_label = result.row.kind in ("style_mixing", "single_image", "grabcut", "border_fill")
        timed = can_label and result.row.subject == "generator" and not result.row.merged_by_truth
        assert (result.seconds_per_image is not None) == timed, result.row.name
    assert (benchmark.result("variants-32-clusters").seconds_per_image or 0) > (
        benchmark.result("variants-2-clusters").seconds_per_image or 1
    )


@pytest.mark.slow
def test_tuned_is_best_on_dev_and_never_cheats(swept: tuple[Store, MaskBenchmark, list[str]]) -> None:
    _, benchmark, _ = swept
    honest = [r for r in benchmark.rows if (r.row.kind, r.row.subject) == ("style_mixing", "generator")]
    honest = [r for r in honest if not r.row.merged_by_truth]
    assert benchmark.result(benchmark.tuned).dev.scores.miou == max(r.dev.scores.miou or 0 for r in honest)
    assert benchmark.tuned in [r.row.name for r in honest]


@pytest.mark.slow
def test_a_sweep_goes_on_from_the_rows_that_are_there(
    swept: tuple[Store, MaskBenchmark, list[str]], sampler: Sampler, tmp_path: Path
) -> None:
    old, _, _ = swept
    store = Store.open(str(tmp_path / "copy"))
    for file in old.list():
        store.create(file.path, old.read(file.path))
    assert sweep_again(store, sampler) == []
    before = MasksRowResult.model_validate_json(store.read(result_path("crossover-6")))
    store.delete(result_path("crossover-6"))
    store.replace(result_path("grabcut-1"), store.read(result_path("grabcut-1"))[:100])
    store.replace(result_path("shuffled"), store.read(result_path(DEFAULT)))
    assert sorted(sweep_again(store, sampler)) == ["crossover-6", "grabcut-1", "shuffled"]
    after = MasksRowResult.model_validate_json(store.read(result_path("crossover-6")))
    assert after.model_copy(update={"seconds_per_image": before.seconds_per_image}) == before


@pytest.mark.slow
def test_rows_of_another_checkpoint_or_extent_do_not_count(
    swept: tuple[Store, MaskBenchmark, list[str]], sampler: Sampler
) -> None:
    store, benchmark, _ = swept
    other = CIRCUMSTANCES.model_copy(update={"checkpoint_sha256": "d" * 64})
    for circumstances, extent, stored in (
        (CIRCUMSTANCES, EXTENT, True),
        (other, EXTENT, False),
        (CIRCUMSTANCES, replace(EXTENT, num_test=11), False),
    ):
        sweep = MaskSweep(store, sampler, judge, circumstances, extent, ONLY)
        assert all((sweep.stored(result.row) is not None) == stored for result in benchmark.rows)


# The command


def test_a_generator_that_the_oracles_cannot_judge(write_large: Callable[[], Path], tmp_path: Path) -> None:
    arguments = ["benchmark", "--masks", "--quick", "--checkpoint", str(write_large()), "--out", str(tmp_path / "out")]
    with pytest.raises(LabelmillError, match="128 px; the oracles judge portraits of 32 and 64 px"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def write_large(tmp_path: Path) -> Callable[[], Path]:
    """A random generator of 128 px."""
    from labelmill.pipeline.generator.checkpoints.native import save_generator
    from labelmill.pipeline.generator.networks import Generator, GeneratorSpec, channels_by_resolution

    def write() -> Path:
        channels = channels_by_resolution(128, channel_base=128, channel_max=8)
        spec = GeneratorSpec(resolution=128, z_dim=8, w_dim=8, c_dim=0, mapping_layers=1, channels=channels)
        save_generator(tmp_path / "large.safetensors", Generator(spec), {"licence": "Apache-2.0"})
        return tmp_path / "large.safetensors"

    return write

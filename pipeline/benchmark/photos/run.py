"""`labelmill benchmark --photos`: masks of drawings that the generator has not made, through its latents.

The product's own inversion and labeling, on files; rerun, it resumes from the latents that are there.

Shape suffixes: N photos, B batch, C channels, H height, W width, L rows of w, D style.
"""

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from labelmill.pipeline.benchmark.classes.results import PROMPTED_CLUSTERS
from labelmill.pipeline.benchmark.downstream.data import TEST_SEEDS, Pairs, drawn_pairs, labeled_pairs
from labelmill.pipeline.benchmark.downstream.run import NUM_ANNOTATED
from labelmill.pipeline.benchmark.downstream.run import QUICK as NETWORK
from labelmill.pipeline.benchmark.downstream.training import Regime, score_on, train_on
from labelmill.pipeline.benchmark.oracle.annotator import few_shot_labeler
from labelmill.pipeline.benchmark.oracle.images import open_judged
from labelmill.pipeline.benchmark.oracle.oracle import open_oracle
from labelmill.pipeline.benchmark.photos.results import (
    Costs,
    DevPoint,
    NetworkRow,
    PhotoRow,
    PhotosBenchmark,
    PhotosSettings,
    QualityResult,
)
from labelmill.pipeline.benchmark.photos.tables import markdown
from labelmill.pipeline.benchmark.record import read_row, row_key, write_row
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.base import Labeler
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.photos.frame import Frame
from labelmill.pipeline.photos.invert import Inversion, Latents, claim_output, framed, invert_missing
from labelmill.pipeline.photos.latents_file import read_latents
from labelmill.pipeline.photos.segment import PhotoLabeler
from labelmill.pipeline.photos.snap import Snapping, radius_for
from labelmill.pipeline.pictures.checked_photos import CheckedPhoto, check_photos
from labelmill.pipeline.pictures.png import encode_picture
from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.segmentation.metrics import MaskEvaluator
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, LabelerConfig, NumericsConfig
from labelmill.schemas.inversion import InversionSettings
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.scores import Scores

Masks = NDArray[np.uint8]

FIRST_DEV_SEED = 8_100_000
_CLASSES = ("background", "foreground")
_RADII = (0, 1, 2, 3)
_FIRST_GENERATED, _NUM_GENERATED = 2_000_000_000, 256
_KEPT = 0.8
_LIBRARIES = ("labelmill", "torch", "numpy", "scipy")


@dataclass(frozen=True)
class PhotosExtent:
    """How much is measured."""

    num_dev: int
    num_test: int
    networks: bool
    """Whether the other methods are fitted and a network is trained, to compare with."""
    inversion: InversionSettings = field(default_factory=lambda: InversionSettings(threads=1))


FULL = PhotosExtent(160, 200, networks=True)
QUICK = PhotosExtent(16, 32, networks=False)


def benchmark_photos(
    out: Path, checkpoint: str, device: torch.device, extent: PhotosExtent, tell: Callable[[str], None]
) -> PhotosBenchmark:
    """Measure, and write photos.json and photos.md into `out`. tell: gets a line for each row.

    Raises CheckpointError, LabelmillError for a generator whose images the oracles do not take, ImportError without
    the extra `benchmark`.
    """
    bench = _Bench(out, checkpoint, device, extent, tell)
    found = bench.run()
    store = Store.open(str(out))
    store.replace("photos.json", found.model_dump_json(indent=1).encode())
    store.replace("photos.md", markdown(found).encode())
    return found


@dataclass(frozen=True)
class _Split:
    """Photos with their truth, and their latents."""

    photos: Sequence[CheckedPhoto]
    pairs: Pairs
    photos_NCHW: Tensor
    """In the generator's frame, in [-1, 1]."""
    latents: Sequence[Latents]
    ws: Mapping[str, Tensor]
    """[N, L, D] by space."""
    psnr_db: Mapping[str, float]


class _Bench:
    def __init__(
        self, out: Path, checkpoint: str, device: torch.device, extent: PhotosExtent, tell: Callable[[str], None]
    ) -> None:
        self._out, self._extent, self._tell = out, extent, tell
        loaded = open_judged(checkpoint, device)
        generator, numerics = GeneratorConfig(checkpoint=checkpoint), NumericsConfig(threads=1)
        folder = out / "photos"
        folder.mkdir(parents=True, exist_ok=True)
        self._latents = folder / "latents"
        self._latents.mkdir(exist_ok=True)
        self._inversion = Inversion(generator, extent.inversion, self._latents, device)
        torch.set_num_threads(numerics.threads)
        self._sampler = Sampler(loaded.generator, generator, numerics, device)
        self._resolution = self._sampler.generator.spec.resolution
        self._settings = PhotosSettings(
            checkpoint=loaded.info.name,
            checkpoint_sha256=loaded.sha256,
            resolution=self._resolution,
            num_dev=extent.num_dev,
            num_test=extent.num_test,
            inversion=extent.inversion,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
            threads=numerics.threads,
            versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        )

    def run(self) -> PhotosBenchmark:
        claim_output(self._inversion)
        dev = self._split("dev", range(FIRST_DEV_SEED, FIRST_DEV_SEED + self._extent.num_dev))
        test = self._split("test", TEST_SEEDS[: self._extent.num_test])
        labeler = self._labeler(StyleMixingConfig())
        rows = [*self._inverted(test, labeler), *self._controls(test, labeler), *self._supervised(test)]
        if self._extent.networks:
            rows += [*self._other_methods(test), self._network(test, labeler)]
        return PhotosBenchmark(
            settings=self._settings,
            costs=self._costs(),
            psnr_db=dict(test.psnr_db),
            generated_miou=self._generated(labeler),
            rows=tuple(rows),
            dev=tuple(self._dev(dev, labeler)),
            quality=self._quality(test, labeler),
        )

    def _split(self, name: str, seeds: range) -> _Split:
        """Drawings as files, inverted by the product."""
        pairs, folder = drawn_pairs(seeds, self._resolution), self._out / "photos" / name
        for seed, image_HWC in zip(seeds, pairs.images_NHWC, strict=True):
            path = folder / f"{seed:010d}.png"
            if not path.exists():
                write_atomically(path, encode_picture(image_HWC))
        photos = check_photos(folder, self._latents, self._tell).good
        assert len(photos) == len(seeds)
        self._invert(photos)
        found = [read_latents(self._latents, photo.name, self._inversion.shape) for photo in photos]
        known = [Latents(photo, *each) for photo, each in zip(photos, found, strict=True) if each is not None]
        assert len(known) == len(photos)
        spaces = self._inversion.settings.spaces
        return _Split(
            photos,
            Pairs(pairs.images_NHWC, (pairs.masks_NHW != 0).astype(np.uint8)),
            torch.stack([framed(self._inversion, photo) for photo in photos]),
            known,
            {space: torch.stack([each.ws[space] for each in known]) for space in spaces},
            {space: round(float(np.mean([each.about.psnr_db[space] for each in known])), 2) for space in spaces},
        )

    def _invert(self, photos: Sequence[CheckedPhoto]) -> None:
        """Invert what is missing; the first time, keep what it costs."""
        store, path, key = Store.open(str(self._out)), "photos/costs.json", self._costs_key()
        started = time.process_time()
        _ = self._inversion.encoder
        trained = time.process_time()
        is_new = not any((self._latents / "latents").glob("*"))
        done, failed = invert_missing(self._inversion, photos)
        assert len(done) == len(photos) and not failed
        if is_new:
            per_photo = (time.process_time() - trained) / len(photos)
            costs = Costs(key=key, encoder_seconds=trained - started, seconds_per_photo=per_photo)
            write_row(store, path, costs)

    def _costs_key(self) -> str:
        return self._inversion.claim_sha256

    def _costs(self) -> Costs:
        found = read_row(Store.open(str(self._out)), "photos/costs.json", Costs, key=self._costs_key())
        return found or Costs(key=self._costs_key(), encoder_seconds=float("nan"), seconds_per_photo=float("nan"))

    def _labeler(self, config: LabelerConfig) -> Labeler:
        fitted = fit_to_bytes(config, self._sampler)
        return open_fitted(config, self._sampler, fitted).labeler

    def _masks(self, ws_NLD: Tensor, labeler: Labeler) -> Tensor:
        """Masks [N, h, w] of latents, as the labeler gives them."""
        return PhotoLabeler(self._sampler, labeler, self._inversion, 0).labels(list(ws_NLD)).masks_BHW

    def _snapped(self, split: _Split, masks_NHW: Tensor, radius: int) -> Masks:
        """Masks [N, H, W] at the photos' edges."""
        spec = self._sampler.generator.spec
        found = []
        for image_HWC, mask_HW in zip(split.pairs.images_NHWC, masks_NHW, strict=True):
            frame = Frame(image_HWC.shape[:2], spec.image_size, self._inversion.settings.fit)
            snapping = Snapping(image_HWC, frame, spec.img_channels, radius, self._sampler.device)
            found.append((snapping.mask(mask_HW) != 0).byte().numpy())
        return np.stack(found)

    def _row(self, name: str, title: str, masks_NHW: Masks, split: _Split, kind: str = "inversion") -> PhotoRow:
        scores = _scores(masks_NHW, split.pairs.masks_NHW)
        self._tell(f"{title}: mIoU {100 * (scores.miou or 0):.1f}")
        return PhotoRow.model_validate({"name": name, "title": title, "kind": kind, "scores": scores})

    def _inverted(self, test: _Split, labeler: Labeler) -> list[PhotoRow]:
        radius = radius_for(self._sampler.generator.spec.image_size)
        w, w_plus = (self._masks(test.ws[space], labeler) for space in ("w", "w_plus"))
        return [
            self._row(
                "w_plus_snapped", "W+, at the photo's edges (default)", self._snapped(test, w_plus, radius), test
            ),
            self._row("w_plus", "W+, as the labeler gives them", _whole(w_plus), test),
            self._row("w_snapped", "W, at the photo's edges", self._snapped(test, w, radius), test),
            self._row("w", "W, as the labeler gives them", _whole(w), test),
        ]

    def _other_methods(self, test: _Split) -> Iterator[PhotoRow]:
        """Each through W+, at the photo's edges, all classes but the background as one."""
        radius, way = radius_for(self._sampler.generator.spec.image_size), "W+, at the photo's edges"
        of_config: dict[str, tuple[str, LabelerConfig]] = {
            "clusters": ("style mixing, `masks_from: clusters`", StyleMixingConfig(masks_from="clusters")),
            "feature_clusters": ("feature clusters, named by domain-supervised prompts", PROMPTED_CLUSTERS),
            "alpha_network": ("alpha network", AlphaNetworkConfig(method="alpha_network")),
        }
        for name, (title, config) in of_config.items():
            masks_NHW = self._masks(test.ws["w_plus"], self._labeler(config))
            yield self._row(name, f"{title}, {way}", self._snapped(test, masks_NHW, radius), test)
        masks_NHW = self._masks(test.ws["w_plus"], few_shot_labeler(self._sampler, NUM_ANNOTATED))
        title = f"few-shot labeler, {NUM_ANNOTATED} images annotated by oracle A, {way}"
        yield self._row("few_shot", title, self._snapped(test, masks_NHW, radius), test, "supervised")

    def _controls(self, test: _Split, labeler: Labeler) -> list[PhotoRow]:
        generator, size = self._sampler.generator, self._inversion.settings.batch_size
        average_NLD = generator.mapping.w_avg.expand(len(test.photos), *self._inversion.shape)
        guessed_NLD = torch.cat([self._inversion.guess(part) for part in test.photos_NCHW.split(size)])
        return [
            self._row(name, title, _whole(self._masks(ws_NLD, labeler)), test, "control")
            for name, title, ws_NLD in (
                ("encoder", "the encoder's guess alone", guessed_NLD),
                ("mean", "the average latent, whatever the photo", average_NLD),
            )
        ]

    def _supervised(self, test: _Split) -> list[PhotoRow]:
        oracle = open_oracle("b", self._resolution, self._sampler.device)
        parts = [oracle.segment(part.to(self._sampler.device)) for part in test.photos_NCHW.split(64)]
        masks_NHW = (torch.cat(parts).cpu().numpy() != 0).astype(np.uint8)
        title = "oracle B: a network that learned from 24,000 exact masks"
        return [self._row("oracle", title, masks_NHW, test, "supervised")]

    def _network(self, test: _Split, labeler: Labeler) -> PhotoRow:
        """The network of `--downstream --quick`, on the same photos."""
        regime = Regime(NETWORK.model, NETWORK.steps, NETWORK.batch_size).for_images_of(self._resolution)
        key = row_key((_Bench,), self._sampler, settings=self._settings.model_dump(mode="json"), steps=NETWORK.steps)
        store, path = Store.open(str(self._out)), "photos/network.json"
        row = read_row(store, path, NetworkRow, key=key)
        if row is None:
            pairs = labeled_pairs(self._sampler, labeler, NETWORK.num_synthetic)
            segmenter, _ = train_on(pairs, regime, 0, self._sampler.device)
            row = NetworkRow(key=key, scores=score_on(segmenter, test.pairs))
            write_row(store, path, row)
        title = f"{regime.model.architecture} trained on {NETWORK.num_synthetic:,} of the labeler's masks"
        self._tell(f"{title}: mIoU {100 * (row.scores.miou or 0):.1f}")
        return PhotoRow(name="network", title=title, kind="network", scores=row.scores)

    def _dev(self, dev: _Split, labeler: Labeler) -> list[DevPoint]:
        points = []
        for space, ws_NLD in dev.ws.items():
            masks_NHW = self._masks(ws_NLD, labeler)
            for radius in _RADII:
                miou = _scores(self._snapped(dev, masks_NHW, radius), dev.pairs.masks_NHW).miou or 0.0
                points.append(DevPoint(space=space, radius=radius, miou=miou))
                self._tell(f"dev: {space}, radius {radius}: mIoU {100 * miou:.1f}")
        return points

    def _quality(self, test: _Split, labeler: Labeler) -> QualityResult:
        """Of the product's own masks."""
        radius = radius_for(self._sampler.generator.spec.image_size)
        photo_labeler = PhotoLabeler(self._sampler, labeler, self._inversion, radius)
        found = list(photo_labeler.label(test.latents))
        masks_NHW, truths = np.stack([each.mask_HW.numpy() for each in found]), test.pairs.masks_NHW
        ious = [_scores(mask[None], truth[None]).miou or 0.0 for mask, truth in zip(masks_NHW, truths, strict=True)]
        names = ("quality", "agreement", "confidence", "psnr_db")
        values = {name: np.array([getattr(each.quality, name) for each in found]) for name in names}
        best = np.argsort(-values["quality"], kind="stable")[: round(_KEPT * len(found))]
        return QualityResult(
            rank_correlation={name: round(float(spearmanr(v, ious).statistic), 4) for name, v in values.items()},
            miou_of_all=_scores(masks_NHW, truths).miou or 0.0,
            miou_of_best=_scores(masks_NHW[best], truths[best]).miou or 0.0,
        )

    def _generated(self, labeler: Labeler) -> float:
        oracle = open_oracle("b", self._resolution, self._sampler.device)
        seeds = range(_FIRST_GENERATED, _FIRST_GENERATED + _NUM_GENERATED)
        evaluator = MaskEvaluator(_CLASSES)
        for batch in self._sampler.batches(seeds, labeler.layers):
            truths_BHW = (oracle.segment(batch.images_BCHW) != 0).to(torch.uint8)
            for mask_HW, truth_HW in zip(labeler.label(batch).masks_BHW, truths_BHW, strict=True):
                evaluator.add(mask_HW.cpu().numpy(), truth_HW.cpu().numpy())
        return evaluator.scores().miou or 0.0


def _whole(masks_NHW: Tensor) -> Masks:
    return np.asarray(masks_NHW.cpu().numpy(), np.uint8)


def _scores(masks_NHW: Masks, truths_NHW: Masks) -> Scores:
    evaluator = MaskEvaluator(_CLASSES)
    for mask_HW, truth_HW in zip(masks_NHW, truths_NHW, strict=True):
        evaluator.add(mask_HW, truth_HW)
    return evaluator.scores()

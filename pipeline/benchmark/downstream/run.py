"""`labelmill benchmark --downstream`: what networks learn from each method's masks, beside controls and exact masks."""

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch

from labelmill.pipeline.benchmark.classes.results import PROMPTED_CLUSTERS
from labelmill.pipeline.benchmark.downstream.data import (
    TEST_SEEDS,
    TRAINING_SEEDS,
    Pairs,
    drawn_pairs,
    labeled_pairs,
    single_image_pairs,
)
from labelmill.pipeline.benchmark.downstream.results import (
    DownstreamBenchmark,
    DownstreamRowResult,
    DownstreamSettings,
    SeedResult,
    result_path,
)
from labelmill.pipeline.benchmark.downstream.tables import markdown
from labelmill.pipeline.benchmark.downstream.training import Regime, score_all_background, score_on, train_on
from labelmill.pipeline.benchmark.oracle.annotator import FEW_SHOT, few_shot_labeler
from labelmill.pipeline.benchmark.oracle.images import open_judged
from labelmill.pipeline.benchmark.record import Machine, bundled_weights_sha256, read_row, row_key, write_row
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.labelers.methods import fit_to_bytes, open_fitted
from labelmill.pipeline.prompt_models import open_prompt_model
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import GeneratorConfig, LabelerConfig, NumericsConfig
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.segmentation import SegmentationModelConfig

_LIBRARIES = ("labelmill", "torch", "torchvision", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class DownstreamExtent:
    """How much is measured, with which network."""

    model: SegmentationModelConfig
    steps: int
    batch_size: int
    num_seeds: int
    num_synthetic: int
    num_supervised: tuple[int, ...]
    """Exact masks of each supervised row."""
    num_test: int


NUM_ANNOTATED = 10
_ALPHA = AlphaNetworkConfig(method="alpha_network")
_SUPERVISED = (1000, 100, 20, 10, 5, 1)
FULL = DownstreamExtent(
    model=SegmentationModelConfig(architecture="deeplabv3_resnet50", upscale=4),
    steps=6000,
    batch_size=16,
    num_seeds=3,
    num_synthetic=10_000,
    num_supervised=_SUPERVISED,
    num_test=1000,
)
"""For a GPU."""
QUICK = DownstreamExtent(
    model=SegmentationModelConfig(architecture="deeplabv3_mobilenet_v3_large", upscale=4),
    steps=300,
    batch_size=16,
    num_seeds=1,
    num_synthetic=1000,
    num_supervised=_SUPERVISED,
    num_test=1000,
)
"""For a CPU."""


@dataclass(frozen=True)
class _Row:
    name: str
    title: str
    make: Callable[[], Pairs]
    labeler: LabelerConfig | None
    """Of images that are generated; None for drawings with exact masks."""


def benchmark_downstream(
    store: Store,
    checkpoint: str,
    device: torch.device,
    extent: DownstreamExtent,
    tell: Callable[[str], None],
) -> DownstreamBenchmark:
    """Train what the store does not hold yet, and write downstream.json and downstream.md into it.

    extent: `FULL`, `QUICK` or another. tell: gets a line for each network. Raises CheckpointError, ConfigError without
    the extra `train`, ImportError without `benchmark`.
    """
    numerics, generator_config = NumericsConfig(), GeneratorConfig(checkpoint=checkpoint)
    torch.set_num_threads(numerics.threads)
    loaded = open_judged(checkpoint, device)
    sampler = Sampler(loaded.generator, generator_config, numerics, device)
    regime = Regime(extent.model, extent.steps, extent.batch_size).for_images_of(sampler.generator.spec.resolution)
    circumstances = DownstreamSettings(
        checkpoint=loaded.info.name,
        checkpoint_sha256=loaded.sha256,
        truncation_psi=generator_config.truncation_psi,
        resolution=sampler.generator.spec.resolution,
        architecture=regime.model.architecture,
        upscale=regime.model.upscale,
        steps=extent.steps,
        batch_size=extent.batch_size,
        num_synthetic=extent.num_synthetic,
        num_supervised=max(extent.num_supervised),
        num_test=extent.num_test,
        **asdict(Machine.here(device, numerics.threads, _LIBRARIES)),
    )
    bench = _Bench(store, sampler, circumstances, extent, regime, tell)
    benchmark = DownstreamBenchmark(circumstances=circumstances, rows=bench.run())
    store.replace("downstream.json", benchmark.model_dump_json(indent=1).encode())
    store.replace("downstream.md", markdown(benchmark).encode())
    return benchmark


class _Bench:
    """Rows one after the other; pairs are made when a network lacks them, and kept."""

    def __init__(
        self,
        store: Store,
        sampler: Sampler,
        circumstances: DownstreamSettings,
        extent: DownstreamExtent,
        regime: Regime,
        tell: Callable[[str], None],
    ) -> None:
        self._store, self._sampler, self._extent, self._tell = store, sampler, extent, tell
        self._circumstances, self._regime = circumstances, regime
        self._pairs: dict[str, Pairs] = {}
        self._seconds: dict[str, float] = {}

    def run(self) -> tuple[DownstreamRowResult, ...]:
        rows = [self._measured(row) for row in self._rows()]
        rows.insert(5, self._all_background())
        return tuple(rows)

    def _rows(self) -> list[_Row]:
        extent, labeler = self._extent, StyleMixingConfig()
        supervised = [
            _Row(
                f"supervised_{count}",
                f"{count} exact mask{'s' * (count > 1)}",
                lambda count=count: self._supervised().first(count),  # type: ignore[misc]
                None,
            )
            for count in extent.num_supervised
        ]
        return [
            _Row("style_mixing", "style mixing", lambda: self._labeled(labeler), labeler),
            _Row(
                "feature_clusters",
                "feature clusters, named by domain-supervised prompts",
                lambda: self._labeled(PROMPTED_CLUSTERS),
                PROMPTED_CLUSTERS,
            ),
            _Row("alpha_network", "alpha network", lambda: self._labeled(_ALPHA), _ALPHA),
            _Row(
                "few_shot",
                f"few-shot labeler, {NUM_ANNOTATED} images annotated by oracle A",
                lambda: labeled_pairs(
                    self._sampler, few_shot_labeler(self._sampler, NUM_ANNOTATED), extent.num_synthetic
                ).foreground(),
                FEW_SHOT,
            ),
            _Row(
                "single_image",
                "control: one image's colours clustered",
                lambda: single_image_pairs(self._sampler, labeler, extent.num_synthetic),
                labeler,
            ),
            *supervised,
        ]

    def _measured(self, row: _Row) -> DownstreamRowResult:
        seeds, key = range(self._extent.num_seeds), self.key(row.labeler)
        found = {seed: self._stored(row, seed, key) for seed in seeds}
        num_pairs = self._extent.num_synthetic if row.labeler else int(row.name.rpartition("_")[2])
        for seed in (seed for seed in seeds if found[seed] is None):
            pairs = self._kept(row.name, key, row.make) if row.labeler else row.make()
            segmenter, seconds = train_on(pairs, self._regime, seed, self._sampler.device)
            result = SeedResult(
                key=key,
                row=row.name,
                seed=seed,
                label_seconds=self._seconds[row.name] if row.labeler else None,
                training_seconds=seconds,
                scores=score_on(segmenter, self._test()),
            )
            write_row(self._store, result_path(row.name, seed), result)
            found[seed] = result
            self._tell(f"{row.title}, seed {seed}: mIoU {100 * (result.scores.miou or 0):.1f}, {seconds:.0f} s")
        networks = tuple(result for result in found.values() if result is not None)
        return DownstreamRowResult(row=row.name, title=row.title, num_pairs=num_pairs, networks=networks)

    def key(self, labeler: LabelerConfig | None) -> str:
        """What a stored result must have been measured with. labeler: that made a row's masks, whose settings may be
        another version's defaults; None: masks are exact."""
        return row_key(
            (_Bench,),
            self._sampler,
            prompts=bundled_weights_sha256(open_prompt_model),
            circumstances=self._circumstances.model_dump(mode="json"),
            labeler=labeler and labeler.model_dump(mode="json"),
        )

    def _stored(self, row: _Row, seed: int, key: str) -> SeedResult | None:
        return read_row(self._store, result_path(row.name, seed), SeedResult, row=row.name, seed=seed, key=key)

    def _all_background(self) -> DownstreamRowResult:
        scores = score_all_background(self._test())
        network = SeedResult(
            key=self._exact_key, row="all_background", seed=0, label_seconds=None, training_seconds=0, scores=scores
        )
        title = "control: background everywhere"
        return DownstreamRowResult(row="all_background", title=title, num_pairs=0, networks=(network,))

    def _labeled(self, config: LabelerConfig) -> Pairs:
        labeler = open_fitted(config, self._sampler, fit_to_bytes(config, self._sampler)).labeler
        return labeled_pairs(self._sampler, labeler, self._extent.num_synthetic).foreground()

    @property
    def _resolution(self) -> int:
        return self._sampler.generator.spec.resolution

    def _supervised(self) -> Pairs:
        seeds = TRAINING_SEEDS[: max(self._extent.num_supervised)]
        return self._kept("supervised", self._exact_key, lambda: drawn_pairs(seeds, self._resolution).foreground())

    def _test(self) -> Pairs:
        seeds = TEST_SEEDS[: self._extent.num_test]
        return self._kept("test", self._exact_key, lambda: drawn_pairs(seeds, self._resolution).foreground())

    @property
    def _exact_key(self) -> str:
        return self.key(None)

    def _kept(self, name: str, key: str, make: Callable[[], Pairs]) -> Pairs:
        """Pairs out of memory, or out of the store if this very benchmark made them, or made now."""
        if name not in self._pairs:
            path = f"downstream/{name}-{key[:16]}.npz"
            try:
                self._pairs[name], self._seconds[name] = _from_npz(self._store.read(path))
            except FileNotFoundError:
                started = time.monotonic()
                self._pairs[name] = make()
                self._seconds[name] = time.monotonic() - started
                self._store.replace(path, _to_npz(self._pairs[name], self._seconds[name]))
        return self._pairs[name]


def _to_npz(pairs: Pairs, seconds: float) -> bytes:
    content = io.BytesIO()
    np.savez(content, images_NHWC=pairs.images_NHWC, masks_NHW=pairs.masks_NHW, seconds=np.array(seconds))
    return content.getvalue()


def _from_npz(content: bytes) -> tuple[Pairs, float]:
    arrays: Mapping[str, np.ndarray] = np.load(io.BytesIO(content), allow_pickle=False)
    return Pairs(arrays["images_NHWC"], arrays["masks_NHW"]), float(arrays["seconds"])

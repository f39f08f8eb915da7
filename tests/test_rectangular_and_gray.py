"""Generators of rectangular or gray images all the way: shards, masks, report, night, a network, its predictions."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.tiny_run import save_tiny_generator, tiny_run

from labelmill.pipeline.dataset.manifest import read_manifest
from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import latents
from labelmill.pipeline.networks.segmenter import load_segmenter
from labelmill.pipeline.nightly.measure import measure_snapshot
from labelmill.pipeline.report.report import write_report
from labelmill.pipeline.segmentation.evaluate import evaluate
from labelmill.pipeline.segmentation.mask_source import open_masks
from labelmill.pipeline.segmentation.predict import predict_folder
from labelmill.pipeline.segmentation.reading import open_split, read_samples
from labelmill.pipeline.segmentation.train import train
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.nightly import SamplingConfig
from labelmill.schemas.segmentation import SegmentationTrainingConfig
from labelmill.workers.estimate import estimate
from labelmill.workers.generate import generate
from labelmill.workers.preview import preview_sheet, redrawing


@dataclass(frozen=True)
class Shape:
    """Of a generator's images."""

    const_size: tuple[int, int]
    channels: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return 8 * self.const_size[0], 8 * self.const_size[1]


SHAPES = {"tall": Shape((4, 2), 3), "wide-gray": Shape((2, 4), 1)}


@dataclass(frozen=True)
class Made:
    """A finished dataset."""

    shape: Shape
    config: RunConfig
    checkpoint: Path
    output: Path

    def reference(self, seed: int) -> np.ndarray:
        """The image [H, W, C] float of a seed in levels of 255, by the formula."""
        generator = open_checkpoint(str(self.checkpoint)).generator
        with torch.no_grad():
            ws_BLD = generator.truncate(generator.map(latents([seed], 32)), 0.7)
            image_CHW = generator.synthesize(ws_BLD).images_BCHW[0]
        return (image_CHW * 127.5 + 128).clamp(0, 255).permute(1, 2, 0).numpy()


@pytest.fixture(scope="module", params=SHAPES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    shape, folder = SHAPES[request.param], tmp_path_factory.mktemp(request.param)
    checkpoint, output = folder / "generator.safetensors", folder / "out"
    save_tiny_generator(checkpoint, shape.const_size, shape.channels)
    values = tiny_run(checkpoint, output)
    values["dataset"] = {"samples": 8, "samples_per_shard": 4, "image_format": "png", "splits": {"train": 1.0}}
    values["quality"] = {"foreground_min": 0, "foreground_max": 1, "confidence_min": 0, "largest_component_min": 0.2}
    values["quality"]["allow_weak_labeler"] = True  # the generator is not trained
    values["execution"] = {"executor": "local"}
    config = RunConfig.model_validate(values)
    generate(config)
    yield Made(shape, config, checkpoint, output)


def test_images_are_the_generators_and_masks_fit_them(made: Made) -> None:
    shape, store = made.shape, Store.open(str(made.output))
    manifest = read_manifest(store)
    assert (manifest.image_shape.size, manifest.image_shape.channels) == (shape.size, shape.channels)
    assert len(manifest.mean) == len(manifest.std) == shape.channels
    assert sum(manifest.class_pixels.values()) == 8 * shape.size[0] * shape.size[1]
    samples = list(read_samples(open_split(str(made.output), None)))
    references = [made.reference(sample.metadata.candidate.seed) for sample in samples]
    for sample, reference_HWC in zip(samples, references, strict=True):
        assert sample.image_HWC.shape == (*shape.size, 3)
        assert np.abs(sample.image_HWC - reference_HWC).max() <= 1.001
        assert sample.mask_HW.shape == shape.size
        counted = sample.metadata.candidate.class_pixels
        assert [int((sample.mask_HW == value).sum()) for value in (0, 1)] == list(counted.values())[:2]
    assert manifest.mean == pytest.approx(np.mean(references, axis=(0, 1, 2)) / 255, abs=0.003)
    assert verify(store).problems == ()
    scores = evaluate(open_masks(str(made.output)), open_masks(str(made.output)))
    assert scores.miou == 1 and scores.num_pixels == 8 * shape.size[0] * shape.size[1]


def test_verification_tells_shapes_apart(made: Made) -> None:
    """The same shards under a manifest that says otherwise."""
    store, path = Store.open(str(made.output)), made.output / "manifest.json"
    content, manifest = path.read_text(), read_manifest(store)
    turned = {"height": manifest.image_shape.width, "width": manifest.image_shape.height}
    other = {"channels": 4 - manifest.image_shape.channels}
    kind = "RGB" if made.shape.channels == 1 else "gray"
    try:
        for change, complaint in ((turned, r"is no 8-bit gray PNG of"), (other, f"is no {kind} image of")):
            changed = manifest.model_copy(update={"image_shape": manifest.image_shape.model_copy(update=change)})
            path.write_text(changed.model_dump_json())
            assert any(re.search(complaint, problem) for problem in verify(store).problems)
    finally:
        path.write_text(content)


def test_pages_and_sheets_keep_the_shape(made: Made) -> None:
    height, width = made.shape.size
    store = Store.open(str(made.output))
    with redrawing(store) as redraw:
        page = store.read(write_report(store, redraw)).decode()
    words = f"{width} × {height} pixels (width × height)"
    assert ("gray images" in page) == (made.shape.channels == 1)
    assert words in page and f"--aspect: {width} / {height};" in page
    encoded = re.findall(r'src="data:image/(?:jpeg|png);base64,([^"]+)"', page)
    shown = [cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR) for data in encoded]
    assert len(shown) > 24
    assert {picture.shape[:2] for picture in shown} == {(128 * height // 16, 128 * width // 16)}
    assert f"of {width} x {height} pixels (width x height)" in store.read("README.md").decode()
    assert f"of {width} x {height} pixels (width x height)" in store.read("croissant.json").decode()
    sheet = cv2.imdecode(np.frombuffer(preview_sheet(made.config, 4), np.uint8), cv2.IMREAD_COLOR)
    cell_height, cell_width = 128 * height // 16 + 22 + 12, 2 * 128 * width // 16 + 12
    assert sheet.shape[1] == 12 + 4 * cell_width
    assert sheet.shape[0] == 12 + 30 + cell_height
    assert any(line.startswith("estimate: ") for line in estimate(made.config))


def test_a_night_measures_them(made: Made) -> None:
    found = measure_snapshot(Store.open(str(made.output)), SamplingConfig())
    seeds = [sample.metadata.candidate.seed for sample in read_samples(open_split(str(made.output), None))]
    references = np.stack([made.reference(seed) for seed in seeds]) / 255
    assert found.num_sampled == found.num_samples == 8
    assert found.empty_masks <= 1 and sum(found.foreground_histogram) == 8
    assert found.brightness == pytest.approx(references.mean(), abs=0.003)
    deviations = references.reshape(-1, made.shape.channels).std(axis=0)
    assert found.contrast == pytest.approx(np.sqrt(np.square(deviations).mean()), abs=0.003)


def test_a_network_learns_from_them_and_labels_photos(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    config = SegmentationTrainingConfig.model_validate(
        {
            "data": {"dataset": str(made.output), "split": "train"},
            "output": str(tmp_path / "segmenter"),
            "model": {"architecture": "resnet18_8s"},
            "optimisation": {"batch_size": 4, "steps": 1},
            "workers": 0,
            "device": "cpu",
        }
    )
    assert train(config).steps == 1
    segmenter, card = load_segmenter(tmp_path / "segmenter" / "model.safetensors", torch.device("cpu"))
    assert (card.image_shape.size, card.image_shape.channels) == (made.shape.size, made.shape.channels)
    photos = tmp_path / "photos"
    photos.mkdir()
    colours_HWC = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    gray_HW = cv2.cvtColor(colours_HWC, cv2.COLOR_BGR2GRAY)
    for name, pixels in (("colours", colours_HWC), ("gray", gray_HW)):
        assert cv2.imwrite(str(photos / f"{name}.png"), pixels)
    assert predict_folder(segmenter, photos, tmp_path / "masks", min(card.image_shape.size)) == 2
    masks = [cv2.imread(str(tmp_path / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED) for name in ("colours", "gray")]
    assert [mask_HW.shape for mask_HW in masks] == [(40, 24)] * 2

    # One that learned from gray images sees a photo as its gray copy, but for how far that is rounded.
    both = torch.from_numpy(np.stack([colours_HWC[:, :, ::-1], np.stack([gray_HW] * 3, axis=2)])).permute(0, 3, 1, 2)
    with torch.no_grad():
        in_colours, in_gray = segmenter(both / 255)
    assert bool(((in_colours - in_gray).abs().max() < 0.05 * in_gray.abs().max()) == (made.shape.channels == 1))

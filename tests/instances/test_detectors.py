"""Functions and models that look at images."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.random_sampler import make_sampler
from numpy.typing import NDArray
from pydantic import TypeAdapter

import labelmill
from labelmill.pipeline.generator.sampling import Batch
from labelmill.pipeline.instances.boxes import Box
from labelmill.pipeline.instances.crossover import choose_row
from labelmill.pipeline.instances.detection_model import DetectionModel, model_sha256
from labelmill.pipeline.instances.detectors import FromFile, FromFunction
from labelmill.pipeline.instances.labeler import InstanceLabeler
from labelmill.pipeline.instances.run_labeler import fit_instances
from labelmill.pipeline.labelers.base import Labels
from labelmill.pipeline.process.torchvision_import import import_torchvision
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.instances import DetectionModelConfig, InstanceSettings


class Nothing:
    """A labeler to which all is background."""

    classes, layers, optional_files = ("background", "foreground"), (), ()

    def label(self, batch: Batch) -> Labels:
        masks_BHW = torch.zeros(len(batch), *batch.images_BCHW.shape[2:], dtype=torch.uint8)
        return Labels(masks_BHW, torch.ones(len(batch)))


def brightest(image_HWC: NDArray[np.uint8]) -> Iterator[Mapping[str, object]]:
    """A box of 6 pixels a side around the brightest pixel, one without any size, and one of NumPy's numbers."""
    y, x = np.unravel_index(image_HWC.sum(axis=2).argmax(), image_HWC.shape[:2])
    yield {"class": "light", "score": 0.9, "box": [int(x) - 3, int(y) - 3, 6, 6]}
    yield {"class": "light", "score": 0.9, "box": [int(x), int(y), 0, 6]}
    yield {"class": "all", "score": np.float32(0.5), "box": np.array([1, 1, 14, 14])}


def test_a_function_finds_instances(capsys: pytest.CaptureFixture[str]) -> None:
    sampler = make_sampler(16)
    settings = {"variants": 4, "clusters": [3], "fit_samples": 4}
    labeler = labelmill.find_instances(sampler, Nothing(), brightest, **settings)
    (batch, labels), *_ = labelmill.label(sampler, labeler, range(3))
    assert labeler.optional_files == ("instances.png",)
    assert labels.instances_B is not None and labels.instances_BHW is not None
    log = capsys.readouterr().err
    for key, numbers_HW, instances in zip(batch.keys, labels.instances_BHW, labels.instances_B, strict=True):
        assert log.count(f"{key}: box 2 ") == 1
        assert [each.id for each in instances] == [number for number in numbers_HW.unique().tolist() if number]
        assert all(each.label in ("light", "all") for each in instances)
    again = labeler.label(batch.select([2]))
    assert again.instances_BHW is not None and torch.equal(again.instances_BHW[0], labels.instances_BHW[2])


def test_photos_go_by_their_names() -> None:
    sampler, settings = make_sampler(16), InstanceSettings(variants=4, clusters=[3], crossover=2)
    ws_BLD, _ = sampler.ws([5, 6])
    detector = FromFile({"holiday": (Box("person", 1.0, 2, 2, 12, 14),), "0000000000": (Box("a", 1.0, 1, 1, 9, 9),)})
    fitted = fit_instances(settings, sampler, detector, b"")
    labeler = InstanceLabeler(Nothing(), detector, settings, sampler, fitted.donors_NLD, 2)
    labels = labeler.label(sampler.of_ws(ws_BLD, names=("beach", "holiday")))
    assert labels.instances_B is not None
    assert [[each.label for each in instances] for instances in labels.instances_B] == [[], ["person"]]


def test_the_row_is_chosen_by_what_the_detector_still_sees() -> None:
    sampler = make_sampler(16)

    def detect(images_BHWC: NDArray[np.uint8]) -> list[list[Mapping[str, object]]]:
        return [[box for box in brightest(image_HWC) if box["score"] == 0.9][:1] for image_HWC in images_BHWC]

    settings = InstanceSettings(variants=4, fit_samples=4)
    found = fit_instances(settings, sampler, FromFunction(detect), b"").provenance
    assert found.kept is not None and found.num_boxes == 4 and set(found.kept) == set(range(1, 6))
    assert min(found.kept.values()) < 0.95 and found.crossover == choose_row(found.kept, 0.95)
    blind = fit_instances(settings, sampler, FromFunction(lambda images_BHWC: [[]] * len(images_BHWC)), b"").provenance
    assert blind.num_boxes == 0 and blind.kept is not None


def test_the_lowest_row_from_which_on_enough_is_kept() -> None:
    kept = {1: 0.99, 2: 0.5, 3: 0.96, 4: 0.97, 5: 1.0}
    assert (choose_row(kept, 0.95), choose_row(kept, 0.4), choose_row(kept, 1.1)) == (3, 1, 5)


def config_of(folder: Path, **more: object) -> DetectionModelConfig:
    values = {"kind": "transformers", "path": str(folder), "score_min": 0.0, **more}
    return TypeAdapter(DetectionModelConfig).validate_python(values)


def test_a_model_is_a_folder_of_json_and_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"instances\.detector\.path: .*away: is no folder; models are not fetched"):
        model_sha256(config_of(tmp_path / "away"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors; pickled weights are not read"):
        model_sha256(config_of(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"use_timm_backbone": True}))
    with pytest.raises(ConfigError, match="asks for a backbone of timm"):
        DetectionModel(config_of(tmp_path), torch.device("cpu"))


def test_a_model_of_transformers_finds_boxes(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")  # first: without it transformers is not there
    import_torchvision()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=5,
        id2label={0: "person", 1: "hat"},
    )
    transformers.YolosForObjectDetection(config).save_pretrained(tmp_path)
    transformers.YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    model = DetectionModel(config_of(tmp_path), torch.device("cpu"))
    images_BHWC = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), np.uint8)
    found = model(images_BHWC)
    assert [len(boxes) for boxes in found] == [5, 5, 5] and found == [model(image[None])[0] for image in images_BHWC]
    assert {box["class"] for boxes in found for box in boxes} <= {"person", "hat"}
    assert model(images_BHWC[..., :1]) and len(model_sha256(config_of(tmp_path))) == 64
    with pytest.raises(ConfigError, match=r"instances\.detector\.classes: cat: this model knows person, hat"):
        DetectionModel(config_of(tmp_path, classes=["cat"]), torch.device("cpu"))

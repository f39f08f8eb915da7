"""A user's network as labeler: from its file to shards."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.graphs import graph_file, identity_file
from helpers.random_sampler import make_sampler
from onnx import helper, numpy_helper
from safetensors.torch import load, save

from labelmill.pipeline.generator.sampling import to_uint8
from labelmill.pipeline.labelers.fitted_file import FittedLabelerError
from labelmill.pipeline.labelers.methods import METHODS, fit_to_bytes, open_fitted
from labelmill.pipeline.labelers.network.fit import network_findings
from labelmill.pipeline.labelers.network.fitted import FittedNetwork
from labelmill.pipeline.labelers.network.labeler import expected_iou
from labelmill.pipeline.networks.segmenter import build, save_segmenter
from labelmill.pipeline.networks.trained import Verdict
from labelmill.pipeline.segmentation.reading import open_split, read_samples
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import CheckpointError, OutputError
from labelmill.schemas.labelers.network import NetworkLabelerConfig
from labelmill.schemas.sample import ImageShape
from labelmill.schemas.segmentation import SegmentationModelCard, SegmentationModelConfig
from labelmill.schemas.yaml_file import load_config
from labelmill.workers.generate import generate

RunFileWriter = Callable[..., Path]
NAMES = "background,skin,hair"


def make_config(model: Path, **settings: object) -> NetworkLabelerConfig:
    return NetworkLabelerConfig.model_validate({"method": "network", "model": str(model), "fit_samples": 6, **settings})


def conv_file(path: Path) -> Path:
    """A 3 x 3 convolution with random weights."""
    weight = np.random.default_rng(0).normal(size=(3, 3, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph_file(path, [node], weights=[numpy_helper.from_array(weight, "w")], classes=NAMES)
    return path


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    identity_file(tmp_path / "model.onnx", classes=NAMES)
    return tmp_path / "model.onnx"


def run_of(write_run_file: RunFileWriter, model: str, **settings: object) -> RunConfig:
    labeler = {"method": "network", "model": model, "fit_samples": 6, **settings}
    dataset = {"samples": 8, "samples_per_shard": 4, "image_format": "png"}
    path = write_run_file(dataset=dataset)
    text = path.read_text()
    start, end = text.index("labeler:"), text.index("name:")
    path.write_text(f"{text[:start]}labeler: {json.dumps(labeler)}\n{text[end:]}")
    return load_config(path, RunConfig)


def test_shards_hold_the_networks_masks_of_their_images(
    identity: Path, write_run_file: RunFileWriter, tmp_path: Path
) -> None:
    generate(run_of(write_run_file, "model.onnx"))
    split = open_split(str(tmp_path / "out"), None)
    samples = list(read_samples(split))
    assert split.classes == ("background", "skin", "hair") and len(samples) == 8
    for sample in samples:
        assert np.array_equal(sample.mask_HW, sample.image_HWC.argmax(axis=-1))
        shares = np.exp(sample.image_HWC / 255) / np.exp(sample.image_HWC / 255).sum(axis=-1, keepdims=True)
        shown = [sample.mask_HW == value for value in range(3)]
        ious = [
            np.minimum(own, shares[..., k]).sum() / np.maximum(own, shares[..., k]).sum()
            for k, own in enumerate(shown)
            if own.any()
        ]
        assert sample.metadata.candidate.confidence == pytest.approx(np.mean(ious), abs=2e-6)


def test_the_content_of_the_file_is_part_of_the_run_and_not_its_place(
    identity: Path, write_run_file: RunFileWriter, tmp_path: Path
) -> None:
    generate(run_of(write_run_file, "model.onnx"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "shards").iterdir()}
    identity.rename(tmp_path / "elsewhere.onnx")
    with pytest.raises(CheckpointError, match=r"model\.onnx: .*No such file"):
        generate(run_of(write_run_file, "model.onnx"))
    (tmp_path / "out" / "shards" / "tiny-000001.tar").unlink()
    generate(run_of(write_run_file, "elsewhere.onnx"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "shards").iterdir()} == before
    with pytest.raises(OutputError, match=r"labeler\.order: bgr in the run file, rgb in the output"):
        generate(run_of(write_run_file, "elsewhere.onnx", order="bgr"))
    conv_file(tmp_path / "elsewhere.onnx")
    with pytest.raises(OutputError, match=r"inputs\.model: sha256:"):
        generate(run_of(write_run_file, "elsewhere.onnx"))


def trained_file(path: Path) -> Path:
    card = SegmentationModelCard(
        model=SegmentationModelConfig(architecture="resnet18_8s"),
        classes=("background", "skin", "hair"),
        image_shape=ImageShape(height=32, width=32, channels=3),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        dataset_fingerprint="f" * 64,
        steps=1,
    )
    save_segmenter(path, build(card.model, num_classes=3, mean=card.mean, std=card.std, seed=0).eval(), card)
    return path


@pytest.mark.parametrize("make", [conv_file, trained_file])
def test_a_mask_depends_on_its_own_sample_alone(make: Callable[[Path], Path], tmp_path: Path) -> None:
    sampler, config = make_sampler(), make_config(make(tmp_path / "model"))
    fitted = fit_to_bytes(config, sampler)
    assert fit_to_bytes(config, sampler) == fitted
    labeler = open_fitted(config, sampler, fitted).labeler
    batch = sampler.sample(range(4))
    together = labeler.label(batch)
    assert together.masks_BHW.unique().numel() > 1
    for position in range(4):
        alone = labeler.label(batch.select([position]))
        assert torch.equal(alone.masks_BHW[0], together.masks_BHW[position])
        assert torch.equal(alone.confidence_B[0], together.confidence_B[position])
    others = labeler.label(batch.select([3, 2, 0]))
    assert torch.equal(others.confidence_B, together.confidence_B[[3, 2, 0]])


def test_gray_and_rectangular_images_go_in(tmp_path: Path) -> None:
    sampler = make_sampler(const_size=(4, 6), img_channels=1)
    labeler = open_fitted(
        config := make_config(conv_file(tmp_path / "model"), size=12), sampler, fit_to_bytes(config, sampler)
    ).labeler
    batch = sampler.sample(range(2))
    assert labeler.label(batch).masks_BHW.shape == batch.images_BCHW[:, 0].shape
    assert to_uint8(batch.images_BCHW).shape[-1] == 1


def test_confidence_is_the_expected_iou() -> None:
    masks_BHW = torch.tensor([[[0, 0, 1, 255]], [[1, 1, 1, 1]]], dtype=torch.uint8)
    probabilities_BKHW = torch.zeros(2, 3, 1, 4)
    probabilities_BKHW[0, :, 0] = torch.tensor([[0.8, 0.6, 0.3, 0.1], [0.2, 0.3, 0.7, 0.1], [0.0, 0.1, 0.0, 0.1]])
    probabilities_BKHW[1, 1] = 1
    first = ((0.8 + 0.6) / (2 + 0.3) + 0.7 / (1 + 0.2 + 0.3)) / 2
    assert expected_iou(Verdict(masks_BHW, probabilities_BKHW)).tolist() == pytest.approx([first, 1.0])


def test_findings_tell_what_the_network_sees(tmp_path: Path) -> None:
    sampler = make_sampler()

    def findings(**settings: object) -> tuple[str, str]:
        config = make_config(model, **settings)
        fitted = FittedNetwork.from_bytes(fit_to_bytes(config, sampler), config, sampler.generator.spec)
        found = network_findings(fitted.provenance)
        return found.verdict, "\n".join(found.words)

    model = tmp_path / "model"
    identity_file(model, classes=NAMES)
    verdict, words = findings()
    assert verdict == "doubtful" and "a mean confidence below 0.6" in words
    assert "what the network sees in 6 images, by pixels: background" in words
    verdict, words = findings(mean=(0, 0, 900))
    assert verdict == "doubtful" and "classes that it sees in none of these images: hair" in words
    verdict, words = findings(mean=(-900, 0, 0))
    assert verdict == "weak" and "it sees no foreground" in words
    verdict, words = findings(mean=(900, 0, 0))
    assert verdict == "weak" and "it sees no background" in words
    verdict, _ = findings(std=(0.001, 0.001, 0.001))
    assert verdict == "sound"


def test_another_network_in_the_fitted_file_is_refused(tmp_path: Path) -> None:
    sampler, config = make_sampler(), make_config(conv_file(tmp_path / "model"))
    fitted = fit_to_bytes(config, sampler, "a" * 64)
    length = int.from_bytes(fitted[:8], "little")
    metadata = json.loads(fitted[8 : 8 + length])["__metadata__"]
    content = load(fitted)["network"]
    content[-1] ^= 1
    with pytest.raises(FittedLabelerError, match="its network is not the one that it was fitted with"):
        open_fitted(config, sampler, save({"network": content}, metadata))
    with pytest.raises(FittedLabelerError, match="holds no network"):
        open_fitted(config, sampler, save({"other": content}, metadata))
    with pytest.raises(FittedLabelerError, match="size: 12 here, None in the file"):
        open_fitted(make_config(tmp_path / "model", size=12), sampler, fitted)
    with pytest.raises(FittedLabelerError, match="fitted on another checkpoint"):
        open_fitted(config, sampler, fitted, "b" * 64)


def test_what_a_graph_gives_is_seen_before_work(tmp_path: Path) -> None:
    identity_file(tmp_path / "model", classes="background,a,b,c")
    with pytest.raises(CheckpointError, match="has 3 outputs, but 4 classes are named"):
        METHODS["network"].check_inputs(make_config(tmp_path / "model"), make_sampler(), None)

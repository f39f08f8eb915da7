"""Networks from files: ONNX graphs of known arithmetic, and the trainer's own file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.graphs import graph_file, identity_file
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from labelmill.pipeline.networks.segmenter import build, save_segmenter
from labelmill.pipeline.networks.trained import TrainedNetwork, network_size, parse_network, read_network
from labelmill.pipeline.segmentation.onnx_export import export_onnx
from labelmill.schemas.errors import CheckpointError, ConfigError
from labelmill.schemas.network import NetworkConfig
from labelmill.schemas.sample import ImageShape
from labelmill.schemas.segmentation import SegmentationModelCard, SegmentationModelConfig

CPU = torch.device("cpu")
NAMES = ["background", "skin", "hair"]
CARD = SegmentationModelCard(
    model=SegmentationModelConfig(architecture="resnet18_8s"),
    classes=("background", "skin", "hair"),
    image_shape=ImageShape(height=16, width=24, channels=3),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.2, 0.2),
    dataset_fingerprint="f" * 64,
    steps=3,
)


def opened(config: NetworkConfig, **changes: Any) -> TrainedNetwork:
    config = NetworkConfig.model_validate({**config.model_dump(), **changes})
    return parse_network(read_network(config), config, CPU)


def images(height: int = 16, width: int = 16, channels: int = 3) -> torch.Tensor:
    values = np.random.default_rng(1).integers(0, 256, (2, height, width, channels), dtype=np.uint8)
    return torch.from_numpy(values)


@pytest.fixture
def identity(tmp_path: Path) -> NetworkConfig:
    """Scores are the image's channels."""
    return identity_file(tmp_path / "identity.onnx")


def test_scores_become_classes_and_probabilities(identity: NetworkConfig) -> None:
    image = images()
    found = opened(identity, classes=NAMES).segment(image)
    assert torch.equal(found.masks_BHW, image.argmax(dim=-1).byte())
    expected = (image.permute(0, 3, 1, 2) / 255).softmax(dim=1)
    torch.testing.assert_close(found.probabilities_BKHW, expected)
    shares = opened(identity, classes=NAMES, scores="probabilities").segment(image).probabilities_BKHW
    torch.testing.assert_close(shares, image.permute(0, 3, 1, 2) / image.sum(dim=-1)[:, None])


def test_images_go_in_as_the_configuration_says(identity: NetworkConfig) -> None:
    settings = {"values": "bytes", "order": "bgr", "mean": (10, 20, 30), "std": (1, 2, 3), "scores": "probabilities"}
    image = images()
    found = opened(identity, classes=NAMES, **settings).segment(image).probabilities_BKHW
    x_BCHW = image.flip(-1).permute(0, 3, 1, 2).float() - torch.tensor([10, 20, 30]).reshape(3, 1, 1)
    x_BCHW = (x_BCHW / torch.tensor([1, 2, 3]).reshape(3, 1, 1)).clamp_min(0)
    torch.testing.assert_close(found, x_BCHW / x_BCHW.sum(dim=1, keepdim=True).clamp_min(1e-6))


def test_outputs_of_one_name_are_one_class_and_ignored_ones_none(identity: NetworkConfig) -> None:
    image = images()
    network = opened(identity, classes=["hat", "rest", "hat"])
    assert network.classes == ("hat", "rest")
    found = network.segment(image)
    three = (image.permute(0, 3, 1, 2) / 255).softmax(dim=1)
    torch.testing.assert_close(found.probabilities_BKHW[:, 0], three[:, 0] + three[:, 2])
    assert torch.equal(found.masks_BHW == 1, image.argmax(dim=-1) == 1)
    ignoring = opened(identity, classes=["a", "b", "ignore"]).segment(image).masks_BHW
    assert torch.equal(ignoring == 255, image.argmax(dim=-1) == 2)
    assert torch.equal(ignoring == 1, image.argmax(dim=-1) == 1)


def test_scores_are_resized_to_the_image_not_masks(tmp_path: Path) -> None:
    """A graph of one size and a quarter of it as output, as networks have."""
    pool = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[4, 4], strides=[4, 4])
    fixed = graph_file(tmp_path / "fixed.onnx", [pool], (1, 3, 32, 24), classes="background, skin, hair")
    image = images(20, 30)
    found = opened(fixed).segment(image)
    x_BCHW = functional.interpolate(
        image.permute(0, 3, 1, 2) / 255, size=(32, 24), mode="bilinear", antialias=True
    ).clamp(0, 1)
    expected = functional.interpolate(functional.avg_pool2d(x_BCHW, 4), size=(20, 30), mode="bilinear")
    torch.testing.assert_close(found.probabilities_BKHW, expected.softmax(dim=1))
    with pytest.raises(ConfigError, match="takes images of 24 x 32 pixels alone, but size is 64"):
        opened(fixed, size=64)


@pytest.mark.parametrize(
    ("asked", "size", "expected"),
    [
        (None, (20, 30), (20, 30)),
        (16, (20, 30), (16, 24)),
        ((9, 8), (20, 30), (9, 8)),
        (16, (2000, 2), (128, 1)),
    ],
)
def test_sizes(asked: int | tuple[int, int] | None, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert network_size(asked, size) == expected


def test_one_output_is_the_second_class(tmp_path: Path) -> None:
    mean = helper.make_node("ReduceMean", ["x", "axes"], ["y"])
    axes = numpy_helper.from_array(np.array([1]), "axes")
    config = graph_file(tmp_path / "one.onnx", [mean], weights=[axes], classes="background,foreground")
    image = images()
    expected = (image.float().mean(dim=-1) / 255).sigmoid()
    torch.testing.assert_close(opened(config).segment(image).probabilities_BKHW[:, 1], expected)
    with pytest.raises(CheckpointError, match="has 1 outputs, but 3 classes are named"):
        with_classes(config, "a,b,c").segment(image)
    with pytest.raises(ConfigError, match="needs two different classes at least, got a, ignore"):
        with_classes(config, "a,ignore")


def test_indices_channels_last_and_gray(tmp_path: Path) -> None:
    largest = helper.make_node("ArgMax", ["x"], ["y"], axis=3, keepdims=0)
    last = graph_file(tmp_path / "last.onnx", [largest], ("n", "h", "w", 3), TensorProto.INT64, 3, classes="a,b,ignore")
    image = images()
    found = opened(last).segment(image)
    expected = image.argmax(dim=-1).byte()
    assert torch.equal(found.masks_BHW, torch.where(expected == 2, 255, expected).byte())
    assert set(found.probabilities_BKHW.unique().tolist()) == {0.0, 1.0}
    with pytest.raises(CheckpointError, match="gives class 2, but 2 classes are named"):
        with_classes(last, "a,b").segment(image)
    gray = graph_file(
        tmp_path / "gray.onnx", [helper.make_node("Identity", ["x"], ["y"])], (1, 1, "h", "w"), classes="a,b"
    )
    levels = opened(gray, scores="probabilities").segment(images(channels=1))
    torch.testing.assert_close(levels.probabilities_BKHW[:, 1], images(channels=1)[..., 0] / 255)


def with_classes(config: NetworkConfig, classes: str) -> TrainedNetwork:
    """The same graph with other metadata."""
    model = onnx.load(config.model)
    helper.set_model_props(model, {"classes": classes})
    return parse_network(model.SerializeToString(), config, CPU)


def test_an_exported_network_says_what_its_trainer_wrote(tmp_path: Path) -> None:
    segmenter = build(CARD.model, num_classes=3, mean=CARD.mean, std=CARD.std, seed=1).eval()
    save_segmenter(tmp_path / "model.safetensors", segmenter, CARD)
    export_onnx(segmenter, CARD, tmp_path / "model.onnx")
    ours, exported = (
        parse_network((tmp_path / name).read_bytes(), NetworkConfig(model=name), CPU)
        for name in ("model.safetensors", "model.onnx")
    )
    assert ours.classes == exported.classes == CARD.classes
    image = images(20, 40)
    first, second = ours.segment(image), exported.segment(image)
    torch.testing.assert_close(first.probabilities_BKHW, second.probabilities_BKHW, atol=1e-4, rtol=0)
    renamed = opened(NetworkConfig(model=str(tmp_path / "model.onnx")), classes=["background", "skin", "skin"])
    assert renamed.classes == ("background", "skin")
    with pytest.raises(ConfigError, match=r"normalises by itself; leave out mean, order"):
        opened(NetworkConfig(model=str(tmp_path / "model.safetensors")), mean=(0, 0, 0), order="bgr")
    with pytest.raises(ConfigError, match=r"has 3 outputs \(background, skin, hair\), classes names 2"):
        opened(NetworkConfig(model=str(tmp_path / "model.onnx")), classes=["a", "b"])


def external(path: Path) -> NetworkConfig:
    weight = numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../secret")
    return graph_file(path, [helper.make_node("Mul", ["x", "w"], ["y"])], weights=[weight], classes="a,b,c")


REFUSED: dict[str, tuple[Callable[[Path], NetworkConfig], str]] = {
    "weights elsewhere": (external, "keeps weights in other files, which are not read"),
    "an operator of its own": (
        lambda path: graph_file(path, [helper.make_node("Run", ["x"], ["y"], domain="evil")], classes="a,b,c"),
        "onnxruntime cannot run it",
    ),
    "no image": (
        lambda path: graph_file(path, [helper.make_node("Identity", ["x"], ["y"])], (1, 3), rank=2),
        r"takes tensor\(float\) of shape \[1, 3\], not floats of four axes",
    ),
    "five channels": (
        lambda path: graph_file(path, [helper.make_node("Identity", ["x"], ["y"])], (1, 5, 8, 8), classes="a,b,c"),
        "takes images of 5 channels",
    ),
    "a batch of four": (
        lambda path: graph_file(path, [helper.make_node("Identity", ["x"], ["y"])], (4, 3, 8, 8), classes="a,b,c"),
        "takes batches of 4 images alone",
    ),
    "no classes": (
        lambda path: graph_file(path, [helper.make_node("Identity", ["x"], ["y"])]),
        "does not state its classes; give classes",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_graphs_that_do_not_segment_images_are_refused(case: str, tmp_path: Path) -> None:
    make, words = REFUSED[case]
    with pytest.raises((CheckpointError, ConfigError), match=words):
        opened(make(tmp_path / "graph.onnx"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04rest", "is a PyTorch file, which may hold code and is never loaded"),
        (b"\x80\x02rest", "is a PyTorch file"),
        (b"not a network at all", "is neither an ONNX file nor the model.safetensors"),
        (b"", "onnxruntime cannot run it|is neither|takes"),
    ],
)
def test_files_that_are_no_network(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        opened(NetworkConfig(model=str(tmp_path / "file")))
    with pytest.raises(CheckpointError, match="No such file"):
        opened(NetworkConfig(model=str(tmp_path / "missing")))


def test_scores_that_are_no_scores(tmp_path: Path) -> None:
    flat = graph_file(tmp_path / "flat.onnx", [helper.make_node("Flatten", ["x"], ["y"])], rank=2, classes="a,b")
    with pytest.raises(CheckpointError, match=r"gives float32 of shape \[1, 768\] first"):
        opened(flat).segment(images())
    log = graph_file(tmp_path / "log.onnx", [helper.make_node("Log", ["x"], ["y"])], classes="a,b,c")
    with pytest.raises(CheckpointError, match="gives scores that are not finite"):
        opened(log).segment(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
    wide = graph_file(
        tmp_path / "fails.onnx",
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        weights=[numpy_helper.from_array(np.array([1, 3, 8, 8]), "shape")],
        classes="a,b,c",
    )
    with pytest.raises(CheckpointError, match=r"fails on an image of \[1, 3, 16, 16\]"):
        opened(wide).segment(images())

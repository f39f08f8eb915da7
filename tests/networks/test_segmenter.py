"""The networks: sizes, random weights that nobody downloads, files without code."""

import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.discs import ByColour
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from labelmill.pipeline.networks.segmenter import Segmenter, build, load_segmenter, save_segmenter
from labelmill.pipeline.segmentation.loss import segmentation_loss, shares_of_alpha, shares_of_levels
from labelmill.pipeline.segmentation.onnx_export import export_onnx
from labelmill.schemas.errors import CheckpointError
from labelmill.schemas.sample import ImageShape
from labelmill.schemas.segmentation import Architecture, SegmentationModelCard, SegmentationModelConfig

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CARD = SegmentationModelCard(
    model=SegmentationModelConfig(architecture="deeplabv3_mobilenet_v3_large"),
    classes=("background", "skin", "hair"),
    image_shape=ImageShape(height=32, width=32, channels=3),
    mean=MEAN,
    std=STD,
    dataset_fingerprint="f" * 64,
    steps=3,
)
# U-Net's pairs of channels that 3 x 3 convolutions join, down and up, and channels that are normalised.
UNET_PAIRS = 3 * 64 + 64 * 64 + sum(w * w // 2 + w * w for w in (128, 256, 512, 1024))
UNET_PAIRS += sum(2 * w * w + w * w for w in (64, 128, 256, 512))
UNET_CHANNELS = 2 * (64 + 128 + 256 + 512 + 1024) + 2 * (64 + 128 + 256 + 512)
UNET_TRANSPOSED = sum(4 * 2 * w * w + w for w in (64, 128, 256, 512))
# Weights and biases, for three classes, of the networks as published; ours must be those.
NUM_PARAMETERS = {
    # ResNet-50 without its classifier 23,508,032; ASPP and head 16,126,211.
    "deeplabv3_resnet50": 23_508_032 + 16_126_211,
    "deeplabv3_mobilenet_v3_large": 11_020_851,
    # Convolutions 3 x 3 of 18 widths, their normalisation, transposed ones with biases, and 64 x 3 + 3.
    "unet": 9 * UNET_PAIRS + 2 * UNET_CHANNELS + UNET_TRANSPOSED + 64 * 3 + 3,
    # ResNet-18 without its classifier (11,689,512 - 513,000), and 512 x 3 + 3.
    "resnet18_8s": 11_689_512 - 513_000 + 512 * 3 + 3,
}


def _build(architecture: Architecture, seed: int = 0, upscale: int = 1) -> Segmenter:
    config = SegmentationModelConfig(architecture=architecture, upscale=upscale)
    return build(config, num_classes=3, mean=MEAN, std=STD, seed=seed)


@pytest.mark.parametrize("architecture", get_args(Architecture))
def test_every_architecture_takes_any_size_and_starts_from_random_weights(
    architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    state = torch.get_rng_state()
    one, two, other = (_build(architecture, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    pairs = list(zip(one.parameters(), two.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    # Of each convolution; normalisation starts at ones and zeros.
    assert all(not torch.equal(a, c) for a, _, c in pairs if a.dim() == 4)
    with torch.no_grad():
        logits_BKHW = one.eval()(torch.rand(1, 3, 33, 46))
    assert logits_BKHW.shape == (1, 3, 33, 46) and logits_BKHW.dtype == torch.float32
    if architecture in NUM_PARAMETERS:
        assert sum(parameter.numel() for parameter in one.parameters()) == NUM_PARAMETERS[architecture]


def test_resnet18_8s_keeps_an_eighth_of_the_resolution() -> None:
    network = _build("resnet18_8s").network
    assert network(torch.rand(2, 3, 64, 96)).shape == (2, 3, 8, 12)
    dilations = {m.dilation for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
    assert dilations == {(1, 1), (2, 2), (4, 4)}


def test_unet_sees_fine_detail_beside_what_lower_resolutions_say() -> None:
    network = _build("unet").network.eval()
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    network(images)[0, 0, 16, 16].backward()
    assert images.grad is not None and bool((images.grad != 0).all())  # sixteen levels of pixels reach everywhere
    with torch.no_grad():
        for enlarge in network.enlarge:  # type: ignore[union-attr]
            enlarge.weight.zero_()
        assert bool((network(images) != network(1 - images)).all())


def test_the_input_is_normalised_enlarged_padded_and_the_output_cut() -> None:
    class Recorder(nn.Module):
        def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
            self.seen = images_BCHW
            return images_BCHW

    recorder = Recorder()
    segmenter = Segmenter(recorder, upscale=2, mean=MEAN, std=STD)
    images = torch.rand(2, 3, 20, 31)
    logits = segmenter(images)
    normalised = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    enlarged = functional.interpolate(normalised, size=(40, 62), mode="bilinear")
    assert recorder.seen.shape == (2, 3, 64, 64)
    assert torch.equal(recorder.seen[:, :, :40, :62], enlarged)
    assert torch.equal(recorder.seen[:, :, 50, :62], enlarged[:, :, -1])
    assert torch.allclose(logits, functional.interpolate(enlarged, size=(20, 31), mode="bilinear"))


def test_a_saved_network_is_the_same_again(tmp_path: Path) -> None:
    segmenter = _build("deeplabv3_mobilenet_v3_large", seed=4).eval()
    save_segmenter(tmp_path / "model.safetensors", segmenter, CARD)
    loaded, card = load_segmenter(tmp_path / "model.safetensors", torch.device("cpu"))
    assert card == CARD and not loaded.training
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), segmenter(images))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_segmenter(path, torch.device("cpu"))
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="is not a segmentation model"):
        load_segmenter(path, torch.device("cpu"))
    save_file({"a": torch.zeros(1)}, path, {"labelmill": CARD.model_dump_json()})
    with pytest.raises(CheckpointError, match="is not as `labelmill train` writes it"):
        load_segmenter(path, torch.device("cpu"))


def test_the_loss_is_cross_entropy_over_known_pixels() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 2, 4, 5), torch.randint(0, 2, (2, 4, 5))
    masks[0, 0], masks[1, 2, 3] = 255, 255
    known = masks != 255
    by_hand = -torch.log_softmax(logits.double(), 1).permute(0, 2, 3, 1)[known]
    classes = masks[known]
    expected = by_hand[torch.arange(len(classes)), classes].mean()
    assert segmentation_loss(logits, masks).item() == pytest.approx(expected.item(), rel=1e-5)
    # Hard shares are the same as classes; soft ones weigh both.
    hard = (masks == 1).byte() * 255
    assert segmentation_loss(logits, masks, shares_of_alpha(hard)).item() == pytest.approx(expected.item(), rel=1e-5)
    alphas = torch.randint(0, 256, (2, 4, 5), dtype=torch.uint8)
    weights = torch.stack([255 - alphas, alphas], -1)[known].double() / 255
    soft = (weights * by_hand).sum(1).mean()
    assert segmentation_loss(logits, masks, shares_of_alpha(alphas)).item() == pytest.approx(soft.item(), rel=1e-5)


def test_the_loss_of_probabilities_is_cross_entropy_with_all_classes() -> None:
    """Also where resizing has left sums of 254 or 256. What a pixel says that is to be ignored does not matter."""
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    masks[0, 0], masks[1, 2, 3] = 255, 255
    levels = torch.randint(1, 86, (2, 3, 4, 5), dtype=torch.uint8)
    known, shares = masks != 255, levels.double() / levels.double().sum(dim=1, keepdim=True)
    expected = -(shares * torch.log_softmax(logits.double(), 1)).sum(dim=1)[known].mean()
    levels[0, :, 0] = 0  # beyond the image's border nothing is said
    assert segmentation_loss(logits, masks, shares_of_levels(levels)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_image_without_a_known_pixel_teaches_nothing() -> None:
    logits = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((1, 3, 3), 255))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_cards_of_former_versions_are_of_square_rgb_images() -> None:
    values = CARD.model_dump(mode="json", exclude={"image_shape"})
    assert SegmentationModelCard.model_validate({**values, "resolution": 32}) == CARD


def test_one_that_learned_from_rectangular_gray_images_turns_colours_gray_in_onnx_too(tmp_path: Path) -> None:
    segmenter = Segmenter(ByColour(), upscale=1, mean=(0.4,) * 3, std=(0.5,) * 3, turns_gray=True).eval()
    card = CARD.model_copy(update={"image_shape": ImageShape(height=24, width=40, channels=1)})
    export_onnx(segmenter, card, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = np.random.default_rng(0).random((2, 3, 24, 40), np.float32)
    gray = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    (logits,) = session.run(["logits"], {"images": images})
    np.testing.assert_allclose(logits, np.stack([(gray - 0.4) / 0.5] * 3, axis=1), atol=1e-5)


@pytest.mark.parametrize(("architecture", "upscale"), [("resnet18_8s", 1), ("resnet18_8s", 2), ("unet", 1)])
def test_onnxruntime_gives_what_pytorch_gives_for_every_size(
    tmp_path: Path, architecture: Architecture, upscale: int
) -> None:
    segmenter = _build(architecture, upscale=upscale).eval()
    path = tmp_path / "model.onnx"
    assert export_onnx(segmenter, CARD, path) < 1e-3
    session = onnxruntime.InferenceSession(path)
    described = session.get_modelmeta().custom_metadata_map
    assert described == {"classes": "background,skin,hair", "height": "32", "width": "32"}
    for shape in ((1, 3, 32, 32), (4, 3, 31, 97), (2, 3, 17, 5)):
        images = np.random.default_rng(0).random(shape, np.float32)
        (logits,) = session.run(["logits"], {"images": images})
        with torch.no_grad():
            expected = segmenter(torch.from_numpy(images)).numpy()
        assert np.abs(logits - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_torchvision_loads_where_its_operators_do_not() -> None:
    """In a new process: here it may be loaded already."""
    program = (
        "import torch\n"
        "from labelmill.pipeline.process.torchvision_import import import_torchvision\n"
        "import_torchvision(); import_torchvision()\n"
        "import torchvision, torchvision.models\n"
        "print(torchvision.models.resnet18(weights=None).eval()(torch.zeros(1, 3, 32, 32)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout == "torch.Size([1, 1000])\n", done.stderr

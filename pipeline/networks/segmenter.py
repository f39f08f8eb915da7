"""Segmentation networks, all from random weights, behind one interface: images in, logits of the same size out.

Shape suffixes: B batch, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from labelmill.pipeline.networks.unet import UNet
from labelmill.pipeline.process.files import write_atomically
from labelmill.pipeline.process.safetensors_json import (
    DamagedFileError,
    ForeignFileError,
    load_with_json,
    save_with_json,
)
from labelmill.pipeline.process.torchvision_import import import_torchvision, missing_extra
from labelmill.schemas.errors import CheckpointError
from labelmill.schemas.segmentation import (
    LUMINANCE,
    Architecture,
    SegmentationModelCard,
    SegmentationModelConfig,
    Triple,
)

# Sides that every network divides by; its own padding is taken off again.
_STRIDE = 32
# PyTorch's default. MobileNetV3's own 0.01 leaves half of the initial statistics in after 70 steps.
_AVERAGE_MOMENTUM = 0.1


class Segmenter(nn.Module):
    """A network with what surrounds it: normalisation, enlargement, padding."""

    mean_C11: Tensor
    std_C11: Tensor
    luminance_C11: Tensor

    def __init__(
        self, network: nn.Module, *, upscale: int, mean: Triple, std: Triple, turns_gray: bool = False
    ) -> None:
        """network: [B, 3, H, W] to logits [B, K, h, w], for H and W that 32 divides. turns_gray: it learned from gray
        images, and sees colours as gray, too."""
        super().__init__()
        self.network, self.upscale, self.turns_gray = network, upscale, turns_gray
        self.register_buffer("luminance_C11", torch.tensor(LUMINANCE).reshape(3, 1, 1), persistent=False)
        self.register_buffer("mean_C11", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", torch.tensor(std).clamp_min(1e-3).reshape(3, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, K, H, W] float32 of images [B, 3, H, W] float, RGB in [0, 1], of any size."""
        height, width = images_BCHW.shape[-2:]
        if self.turns_gray:
            images_BCHW = (images_BCHW * self.luminance_C11).sum(dim=1, keepdim=True)
        x_BCHW = (images_BCHW - self.mean_C11) / self.std_C11
        if self.upscale > 1:
            x_BCHW = _resize(x_BCHW, height * self.upscale, width * self.upscale)
        large_height, large_width = x_BCHW.shape[-2:]
        x_BCHW = functional.pad(x_BCHW, (0, -large_width % _STRIDE, 0, -large_height % _STRIDE), mode="replicate")
        padded_height, padded_width = x_BCHW.shape[-2:]
        logits_BKHW = _resize(self.network(x_BCHW).float(), padded_height, padded_width)
        logits_BKHW = logits_BKHW[:, :, :large_height, :large_width]
        return _resize(logits_BKHW, height, width) if self.upscale > 1 else logits_BKHW


def build(
    config: SegmentationModelConfig,
    *,
    num_classes: int,
    mean: Triple,
    std: Triple,
    seed: int,
    turns_gray: bool = False,
) -> Segmenter:
    """A network with random weights that follow from the seed. Global random state stays as it was.

    Raises ConfigError where the extra `train` is not installed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _ARCHITECTURES[config.architecture](num_classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = _AVERAGE_MOMENTUM
    return Segmenter(network, upscale=config.upscale, mean=mean, std=std, turns_gray=turns_gray)


class _Torchvision(nn.Module):
    """torchvision's segmenters answer with a dictionary."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BKHW: Tensor = self.network(images_BCHW)["out"]
        return logits_BKHW


def _deeplabv3_resnet50(num_classes: int) -> nn.Module:
    import_torchvision()
    from torchvision.models.segmentation import deeplabv3_resnet50

    # `weights=None` alone leaves torchvision's default: a backbone with ImageNet weights, from the network.
    return _Torchvision(deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=num_classes))


def _deeplabv3_mobilenet_v3_large(num_classes: int) -> nn.Module:
    import_torchvision()
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    return _Torchvision(deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes))


def _deeplabv3plus_resnet50(num_classes: int) -> nn.Module:
    import_torchvision()
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise missing_extra("segmentation-models-pytorch", error) from error
    network: nn.Module = smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=num_classes)
    return network


def _unet_resnet34(num_classes: int) -> nn.Module:
    import_torchvision()
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise missing_extra("segmentation-models-pytorch", error) from error
    network: nn.Module = smp.Unet("resnet34", encoder_weights=None, classes=num_classes)
    return network


class _ResNet18At8(nn.Module):
    """ResNet-18 whose last two stages keep 1/8 of the resolution: their strides become dilation, and a 1x1
    convolution takes the place of pooling and classifier ("ResNet18-8s" of Segmentation in Style)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        import_torchvision()
        from torchvision.models import resnet18

        network = resnet18(weights=None)
        _dilate(network.layer3, 2)
        _dilate(network.layer4, 4)
        self.features = nn.Sequential(
            *(network.conv1, network.bn1, network.relu, network.maxpool),
            *(network.layer1, network.layer2, network.layer3, network.layer4),
        )
        self.classifier = nn.Conv2d(network.fc.in_features, num_classes, kernel_size=1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BKHW: Tensor = self.classifier(self.features(images_BCHW))
        return logits_BKHW


def _dilate(stage: nn.Module, dilation: int) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)


_ARCHITECTURES: Mapping[Architecture, Callable[[int], nn.Module]] = {
    "deeplabv3_resnet50": _deeplabv3_resnet50,
    "deeplabv3_mobilenet_v3_large": _deeplabv3_mobilenet_v3_large,
    "deeplabv3plus_resnet50": _deeplabv3plus_resnet50,
    "unet_resnet34": _unet_resnet34,
    "unet": UNet,
    "resnet18_8s": _ResNet18At8,
}


def _resize(x_BCHW: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(x_BCHW, size=(height, width), mode="bilinear", align_corners=False)


def save_segmenter(path: Path, segmenter: Segmenter, card: SegmentationModelCard) -> None:
    """Write weights and card as one safetensors file, which appears whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in segmenter.state_dict().items()}
    write_atomically(path, save_with_json(tensors, card.model_dump_json()))


def load_segmenter(path: Path, device: torch.device) -> tuple[Segmenter, SegmentationModelCard]:
    """A trained network, ready to predict. Nothing in the file is executed.

    Raises CheckpointError for what `labelmill train` did not write.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_segmenter(content, str(path), device)


def parse_segmenter(content: bytes, name: str, device: torch.device) -> tuple[Segmenter, SegmentationModelCard]:
    """The same of a file's content. name: of the file, for messages."""
    try:
        values, tensors = load_with_json(content)
    except DamagedFileError as error:
        raise CheckpointError(f"{name}: cannot be read as safetensors: {error}") from error
    except ForeignFileError as error:
        raise CheckpointError(
            f"{name}: is not a segmentation model; give the model.safetensors of `labelmill train`"
        ) from error
    try:
        card = SegmentationModelCard.model_validate(values)
        segmenter = build(
            card.model,
            num_classes=len(card.classes),
            mean=card.mean,
            std=card.std,
            seed=0,
            turns_gray=card.image_shape.channels == 1,
        )
        segmenter.load_state_dict(tensors)
    except (ValidationError, RuntimeError) as error:
        raise CheckpointError(f"{name}: is not as `labelmill train` writes it: {error}") from error
    return segmenter.to(device).eval(), card

"""Masks from what a head has learned, with the label-free foreground where it is of use.

Shape suffixes: M members, B batch, K classes, C channels, h w resolution of the maps, H W of the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.base import Labels
from labelmill.pipeline.labelers.common.decision import Decision, images_at_once, likeliest
from labelmill.pipeline.labelers.common.joint_upsampling import resize, snap_to_edges
from labelmill.pipeline.labelers.common.pixel_reading import MOST_PIXELS
from labelmill.pipeline.labelers.few_shot.features import layer_resolutions, layer_widths, layers_of, map_size
from labelmill.pipeline.labelers.few_shot.heads import Head
from labelmill.pipeline.labelers.few_shot.networks import CNN_WIDTH
from labelmill.pipeline.labelers.few_shot.uncertainty import uncertainty
from labelmill.pipeline.labelers.style_mixing.label_free import foreground_probability, with_foreground
from labelmill.pipeline.labelers.style_mixing.labeler import check_style_mixing
from labelmill.pipeline.labelers.style_mixing.readout import Readout, readout_layers
from labelmill.pipeline.process.device import repeatable_kernels
from labelmill.pipeline.process.memory import free_bytes
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labelers.few_shot import FewShotConfig
from labelmill.schemas.sample import OptionalFile


def check_few_shot(config: FewShotConfig, sampler: Sampler) -> None:
    """Raises ConfigError where configuration, generator and memory do not go together."""
    spec = sampler.generator.spec
    check_style_mixing(config.style_mixing, spec)
    unknown = [name for name in config.layers if name not in spec.conv_names] if config.layers != "auto" else []
    if unknown:
        raise ConfigError(
            f"labeler.layers: {', '.join(unknown)} not in this generator; there are {', '.join(spec.conv_names)}, or "
            f"`auto`"
        )
    resolutions = [layer_resolutions(spec)[name] for name in layers_of(config, spec)]
    if config.head.type == "decoder" and len(set(resolutions)) < len(resolutions):
        raise ConfigError(
            f"labeler.layers: {', '.join(layers_of(config, spec))} for a decoder, which takes one convolution of each "
            f"resolution; or `auto`"
        )
    check_memory(config, sampler, num_classes=2)


def check_memory(config: FewShotConfig, sampler: Sampler, num_classes: int) -> None:
    """Raises ConfigError where labeling needs more memory than there is."""
    spec, batch_size, free = sampler.generator.spec, sampler.numerics.batch_size, free_bytes(sampler.device)
    needed = bytes_needed(config, spec, num_classes, batch_size)
    if needed <= free:
        return
    fitting = [size for size in range(1, batch_size) if bytes_needed(config, spec, num_classes, size) <= free]
    remedy = f"numerics.batch_size {fitting[-1]} fits" if fitting else "take lower layers"
    raise ConfigError(
        f"labeler.layers: features of {len(layers_of(config, spec))} convolutions and {num_classes} classes need "
        f"{needed / 2**30:.1f} GiB beside the generator, and the {sampler.device.type.upper()} has "
        f"{free / 2**30:.1f} GiB left; {remedy}"
    )


def check_fit_memory(config: FewShotConfig, sampler: Sampler, num_images: int) -> None:
    """Raises ConfigError where the annotated images' features, which are taught on the CPU, need more memory than there
    is."""
    needed, free = bytes_to_fit(config, sampler.generator.spec, num_images), free_bytes(torch.device("cpu"))
    if needed > free:
        raise ConfigError(
            f"labeler.annotations: features of {num_images} images need {needed / 2**30:.1f} GiB for a "
            f"{config.head.type} head, and {free / 2**30:.1f} GiB are left; annotate fewer images, or take lower layers"
        )


def bytes_to_fit(config: FewShotConfig, spec: GeneratorSpec, num_images: int) -> int:
    """What a fit holds of the annotated images: of each the features at their own resolutions, or those of its pixels
    twice, as they are read and together."""
    resolutions, layers = layer_resolutions(spec), layers_of(config, spec)
    widths = layer_widths(spec, layers)
    if config.head.type in ("cnn", "decoder"):
        return 4 * num_images * sum(width * prod(spec.size_at(resolutions[name])) for name, width in widths.items())
    num_pixels = min(MOST_PIXELS, prod(spec.image_size))
    components = getattr(config.head, "components", None)
    num_numbers = min(components or sum(widths.values()), sum(widths.values()))
    return 2 * (4 if config.normalisation == "none" else 8) * num_images * num_pixels * num_numbers


def bytes_needed(config: FewShotConfig, spec: GeneratorSpec, num_classes: int, batch_size: int) -> int:
    """What labeling holds at its worst moment beside the generator: the features of a batch at their own resolutions,
    and for some of its images the members' maps and, at the images' resolution, those of the classes."""
    resolutions, layers = layer_resolutions(spec), tapped_layers(config, spec)
    widths = layer_widths(spec, layers)
    features = sum(width * prod(spec.size_at(resolutions[name])) for name, width in widths.items())
    at_once = images_at_once(spec.image_size, batch_size)
    # Logits, a layer's part of them before and after it is resized, probabilities, these with the foreground.
    maps = (5 * config.head.members * num_classes + 3 * inner_width(config)) * prod(map_size(spec, layers))
    # Classes before and after resizing, the foreground's linear model of the colours.
    decided = (2 * num_classes + 4 * (spec.img_channels + 1)) * prod(spec.image_size)
    # Of all images, and once more where those of some are put together.
    given = 2 * batch_size * num_classes * prod(spec.image_size) if config.probabilities else 0
    return 4 * (batch_size * features + at_once * (features // batch_size + maps + decided) + given)


def inner_width(config: FewShotConfig) -> int:
    """Channels of the widest maps inside one member; 0 for a linear head."""
    widths = {"linear": 0, "mlp": max(getattr(config.head, "hidden", (0,))), "cnn": CNN_WIDTH}
    return widths.get(config.head.type, 2 * getattr(config.head, "width", 0))


def tapped_layers(config: FewShotConfig, spec: GeneratorSpec) -> tuple[str, ...]:
    """Convolutions that head and label-free foreground read together."""
    wanted = {*layers_of(config, spec), *(readout_layers(spec) if config.foreground != "learned" else ())}
    return tuple(name for name in spec.conv_names if name in wanted)


@dataclass(frozen=True)
class Judged:
    """Masks of some images, and how sure the head is of them."""

    masks_BHW: Tensor
    """uint8."""
    sureness_B: Tensor
    """IoU of the members' masks with the mean's, classes weighted by their pixels, float32 in [0, 1]; of a single
    member the mean probability of the likeliest class."""
    uncertainty_B: Tensor
    """By the configuration's `drop_by`, float32."""
    probabilities_BKHW: Tensor | None
    """The members' mean, with the foreground as the mask has it; None where the configuration asks for none."""


class FewShotLabeler:
    """Labels batches with what `fit` found."""

    def __init__(
        self,
        config: FewShotConfig,
        sampler: Sampler,
        classes: Sequence[str],
        head: Head,
        readout: Readout | None,
        limit: float | None,
        doubt_scale: float,
    ) -> None:
        """readout: the label-free foreground's, None where annotations alone decide. limit: uncertainty beyond which
        images are to be dropped. doubt_scale: how many times as wrong masks are as members say."""
        self.config, self.classes = config, tuple(classes)
        self.optional_files: tuple[OptionalFile, ...] = ("probabilities.png",) if config.probabilities else ()
        self.batch_size = sampler.numerics.batch_size
        self.layers = _tapped(config, sampler.generator.spec, readout)
        self._at_once = images_at_once(sampler.generator.spec.image_size, self.batch_size)
        self._head, self._readout, self._limit, self._doubt_scale = head, readout, limit, doubt_scale

    def label(self, batch: Batch) -> Labels:
        """Masks and confidences of the batch's images.

        A confidence is the IoU that a mask may be expected to have, classes weighted by their pixels.
        """
        judged, count = self.judge(batch), len(batch)
        confidence_B = (1 - self._doubt_scale * (1 - judged.sureness_B)).clamp(0, 1)
        uncertain_B = None if self._limit is None else (judged.uncertainty_B > self._limit)[:count]
        probabilities_BKHW = None if judged.probabilities_BKHW is None else judged.probabilities_BKHW[:count]
        return Labels(
            judged.masks_BHW[:count],
            confidence_B[:count],
            probabilities_BKHW=probabilities_BKHW,
            uncertain_B=uncertain_B,
        )

    def judge(self, batch: Batch) -> Judged:
        """Masks of the batch's images, or of more: it is padded to the size of all batches."""
        # Sizes choose kernels and thereby bits: all that follows sees as many images at once, always.
        whole, step = batch.padded(self.batch_size), self._at_once
        with repeatable_kernels():
            parts = [self._judge(whole.select(range(start, start + step))) for start in range(0, len(whole), step)]
        probabilities = [part.probabilities_BKHW for part in parts if part.probabilities_BKHW is not None]
        return Judged(
            torch.cat([part.masks_BHW for part in parts]),
            torch.cat([part.sureness_B for part in parts]),
            torch.cat([part.uncertainty_B for part in parts]),
            torch.cat(probabilities) if probabilities else None,
        )

    def _judge(self, batch: Batch) -> Judged:
        probabilities_MBKhw = self.probabilities(batch)
        mean_BKhw = probabilities_MBKhw.mean(dim=0)
        decision = decide_classes(mean_BKhw, batch.images_BCHW)
        return Judged(
            decision.masks_BHW,
            _sureness(probabilities_MBKhw, mean_BKhw),
            uncertainty(probabilities_MBKhw, self.config.drop_by),
            decision.probabilities() if self.config.probabilities else None,
        )

    def probabilities(self, batch: Batch) -> Tensor:
        """Of each member [M, B, K, h, w] float32, with the label-free foreground where it is of use."""
        probabilities_MBKhw = self._head(batch.features)
        if self._readout is None:
            return probabilities_MBKhw
        size = tuple(probabilities_MBKhw.shape[3:])
        return with_foreground(probabilities_MBKhw, foreground_probability(self._readout, batch.features, size))


def decide_classes(probabilities_BKhw: Tensor, images_BCHW: Tensor) -> Decision:
    """Foreground is snapped to the images' edges, and within it the likeliest class decides, which is not snapped, for
    that would smooth small parts away (measured: 2 points of mIoU)."""
    foreground_B1hw = probabilities_BKhw[:, 1:].sum(dim=1, keepdim=True)
    radius = max(1, min(probabilities_BKhw.shape[2:]) // 64)
    foreground_BHW = snap_to_edges(foreground_B1hw, images_BCHW.float(), radius)[:, 0].clamp(0, 1)
    parts_BKHW = resize(probabilities_BKhw[:, 1:], tuple(images_BCHW.shape[2:]))
    return Decision(likeliest(foreground_BHW, parts_BKHW), foreground_BHW, parts_BKHW)


def _tapped(config: FewShotConfig, spec: GeneratorSpec, readout: Readout | None) -> tuple[str, ...]:
    wanted = {*layers_of(config, spec), *(readout.layers if readout else ())}
    return tuple(name for name in spec.conv_names if name in wanted)


def _sureness(probabilities_MBKhw: Tensor, mean_BKhw: Tensor) -> Tensor:
    if len(probabilities_MBKhw) == 1:
        return mean_BKhw.amax(dim=1).mean(dim=(1, 2))
    decided_BKhw = _decided(mean_BKhw, dim=1)
    return torch.stack([weighted_iou(_decided(p_BKhw, dim=1), decided_BKhw) for p_BKhw in probabilities_MBKhw]).mean(0)


def weighted_iou(first_BKHW: Tensor, second_BKHW: Tensor) -> Tensor:
    """IoU of masks, each class as zeros and ones, classes weighted by their pixels in the second [B] float32."""
    both_BK = (first_BKHW * second_BKHW).sum(dim=(2, 3))
    first_BK, second_BK = first_BKHW.sum(dim=(2, 3)), second_BKHW.sum(dim=(2, 3))
    iou_BK = both_BK / (first_BK + second_BK - both_BK).clamp_min(1)
    return (iou_BK * second_BK).sum(dim=1) / second_BK.sum(dim=1).clamp_min(1)


def _decided(probabilities_BKhw: Tensor, dim: int) -> Tensor:
    """The likeliest class as zeros and ones, of the same shape, float32."""
    return torch.zeros_like(probabilities_BKhw).scatter_(dim, probabilities_BKhw.argmax(dim=dim, keepdim=True), 1.0)

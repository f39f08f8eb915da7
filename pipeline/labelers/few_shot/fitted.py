"""The file that keeps a fitted few-shot labeler: the head, the label-free foreground, and how they came about."""

from dataclasses import dataclass

import torch
from torch import Tensor

from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.few_shot.heads import Head, head_of_tensors, head_shapes
from labelmill.pipeline.labelers.few_shot.labeler import FewShotLabeler
from labelmill.pipeline.labelers.fitted_file import (
    REMEDY,
    FileProvenance,
    FittedLabelerError,
    check_shapes,
    read_fitted_for,
    write_fitted,
)
from labelmill.pipeline.labelers.style_mixing.fitted import FittedStyleMixing, MixingProvenance
from labelmill.schemas.cluster_mapping import MOST_CLASSES
from labelmill.schemas.labelers.few_shot import FewShotConfig

_HEAD, _MIXING = "head.", "style_mixing."


class FewShotProvenance(FileProvenance):
    """The JSON in the file."""

    format: str = "labelmill-few-shot"
    version: int = 1
    config: FewShotConfig
    annotations_sha256: str | None
    """Of the annotation set; null for images and masks that came from elsewhere."""
    classes: list[str]
    num_images: int
    class_pixels: list[int]
    """Annotated pixels per class."""
    class_images: list[int]
    """Annotated images that show each class."""
    mixing: MixingProvenance | None
    """Of the label-free foreground; null where the annotations alone decide."""
    foreground_agreement: float | None
    """IoU of the label-free foreground with the annotations; null where nothing could be compared."""
    held_out_iou: float | None
    """Mean IoU, classes weighted by their pixels, on annotated images that were left out in turn; null where that was
    not measured."""
    doubt_scale: float
    """How many times as wrong those masks were as the head said."""
    limit: float | None
    """Uncertainty beyond which candidates are dropped; null without `drop_portion`."""


@dataclass(frozen=True)
class FittedFewShot:
    """All that labeling needs beside the generator."""

    provenance: FewShotProvenance
    head: Head
    mixing: FittedStyleMixing | None
    """Where the label-free foreground is of use."""

    def labeler(self, sampler: Sampler) -> FewShotLabeler:
        """What labels a generator's images with it."""
        readout = None if self.mixing is None else self.mixing.readout
        about = self.provenance
        return FewShotLabeler(about.config, sampler, about.classes, self.head, readout, about.limit, about.doubt_scale)

    def to_bytes(self) -> bytes:
        """The file. Equal contents give equal bytes."""
        mixing = {} if self.mixing is None else self.mixing.tensors()
        return write_fitted(
            self.provenance,
            {
                **{f"{_HEAD}{name}": tensor for name, tensor in self.head.tensors().items()},
                **{f"{_MIXING}{name}": tensor for name, tensor in mixing.items()},
            },
        )

    @staticmethod
    def from_bytes(
        content: bytes,
        config: FewShotConfig,
        spec: GeneratorSpec,
        device: str | torch.device,
        checkpoint_sha256: str | None = None,
    ) -> "FittedFewShot":
        """Read a file for this configuration and generator. Raises FittedLabelerError; executes nothing."""
        # Where the annotations lay is no part of what they taught.
        provenance, tensors = read_fitted_for(
            content, FewShotProvenance, config, spec, checkpoint_sha256, ignoring=("annotations",)
        )
        _check_meaning(provenance)
        own, mixing = _named(_HEAD, tensors), _named(_MIXING, tensors)
        check_shapes(own, head_shapes(config, spec, len(provenance.classes)))
        on_device = {name: tensor.to(device) for name, tensor in own.items()}
        found = None
        if provenance.mixing is not None:
            found = FittedStyleMixing.from_tensors(provenance.mixing, mixing, config.style_mixing, spec, device)
        return FittedFewShot(provenance, head_of_tensors(config, spec, on_device, len(provenance.classes)), found)


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_meaning(provenance: FewShotProvenance) -> None:
    count = len(provenance.classes)
    if not 2 <= count <= MOST_CLASSES or {len(provenance.class_pixels), len(provenance.class_images)} != {count}:
        raise FittedLabelerError(f"fitted labeler: {count} classes, counted otherwise elsewhere in it. {REMEDY}")

"""The file that keeps a fitted style-mixing labeler: safetensors, and how it came about as JSON metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from labelmill.pipeline.generator.spec import GeneratorSpec, num_rows
from labelmill.pipeline.labelers.common.joint_upsampling import resample
from labelmill.pipeline.labelers.fitted_file import (
    REMEDY,
    FileProvenance,
    FittedLabelerError,
    check_checkpoint,
    check_purpose,
    check_shapes,
    read_fitted,
    write_fitted,
)
from labelmill.pipeline.labelers.style_mixing.confidence import ConfidenceModel
from labelmill.pipeline.labelers.style_mixing.foreground import ForegroundModel
from labelmill.pipeline.labelers.style_mixing.parts import PartsModel
from labelmill.pipeline.labelers.style_mixing.readout import Readout, readout_shapes, readout_size
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig


class MixingProvenance(FileProvenance):
    """The JSON in the file."""

    format: str = "labelmill-style-mixing"
    version: int = 2
    config: StyleMixingConfig
    donor_seeds: list[int]
    crossover: int
    layout_agreement: dict[int, float] | None
    """By row, what `crossover: auto` chose from; null where the run file gave the crossover."""
    foreground_agreement: dict[int, float] | None
    colour_change: dict[int, float] | None
    variant_resolution: int
    variant_agreement: dict[int, float] | None
    """By resolution, what `variant_resolution: auto` chose from: mean IoU with the masks of full variants; null where
    there was no choice."""
    readout_agreement: float
    """Mean IoU of the read-out's masks with those of the clusters, over the images of `fit`."""


def num_signals(config: StyleMixingConfig) -> int:
    """What a labeler notices about a mask: its sharpness, and how far the read-out's halves agree."""
    return 2 if config.masks_from == "readout" else 1


@dataclass(frozen=True)
class FittedStyleMixing:
    """All that labeling needs beside the generator."""

    provenance: MixingProvenance
    donors_NLD: Tensor
    foreground: ForegroundModel
    parts: PartsModel | None
    """None where the foreground is one."""
    readout: Readout
    confidence: ConfidenceModel

    def tensors(self) -> dict[str, Tensor]:
        """What `from_tensors` takes."""
        return {
            "donors": self.donors_NLD,
            **_tensors("foreground", self.foreground),
            **({} if self.parts is None else _tensors("parts", self.parts)),
            **{f"readout.{name}": tensor for name, tensor in self.readout.weights.items()},
            **_tensors("confidence", self.confidence),
        }

    def to_bytes(self) -> bytes:
        """The file. Equal contents give equal bytes."""
        return write_fitted(self.provenance, self.tensors())

    @staticmethod
    def from_bytes(
        content: bytes,
        config: StyleMixingConfig,
        spec: GeneratorSpec,
        device: str | torch.device,
        checkpoint_sha256: str | None = None,
    ) -> "FittedStyleMixing":
        """Read a file for this configuration and generator. Raises FittedLabelerError; executes nothing."""
        provenance, tensors = read_fitted(content, MixingProvenance)
        check_checkpoint(provenance, checkpoint_sha256)
        return FittedStyleMixing.from_tensors(provenance, tensors, config, spec, device)

    @staticmethod
    def from_tensors(
        provenance: MixingProvenance,
        tensors: Mapping[str, Tensor],
        config: StyleMixingConfig,
        spec: GeneratorSpec,
        device: str | torch.device,
    ) -> "FittedStyleMixing":
        """For this configuration and generator. Raises FittedLabelerError where the tensors are not those of it."""
        check_purpose(provenance, config, spec)
        _check_mixing(provenance, spec)
        check_shapes(tensors, _expected_shapes(provenance, spec))
        on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
        foreground = ForegroundModel(**_named("foreground", on_device))
        return FittedStyleMixing(
            provenance,
            on_device["donors"],
            foreground,
            PartsModel(**_named("parts", on_device)) if config.parts > 1 else None,
            Readout(
                {name: on_device[f"readout.{name}"] for name in readout_shapes(spec, config.parts)},
                readout_background(foreground, spec),
            ),
            ConfidenceModel(**_named("confidence", on_device)),
        )


def readout_background(foreground: ForegroundModel, spec: GeneratorSpec) -> Tensor:
    """The map of the background as the read-out takes it."""
    return resample(foreground.background_HW[None, None], readout_size(spec))[0, 0]


def _tensors(prefix: str, model: ForegroundModel | PartsModel | ConfidenceModel) -> dict[str, Tensor]:
    return {f"{prefix}.{field.name}": getattr(model, field.name) for field in fields(model)}


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that `_tensors` stored under a prefix, by their own names."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _check_mixing(provenance: MixingProvenance, spec: GeneratorSpec) -> None:
    sizes = [size for size, _ in spec.channels]
    if provenance.variant_resolution not in sizes:
        raise FittedLabelerError(
            f"fitted labeler: variant_resolution {provenance.variant_resolution} not in {sizes}. {REMEDY}"
        )
    num_rows_mixed = num_rows(provenance.variant_resolution)
    if not 1 <= provenance.crossover < num_rows_mixed:
        raise FittedLabelerError(
            f"fitted labeler: crossover {provenance.crossover} not in 1 to {num_rows_mixed - 1}. {REMEDY}"
        )


def _expected_shapes(provenance: MixingProvenance, spec: GeneratorSpec) -> dict[str, tuple[int, ...]]:
    config = provenance.config
    shapes = {
        "foreground": ForegroundModel.shapes(spec.size_at(provenance.variant_resolution)),
        "readout": readout_shapes(spec, config.parts),
        "confidence": ConfidenceModel.shapes(num_signals(config)),
    }
    if config.parts > 1:
        shapes["parts"] = PartsModel.shapes(config.parts, config.variants, spec.img_channels)
    named = {f"{prefix}.{name}": shape for prefix, part in shapes.items() for name, shape in part.items()}
    return {"donors": (config.variants, spec.num_ws, spec.w_dim), **named}

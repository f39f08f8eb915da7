"""The file that keeps a fitted style-mixing labeler: safetensors, and how it came about as JSON metadata."""

import json
from dataclasses import dataclass, fields

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.generator.spec import GeneratorSpec, num_rows
from pipeline.labelers.confidence import ConfidenceModel
from pipeline.labelers.foreground import ForegroundModel
from pipeline.labelers.joint_upsampling import resample
from pipeline.labelers.parts import PartsModel
from pipeline.labelers.readout import Readout, readout_resolution, readout_shapes
from schemas.config import StyleMixingConfig
from schemas.errors import LabelmillError

FORMAT = "labelmill-style-mixing"
VERSION = 2
METADATA_KEY = "labelmill"
_REMEDY = "Fit again with `labelmill fit` in a new output"


class FittedLabelerError(LabelmillError):
    """A fitted labeler cannot be used: damaged, of another version, or made for something else."""


class Provenance(BaseModel):
    """The JSON in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = FORMAT
    version: int = VERSION
    config: StyleMixingConfig
    checkpoint_sha256: str | None
    resolution: int
    num_ws: int
    w_dim: int
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

    provenance: Provenance
    donors_NLD: Tensor
    foreground: ForegroundModel
    parts: PartsModel | None
    """None where the foreground is one."""
    readout: Readout
    confidence: ConfidenceModel

    def to_bytes(self) -> bytes:
        """The file. Equal contents give equal bytes."""
        tensors = {
            "donors": self.donors_NLD,
            **_tensors("foreground", self.foreground),
            **({} if self.parts is None else _tensors("parts", self.parts)),
            **{f"readout.{name}": tensor for name, tensor in self.readout.weights.items()},
            **_tensors("confidence", self.confidence),
        }
        stored = {name: tensor.detach().float().cpu().contiguous() for name, tensor in sorted(tensors.items())}
        text = json.dumps(self.provenance.model_dump(mode="json"), sort_keys=True, allow_nan=False)
        return save(stored, metadata={METADATA_KEY: text})

    @staticmethod
    def from_bytes(
        content: bytes, config: StyleMixingConfig, spec: GeneratorSpec, device: str | torch.device
    ) -> "FittedStyleMixing":
        """Read a file for this configuration and generator. Raises FittedLabelerError; executes nothing."""
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise FittedLabelerError(f"fitted labeler: damaged safetensors file ({error}). {_REMEDY}") from error
        provenance = _read_provenance(content)
        _check_purpose(provenance, config, spec)
        _check_shapes(tensors, _expected_shapes(provenance, spec))
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
    return resample(foreground.background_HW[None, None], readout_resolution(spec))[0, 0]


def _tensors(prefix: str, model: ForegroundModel | PartsModel | ConfidenceModel) -> dict[str, Tensor]:
    return {f"{prefix}.{field.name}": getattr(model, field.name) for field in fields(model)}


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those that `_tensors` stored under a prefix, by their own names."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _read_provenance(content: bytes) -> Provenance:
    """A safetensors file begins with the length of its header (8 bytes) and the header."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    try:
        values = json.loads(metadata[METADATA_KEY])
        found = values["format"], values["version"]
    except (KeyError, TypeError, ValueError) as error:
        raise FittedLabelerError(f"fitted labeler: a safetensors file, but not of labelmill. {_REMEDY}") from error
    if found != (FORMAT, VERSION):
        raise FittedLabelerError(
            f"fitted labeler: holds {found[0]!r} version {found[1]!r}, this labelmill reads {FORMAT!r} version "
            f"{VERSION}. {_REMEDY}"
        )
    try:
        return Provenance.model_validate(values)
    except ValidationError as error:
        raise FittedLabelerError(f"fitted labeler: its description is unusable ({error}). {_REMEDY}") from error


def _check_purpose(provenance: Provenance, config: StyleMixingConfig, spec: GeneratorSpec) -> None:
    ours, theirs = config.model_dump(), provenance.config.model_dump()
    ours |= {"resolution": spec.resolution, "num_ws": spec.num_ws, "w_dim": spec.w_dim}
    theirs |= {"resolution": provenance.resolution, "num_ws": provenance.num_ws, "w_dim": provenance.w_dim}
    differing = [f"{key}: {ours[key]} here, {theirs[key]} in the file" for key in ours if ours[key] != theirs[key]]
    if differing:
        raise FittedLabelerError(
            f"fitted labeler: made for another configuration or generator ({'; '.join(differing)}). {_REMEDY}"
        )
    sizes = [size for size, _ in spec.channels]
    if provenance.variant_resolution not in sizes:
        raise FittedLabelerError(
            f"fitted labeler: variant_resolution {provenance.variant_resolution} not in {sizes}. {_REMEDY}"
        )
    num_rows_mixed = num_rows(provenance.variant_resolution)
    if not 1 <= provenance.crossover < num_rows_mixed:
        raise FittedLabelerError(
            f"fitted labeler: crossover {provenance.crossover} not in 1 to {num_rows_mixed - 1}. {_REMEDY}"
        )


def _expected_shapes(provenance: Provenance, spec: GeneratorSpec) -> dict[str, tuple[int, ...]]:
    config = provenance.config
    shapes = {
        "foreground": ForegroundModel.shapes(provenance.variant_resolution),
        "readout": readout_shapes(spec, config.parts),
        "confidence": ConfidenceModel.shapes(num_signals(config)),
    }
    if config.parts > 1:
        shapes["parts"] = PartsModel.shapes(config.parts, config.variants, spec.img_channels)
    named = {f"{prefix}.{name}": shape for prefix, part in shapes.items() for name, shape in part.items()}
    return {"donors": (config.variants, spec.num_ws, spec.w_dim), **named}


def _check_shapes(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise FittedLabelerError(f"fitted labeler: holds tensors {found}, expected {expected}. {_REMEDY}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise FittedLabelerError(f"fitted labeler: {name} is not finite float32. {_REMEDY}")

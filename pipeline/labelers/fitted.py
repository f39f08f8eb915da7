"""The file that keeps a fitted style-mixing labeler: safetensors, and how it came about as JSON metadata."""

import json
from dataclasses import dataclass, fields

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.generator.networks import GeneratorSpec
from pipeline.labelers.foreground import ForegroundModel
from schemas.config import StyleMixingConfig
from schemas.errors import LabelmillError

FORMAT = "labelmill-style-mixing"
VERSION = 1
METADATA_KEY = "labelmill"
_FOREGROUND_PREFIX = "foreground."
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
    colour_change: dict[int, float] | None


@dataclass(frozen=True)
class FittedStyleMixing:
    """All that labeling needs beside the generator."""

    provenance: Provenance
    donors_NLD: Tensor
    foreground: ForegroundModel

    def to_bytes(self) -> bytes:
        """The file. Equal contents give equal bytes."""
        tensors = {"donors": self.donors_NLD}
        for field in fields(ForegroundModel):
            tensors[_FOREGROUND_PREFIX + field.name] = getattr(self.foreground, field.name)
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
        _check_shapes(tensors, _expected_shapes(config, spec))
        return FittedStyleMixing(
            provenance,
            tensors["donors"].to(device),
            ForegroundModel(
                **{f.name: tensors[_FOREGROUND_PREFIX + f.name].to(device) for f in fields(ForegroundModel)}
            ),
        )


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
    if not 1 <= provenance.crossover < spec.num_ws:
        raise FittedLabelerError(
            f"fitted labeler: crossover {provenance.crossover} not in 1 to {spec.num_ws - 1}. {_REMEDY}"
        )


def _expected_shapes(config: StyleMixingConfig, spec: GeneratorSpec) -> dict[str, tuple[int, ...]]:
    shapes = ForegroundModel.shapes(spec.resolution)
    donors = (config.variants, spec.num_ws, spec.w_dim)
    return {"donors": donors, **{_FOREGROUND_PREFIX + name: shape for name, shape in shapes.items()}}


def _check_shapes(tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise FittedLabelerError(f"fitted labeler: holds tensors {found}, expected {expected}. {_REMEDY}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise FittedLabelerError(f"fitted labeler: {name} is not finite float32. {_REMEDY}")

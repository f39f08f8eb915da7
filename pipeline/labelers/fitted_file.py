"""The file that keeps a fitted labeler: safetensors, and how it came about as JSON metadata. Nothing in it is executed.

Every method has its own provenance and tensors; what is common to writing, reading and checking them is here.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.process.safetensors_json import (
    DamagedFileError,
    ForeignFileError,
    load_with_json,
    save_with_json,
)
from labelmill.schemas.errors import LabelmillError

REMEDY = "Fit again with `labelmill fit` in a new output"


class FittedLabelerError(LabelmillError):
    """A fitted labeler cannot be used: damaged, of another version, or made for something else."""


class FileProvenance(BaseModel):
    """The JSON in the file; a method gives `format`, `version` and `config` their values, and adds what it found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    version: int
    config: BaseModel
    checkpoint_sha256: str | None
    resolution: int
    num_ws: int
    w_dim: int


Provenance = TypeVar("Provenance", bound=FileProvenance)


def write_fitted(provenance: FileProvenance, tensors: Mapping[str, Tensor]) -> bytes:
    """The file. Equal contents give equal bytes."""
    stored = {name: tensor.detach().float().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    text = json.dumps(provenance.model_dump(mode="json"), sort_keys=True, allow_nan=False)
    return save_with_json(stored, text)


def read_fitted(content: bytes, kind: type[Provenance]) -> tuple[Provenance, dict[str, Tensor]]:
    """What `write_fitted` wrote, tensors on the CPU. Raises FittedLabelerError for anything else."""
    try:
        values, tensors = load_with_json(content)
    except DamagedFileError as error:
        raise FittedLabelerError(f"fitted labeler: damaged safetensors file ({error}). {REMEDY}") from error
    except ForeignFileError as error:
        raise FittedLabelerError(f"fitted labeler: a safetensors file, but not of labelmill. {REMEDY}") from error
    return _provenance(values, kind), tensors


def read_fitted_for(
    content: bytes,
    kind: type[Provenance],
    config: BaseModel,
    spec: GeneratorSpec,
    checkpoint_sha256: str | None,
    ignoring: Collection[str] = (),
) -> tuple[Provenance, dict[str, Tensor]]:
    """The same, for this configuration and generator. Raises FittedLabelerError for what was fitted for others.

    checkpoint_sha256: of the generator; None is not checked. ignoring: keys of the configuration that may differ.
    """
    provenance, tensors = read_fitted(content, kind)
    check_purpose(provenance, config, spec, ignoring)
    check_checkpoint(provenance, checkpoint_sha256)
    return provenance, tensors


def _provenance(values: Mapping[str, Any], kind: type[Provenance]) -> Provenance:
    found = values.get("format"), values.get("version")
    expected = kind.model_fields["format"].default, kind.model_fields["version"].default
    if found != expected:
        raise FittedLabelerError(
            f"fitted labeler: holds {found[0]!r} version {found[1]!r}, this labelmill reads {expected[0]!r} version "
            f"{expected[1]}. {REMEDY}"
        )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise FittedLabelerError(f"fitted labeler: its description is unusable ({error}). {REMEDY}") from error


def check_purpose(
    provenance: FileProvenance, config: BaseModel, spec: GeneratorSpec, ignoring: Collection[str] = ()
) -> None:
    """Raises FittedLabelerError unless the file was made for this configuration and a generator of this shape.

    ignoring: keys of the configuration that may differ.
    """
    ours, theirs = (values.model_dump(exclude=set(ignoring)) for values in (config, provenance.config))
    ours |= {"resolution": spec.resolution, "num_ws": spec.num_ws, "w_dim": spec.w_dim}
    theirs |= {"resolution": provenance.resolution, "num_ws": provenance.num_ws, "w_dim": provenance.w_dim}
    pairs = {key: (ours.get(key, "nothing"), theirs.get(key, "nothing")) for key in (*ours, *(theirs.keys() - ours))}
    differing = [f"{key}: {here} here, {there} in the file" for key, (here, there) in pairs.items() if here != there]
    if differing:
        raise FittedLabelerError(
            f"fitted labeler: made for another configuration or generator ({'; '.join(differing)}). {REMEDY}"
        )


def check_checkpoint(provenance: FileProvenance, checkpoint_sha256: str | None) -> None:
    """Raises FittedLabelerError where the file was fitted on another checkpoint. None on either side is not checked."""
    fitted_on = provenance.checkpoint_sha256
    if None not in (checkpoint_sha256, fitted_on) and checkpoint_sha256 != fitted_on:
        raise FittedLabelerError(
            f"fitted labeler: fitted on another checkpoint (sha256 {str(fitted_on)[:12]}, this run's is "
            f"{str(checkpoint_sha256)[:12]}), whose features mean other things. {REMEDY}"
        )


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises FittedLabelerError unless the tensors have these shapes and are finite float32."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise FittedLabelerError(f"fitted labeler: holds tensors {found}, expected {expected}. {REMEDY}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise FittedLabelerError(f"fitted labeler: {name} is not finite float32. {REMEDY}")

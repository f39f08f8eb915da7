"""The file of a fitted labeler with instances: the labeler's own file, donors and the chosen row beside it."""

import json
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.fitted_file import REMEDY, FittedLabelerError, check_shapes
from labelmill.pipeline.process.safetensors_json import (
    DamagedFileError,
    ForeignFileError,
    load_with_json,
    save_with_json,
)
from labelmill.schemas.instances import InstanceSettings


class InstancesProvenance(BaseModel):
    """The JSON in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = "labelmill-instances"
    version: int = 1
    settings: InstanceSettings
    crossover: int
    kept: dict[int, float] | None
    """By row, what `crossover: auto` chose from; null where the run file gave the row, or no variants are made."""
    num_boxes: int
    """Boxes that it was chosen by; 0 where the detector found none, and edges of whole images were compared."""


@dataclass(frozen=True)
class FittedInstances:
    """All that labeling needs beside generator and detector."""

    provenance: InstancesProvenance
    donors_NLD: Tensor
    labeler: bytes
    """The other labeler's fitted file."""

    def to_bytes(self) -> bytes:
        """The file. Equal contents give equal bytes."""
        tensors = {
            "donors": self.donors_NLD.detach().float().cpu().contiguous(),
            "labeler": torch.frombuffer(bytearray(self.labeler), dtype=torch.uint8),
        }
        text = json.dumps(self.provenance.model_dump(mode="json"), sort_keys=True, allow_nan=False)
        return save_with_json(tensors, text)

    @staticmethod
    def from_bytes(
        content: bytes, settings: InstanceSettings, spec: GeneratorSpec, device: str | torch.device
    ) -> "FittedInstances":
        """Read a file for these settings and generator. Raises FittedLabelerError; executes nothing."""
        try:
            values, tensors = load_with_json(content)
            provenance = InstancesProvenance.model_validate_json(json.dumps(values))
        except (DamagedFileError, ForeignFileError, ValidationError) as error:
            raise FittedLabelerError(
                f"fitted labeler: no file of a labeler with instances ({error}). {REMEDY}"
            ) from error
        expected = InstancesProvenance.model_fields
        if (provenance.format, provenance.version) != (expected["format"].default, expected["version"].default):
            raise FittedLabelerError(
                f"fitted labeler: holds {provenance.format!r} version {provenance.version}. {REMEDY}"
            )
        if provenance.settings != settings or not 1 <= provenance.crossover < spec.num_ws:
            raise FittedLabelerError(f"fitted labeler: its instances were fitted with other settings. {REMEDY}")
        labeler_P = tensors.pop("labeler", torch.empty(0))
        check_shapes(tensors, {"donors": (settings.variants, spec.num_ws, spec.w_dim)})
        if labeler_P.dtype != torch.uint8 or labeler_P.ndim != 1:
            raise FittedLabelerError(f"fitted labeler: holds no labeler. {REMEDY}")
        return FittedInstances(provenance, tensors["donors"].to(device), labeler_P.numpy().tobytes())

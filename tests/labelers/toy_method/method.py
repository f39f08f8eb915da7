"""Brightness as a labeling method: `fit` finds the mean, a step an image, and keeps every step in its work folder."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from labelmill.schemas.labelers.toy import ToyConfig
from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.base import GuideFile, Labels
from labelmill.pipeline.labelers.fitted_file import (
    FileProvenance,
    check_checkpoint,
    check_purpose,
    read_fitted,
    write_fitted,
)
from labelmill.pipeline.process.log import log
from labelmill.schemas.config import QualityConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.sample import OptionalFile


class Provenance(FileProvenance):
    """The JSON in the file."""

    format: str = "labelmill-toy"
    version: int = 1
    config: ToyConfig


@dataclass(frozen=True)
class _Labeler:
    threshold: Tensor
    classes: tuple[str, ...] = ("dark", "bright")
    layers: tuple[str, ...] = ()
    optional_files: tuple[OptionalFile, ...] = ("alpha.png",)

    def label(self, batch: Batch) -> Labels:
        brightness_BHW = batch.images_BCHW.mean(dim=1)
        masks_BHW = (brightness_BHW > self.threshold).to(torch.uint8)
        alpha_BHW = (brightness_BHW - self.threshold + 0.5).clamp(0, 1)
        return Labels(masks_BHW, torch.ones(len(masks_BHW), device=masks_BHW.device), alpha_BHW)


@dataclass(frozen=True)
class _Opened:
    labeler: _Labeler
    findings: LabelerFindings

    def guide(self) -> dict[str, bytes]:
        return {"toy.txt": str(float(self.labeler.threshold)).encode()}


class _Toy:
    config = ToyConfig
    guide_file = GuideFile("toy.txt", "says what is bright")

    def check_rules(self, config: ToyConfig, quality: QualityConfig) -> None:
        if quality.enabled and quality.foreground_min > 0.9:
            raise ConfigError("quality.foreground_min: hardly anything is so bright; 0.9 or less works")

    def check(self, config: ToyConfig, sampler: Sampler) -> None:
        if config.steps > sampler.generator.spec.resolution:
            raise ConfigError("labeler.steps: more than the image has rows")

    def check_inputs(self, config: ToyConfig, sampler: Sampler, checkpoint_sha256: str | None) -> None:
        self._bias(config)

    def inputs(self, config: ToyConfig) -> dict[str, str]:
        self._bias(config)
        return {"bias": hashlib.sha256(Path(config.bias).read_bytes()).hexdigest()}

    def taught_keys(self, config: ToyConfig) -> frozenset[str]:
        return frozenset()

    def fit(self, config: ToyConfig, sampler: Sampler, checkpoint_sha256: str | None, work: Path) -> bytes:
        state = work / "means.json"
        means = json.loads(state.read_text()) if state.exists() else []
        log(f"toy: fit begins at step {len(means)}")
        for step in range(len(means), config.steps):
            time.sleep(config.seconds_per_step)
            means.append(float(sampler.sample([config.first_seed + step]).images_BCHW.mean()))
            (work / "new").write_text(json.dumps(means))
            (work / "new").replace(state)
            log(f"toy: step {step} done")
        spec = sampler.generator.spec
        provenance = Provenance(
            config=config,
            checkpoint_sha256=checkpoint_sha256,
            resolution=spec.resolution,
            num_ws=spec.num_ws,
            w_dim=spec.w_dim,
        )
        return write_fitted(provenance, {"threshold": torch.tensor(sum(means) / len(means) + self._bias(config))})

    def open(self, config: ToyConfig, sampler: Sampler, checkpoint_sha256: str | None, fitted: bytes) -> _Opened:
        provenance, tensors = read_fitted(fitted, Provenance)
        check_purpose(provenance, config, sampler.generator.spec)
        check_checkpoint(provenance, checkpoint_sha256)
        labeler = _Labeler(tensors["threshold"].to(sampler.device))
        return _Opened(labeler, LabelerFindings(verdict="sound", words=["toy: bright things were found"]))

    def describe(self, config: ToyConfig) -> str:
        return f"the toy labeler in {config.steps} steps"

    def _bias(self, config: ToyConfig) -> float:
        try:
            return float(Path(config.bias).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"labeler.bias: {config.bias}: no number ({error}); write one into it") from None


METHOD = _Toy()

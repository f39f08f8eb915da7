"""Labeling methods, by the configuration that names them."""

from pipeline.generator.sampling import Sampler
from pipeline.labelers.base import Labeler, Labels
from pipeline.labelers.fit_style_mixing import fit_style_mixing
from pipeline.labelers.fitted import FittedLabelerError, FittedStyleMixing
from pipeline.labelers.style_mixing import StyleMixingLabeler, check_style_mixing
from schemas.config import LabelerConfig

__all__ = ["FittedLabelerError", "Labeler", "Labels", "check_labeler", "fit_labeler", "open_labeler"]


def check_labeler(config: LabelerConfig, sampler: Sampler) -> None:
    """Raises ConfigError where configuration and generator do not fit together."""
    check_style_mixing(config, sampler.generator.spec)


def fit_labeler(config: LabelerConfig, sampler: Sampler, checkpoint_sha256: str | None = None) -> bytes:
    """Look at images of the generator and return the labeler's file (safetensors with JSON metadata).

    The same configuration, generator and device give the same bytes. Raises ConfigError, before any work, where
    configuration and generator do not fit together.
    """
    return fit_style_mixing(config, sampler, checkpoint_sha256).to_bytes()


def open_labeler(config: LabelerConfig, sampler: Sampler, fitted: bytes) -> Labeler:
    """The labeler that `fit_labeler` made. Raises ConfigError, or FittedLabelerError when the file does not fit."""
    check_style_mixing(config, sampler.generator.spec)
    file = FittedStyleMixing.from_bytes(fitted, config, sampler.generator.spec, sampler.device)
    return StyleMixingLabeler(config, sampler, file)

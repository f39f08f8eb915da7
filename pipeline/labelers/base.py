"""What a labeling method is: its configuration, what it refuses, how it is fitted, and masks for a batch.

Shape suffixes: B batch, K classes, H height, W width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor

from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.schemas.config import QualityConfig
from labelmill.schemas.instances import Instance
from labelmill.schemas.labeler_findings import LabelerFindings
from labelmill.schemas.sample import OptionalFile
from labelmill.schemas.section import Section


@dataclass(frozen=True)
class Labels:
    """What a batch shows, on the device; all at the images' resolution."""

    masks_BHW: Tensor
    """uint8 class indices; 255 is ignore."""
    confidence_B: Tensor
    """float32 in [0, 1]: how sure the labeler is of each mask."""
    alpha_BHW: Tensor | None = None
    """float32 in [0, 1]: how opaque the foreground is; None where the method gives none."""
    instances_BHW: Tensor | None = None
    """int64: index of each pixel's instance from 1, 0 for none; None where the method gives none."""
    probabilities_BKHW: Tensor | None = None
    """float32 in [0, 1]: how likely each pixel is of each class, in the order of `classes`; they sum to 1 over K. Of
    pixels to be ignored as well. None where the method gives none."""
    uncertain_B: Tensor | None = None
    """bool: which masks the method is too unsure of to be kept (drop reason `uncertain`); None where it never says."""
    instances_B: tuple[tuple[Instance, ...], ...] | None = None
    """What each image's instances are, by index; None where nothing is known of them."""


class Labeler(Protocol):
    """A method with its fitted state, ready to label batches."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the mask values 0, 1, ...; index 0 is background."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Convolutions whose features `label` needs in the batch."""

    @property
    def optional_files(self) -> tuple[OptionalFile, ...]:
        """Files that samples have for the optional fields of Labels which `label` fills, each always or never."""

    def label(self, batch: Batch) -> Labels:
        """Label 1 or more samples. Each mask depends on its own sample alone, to the bit."""


class FittedLabeler(Protocol):
    """A fitted file, read and opened for one generator. A process opens it once."""

    @property
    def labeler(self) -> Labeler:
        """What labels batches."""

    @property
    def findings(self) -> LabelerFindings:
        """What `fit` found, in words, and whether it is worth anything."""

    def guide(self) -> dict[str, bytes]:
        """Files by name that show a person what `fit` found, in the order in which they are to be written, the
        method's `guide_file` last. Drawing them takes seconds. Empty where the method needs no guide."""


@dataclass(frozen=True)
class GuideFile:
    """The file of a guide that is written last: where it is, all are."""

    name: str
    meaning: str
    """What it and those beside it show, as the end of a sentence that begins with its path."""


Config = TypeVar("Config", bound=Section)


class LabelingMethod(Protocol[Config]):
    """A way to labels. Its module `method` exports one of these as METHOD, and METHODS (methods.py) lists it.

    What a method refuses it raises as a LabelmillError, before work. There are three checks because there are three
    moments: a driver has the run file alone, each worker has the generator, and the one that fits has what `fit` reads.
    """

    @property
    def config(self) -> type[Config]:
        """The run file's section, whose `method` is the method's name."""

    @property
    def guide_file(self) -> GuideFile | None:
        """The last file of `FittedLabeler.guide`; None where that is nothing."""

    def check_rules(self, config: Config, quality: QualityConfig) -> None:
        """Raises ConfigError where the quality rules cannot judge the masks that this configuration gives."""

    def check(self, config: Config, sampler: Sampler) -> None:
        """Raises ConfigError where configuration, generator and memory do not go together. Takes no time."""

    def check_inputs(self, config: Config, sampler: Sampler, checkpoint_sha256: str | None) -> None:
        """Raises LabelmillError where `fit` could not use what it reads beside the generator. May take seconds.

        checkpoint_sha256: of the sampler's generator.
        """

    def inputs(self, config: Config) -> dict[str, str]:
        """Content hashes (SHA-256, hex), by name, of what `fit` reads beside the generator: part of a run's identity.

        Raises LabelmillError for what cannot be read.
        """

    def taught_keys(self, config: Config) -> frozenset[str]:
        """Keys of the annotated images that `fit` learns from, which cannot tell how good its masks are.

        Raises LabelmillError for what cannot be read.
        """

    def fit(self, config: Config, sampler: Sampler, checkpoint_sha256: str | None, work: Path) -> bytes:
        """Look at images of the generator and return the fitted file (safetensors with JSON metadata).

        The same configuration, generator, inputs and device give the same bytes. work: a local folder of this fit
        alone, for what a long fit resumes from; it holds what an interrupted one has left there, and is deleted when
        the file is published. checkpoint_sha256: of the sampler's generator, which the file keeps. Raises what the
        checks raise, before any work.
        """

    def open(self, config: Config, sampler: Sampler, checkpoint_sha256: str | None, fitted: bytes) -> FittedLabeler:
        """The labeler that `fit` made. Raises FittedLabelerError when the file does not fit; executes nothing.

        checkpoint_sha256: of the sampler's generator; a file that was fitted on another one is refused.
        """

    def describe(self, config: Config) -> str:
        """What is fitted, for the log, such as `the labeler on 128 images`."""

"""Which of a sample's files a network learns from."""

from labelmill.pipeline.segmentation.reading import Split
from labelmill.pipeline.shards.sample_files import ALPHA, MASK, PROBABILITIES, SampleFile
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.segmentation import SegmentationTrainingConfig


def target_file(config: SegmentationTrainingConfig, split: Split) -> SampleFile:
    """MASK, ALPHA or PROBABILITIES. Raises ConfigError where soft targets are asked for and there are none."""
    soft = [file for file in (PROBABILITIES, ALPHA) if file in split.files]
    fitting = [file for file in soft if file == PROBABILITIES or len(split.classes) == 2]
    if config.targets == "mask" or (config.targets == "auto" and not fitting):
        return MASK
    if not fitting:
        found = f"only {ALPHA.ending}, which is of two classes, and {len(split.classes)} classes" if soft else "neither"
        raise ConfigError(
            f"targets: soft needs samples with {PROBABILITIES.ending}, or of two classes with {ALPHA.ending}; "
            f"{split.url} has {found}. Label it by a method that gives probabilities, or set targets: auto"
        )
    return fitting[0]

"""labelmill from Python: `import labelmill`. The command is made of the same parts."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import Batch, Sampler
from labelmill.pipeline.labelers.base import Labeler, Labels
from labelmill.pipeline.labelers.methods import fit_to_bytes, method_of, open_fitted
from labelmill.pipeline.process.device import choose_device
from labelmill.pipeline.segmentation.reading import LabeledImage, open_split, read_samples
from labelmill.schemas.config import GeneratorConfig, LabelerConfig, NumericsConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.section import Section
from labelmill.schemas.yaml_file import validate


class _LabelerFile(Section):
    labeler: LabelerConfig


def open_generator(checkpoint: str | Path, *, device: str = "auto", **settings: Any) -> Sampler:
    """A generator that turns seeds into images, as a run file's does.

    checkpoint and settings: the fields of a run file's `generator` section, such as truncation_psi. device: auto (a GPU
    where there is one), cpu, cuda or cuda:N. `sample(seeds)` gives a batch of images_BCHW, float32, nominally in
    [-1, 1]. Raises CheckpointError or ConfigError.
    """
    config = validate({"checkpoint": str(checkpoint), **_plain(settings)}, "open_generator", GeneratorConfig)
    chosen, numerics = choose_device(device), NumericsConfig()
    torch.set_num_threads(numerics.threads)
    return Sampler(open_checkpoint(config.checkpoint, chosen).generator, config, numerics, chosen)


def fit_labeler(sampler: Sampler, method: str, **settings: Any) -> Labeler:
    """A labeling method, fitted to a generator: takes a minute or so.

    method and settings: the fields of a run file's `labeler` section. Raises ConfigError.
    """
    config = validate({"labeler": {"method": method, **_plain(settings)}}, "fit_labeler", _LabelerFile).labeler
    method_of(config).check(config, sampler)
    return open_fitted(config, sampler, fit_to_bytes(config, sampler)).labeler


def label(sampler: Sampler, labeler: Labeler, seeds: Sequence[int]) -> Iterator[tuple[Batch, Labels]]:
    """Images of seeds and their masks, batch by batch, on the sampler's device.

    masks_BHW: uint8 class indices, 255 is ignore; confidence_B: float32 in [0, 1]. What a dataset drops by its quality
    rules is here.
    """
    return ((batch, labeler.label(batch)) for batch in sampler.batches(seeds, labeler.layers))


def read_dataset(place: str | Path, split: str | None = None) -> Iterator[LabeledImage]:
    """The samples of a finished dataset, in order: image_HWC RGB and mask_HW, both uint8, key and metadata.

    place: its folder or bucket. split: one of its splits; None for all. One shard is held in memory. Raises
    OutputError, naming what is not as it should be.
    """
    return read_samples(open_split(str(place), split))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a run file has them: numbers of NumPy and paths become those of Python and text."""
    for key, value in settings.items():
        try:
            json.dumps(value, default=_plain_value)
        except TypeError as error:
            raise ConfigError(f"{key}: {error}; give a number, text, a list or a dict of them") from None
    return dict(json.loads(json.dumps(settings, default=_plain_value)))


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} is not a setting")

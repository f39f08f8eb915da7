"""labelmill from Python: `import labelmill`. The command is made of the same parts, and works by the same settings.

Shape suffixes: B batch, C channels, H height, W width.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.sampling import Batch, Sampler, to_uint8
from labelmill.pipeline.instances.detectors import FromFunction
from labelmill.pipeline.instances.labeler import InstanceLabeler
from labelmill.pipeline.instances.run_labeler import fit_instances
from labelmill.pipeline.labelers.base import Labeler, Labels
from labelmill.pipeline.labelers.methods import fit_to_bytes, method_of, open_fitted
from labelmill.pipeline.pictures.overlay import Captioned, sheet
from labelmill.pipeline.process.device import choose_device
from labelmill.pipeline.process.interruption import Interrupted, interrupted_words, interruptible
from labelmill.pipeline.segmentation.random_access import LabeledDataset, Pair, to_pair
from labelmill.pipeline.segmentation.reading import LabeledImage, open_split, read_samples
from labelmill.schemas.config import GeneratorConfig, LabelerConfig, NumericsConfig, RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.instances import InstanceSettings
from labelmill.schemas.section import Section
from labelmill.schemas.yaml_file import apply_overrides, load_config, validate
from labelmill.workers.generate import generate

Item = TypeVar("Item")


class _LabelerFile(Section):
    labeler: LabelerConfig


def open_generator(checkpoint: str | Path, *, device: str = "auto", **settings: Any) -> Sampler:
    """A generator that turns seeds into images, as a run file's does.

    checkpoint and settings: the fields of a run file's `generator` section, such as truncation_psi. device: auto (a GPU
    where there is one), cpu, cuda or cuda:N. `sample(seeds)` gives a batch of at most 16 images: images_BCHW, float32,
    nominally in [-1, 1], and ws_BLD, the rows of w. Raises CheckpointError or ConfigError.
    """
    config = validate({"checkpoint": str(checkpoint), **_plain(settings)}, "open_generator", GeneratorConfig)
    chosen, numerics = choose_device(device), NumericsConfig()
    torch.set_num_threads(numerics.threads)
    return Sampler(open_checkpoint(config.checkpoint, chosen).generator, config, numerics, chosen)


def fit_labeler(generator: Sampler, method: str, **settings: Any) -> Labeler:
    """A labeling method, fitted to a generator: takes a minute or so. `classes` of what it gives names the mask values.

    method and settings: the fields of a run file's `labeler` section. Raises ConfigError.
    """
    config = validate({"labeler": {"method": method, **_plain(settings)}}, "fit_labeler", _LabelerFile).labeler
    method_of(config).check(config, generator)
    return open_fitted(config, generator, fit_to_bytes(config, generator)).labeler


def find_instances(
    generator: Sampler,
    labeler: Labeler,
    detect: Callable[[NDArray[np.uint8]], Iterable[Mapping[str, Any]]],
    **settings: Any,
) -> Labeler:
    """The same labeler, which gives instances of what a function detects as well: `label` then gives instances_BHW,
    int64 and 0 for none, and instances_B, what each image's instances are.

    detect: from an image [H, W, C] uint8, RGB or gray, to boxes {"class": "person", "score": 0.9, "box": [x, y, width,
    height]} in its pixels. settings: the fields of a run file's `instances` section but `detector`. Looks at images to
    choose the row of w to mix from, unless `crossover` names it. Raises ConfigError.
    """
    chosen = validate(_plain(settings), "find_instances", InstanceSettings)
    detector = FromFunction(lambda images_BHWC: [detect(image_HWC) for image_HWC in images_BHWC])
    fitted = fit_instances(chosen, generator, detector, labeler=b"")
    return InstanceLabeler(labeler, detector, chosen, generator, fitted.donors_NLD, fitted.provenance.crossover)


def label(generator: Sampler, labeler: Labeler, seeds: Sequence[int]) -> Iterator[tuple[Batch, Labels]]:
    """Images of seeds and their masks, batch by batch, on the generator's device.

    images_BCHW: float32, nominally in [-1, 1]; masks_BHW: uint8 class indices, 255 is ignore; confidence_B: float32 in
    [0, 1]. What a dataset drops by its quality rules is here.
    """
    return ((batch, labeler.label(batch)) for batch in generator.batches(seeds, labeler.layers))


def show(
    labeled: Iterable[tuple[Batch, Labels]] | Iterable[LabeledImage],
    classes: Sequence[str],
    *,
    columns: int = 4,
    edge: int = 128,
) -> Image.Image:
    """A picture of images beside their masks, under a legend: the value of a notebook's cell, or `.save("a.png")`.

    labeled: what `label` gives, or samples of a dataset; all of them are drawn, so give tens. classes: names of the
    mask values, `labeler.classes` or `dataset.classes`. columns: pairs per row. edge: the shorter side of an image in
    the picture, in pixels. Raises ConfigError where there is nothing to show, LabelmillError for masks with other
    values.
    """
    pictures = [picture for item in labeled for picture in _pictures_of(item)]
    if not pictures:
        raise ConfigError("show: there are no samples; give at least one seed or sample")
    return Image.fromarray(sheet(pictures, classes, columns, edge))


def make_dataset(run: str | Path | Mapping[str, Any] | RunConfig, *, overrides: Sequence[str] = ()) -> str:
    """Make the dataset of a run, as `labelmill generate` does, and return its output, for `open_dataset`.

    run: a run file, its values as a mapping, or a checked configuration. overrides: as after `--set`, such as
    "dataset.samples=320". Takes as long as the run does; interrupted (Ctrl-C, a notebook's stop button), it raises
    KeyboardInterrupt: call it again to resume. Raises LabelmillError kinds as the command ends with their exit status:
    ConfigError, CheckpointError, OutputError, ShardError and StalledError.
    """
    config = _run_config(run, overrides)
    with _ended_by_signals():
        generate(config)
    return config.output


@overload
def open_dataset(place: str | Path, split: str | None = None) -> LabeledDataset[Pair]: ...


@overload
def open_dataset(
    place: str | Path, split: str | None = None, *, transform: Callable[[LabeledImage], Item]
) -> LabeledDataset[Item]: ...


def open_dataset(
    place: str | Path, split: str | None = None, *, transform: Callable[[LabeledImage], Any] = to_pair
) -> LabeledDataset[Any]:
    """A finished dataset as a torch Dataset, for DataLoader: any order, any number of its processes.

    place: its folder or bucket. split: one of its splits; None for all. transform: makes an item of a sample as it is
    stored (`LabeledImage`); without one an item is image_CHW float32 RGB in [0, 1] and mask_HW int64 class indices, 255
    to ignore. `classes` names the mask values, `sample(index)` is the sample as it is stored. Raises OutputError,
    naming what is not as it should be.
    """
    return LabeledDataset(open_split(str(place), split), transform)


def read_dataset(place: str | Path, split: str | None = None) -> Iterator[LabeledImage]:
    """The samples of a finished dataset, in order: image_HWC RGB and mask_HW, both uint8, key and metadata.

    place: its folder or bucket. split: one of its splits; None for all. One shard is held in memory. Raises
    OutputError, naming what is not as it should be.
    """
    return read_samples(open_split(str(place), split))


def _pictures_of(item: tuple[Batch, Labels] | LabeledImage) -> list[Captioned]:
    if isinstance(item, LabeledImage):
        confidence = item.metadata.candidate.confidence
        return [Captioned(item.image_HWC, item.mask_HW, f"{item.key}  ·  confidence {confidence:.2f}")]
    batch, labels = item
    images_BHWC = to_uint8(batch.images_BCHW).cpu().numpy()
    masks_BHW, confidences = labels.masks_BHW.cpu().numpy(), labels.confidence_B.tolist()
    return [
        Captioned(image_HWC, mask_HW, f"seed {seed}  ·  confidence {confidence:.2f}")
        for image_HWC, mask_HW, seed, confidence in zip(images_BHWC, masks_BHW, batch.seeds, confidences, strict=True)
    ]


def _run_config(run: str | Path | Mapping[str, Any] | RunConfig, overrides: Sequence[str]) -> RunConfig:
    if isinstance(run, str | Path):
        return load_config(run, RunConfig, overrides)
    if isinstance(run, RunConfig) and not overrides:
        return run
    values = run.model_dump(mode="json") if isinstance(run, RunConfig) else _plain(run)
    apply_overrides(values, overrides)
    folder = run.generator.folder if isinstance(run, RunConfig) else None
    return validate(values, "make_dataset", RunConfig, folder)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Signals as the command takes them, so that `labelmill status` tells the truth; then as Python raises them."""
    if threading.current_thread() is not threading.main_thread():  # which gets no signals
        yield
        return
    try:
        with interruptible():
            yield
    except Interrupted as error:
        raise KeyboardInterrupt(interrupted_words(str(error))) from None


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

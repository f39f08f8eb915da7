"""What a training starts from: new weights, another training or generator of the same sizes, or a smaller generator."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from torch import Tensor

from labelmill.pipeline.generator.checkpoints import LoadedCheckpoint, open_checkpoint
from labelmill.pipeline.generator.discriminator import Discriminator
from labelmill.pipeline.generator.spec import GeneratorSpec, channels_by_resolution
from labelmill.pipeline.training.state import TrainingStateError, latest_state, read_progress, read_tensors
from labelmill.schemas.training import GrowthConfig, NetworkConfig, TrainGeneratorConfig

GROWN_DETAIL = 6.0
"""Gain of the discriminator's detail channels when a generator grows."""
FRESH_DISCRIMINATOR_IMAGES = 5_000
"""Head start of a new discriminator before a generator that is not new."""
_RGB = 3
_LOWEST = 4


@dataclass(frozen=True)
class Source:
    """Weights to start from."""

    name: str
    spec: GeneratorSpec
    generator: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    """The moving average; the generator's own weights where there is none."""
    discriminator: Mapping[str, Tensor] | None
    detail: float
    """Gain of that discriminator's detail channels."""


@dataclass(frozen=True)
class TrainingStart:
    """Sizes of the networks, and the weights that they begin with."""

    spec: GeneratorSpec
    discriminator_channels: tuple[tuple[int, int], ...]
    detail: float
    """Gain of the discriminator's detail channels; 0: none."""
    source: Source | None
    """None: new weights, or a state to resume."""
    small: GeneratorSpec | None
    """Sizes of the generator that this one grows from."""
    head_start_images: int
    """From which only the discriminator learns."""

    @property
    def discriminator_comes_along(self) -> bool:
        """Whether the source's discriminator is of these sizes."""
        return self.source is not None and discriminator_fits(self.source, self.discriminator_channels, self.detail)


def find_start(config: TrainGeneratorConfig) -> TrainingStart:
    """Read what `config` names; a training that is resumed reads sizes from its state alone.

    Raises TrainingStateError or CheckpointError where the two do not go together.
    """
    state = latest_state(config.output / "state")
    if state is not None:
        return _resumed(config, state)
    reference = config.grow_from or config.initialise_from
    if reference is None:
        return _start(config, spec_of(config.network or NetworkConfig()), None, None)
    source = open_source(reference)
    field = "grow_from" if config.grow_from else "initialise_from"
    _refuse_untrainable(field, source)
    if config.grow_from is None:
        spec = source.spec if config.network is None else spec_of(config.network)
        _refuse_differences(field, source, source.spec, spec)
        return _start(config, spec, source, None)
    if source.spec.architecture != "skip":
        raise TrainingStateError(
            f"grow_from: {source.name} is of architecture {source.spec.architecture!r}; only 'skip' generators grow, "
            f"whose images are sums over resolutions"
        )
    spec = grown(source.spec) if config.network is None else spec_of(config.network)
    _refuse_differences(field, source, grown(source.spec, spec.channels[-1][1]), spec)
    return _start(config, spec, source, source.spec)


def spec_of(network: NetworkConfig) -> GeneratorSpec:
    """The generator that a configuration describes."""
    return GeneratorSpec(
        resolution=network.resolution,
        z_dim=network.z_dim,
        w_dim=network.w_dim,
        c_dim=0,
        mapping_layers=network.mapping_layers,
        channels=channels_by_resolution(
            network.resolution, channel_base=network.channel_base, channel_max=network.channel_max
        ),
        architecture=network.architecture,
        conv_clamp=network.conv_clamp,
    )


def grown(spec: GeneratorSpec, width: int | None = None) -> GeneratorSpec:
    """The same with a block of twice the resolution, half as wide as the last one unless a width is given."""
    resolution, last = 2 * spec.resolution, spec.channels[-1][1]
    channels = (*spec.channels, (resolution, max(1, last // 2) if width is None else width))
    return replace(spec, resolution=resolution, channels=channels)


def open_source(reference: str) -> Source:
    """Weights of a state folder, or of any checkpoint that a run file takes."""
    if not Path(reference).is_dir():
        return _from_checkpoint(open_checkpoint(reference, discriminator=True))
    state = latest_state(Path(reference))
    if state is None:
        inner = latest_state(Path(reference) / "state")
        hint = "" if inner is None else f"; {inner.parent} does: name that folder"
        raise TrainingStateError(f"{reference} holds no complete training state{hint}")
    spec, detail = _sizes(state)
    tensors = read_tensors(state, "generator")
    average = {**tensors, **read_tensors(state, "average")}
    return Source(reference, spec, tensors, average, read_tensors(state, "discriminator"), detail)


def _from_checkpoint(loaded: LoadedCheckpoint) -> Source:
    tensors = loaded.generator.state_dict()
    discriminator = None if loaded.discriminator is None else loaded.discriminator.state_dict()
    return Source(loaded.info.name, loaded.generator.spec, tensors, tensors, discriminator, detail=0.0)


def _start(
    config: TrainGeneratorConfig, spec: GeneratorSpec, source: Source | None, small: GeneratorSpec | None
) -> TrainingStart:
    detail = config.discriminator.detail
    if detail is None:
        detail = GROWN_DETAIL if small is not None else 0.0 if source is None else source.detail
    start = TrainingStart(spec, _discriminator_channels(config, spec), detail, source, small, head_start_images=0)
    return replace(start, head_start_images=_head_start_images(config, start))


def _head_start_images(config: TrainGeneratorConfig, start: TrainingStart) -> int:
    asked = config.optimisation.discriminator_head_start_images
    if start.small is not None:
        return growth_of(config).head_start_images
    if asked is not None:
        return asked
    return 0 if start.source is None or start.discriminator_comes_along else FRESH_DISCRIMINATOR_IMAGES


def growth_of(config: TrainGeneratorConfig) -> GrowthConfig:
    """The phases of growing."""
    return config.growth or GrowthConfig()


def discriminator_fits(source: Source, channels: tuple[tuple[int, int], ...], detail: float) -> bool:
    """Whether a source brings a discriminator of these sizes."""
    if source.discriminator is None:
        return False
    own = Discriminator(channels, detail=detail).state_dict()
    given = source.discriminator
    return own.keys() == given.keys() and all(own[name].shape == given[name].shape for name in own)


def _discriminator_channels(config: TrainGeneratorConfig, spec: GeneratorSpec) -> tuple[tuple[int, int], ...]:
    base = config.discriminator.channel_base
    if base is None:
        return spec.channels
    if base < spec.resolution:
        raise TrainingStateError(
            f"discriminator.channel_base {base} leaves no channel at {spec.resolution} px; it must be at least "
            f"{spec.resolution}"
        )
    widest = max(width for _, width in spec.channels)
    return channels_by_resolution(spec.resolution, channel_base=base, channel_max=widest)


def _resumed(config: TrainGeneratorConfig, state: Path) -> TrainingStart:
    spec, detail = _sizes(state)
    progress = read_progress(state)
    small, head_start_images = progress["small"], progress["head_start_images"]
    assert isinstance(head_start_images, int)
    small_spec = None if small is None else spec_from_json(small)
    return TrainingStart(spec, _discriminator_channels(config, spec), detail, None, small_spec, head_start_images)


def _sizes(state: Path) -> tuple[GeneratorSpec, float]:
    progress = read_progress(state)
    if not {"spec", "small", "discriminator_detail", "head_start_images", "data_sha256"} <= progress.keys():
        raise TrainingStateError(
            f"{state}: saved by another version of labelmill, without a record of its training images; finish with "
            f"that version, or start from its generator.safetensors"
        )
    detail = progress["discriminator_detail"]
    assert isinstance(detail, int | float)
    return spec_from_json(progress["spec"]), float(detail)


def spec_as_json(spec: GeneratorSpec | None) -> object:
    """As plain JSON values."""
    return None if spec is None else json.loads(json.dumps(asdict(spec)))


def spec_from_json(values: object) -> GeneratorSpec:
    """What spec_as_json wrote."""
    assert isinstance(values, dict)
    channels = tuple((int(size), int(width)) for size, width in values["channels"])
    height, width = values["const_size"]
    return GeneratorSpec(**{**values, "channels": channels, "const_size": (height, width)})


def _refuse_untrainable(field: str, source: Source) -> None:
    spec = source.spec
    if spec.c_dim > 0:
        raise TrainingStateError(
            f"{field}: {source.name} has {spec.c_dim} classes; training supports only generators without "
            f"classes: choose one without classes, or leave {field} out"
        )
    if spec.img_channels != _RGB:
        raise TrainingStateError(
            f"{field}: {source.name} makes images of {spec.img_channels} channels; training supports only RGB "
            f"images: choose a generator of RGB images, or leave {field} out"
        )
    height, width = spec.image_size
    if height != width or spec.const_size != (_LOWEST, _LOWEST):
        raise TrainingStateError(
            f"{field}: {source.name} makes images of {width} x {height} px; training supports only square images that "
            f"begin at {_LOWEST} px: choose such a generator, or leave {field} out"
        )


def _refuse_differences(field: str, source: Source, needed: GeneratorSpec, asked: GeneratorSpec) -> None:
    names = [item.name for item in fields(GeneratorSpec) if item.name != "conv_clamp"]  # which no tensor depends on
    odd = [name for name in names if getattr(needed, name) != getattr(asked, name)]
    if odd:
        phrases = [f"{name} {getattr(needed, name)}, not {getattr(asked, name)}" for name in odd]
        raise TrainingStateError(
            f"{field}: {source.name} needs a network with {'; '.join(phrases)}. Leave `network` out, and it is taken "
            f"from there"
        )

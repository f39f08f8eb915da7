"""The configuration of `labelmill train-generator`: every field, its meaning and its one default."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from labelmill.schemas.section import PRINTABLE, Section
from labelmill.schemas.user_path import UserPath, UserPattern


class FolderData(Section):
    """Images in a folder and its subfolders, centre-cropped to squares."""

    kind: Literal["folder"]
    """Where images come from: folder, shards or domain."""
    path: UserPath
    """Folder of .jpg, .jpeg, .png or .webp files."""
    skip_unreadable: bool = False
    """Train without unreadable files instead of listing them and stopping."""


class ShardsData(Section):
    """Images in webdataset shards, centre-cropped to squares."""

    kind: Literal["shards"]
    """Where images come from: folder, shards or domain."""
    urls: tuple[UserPattern, ...] = Field(min_length=1)
    """Local tar files; a file name may contain wildcards."""
    skip_unreadable: bool = False
    """Train without unreadable files instead of listing them and stopping."""


class AvatarRates(Section):
    """Share of drawn portraits with each rare part. null: the domain's own share. A generator may omit parts that it
    rarely sees."""

    hat: float | None = Field(None, gt=0, lt=1)
    """Share with a hat."""
    glasses: float | None = Field(None, gt=0, lt=1)
    """Share with glasses."""
    beard: float | None = Field(None, gt=0, lt=1)
    """Share with a beard or a moustache."""


class DomainData(Section):
    """A domain that labelmill draws itself."""

    kind: Literal["domain"]
    """Where images come from: folder, shards or domain."""
    name: Literal["avatars"] = "avatars"
    """Name of the domain."""
    num_images: int = Field(20_000, ge=1)
    """Number of images to draw before training starts."""
    first_seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the first image."""
    rates: AvatarRates = AvatarRates()
    """How often rare parts are drawn. Seeds that would make other parts too frequent are skipped."""
    num_processes: int = Field(2, ge=1)
    """Number of drawing processes."""


Augmentation = Literal["auto", "diffaugment", "none"]

TrainingData = Annotated[FolderData | ShardsData | DomainData, Field(discriminator="kind")]


class NetworkConfig(Section):
    """Widths and depths of generator and discriminator."""

    resolution: int = Field(128, ge=8, le=1024)
    """Image height and width, a power of two."""
    channel_base: int = Field(4096, ge=4)
    """Channels at resolution r are min(channel_base / r, channel_max)."""
    channel_max: int = Field(128, ge=1)
    """See channel_base."""
    z_dim: int = Field(256, ge=1)
    """Length of the latent z."""
    w_dim: int = Field(256, ge=1)
    """Length of a row of w."""
    mapping_layers: int = Field(4, ge=1)
    """Depth of the mapping network."""
    architecture: Literal["skip", "orig", "resnet"] = "skip"
    """How the generator forms its output: a sum of RGB over resolutions, the last layer, or residual blocks."""
    conv_clamp: float | None = Field(256.0, gt=0)
    """Clamp of activations, which reduced precision needs. null: none."""

    @model_validator(mode="after")
    def _check_powers(self) -> Self:
        if self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution must be a power of two, got {self.resolution}")
        if self.channel_base < self.resolution:
            raise ValueError(
                f"channel_base {self.channel_base} leaves no channel at {self.resolution} px; "
                f"it must be at least {self.resolution}"
            )
        return self


class OptimisationConfig(Section):
    """Losses, regularisation and rates."""

    batch_size: int = Field(32, ge=1)
    """Images per step."""
    generator_learning_rate: float = Field(0.002, gt=0)
    """Adam's rate for the generator (beta1 0, beta2 0.99)."""
    discriminator_learning_rate: float = Field(0.002, gt=0)
    """Adam's rate for the discriminator."""
    rate_images: int | None = Field(None, ge=1)
    """Images per halving of both rates. null: constant rates."""
    r1_gamma: float | None = Field(None, ge=0)
    """Weight of the gradient penalty on real images. null: 0.0002 * resolution^2 / batch_size."""
    r1_interval: int = Field(16, ge=1)
    """Steps between gradient penalties."""
    path_length_weight: float = Field(2.0, ge=0)
    """Weight of path-length regularisation; 0 turns it off."""
    path_length_interval: int = Field(8, ge=1)
    """Steps between path-length regularisations."""
    path_length_batch_shrink: int = Field(2, ge=1)
    """Path-length regularisation uses batch_size divided by this number."""
    style_mixing_probability: float = Field(0.9, ge=0, le=1)
    """Share of generated images whose rows of w come from two latents."""
    average_half_life_images: float = Field(5000.0, gt=0)
    """Half-life of the moving average of the generator, in images."""
    average_ramp: float = Field(0.05, gt=0)
    """Upper limit of the half-life early in training, as a share of the images seen."""
    mean_w_decay: float = Field(0.995, ge=0, lt=1)
    """Decay per step of the moving average of w."""
    discriminator_head_start_images: int | None = Field(None, ge=0)
    """Images during which only the discriminator learns. null: growth.head_start_images if a generator grows, 5000 if
    it comes from initialise_from without its discriminator, else 0."""
    augmentation: Augmentation = "auto"
    """Differentiable augmentation of the discriminator's input (DiffAugment), for small datasets. auto: for fewer than
    5,000 images from a folder or from shards."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the top four resolutions' activations. float16 needs a GPU; bfloat16 is several times faster
    on GPUs and on CPUs with matrix units (AMX). Weights, sums of RGB and penalties stay float32."""


class DiscriminatorConfig(Section):
    """The discriminator, which is not part of the finished generator."""

    channel_base: int | None = Field(None, ge=4)
    """The discriminator's channels at resolution r are min(channel_base / r, the generator's largest width). null: the
    generator's widths."""
    detail: float | None = Field(None, ge=0)
    """Gain of three extra input channels: the detail of the image beyond its 2x2 means. 0: the image alone. null: the
    value of the training in initialise_from, 6 if a generator grows, else 0."""


class GrowthConfig(Section):
    """How a generator of twice the resolution is trained from a smaller one.

    Phases, by the images seen: the discriminator alone; the new block against it, all others frozen; all blocks, the
    old ones slowly and anchored to the images of the small generator; all blocks, without the anchor.
    """

    head_start_images: int = Field(640, ge=0)
    """Images in the first phase, from which only the discriminator learns."""
    frozen_images: int = Field(40_000, ge=0)
    """Images in the next phase, from which only the new block learns."""
    anchored_images: int = Field(1_000_000, ge=0)
    """Images in the next phase, in which the old blocks learn, too, but anchored. The phase is long because trainings
    without the anchor have lost structure (see the card of bundled:avatars-64)."""
    old_rate: float = Field(0.05, gt=0, le=1)
    """Rate of the old blocks while they are anchored, as a share of the new block's."""
    anchor: float = Field(20.0, ge=0)
    """Weight of the mean squared difference between an image's 2x2 means and the small generator's image of the same
    latents and noise."""
    final_anchor: float = Field(2.0, ge=0)
    """Weight of the anchor at the end of the anchored phase; it falls to this value in equal ratios."""
    settled_old_rate: float = Field(0.4, gt=0, le=1)
    """Rate of the old blocks once the anchor is gone, as a share of the new block's."""

    @model_validator(mode="after")
    def _check_anchor(self) -> Self:
        if self.final_anchor > self.anchor or (self.final_anchor == 0 < self.anchor):
            raise ValueError(
                f"final_anchor must be above 0 (or 0 where anchor is 0) and at most anchor ({self.anchor:g}), got "
                f"{self.final_anchor:g}"
            )
        return self


class MonitorConfig(Section):
    """Distance of the generator from its data, logged with every sample sheet."""

    num_images: int = Field(1_000, ge=2)
    """Number of generated images and of data images, at most as many as the data has. Compare only distances that were
    measured with the same number."""
    fid_weights: UserPath | None = None
    """Weights of torch-fidelity's Inception network, for the Fréchet inception distance; needs the extra `fid`.
    null: the distance of thumbnails alone."""


class TrainGeneratorConfig(Section):
    """One training: data, networks, optimisation, and where everything goes."""

    data: TrainingData
    """Images to learn from."""
    output: UserPath
    """Folder for the state, log, sample sheets and the finished generator.safetensors."""
    network: NetworkConfig | None = None
    """Sizes of the generator. null: the sizes of the generator in initialise_from or grow_from (growing adds a block
    half as wide as the last one), else the defaults of this section."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """Sizes of the discriminator."""
    optimisation: OptimisationConfig = OptimisationConfig()
    """Losses and rates."""
    monitor: MonitorConfig = MonitorConfig()
    """Quality in the log."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of initial weights, latents, data order, noise and flips."""
    horizontal_flip: bool = True
    """Mirror half of the images."""
    initialise_from: UserPattern | None = Field(None, pattern=PRINTABLE)
    """Weights to start from, of a generator of the same sizes: a state folder of another training (its `state`), or
    anything that a run file's generator.checkpoint accepts. Its discriminator is used if it has the same sizes."""
    grow_from: UserPattern | None = Field(None, pattern=PRINTABLE)
    """A generator of half the resolution to grow from; accepts the same values as initialise_from. See growth."""
    growth: GrowthConfig | None = None
    """Phases of growing. null: the defaults of this section if grow_from is set. The phases may change when a training
    is resumed, which continues in the phase that the number of images falls into."""
    total_images: int = Field(1_000_000, ge=1)
    """Stop after this many training images."""
    max_seconds: float | None = Field(None, gt=0)
    """Stop after this many seconds of this run; rerun to resume."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = Field(None, ge=1)
    """Threads of PyTorch on a CPU. null: PyTorch's choice."""
    cache: UserPath | None = None
    """Folder of decoded images. null: `cache` in the output folder."""
    checkpoint_interval_seconds: float = Field(120.0, gt=0)
    """Seconds between saved states."""
    sample_interval_images: int = Field(10_000, ge=1)
    """Images between sample sheets."""
    log_interval_steps: int = Field(50, ge=1)
    """Steps between lines of the log."""

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.grow_from is None:
            if self.growth is not None:
                raise ValueError("growth: name the smaller generator in grow_from, or leave growth out")
        elif self.initialise_from is not None:
            raise ValueError("initialise_from and grow_from name two generators to start from: keep one of them")
        elif self.optimisation.discriminator_head_start_images is not None:
            raise ValueError("optimisation.discriminator_head_start_images: set growth.head_start_images instead")
        return self

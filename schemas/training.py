"""The configuration of `labelmill train-generator`: every field, its meaning and its one default."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from schemas.config import Section


class FolderData(Section):
    """Images in a folder and its subfolders, centre-cropped to squares."""

    kind: Literal["folder"]
    path: Path
    """Folder of .jpg, .jpeg, .png or .webp files."""


class ShardsData(Section):
    """Images in webdataset shards, centre-cropped to squares."""

    kind: Literal["shards"]
    urls: tuple[str, ...] = Field(min_length=1)
    """Local tar files; a file name may hold wildcards."""


class AvatarRates(Section):
    """Shares of the portraits that are drawn; null: the domain's own. A generator may leave out what it rarely sees."""

    hat: float | None = Field(None, gt=0, lt=1)
    """With a hat."""
    glasses: float | None = Field(None, gt=0, lt=1)
    """With glasses."""
    beard: float | None = Field(None, gt=0, lt=1)
    """With a beard or a moustache."""


class DomainData(Section):
    """A domain that labelmill draws itself."""

    kind: Literal["domain"]
    name: Literal["avatars"] = "avatars"
    """Which domain."""
    num_images: int = Field(20_000, ge=1)
    """How many images to draw before training starts."""
    first_seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the first image."""
    rates: AvatarRates = AvatarRates()
    """How often rare parts are drawn. Seeds that would make others too frequent are passed over."""
    num_processes: int = Field(2, ge=1)
    """Processes that draw."""


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
    """Images a step."""
    generator_learning_rate: float = Field(0.002, gt=0)
    """Adam's rate for the generator (beta1 0, beta2 0.99)."""
    discriminator_learning_rate: float = Field(0.002, gt=0)
    """Adam's rate for the discriminator."""
    rate_images: int | None = Field(None, ge=1)
    """Halve both rates every so many images. null: constant rates."""
    r1_gamma: float | None = Field(None, ge=0)
    """Weight of the gradient penalty on real images. null: 0.0002 * resolution^2 / batch_size."""
    r1_interval: int = Field(16, ge=1)
    """Apply it every so many steps."""
    path_length_weight: float = Field(2.0, ge=0)
    """Weight of path-length regularisation; 0 turns it off."""
    path_length_interval: int = Field(8, ge=1)
    """Apply it every so many steps."""
    path_length_batch_shrink: int = Field(2, ge=1)
    """It sees batch_size divided by this."""
    style_mixing_probability: float = Field(0.9, ge=0, le=1)
    """Share of generated images whose rows of w come from two latents."""
    average_half_life_images: float = Field(5000.0, gt=0)
    """Half-life of the moving average of the generator, in images."""
    average_ramp: float = Field(0.05, gt=0)
    """Early on the half-life is at most this share of the images seen."""
    mean_w_decay: float = Field(0.995, ge=0, lt=1)
    """Decay a step of the moving average of w."""
    discriminator_head_start_images: int = Field(0, ge=0)
    """Images during which only the discriminator learns: for a generator grown from a smaller one."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of the top four resolutions' activations. float16 needs a GPU; bfloat16 is several times faster
    on GPUs and on CPUs with matrix units (AMX). Weights, sums of RGB and penalties stay float32."""


class TrainGeneratorConfig(Section):
    """One training: data, networks, optimisation, and where everything goes."""

    data: TrainingData
    """What to learn."""
    output: Path
    """Folder for the state, log, sample sheets and the finished generator.safetensors."""
    network: NetworkConfig = NetworkConfig()
    """Sizes of the networks."""
    optimisation: OptimisationConfig = OptimisationConfig()
    """Losses and rates."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of initial weights, latents, data order, noise and flips."""
    horizontal_flip: bool = True
    """Mirror half of the images."""
    initialise_from: Path | None = None
    """State folder of another training (its `state`), or a generator.safetensors, whose tensors of the same name
    and shape are copied before the first step; toRGB layers that are new start at zero weight, so that a larger
    'skip' generator first shows the smaller one's images."""
    total_images: int = Field(1_000_000, ge=1)
    """Stop after so many training images."""
    max_seconds: float | None = Field(None, gt=0)
    """Stop, resumably, after so many seconds of this run."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int | None = Field(None, ge=1)
    """Threads of PyTorch on a CPU. null: PyTorch's choice."""
    cache: Path | None = None
    """Folder of decoded images. null: `cache` in the output folder."""
    checkpoint_interval_seconds: float = Field(120.0, gt=0)
    """Seconds between saved states."""
    sample_interval_images: int = Field(10_000, ge=1)
    """Images between sample sheets."""
    log_interval_steps: int = Field(50, ge=1)
    """Steps between lines of the log."""

"""The run file's section of the alpha-network labeler."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from labelmill.schemas.section import PRINTABLE, SEED_LIMIT, LocatedSection, check_seed_range
from labelmill.schemas.training import TrainingData

BackgroundKind = Literal["corner_blend", "corner_mean", "zero"]

_ROLES = 3
"""A step takes a batch of foregrounds, one of backgrounds and one of real images."""
_WITH_WEIGHTS = frozenset({"method", "weights", "truncation_psi", "watch_samples", "snap_radius", "fit_first_seed"})
"""Settings of a network that was trained before; all others are of a training."""


class AlphaNetworkConfig(LocatedSection):
    """Soft foreground mattes without labels, by a network that cuts the generator's foregrounds out (Labels4Free,
    Abdal et al., ICCV 2021).

    `fit` trains a small per-pixel network on the generator's features: foregrounds that it cuts out and lays over
    backgrounds of the same generator must look real to a discriminator. Samples get `alpha.png`, too. Style mixing
    gives better masks on the bundled generator; this method gives opacity. The defaults were chosen on dev images of
    the bundled generator.
    """

    method: Literal["alpha_network"]
    """Name of the labeling method."""
    weights: str | None = Field(None, pattern=PRINTABLE, exclude_if=lambda weights: weights is None)
    """A network that Labels4Free's authors, or their code, trained on this very generator (`bg_extractor`, 256 px and
    more): a path relative to the run file, or an https://, s3://, gs:// or az:// URL. `fit` trains nothing then, looks
    once at the network's masks, and copies it into the output; settings of a training are refused beside it."""
    layers: list[str] | None = None
    """Convolutions whose features the network reads, such as [b16.conv1, b32.conv1]. null: all convolutions from 8
    pixels, or a thirty-second of the resolution if that is more."""
    width: int = Field(32, ge=1, le=256)
    """Channels of the network."""
    background: BackgroundKind | Literal["auto"] = "auto"
    """Way to a background: activations are replaced by a blend of those in the four corners, by their mean, or by
    zeros. `auto` compares them in `fit`."""
    background_layer: str = "auto"
    """Convolution whose output is replaced, such as b8.conv1, or `const`, the generator's constant. `auto` compares
    them in `fit`: the choice leaves little structure within a background and keeps the colours of the image's
    corners."""
    reals: TrainingData | None = None
    """Images that composites must look like: a folder, shards or the bundled domain, as in a training file; paths are
    relative to the run file. null: the generator's own images."""
    truncation_psi: float = Field(1.0, ge=0, le=2)
    """Truncation psi of the images of `fit`. Masks at lower values profit from the variety of 1."""
    steps: int = Field(200, ge=10, le=100_000)
    """Steps of the training at most. `fit` takes the network of the step whose masks agree best with the images'
    edges. Masks that drift away from there are a collapse; fewer steps may stop before."""
    batch_size: int = Field(8, ge=2, le=256)
    """Composites per step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of the alpha network."""
    discriminator_learning_rate: float = Field(5e-4, gt=0)
    """A faster discriminator rewards masks that keep parts of the background."""
    discriminator_width: int = Field(48, ge=1, le=1024)
    """Channels of the discriminator."""
    r1_gamma: float = Field(10.0, ge=0)
    """Weight of the penalty on the discriminator's gradient."""
    r1_interval: int = Field(16, ge=1)
    """Steps from one penalty to the next."""
    adversarial_weight: float = Field(1.0, gt=0)
    """Weight of the discriminator's verdict."""
    binarisation_weight: float = Field(1.2, ge=0)
    """Weight of the penalty on half-transparent pixels once it is ramped up."""
    binarisation_start: float = Field(0.2, ge=0, le=1)
    """Share of the steps before this penalty. From the first step on it would freeze the random start."""
    binarisation_end: float = Field(0.5, ge=0, le=1)
    """Share of the steps after which the penalty has its full weight."""
    foreground_floor: float = Field(0.25, ge=0, lt=1)
    """Share of each image below which a foreground costs `coverage_weight` times what it lacks."""
    background_floor: float = Field(0.5, ge=0, lt=1)
    """The same for the background."""
    coverage_weight: float = Field(6.0, ge=0)
    """Weight of both floors. Without them the network shows all of the foreground's image."""
    average_half_life_images: float = Field(500, gt=0)
    """Images after which a step counts half in the averaged network, which labels."""
    watch_interval: int = Field(10, ge=1)
    """Steps from one look at the masks of fixed images to the next."""
    watch_samples: int = Field(64, ge=8)
    """Number of these images."""
    restarts: int = Field(3, ge=0, le=3)
    """Times that a collapsed training starts again with adjusted weights; after the last one `fit` fails."""
    snap_radius: int | None = Field(None, ge=1)
    """Radius in pixels of the windows in which masks are snapped to the image's edges. null: three thirty-seconds of
    the image's shorter side."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the networks' initial weights."""
    fit_first_seed: int = Field(4_100_000_000, ge=0, lt=SEED_LIMIT)
    """First seed of the images of `fit`; the others count up from it."""

    @property
    def num_fit_seeds(self) -> int:
        """Seeds that `fit` takes: those of the watched images, then those of every step."""
        return self.watch_samples + (0 if self.weights else self.steps * self.batch_size * _ROLES)

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: list[str] | None) -> list[str] | None:
        if layers is not None and (not layers or len(set(layers)) != len(layers)):
            raise ValueError(f"a list of layers must name at least one layer and each only once, got {layers}")
        return layers

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        fields = type(self).model_fields
        unused = [key for key in fields if key not in _WITH_WEIGHTS and getattr(self, key) != fields[key].default]
        if self.weights is not None and unused:
            raise ValueError(
                f"weights give a network that was trained before, and {', '.join(unused)} would train one; leave out "
                f"either weights or these"
            )
        return self

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        check_seed_range("fit_first_seed", self.fit_first_seed, self.num_fit_seeds)
        if self.binarisation_end < self.binarisation_start:
            raise ValueError(
                f"binarisation_end {self.binarisation_end:g} comes before binarisation_start "
                f"{self.binarisation_start:g}; raise the first or lower the second"
            )
        if self.foreground_floor + self.background_floor > 1:
            raise ValueError(
                f"foreground_floor {self.foreground_floor:g} plus background_floor {self.background_floor:g} is more "
                f"than a whole image; lower one of them"
            )
        return self

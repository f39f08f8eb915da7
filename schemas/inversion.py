"""The configuration of `labelmill invert`: every field, its meaning and its one default; and what inversion leaves."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from labelmill.schemas.config import GeneratorConfig
from labelmill.schemas.section import SEED_LIMIT, Section, check_seed_range
from labelmill.schemas.user_path import UserPath

INVERSION_FILE = "inversion.json"
"""What claims an output for one generator and its settings."""

Fit = Literal["pad", "crop", "stretch"]
Space = Literal["w", "w_plus"]


class StepsConfig(Section):
    """Steps of optimisation."""

    w: int = Field(60, ge=1, le=10_000)
    """In W, where all rows are one."""
    w_plus: int = Field(60, ge=1, le=10_000)
    """In W+, where each row is free."""


class ProjectorConfig(Section):
    """How latents are optimised: StyleGAN2's projector (Karras et al. 2020, appendix D), without its noise maps."""

    learning_rate: float = Field(0.05, gt=0)
    """Highest rate of Adam. The paper's 0.1 reconstructs better, but goes farther from where masks can be read."""
    ramp_up: float = Field(0.05, gt=0, le=1)
    """Share of the steps in which the rate rises."""
    ramp_down: float = Field(0.25, gt=0, le=1)
    """Share of the steps in which the rate falls, as a cosine."""
    latent_noise: float = Field(0.05, ge=0)
    """Strength of the noise that is added to latents at first, in units of their spread."""
    latent_noise_share: float = Field(0.75, gt=0, le=1)
    """Share of the steps after which there is no such noise."""


class ReconstructionLossConfig(Section):
    """How a photo and its reconstruction are compared."""

    pixel: float = Field(1.0, ge=0)
    """Weight of mean squared differences of pixels."""
    gradient: float = Field(0.5, ge=0)
    """Weight of mean absolute differences of neighbouring pixels' differences."""
    scales: int = Field(3, ge=1, le=6)
    """Number of scales: the image, its 2 x 2 means, and so on."""
    perceptual: float = Field(0.0, ge=0)
    """Weight of mean squared differences of the encoder's features, each in units of its own spread. On the bundled
    generator it costs a fifth more time and gains nothing that can be told from chance."""


class EncoderConfig(Section):
    """The network that guesses latents, trained on the generator's own images."""

    samples: int = Field(16_384, ge=64)
    """Number of images, each seen once."""
    batch_size: int = Field(32, ge=2, le=1024)
    """Images per step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Highest rate of AdamW; it falls to 0 as a cosine."""
    latent: float = Field(0.1, ge=0)
    """Weight of the error of latents beside that of images."""
    lowest_psi: float = Field(0.6, ge=0, le=1)
    """Images are drawn with a truncation psi from this value to 1."""
    first_seed: int = Field(3_800_000_000, ge=0, lt=SEED_LIMIT)
    """First seed of the images' latents, outside of datasets."""

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        check_seed_range("first_seed", self.first_seed, 2 * self.samples)
        return self


class InversionSettings(Section):
    """What latents depend on beside the photo: the part of an inversion that its output is claimed for."""

    fit: Fit = "pad"
    """How a photo of another shape becomes one of the generator's: `pad` with its mirror image, `crop` its centre, or
    `stretch`."""
    spaces: tuple[Space, ...] = Field(("w", "w_plus"), min_length=1, max_length=2)
    """Spaces to invert to, each from the encoder's guess. How far the masks of both agree tells how good they are."""
    steps: StepsConfig = StepsConfig()
    projector: ProjectorConfig = ProjectorConfig()
    loss: ReconstructionLossConfig = ReconstructionLossConfig()
    encoder: EncoderConfig | None = EncoderConfig()
    """null: start at the average latent, which needs several times the steps."""
    batch_size: int = Field(16, ge=1, le=1024)
    """Photos per batch."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the generator's top four resolutions while latents are optimised: bfloat16 is three times faster on
    GPUs and on CPUs that have it (avx512_bf16, AMX), and slower on others. Masks are always made in float32."""
    threads: int = Field(2, ge=1, le=256)
    """CPU threads within one operation, which decide the last bits of a latent."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the encoder's weights and of the noise of latents."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.spaces)) < len(self.spaces):
            raise ValueError(f"spaces: {', '.join(self.spaces)} names one twice")
        if self.loss.pixel == self.loss.gradient == self.loss.perceptual == 0:
            raise ValueError("loss: pixel, gradient and perceptual are all 0, so that nothing would be compared")
        if self.encoder is None and self.loss.perceptual > 0:
            raise ValueError("loss.perceptual: needs the encoder's features, and `encoder` is null")
        return self


class InversionConfig(Section):
    """An inversion file."""

    generator: GeneratorConfig
    """As in a run file. Truncation has no meaning for photos; `noise: per_seed` is refused, as they have no seed."""
    photos: UserPath
    """Folder of photos, including its subfolders."""
    output: UserPath
    """Folder for latents, the encoder and sheets."""
    settings: InversionSettings = InversionSettings()
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""

    @model_validator(mode="after")
    def _check_noise(self) -> Self:
        check_noise(self.generator)
        return self


def check_noise(generator: GeneratorConfig) -> None:
    """Raises ValueError where photos could not be inverted with a generator's settings."""
    if generator.noise == "per_seed":
        raise ValueError("generator.noise: per_seed, but photos have no seed; set const or none")


class InversionClaim(BaseModel):
    """`inversion.json`: what every latent in the output was made with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["labelmill-inversion"] = "labelmill-inversion"
    version: Literal[1] = 1
    checkpoint_sha256: str
    noise: str
    classes: Any
    """The generator's classes as the run file has them: the encoder has seen images of these."""
    settings: InversionSettings


class InvertedPhoto(BaseModel):
    """What a photo's latents say of themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["labelmill-latents"] = "labelmill-latents"
    version: Literal[1] = 1
    name: str
    """The photo's path below its folder, without ending."""
    photo_sha256: str
    """Of the photo's file."""
    height: int
    width: int
    """Of the photo, upright."""
    claim_sha256: str
    """Of the output's claim."""
    psnr_db: dict[Space, float]
    """Peak signal-to-noise ratio of the reconstruction. It says how alike the pictures are, not how good a mask is."""

"""The configuration of `labelmill train`, every field with its meaning and its one default, and what it writes."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from labelmill.schemas.sample import ImageShape, with_image_shape
from labelmill.schemas.scores import Scores
from labelmill.schemas.section import PRINTABLE, Section
from labelmill.schemas.user_path import UserPath

Architecture = Literal[
    "deeplabv3_resnet50",
    "deeplabv3_mobilenet_v3_large",
    "deeplabv3plus_resnet50",
    "unet_resnet34",
    "unet",
    "resnet18_8s",
]
Triple = tuple[float, float, float]

LUMINANCE: Triple = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in gray (ITU-R BT.601), as image libraries turn colours gray."""


class DatasetSplit(Section):
    """A split of a finished labelmill dataset."""

    kind: Literal["dataset"] = "dataset"
    dataset: str = Field(pattern=PRINTABLE)
    """The dataset's folder, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX."""
    split: str | None = "train"
    """Split of index.json. null: all shards."""


class PhotoFolder(Section):
    """Photos with true masks of the same names."""

    kind: Literal["photos"]
    photos: UserPath
    """Folder of .jpg, .jpeg, .png, .webp, .bmp, .tif or .tiff files, including its subfolders."""
    masks: str = Field(pattern=PRINTABLE)
    """Masks of the photos' sizes, matched by their paths: a folder of PNG files, a .tar, or a dataset."""
    positive: int | None = Field(None, ge=1, le=255)
    """Masks hold 0 and this value, which is class 1."""


HeldOut = Annotated[DatasetSplit | PhotoFolder, Field(discriminator="kind")]


class SegmentationModelConfig(Section):
    """The network. Every architecture starts from random weights; nothing is ever downloaded."""

    architecture: Architecture = "deeplabv3_resnet50"
    """deeplabv3_resnet50 (Chen et al. 2017), deeplabv3_mobilenet_v3_large (suited to CPUs),
    deeplabv3plus_resnet50 (Chen et al. 2018), unet_resnet34 (a U-Net on ResNet-34), unet (Ronneberger et al. 2015, 64
    to 1024 channels), resnet18_8s (the dilated ResNet-18 of Segmentation in Style, Pakhomov et al. 2021)."""
    upscale: int = Field(1, ge=1, le=16)
    """Enlarge images by this factor inside the network. The networks see 1/8 or 1/16 of their input's resolution:
    4 helps images of 32 to 64 px."""


class AugmentationConfig(Section):
    """Random changes to each training image, different in each epoch."""

    flip: float = Field(0.5, ge=0, le=1)
    """Probability of mirroring left and right."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Range of the random factor (uniform in its logarithm) by which images are resized before they are cropped or
    padded to `crop`. [1, 1] keeps their size."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Images are turned by up to this many degrees either way."""
    translation: float | None = Field(None, ge=0, le=0.5)
    """The centre of the image lies up to this share of the crop's height and width away from the centre of the crop.
    null: the crop lies anywhere within the image, or the image anywhere within the crop where it is smaller."""
    crop: int | None = Field(None, ge=8)
    """Height and width in training. null: the size of the dataset's images."""
    colour_jitter: float = Field(0.2, ge=0, lt=1)
    """Brightness, contrast and saturation each change by a factor between 1 - colour_jitter and 1 + colour_jitter."""

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: give two factors above 0, the smaller one first, got {list(self.scale)}")
        return self


class SegmentationOptimisationConfig(Section):
    """Optimiser, rates and steps."""

    optimiser: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum, or Adam (beta 0.9, 0.999)."""
    learning_rate: float = Field(0.01, gt=0)
    """Learning rate of the first step. 0.01 suits SGD, 0.0001 to 0.001 suits Adam."""
    poly_power: float = Field(0.9, ge=0)
    """The rate of step t is learning_rate * (1 - t / steps) ^ poly_power. 0 keeps the rate constant."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(1e-4, ge=0)
    """L2 penalty on all weights."""
    gradient_limit: float | None = Field(None, gt=0)
    """Each component of the gradient is kept within this distance from 0. null: no limit."""
    batch_size: int = Field(16, ge=2)
    """Batch size per rank."""
    steps: int = Field(10_000, ge=1)
    """Total number of training steps."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the network; weights and the loss stay float32. Half precisions need a GPU."""


class SegmentationTrainingConfig(Section):
    """A training file."""

    data: DatasetSplit
    """Dataset to learn from."""
    output: UserPath
    """Folder for model.safetensors, metrics.json, curves.png, log.jsonl and the resumable state."""
    held_out: HeldOut | None = None
    """Data to score on: a split that training does not see, or photos with true masks. null: no scores. A training
    resumed with other held-out data drops the earlier scores."""
    allow_shared_seeds: bool = False
    """Score on a split even if it shares samples (checkpoint and seed) with `data`. Such scores measure memory, not
    generalisation. false refuses such a split before the first step."""
    model: SegmentationModelConfig = SegmentationModelConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimisation: SegmentationOptimisationConfig = SegmentationOptimisationConfig()
    targets: Literal["auto", "soft", "mask"] = "auto"
    """What the network learns. mask: each pixel's class. soft: its probability of each class ({key}.probabilities.png),
    or its share of foreground ({key}.alpha.png) where the classes are two. auto: soft if the dataset has it, else
    mask. Pixels whose mask is 255 teach nothing either way."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of initial weights, order, augmentation and dropout."""
    shuffle_shards: int = Field(4, ge=1)
    """Shards whose samples are shuffled together. Each worker holds this many shards in memory, in encoded form."""
    workers: int = Field(2, ge=0, le=256)
    """Processes per rank that read and augment. 0: the training process itself reads."""
    loader_timeout_seconds: float = Field(600.0, gt=0)
    """Stop if a loader process delivers no batch for this many seconds; rerun to resume."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N. Under torchrun each rank takes its own GPU."""
    threads: int | None = Field(None, ge=1)
    """Threads of PyTorch on a CPU. null: PyTorch's choice."""
    max_seconds: float | None = Field(None, gt=0)
    """Stop after this many seconds of this run; rerun to resume."""
    checkpoint_interval_seconds: float = Field(300.0, gt=0)
    """Seconds between saved states."""
    evaluation_interval_steps: int = Field(1000, ge=1)
    """Steps between scores on held_out; the last step is always scored."""
    log_interval_steps: int = Field(50, ge=1)
    """Steps between lines of the log; fewer in short trainings, so that the log has 20 lines."""


class SegmentationModelCard(BaseModel):
    """Metadata of model.safetensors: all that is needed to build and use the network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["labelmill-segmentation-model"] = "labelmill-segmentation-model"
    format_version: Literal[1] = 1
    model: SegmentationModelConfig
    classes: tuple[str, ...] = Field(min_length=2, max_length=255)
    """Names of the values 0, 1, ..."""
    image_shape: ImageShape
    """Shape of the training images. Photos are resized to its shorter side, and converted to gray if it has one
    channel."""
    mean: Triple
    """Mean of red, green and blue in [0, 1] that images are normalised by; three equal values for gray."""
    std: Triple
    """Standard deviations that images are normalised by."""
    dataset_fingerprint: str
    """Fingerprint of the training dataset."""
    steps: int
    """Number of training steps."""

    @model_validator(mode="before")
    @classmethod
    def _read_former(cls, values: Any) -> Any:
        return with_image_shape(values)


class Evaluation(BaseModel):
    """Scores on held_out after a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    scores: Scores


class TrainingMetrics(BaseModel):
    """`metrics.json` of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int
    """Steps taken."""
    images: int
    """Training images over all ranks, repeats included."""
    seconds: float
    """Seconds spent in steps, over all runs."""
    final: Scores | None
    """Scores of model.safetensors on held_out; null without held_out, and before the end."""
    evaluations: tuple[Evaluation, ...]
    """All scores on the current held-out data, in order."""

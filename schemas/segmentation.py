"""The configuration of `labelmill train`, every field with its meaning and its one default, and what it writes."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from labelmill.schemas.sample import ImageShape, with_image_shape
from labelmill.schemas.scores import Scores
from labelmill.schemas.section import PRINTABLE, Section
from labelmill.schemas.user_path import UserPath

Architecture = Literal[
    "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "deeplabv3plus_resnet50", "unet_resnet34", "resnet18_8s"
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
    """Which split of index.json. null takes every shard."""


class PhotoFolder(Section):
    """Photos with true masks of the same names."""

    kind: Literal["photos"]
    photos: UserPath
    """Folder of .jpg, .jpeg, .png, .webp, .bmp, .tif or .tiff files, with its subfolders."""
    masks: str = Field(pattern=PRINTABLE)
    """Masks of the photos' sizes, matched by their paths: a folder of PNG files, a .tar, or a dataset."""
    positive: int | None = Field(None, ge=1, le=255)
    """Masks hold 0 and this value, which is class 1."""


HeldOut = Annotated[DatasetSplit | PhotoFolder, Field(discriminator="kind")]


class SegmentationModelConfig(Section):
    """The network. All of them start from random weights; nothing is ever downloaded."""

    architecture: Architecture = "deeplabv3_resnet50"
    """deeplabv3_resnet50 (Chen et al. 2017), deeplabv3_mobilenet_v3_large (the one for CPUs),
    deeplabv3plus_resnet50 (Chen et al. 2018), unet_resnet34 (Ronneberger et al. 2015), resnet18_8s (the dilated
    ResNet-18 of Segmentation in Style, Pakhomov et al. 2021)."""
    upscale: int = Field(1, ge=1, le=16)
    """Enlarge images by this factor inside the network. The networks see 1/8 or 1/16 of their input's resolution:
    4 helps images of 32 to 64 px."""


class AugmentationConfig(Section):
    """What is done to each training image, differently in each epoch."""

    flip: float = Field(0.5, ge=0, le=1)
    """Probability of mirroring left and right."""
    scale: tuple[float, float] = (0.75, 1.5)
    """Images are resized by a factor from this range (uniform in its logarithm), then cut or filled up to `crop`.
    [1, 1] leaves their size."""
    crop: int | None = Field(None, ge=8)
    """Height and width in training. null: those of the dataset's images."""
    colour_jitter: float = Field(0.2, ge=0, lt=1)
    """Brightness, contrast and saturation each change by a factor from 1 minus to 1 plus this."""

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: two factors above 0, the smaller one first, got {list(self.scale)}")
        return self


class SegmentationOptimisationConfig(Section):
    """How weights are found."""

    optimiser: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum, or Adam (beta 0.9, 0.999)."""
    learning_rate: float = Field(0.01, gt=0)
    """Of the first step. 0.01 suits SGD, 0.0001 to 0.001 Adam."""
    poly_power: float = Field(0.9, ge=0)
    """The rate of step t is learning_rate * (1 - t / steps) ^ poly_power. 0 keeps it."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD."""
    weight_decay: float = Field(1e-4, ge=0)
    """L2 penalty on all weights."""
    batch_size: int = Field(16, ge=2)
    """Images a step and rank."""
    steps: int = Field(10_000, ge=1)
    """Steps of the whole training."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Arithmetic of the network; weights and the loss stay float32. Half precisions need a GPU."""


class SegmentationTrainingConfig(Section):
    """A whole training file."""

    data: DatasetSplit
    """What to learn from."""
    output: UserPath
    """Folder for model.safetensors, metrics.json, curves.png, log.jsonl and the resumable state."""
    held_out: HeldOut | None = None
    """What to score on: a split that training does not see, or photos with true masks. null: nothing. A training
    that goes on with another one forgets the scores on the former."""
    allow_shared_seeds: bool = False
    """Score on a split though it holds samples of the checkpoint and seeds that the training learns from. Such scores
    say how well the training remembers. False refuses it before the first step."""
    model: SegmentationModelConfig = SegmentationModelConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimisation: SegmentationOptimisationConfig = SegmentationOptimisationConfig()
    soft_targets: bool = True
    """Where the dataset has {key}.alpha.png, learn its shares of foreground in place of the mask's two classes."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of initial weights, order, augmentation and dropout."""
    shuffle_shards: int = Field(4, ge=1)
    """Shards whose samples are shuffled together. Each worker holds so many in memory, as they are stored."""
    workers: int = Field(2, ge=0, le=256)
    """Processes that read and augment, for each rank. 0 reads in the training's own process."""
    loader_timeout_seconds: float = Field(600.0, gt=0)
    """End, resumably, when one of these processes gives no batch for this long."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N. Under torchrun each rank takes its own GPU."""
    threads: int | None = Field(None, ge=1)
    """Threads of PyTorch on a CPU. null: PyTorch's choice."""
    max_seconds: float | None = Field(None, gt=0)
    """Stop, resumably, after so many seconds of this run."""
    checkpoint_interval_seconds: float = Field(300.0, gt=0)
    """Seconds between saved states."""
    evaluation_interval_steps: int = Field(1000, ge=1)
    """Steps between scores on held_out; the end is always scored."""
    log_interval_steps: int = Field(50, ge=1)
    """Steps between lines of the log; in short trainings fewer, so that there are 20 lines."""


class SegmentationModelCard(BaseModel):
    """What is beside the weights in model.safetensors: enough to build the network and to use it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["labelmill-segmentation-model"] = "labelmill-segmentation-model"
    format_version: Literal[1] = 1
    model: SegmentationModelConfig
    classes: tuple[str, ...] = Field(min_length=2, max_length=255)
    """Names of the values 0, 1, ..."""
    image_shape: ImageShape
    """Of the images that it learned from: photos are resized to their shorter side, and turned gray if they are."""
    mean: Triple
    """Of red, green and blue in [0, 1], equal ones for gray: what images are normalised by."""
    std: Triple
    """Their standard deviation."""
    dataset_fingerprint: str
    """Of the dataset that it learned from."""
    steps: int
    """Steps that it learned for."""

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
    """Images learned from, over all ranks, repeats included."""
    seconds: float
    """Spent in steps, over all runs."""
    final: Scores | None
    """Scores of model.safetensors on held_out; null without held_out, and before the end."""
    evaluations: tuple[Evaluation, ...]
    """Every score on what is held out now, in order."""

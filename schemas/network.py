"""A segmentation network that a user has, and how images go into it: of a labeler, and of a judge's file."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from labelmill.schemas.sample import IGNORE
from labelmill.schemas.section import PRINTABLE, LocatedSection
from labelmill.schemas.segmentation import Triple

Side = Annotated[int, Field(ge=8, le=4096)]
IGNORED = "ignore"
"""Name of a network's outputs that say nothing: their pixels are 255 in masks."""


class NetworkConfig(LocatedSection):
    """A network that segments images: ONNX, or the model.safetensors of `labelmill train`. Nothing in the file is
    executed but its arithmetic."""

    model: str = Field(pattern=PRINTABLE)
    """The file: a path relative to the file that this stands in, or an https://, s3://, gs:// or az:// URL. An ONNX
    file has one input of images, [batch, 3, height, width], gray or with channels last too, and its first output is
    scores of the same axes, or class indices. ONNX runs on the CPU."""
    classes: list[str] | None = Field(None, min_length=2, max_length=IGNORE)
    """Names of the outputs 0, 1, ... Outputs of one name are one class; `ignore` names those that say nothing. null: as
    the file says (in ONNX: the metadata key `classes`, names divided by commas)."""
    size: Side | tuple[Side, Side] | None = None
    """Images are resized to this shorter side, or to this height and width, and scores are resized back. null: the size
    that the file says (its graph, or the metadata keys `height` and `width`), else the images' own."""
    values: Literal["unit", "bytes"] = "unit"
    """What an ONNX file takes: values from 0 to 1, or from 0 to 255."""
    mean: Triple | None = None
    """Mean of red, green and blue that is subtracted, in the same values. ImageNet's are 0.485, 0.456 and 0.406. null:
    nothing is subtracted, as in files that normalise themselves (`labelmill export-onnx` writes such)."""
    std: Triple | None = None
    """Standard deviations that images are divided by then. ImageNet's are 0.229, 0.224 and 0.225."""
    order: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels. mean and std are in this order, too."""
    scores: Literal["logits", "probabilities"] = "logits"
    """What an ONNX file's output is. Logits of one output become a probability by the logistic function, those of
    several by softmax."""

    @property
    def own_normalisation(self) -> list[str]:
        """The settings that only ONNX files take, and that are set here."""
        fields = ("values", "mean", "std", "order", "scores")
        return [name for name in fields if getattr(self, name) != NetworkConfig.model_fields[name].default]

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std: standard deviations are above 0, got {list(self.std)}")
        names = set(self.classes or ()) - {IGNORED}
        if self.classes is not None and (len(names) < 2 or any(not name.strip() for name in names)):
            raise ValueError(f"classes: needs two different names at least, none of them empty, got {self.classes}")
        return self

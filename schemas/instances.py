"""Instances: the run file's section, and what a sample says of each of its instances."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from labelmill.schemas.section import PRINTABLE, SEED_LIMIT, LocatedSection, Section, check_seed_range

MOST_INSTANCES = 254
"""Of one image: what an 8-bit picture has numbers for, 0 and 255 left out."""


class BoxFileConfig(LocatedSection):
    """Boxes that a detector has found elsewhere, by the keys of samples."""

    kind: Literal["file"]
    """Boxes come from a file."""
    path: str = Field(pattern=PRINTABLE)
    """COCO's JSON, whose images are named after keys, such as 0000000012.png, or JSON lines: {"key": "0000000012",
    "instances": [{"class": "person", "score": 0.9, "box": [x, y, width, height]}]}. Boxes are in pixels of the
    generator's images from their upper left corner. A path relative to the run file. Images without an entry have no
    instances."""


class DetectionModelConfig(LocatedSection):
    """A detection model of Hugging Face transformers on this machine (pip install 'labelmill[detect]')."""

    kind: Literal["transformers"]
    """A model looks at each image."""
    path: str = Field(pattern=PRINTABLE)
    """Folder with config.json, model.safetensors and preprocessor_config.json of an object detector in plain PyTorch,
    such as DETR or YOLOS: a path relative to the run file. Nothing is downloaded, and no code in it is executed."""
    classes: list[str] | None = Field(None, min_length=1)
    """Classes to keep, as the model names them. null: all."""
    score_min: float = Field(0.5, ge=0, le=1)
    """Boxes of a lower score are left out."""


def _kind_of(values: Any) -> Any:
    return values.get("kind") if isinstance(values, dict) else getattr(values, "kind", None)


DetectorConfig = Annotated[
    Annotated[BoxFileConfig, Tag("file")] | Annotated[DetectionModelConfig, Tag("transformers")],
    Discriminator(_kind_of),
]


class InstanceSettings(Section):
    """How boxes become masks: pixels of a box and its surroundings are clustered by how style-mixed variants recolour
    them, and clusters that fill the box more than its surroundings are the object (Feng et al., CVPR 2023, name
    detection before clustering; all settings are ours, chosen on pictures of two people)."""

    masks_from: Literal["clusters", "labeler"] = "clusters"
    """`clusters`: style-mixed variants of each image with a box are clustered. `labeler`: an instance is what the
    labeler calls foreground inside the box, which takes no variants."""
    margin: float = Field(0.05, gt=0, le=2)
    """Width of a box's surroundings, as a share of its width and height, and a pixel at least."""
    box_error: float = Field(0.1, ge=0, le=0.5)
    """How far a side of a box may be off, as a share of the box's width or height: an instance may reach so far out of
    its box, and surroundings begin there. 0 for exact boxes, whose masks are better then."""
    clusters: list[Annotated[int, Field(ge=2, le=64)]] = Field([4, 6, 8, 12], min_length=1, max_length=8)
    """Numbers of clusters. Pixels are clustered once with each, and the mean of what they say counts."""
    tau: float = Field(3.0, gt=0, le=100)
    """A cluster is the object's where its share of the box is so many times its share of the surroundings."""
    overlap: Literal["evidence", "score", "centre"] = "evidence"
    """Which instance has a pixel that several could have: the one whose clusters say so most clearly (`evidence`), the
    one of the highest score, or the one whose box's centre is nearest in units of the box's size."""
    variants: int = Field(16, ge=2, le=256)
    """Style-mixed variants per image with a box."""
    crossover: int | Literal["auto"] = "auto"
    """First row of w taken from the donor. `auto` chooses it in `fit`, apart from the labeler's: the lowest row from
    which on variants keep what the detector saw."""
    min_box_iou: float = Field(0.95, ge=0, le=1)
    """Least mean IoU of a model's boxes on images and on their variants, of the class that keeps least, for
    `crossover: auto`."""
    min_layout_agreement: float = Field(0.5, ge=0, le=1)
    """The same for boxes of a file, which knows nothing of variants: least agreement between the edges of image and
    variants inside the boxes, 0 as between two different images, 1 as between an image and itself."""
    normalisation: Literal["none", "centred", "standardised"] = "none"
    """Normalisation of each pixel's vector over the variants before clustering, as in style mixing."""
    restarts: int = Field(4, ge=1, le=64)
    """k-means starts per box; the start with the least inertia is kept."""
    iterations: int = Field(10, ge=1, le=100)
    """Lloyd iterations per start."""
    donor_first_seed: int = Field(4_000_000_000, ge=0, lt=SEED_LIMIT)
    """First seed of the donors; the others count up from it."""
    donor_truncation_psi: float = Field(1.0, ge=0, le=2)
    """Truncation psi of the donors: a higher value gives stronger colours."""
    fit_samples: int = Field(16, ge=2)
    """Images that `crossover: auto` looks at; of a file, those of its images that come first."""
    fit_first_seed: int = Field(4_100_000_000, ge=0, lt=SEED_LIMIT)
    """First seed of the images that a model looks at in `fit`; the others count up from it."""

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        check_seed_range("donor_first_seed", self.donor_first_seed, self.variants)
        check_seed_range("fit_first_seed", self.fit_first_seed, self.fit_samples)
        return self


class InstancesConfig(InstanceSettings):
    """The run file's section."""

    detector: DetectorConfig
    """Where boxes come from."""

    @property
    def settings(self) -> InstanceSettings:
        """All but where boxes come from."""
        return InstanceSettings(**self.model_dump(exclude={"detector"}))

    def absolute(self) -> Self:
        """The same section for a process that stands in another folder."""
        return self.model_copy(update={"detector": self.detector.absolute()})


class Instance(BaseModel):
    """One thing in an image."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)

    id: int = Field(ge=1, le=MOST_INSTANCES)
    """Its pixels' value in the instance picture."""
    label: str = Field(alias="class")
    """Its class, as the detector names it."""
    score: float = Field(ge=0, le=1)
    """The detector's."""
    box: tuple[float, float, float, float]
    """The detector's, cut off at the image's border: left and upper side, width and height, in pixels."""

"""`annotations.json`: a set of images that people annotate, each tied to the seed or latents that make it again.

```
DIR/annotations.json          this file
DIR/images/KEY.png            the image at the generator's resolution
DIR/enlarged/KEY.png          `scale` times larger, for people; never read back
DIR/masks/KEY.png             8-bit class indices at the generator's resolution, 255 where nobody said anything; after
                              import
DIR/latents/KEY.safetensors   of a photo: its rows of w
DIR/made/KEY.png              of a photo: what the generator makes of them
```
"""

import json
import re
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from labelmill.schemas.cluster_mapping import ClassName, check_class_names
from labelmill.schemas.config import GeneratorConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.sample import ImageShape, sample_key
from labelmill.schemas.section import SEED_LIMIT, Section, check_seed_range

SET_FILE = "annotations.json"
MOST_IMAGES = 10_000
LARGEST_SCALE = 64
LARGEST_SIDE = 4096
"""Of a generator's images, in pixels."""
Rest = Literal["ignore", "background"]
FIRST_PHOTO = 5_000_000_000
"""Number of a set's first photo, which no seed can have."""
_Sha256 = r"^[0-9a-f]{64}$"
_PHOTO_KEY = re.compile(r"[0-9]{10}")


def image_path(key: str) -> str:
    """Of the image at the generator's resolution, below the set's folder."""
    return f"images/{key}.png"


def enlarged_path(key: str) -> str:
    """Of the image for people, below the set's folder."""
    return f"enlarged/{key}.png"


def latents_path(key: str) -> str:
    """Of a photo's rows of w, below the set's folder."""
    return f"latents/{key}.safetensors"


def made_path(key: str) -> str:
    """Of what the generator makes of a photo's latents, below the set's folder."""
    return f"made/{key}.png"


def mask_path(key: str) -> str:
    """Of the labels, below the set's folder."""
    return f"masks/{key}.png"


def key_of(path: str) -> str:
    """0000001652 of masks/0000001652.png."""
    return PurePosixPath(path).stem


class GeneratorDraw(Section):
    """How seeds become images: the settings of a run's generator, without the checkpoint's place."""

    truncation_psi: float = Field(ge=0, le=2)
    truncation_cutoff: int | None = Field(ge=1)
    noise: Literal["const", "none", "per_seed"]
    classes: list[int] | dict[int, float] | Literal["all"] | None

    @classmethod
    def of(cls, config: GeneratorConfig) -> "GeneratorDraw":
        """Those of a run."""
        return cls(
            truncation_psi=config.truncation_psi,
            truncation_cutoff=config.truncation_cutoff,
            noise=config.noise,
            classes=config.classes,
        )

    def config(self, checkpoint: str) -> GeneratorConfig:
        """A run's section with these settings."""
        return GeneratorConfig(checkpoint=checkpoint, **self.model_dump())


class Pick(Section):
    """How a set's images were chosen."""

    choose: Literal["coverage", "random", "uncertain"]
    """`coverage`: those that between them show most clusters of the generator's features. `uncertain`: those that the
    run's labeler is least confident of. `random`: the pool's first, as seeds are in no order."""
    count: int = Field(ge=1, le=MOST_IMAGES)
    """Number of images."""
    pool: int = Field(ge=1, le=100 * MOST_IMAGES)
    """Number of images that they are chosen from."""
    first_seed: int = Field(ge=0, lt=SEED_LIMIT)
    """First seed of the pool."""

    @model_validator(mode="after")
    def _check(self) -> "Pick":
        if self.count > self.pool:
            raise ValueError(f"count {self.count} is more than the pool of {self.pool} images; raise pool")
        check_seed_range("first_seed", self.first_seed, self.pool)
        return self


class AnnotatedPhoto(Section):
    """Where an image comes from that no seed makes."""

    name: str = Field(min_length=1)
    """The photo's path below its folder, without ending."""
    photo_sha256: str = Field(pattern=_Sha256)
    """Of the photo's file."""
    latents_sha256: str = Field(pattern=_Sha256)
    """SHA-256 over the rows of w [L, D] float32, row by row."""
    made_sha256: str = Field(pattern=_Sha256)
    """As `image_sha256`, of what the generator makes of these."""


class AnnotatedImage(Section):
    """One image of a set."""

    key: str
    """Name of the image's files: the seed with ten digits; of photos, numbers from FIRST_PHOTO on."""
    seed: int | None = Field(ge=0, lt=SEED_LIMIT)
    """null: it is a photo."""
    class_id: int | None
    """Class that a conditional generator was asked for."""
    image_sha256: str = Field(pattern=_Sha256)
    """SHA-256 over the pixels [H, W, C] uint8, row by row."""
    scale: int = Field(ge=1, le=LARGEST_SCALE)
    """How many times larger the image for people is, in each direction."""
    photo: AnnotatedPhoto | None = None
    """null: it is generated from its seed."""

    @model_validator(mode="after")
    def _check_key(self) -> "AnnotatedImage":
        if (self.seed is None) == (self.photo is None):
            raise ValueError(f"key {self.key!r} must have either a seed or a photo")
        if self.seed is not None and self.key != sample_key(self.seed):
            raise ValueError(f"key {self.key!r} must be the seed with ten digits, {sample_key(self.seed)!r}")
        if self.seed is None and not (_PHOTO_KEY.fullmatch(self.key) and int(self.key) >= FIRST_PHOTO):
            raise ValueError(f"key {self.key!r} of a photo must be a number from {FIRST_PHOTO} on, of ten digits")
        return self


class AnnotationSet(Section):
    """A set of images from one generator, and the classes of their masks."""

    format: Literal["labelmill-annotations"] = "labelmill-annotations"
    version: Literal[1] = 1
    checkpoint_sha256: str = Field(pattern=_Sha256)
    """Of the generator's file."""
    image_shape: ImageShape
    """Of the images at the generator's resolution."""
    draw: GeneratorDraw
    """Settings that the images are made with, whatever those of the run are that learns from them."""
    classes: tuple[ClassName, ...] = ()
    """Names of the mask values 0, 1, ...; the first is the background. Empty until someone names them."""
    rest: Rest = "ignore"
    """What a pixel is that no shape or stroke covers: unknown, or background. The masks already say so."""
    picked: Pick | None = None
    """How `labelmill annotate pick` chose the images; null where a person or a program did."""
    images: tuple[AnnotatedImage, ...] = Field(max_length=MOST_IMAGES)

    @field_validator("classes")
    @classmethod
    def _check_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if classes:
            check_class_names(list(classes))
        return classes

    @model_validator(mode="after")
    def _check_images(self) -> "AnnotationSet":
        keys = [image.key for image in self.images]
        twice = sorted({key for key in keys if keys.count(key) > 1}) if len(set(keys)) < len(keys) else []
        if twice:
            raise ValueError(f"images given twice: {', '.join(twice)}")
        if max(self.image_shape.size) > LARGEST_SIDE:
            raise ValueError(f"images of {self.image_shape.size_in_words}; at most {LARGEST_SIDE} per side")
        if self.draw.noise == "per_seed" and any(image.photo for image in self.images):
            raise ValueError("draw.noise: per_seed, but photos have no seed")
        return self

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(image.key for image in self.images)

    def with_classes(self, classes: tuple[str, ...], rest: Rest) -> "AnnotationSet":
        """The same set with these classes. Raises ValueError where they cannot be a set's."""
        return AnnotationSet.model_validate({**self.model_dump(), "classes": classes, "rest": rest})

    def to_bytes(self) -> bytes:
        """The file's content."""
        return (json.dumps(self.model_dump(mode="json"), indent=2) + "\n").encode()


def parse_set(content: bytes, source: str) -> AnnotationSet:
    """A file's content, checked. Raises ConfigError, naming `source`, with every mistake in it."""
    try:
        return AnnotationSet.model_validate_json(content, strict=True)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_url=False)]
        raise ConfigError("\n".join([f"{source}: is no annotation set:", *lines[:20]])) from None

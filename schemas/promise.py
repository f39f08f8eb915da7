"""The run file's promise about quality, and the record of how it is kept."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from labelmill.schemas.section import PRINTABLE, SEED_LIMIT, LocatedSection, check_seed_range


class PromiseConfig(LocatedSection):
    """A promise about the kept samples: of their masks, at most a share of `risk` is expected to be worse than `miou`.

    It is kept by a confidence limit of its own, chosen from images that a person has annotated and `fit` has not seen.
    They must be a random sample of what the run labels, all of them labeled: `labelmill annotate pick RUN.YAML --choose
    random`. Pixels that their masks leave open do not count.
    """

    annotations: str = Field(pattern=PRINTABLE)
    """Folder with the annotated images, as `labelmill annotate` makes it, relative to the run file. Its content, not
    its path, is part of the run."""
    miou: float = Field(0.9, gt=0, lt=1)
    """mIoU of one image's mask with what a person would draw, from which on it counts as good: the mean over the
    classes that either of them shows."""
    risk: float = Field(0.1, gt=0, lt=1)
    """Largest share of the kept samples that may be below, in expectation over which images were annotated."""
    share_samples: int = Field(1024, ge=64)
    """Images without annotations that show which share of the candidates a confidence limit keeps."""
    share_first_seed: int = Field(4_270_000_000, ge=0, lt=SEED_LIMIT)
    """First seed of these images; the others count up from it."""

    @model_validator(mode="after")
    def _check_seeds(self) -> "PromiseConfig":
        check_seed_range("share_first_seed", self.share_first_seed, self.share_samples)
        return self


class Promise(BaseModel):
    """`labeler/promise.json`: the confidence limit that keeps a run's promise, and what it was chosen from.

    The file ends with a checksum (pipeline/shards/sealed.py).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["labelmill-promise"] = "labelmill-promise"
    miou: float
    risk: float
    """As the run file has them."""
    annotations_sha256: str
    num_masks: int
    """Annotated images."""
    labeled_share: float
    """Share of their pixels that are labeled, and therefore count."""
    num_below: int
    """Those among them whose masks are worse than `miou`."""
    confidence_min: float
    """The limit; never below the run file's `quality.confidence_min`."""
    num_kept: int
    """Annotated images that the limit and the other quality rules keep."""
    num_kept_below: int
    estimated_risk: float
    """Share of the kept samples that may be below, at most `risk`: (1 + num_kept_below) / (1 + num_masks), divided by
    `kept_share`."""
    kept_share: float
    """Share of the candidates that limit and rules keep, of images without annotations."""
    kept_share_before: float
    """The same for the run file's own `confidence_min`."""

    @property
    def words(self) -> tuple[str, ...]:
        """The promise, how it was calibrated and what it costs, in sentences."""
        cost = 1 - self.kept_share / self.kept_share_before if self.kept_share_before else 0.0
        return (
            f"Of the kept samples, at most {self.risk:.1%} are expected to have a mask with an mIoU below "
            f"{self.miou:g} against what a person would draw.",
            f"Calibrated on {self.num_masks} annotated images, {self.labeled_share:.0%} of their pixels labeled, of "
            f"which {self.num_below} are below: a confidence of {self.confidence_min:g} or more keeps {self.num_kept}, "
            f"of which {self.num_kept_below} are below (conformal selection, Jin and Candès, 2023; in expectation over "
            f"which images are annotated, where images that do not carry the promise count as keeping nothing; after "
            f"such a refusal a second try on more images keeps somewhat less than it promises).",
            f"It costs {cost:.1%} of the samples that would be kept without it.",
        )

"""What the few-shot benchmark measures, as it is kept."""

from statistics import fmean, stdev
from typing import Literal

from pydantic import BaseModel, ConfigDict

from labelmill.schemas.scores import Scores

Pick = Literal["random", "coverage"]
"""How images to annotate are chosen, as `labelmill annotate pick` does."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FewShotSettings(_Record):
    """What the results go with."""

    checkpoint: str
    checkpoint_sha256: str
    resolution: int
    truncation_psi: float
    num_test: int
    device: str
    threads: int
    versions: dict[str, str]


class FilterPoint(_Record):
    """What is left of the test images when the least sure are dropped."""

    measure: str
    """A value of `labeler.drop_by`."""
    kept: float
    """Portion of the images."""
    miou: float | None
    fwiou: float | None
    class_shares: dict[str, float]
    """Of the pixels that are kept, as the judge sees them."""


class FewShotResult(_Record):
    """`few-shot/RECIPE-SHOTS-DRAW.json`: one fit."""

    key: str
    recipe: str
    shots: int
    draw: int
    num_classes_seen: int
    """Classes that the annotated images show."""
    seconds: float
    """CPU time of the fit, without what it learns from images that nobody has annotated."""
    scores: Scores
    foreground: Scores
    """The same masks as foreground and background."""
    rank_correlation: dict[str, float]
    """Spearman's, of an image's uncertainty with the share of its pixels that are wrong, by measure."""
    filtered: tuple[FilterPoint, ...]


class Recipe(_Record):
    """One way to learn from annotated images, in tables."""

    name: str
    title: str
    pick: Pick = "random"
    shortened: str = ""
    """What differs from the published settings, in words."""


class FewShotBenchmark(_Record):
    """`few_shot.json`."""

    format: Literal["labelmill-few-shot-benchmark"] = "labelmill-few-shot-benchmark"
    settings: FewShotSettings
    recipes: tuple[Recipe, ...]
    ceiling: Scores
    """Oracle A, which annotates, against oracle B, which judges."""
    ceiling_foreground: Scores
    results: tuple[FewShotResult, ...]

    def of(self, recipe: str, shots: int) -> list[FewShotResult]:
        """All draws of a recipe with this many annotated images."""
        return [result for result in self.results if (result.recipe, result.shots) == (recipe, shots)]


def spread(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard deviation; None for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else None

"""What the mask benchmark compares: a row is one way to make masks, an axis is the rows that differ in one setting.

Rows of style mixing differ from `default` in one setting, except the paper's and the combined one. Controls never see
a variant, or see them spoilt: what they reach, correlation across variants need not explain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from schemas.config import StyleMixingConfig

Kind = Literal[
    "style_mixing",
    "other_judge",
    "shuffled",
    "single_image",
    "average_mask",
    "average_grabcut",
    "grabcut",
    "border_fill",
    "all_background",
]
SubjectName = Literal["generator", "untruncated", "drawings"]

DEFAULT, COMBINED = "default", "combined"
# Settings that are varied one at a time, and those values that are tried beside the default.
_VARIED: dict[str, tuple[Any, ...]] = {
    "variants": (2, 4, 8, 16, 32),
    "clusters": (2, 4, 8, 16),
    "normalisation": ("none", "centred", "standardised"),
}
_PAPER: dict[str, Any] = {"clusters": 2, "normalisation": "standardised", "restarts": 16}


class MaskRow(BaseModel):
    """One way to make masks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of its file."""
    title: str
    """In tables."""
    kind: Kind
    """style_mixing: the labeler, with nothing but what `fit` learns without labels.
    other_judge: the other oracle, as if it were a labeler.
    shuffled: its variants, in each pixel in an order of its own, which destroys correlation between pixels.
    single_image: the image's own colours clustered; merged alike, the border's share standing for affinity to it.
    average_mask: where `fit` says background usually is; the same mask for every image.
    average_grabcut: GrabCut (Rother et al., 2004) on the image, starting from that mask.
    grabcut: GrabCut told that a frame `parameter` pixels wide is background.
    border_fill: what flood fills from the border leave, `parameter` levels of 255 from one pixel to the next.
    all_background: no foreground at all."""
    labeler: StyleMixingConfig
    parameter: int | None = None
    merged_by_truth: bool = False
    """Clusters are given to foreground or background by the truth: the most that any merging of them can reach."""
    subject: SubjectName = "generator"
    """generator: its images, judged by an oracle. untruncated: the same at psi 1, where images differ more.
    drawings: ideal recolourings of drawings, with exact masks."""


@dataclass(frozen=True)
class Axis:
    """A setting, and the rows that differ from the default in it alone, the default among them."""

    field: str
    rows: tuple[MaskRow, ...]


def mask_rows(num_ws: int, fit_samples: int | None) -> tuple[MaskRow, ...]:
    """All rows but the combined one, for a generator with so many rows of w.

    fit_samples: images that `fit` looks at; None for the labeler's default.
    """
    fixed = {} if fit_samples is None else {"fit_samples": fit_samples}

    def row(name: str, title: str, kind: Kind = "style_mixing", **settings: Any) -> MaskRow:
        of_row = {key: settings.pop(key) for key in ("parameter", "subject", "merged_by_truth") if key in settings}
        labeler = StyleMixingConfig.model_validate({**fixed, **settings})
        return MaskRow(name=name, title=title, kind=kind, labeler=labeler, **of_row)

    def one_setting(field: str, values: Sequence[Any]) -> list[MaskRow]:
        others = [value for value in values if value != getattr(StyleMixingConfig(), field)]
        return [row(f"{field}-{value}", f"{field} {value}", "style_mixing", **{field: value}) for value in others]

    numbers = sorted({*_VARIED["clusters"], StyleMixingConfig().clusters})

    def elsewhere(subject: SubjectName) -> list[MaskRow]:
        """The rows that tell most, on another subject."""
        at: dict[str, Any] = {"subject": subject}
        other = (
            [] if subject == "drawings" else [row(f"{subject}-other-judge", "the other oracle", "other_judge", **at)]
        )
        return [
            row(default_of(subject), "style mixing, default", "style_mixing", **at),
            row(f"{subject}-variants-4", "variants 4", "style_mixing", variants=4, **at),
            row(f"{subject}-paper", "k = 2, standardised, 16 starts", "style_mixing", **_PAPER, **at),
            row(f"{subject}-ceiling", "clusters merged by the truth", "style_mixing", merged_by_truth=True, **at),
            *other,
            row(f"{subject}-shuffled", "variants shuffled in each pixel", "shuffled", **at),
            row(f"{subject}-shuffled-ceiling", "those merged by the truth", "shuffled", merged_by_truth=True, **at),
            row(f"{subject}-single-image", "N = 1: the image's colours", "single_image", **at),
            row(f"{subject}-average-mask", "one mask for all images", "average_mask", **at),
            row(f"{subject}-average-grabcut", "GrabCut from that mask", "average_grabcut", **at),
        ]

    return (
        row(DEFAULT, "style mixing, default"),
        *(changed for field, values in _VARIED.items() for changed in one_setting(field, values)),
        *one_setting("crossover", range(1, num_ws)),
        row("paper", "k = 2, standardised, 16 starts", **_PAPER),
        row("ceiling", "clusters merged by the truth", merged_by_truth=True),
        row("other-judge", "the other oracle", "other_judge"),
        row("shuffled", "variants shuffled in each pixel", "shuffled"),
        row("shuffled-ceiling", "those merged by the truth", "shuffled", merged_by_truth=True),
        *(
            row(f"single-image-{k}", f"N = 1: the image's colours, k = {k}", "single_image", clusters=k)
            for k in numbers
        ),
        row("single-image-ceiling", "those of the default k by the truth", "single_image", merged_by_truth=True),
        row("average-mask", "one mask for all images", "average_mask"),
        row("average-grabcut", "GrabCut from that mask", "average_grabcut"),
        *(row(f"grabcut-{i}", f"GrabCut, frame of {i} px", "grabcut", parameter=i) for i in (1, 2, 4)),
        *(row(f"border-fill-{t}", f"fill from the border, {t}", "border_fill", parameter=t) for t in (4, 8, 16, 32)),
        row("all-background", "everything background", "all_background"),
        *elsewhere("untruncated"),
        *elsewhere("drawings"),
    )


def default_of(subject: SubjectName) -> str:
    """The row of the labeler's defaults on a subject."""
    return DEFAULT if subject == "generator" else f"{subject}-{DEFAULT}"


def is_label_free_mixing(row: MaskRow) -> bool:
    """Whether a row is style mixing as a user would run it on the generator."""
    return (row.kind, row.subject, row.merged_by_truth) == ("style_mixing", "generator", False)


def axes_of(rows: Sequence[MaskRow]) -> tuple[Axis, ...]:
    """The settings that were varied one at a time."""
    default = next(row for row in rows if row.name == DEFAULT)
    comparable = [row for row in rows if is_label_free_mixing(row)]
    axes = []
    for field in (*_VARIED, "crossover"):
        same = {field: getattr(default.labeler, field)}
        members = [row for row in comparable if row.labeler.model_copy(update=same) == default.labeler]
        axes.append(Axis(field, tuple(sorted(members, key=lambda row: _place(getattr(row.labeler, field))))))
    return tuple(axes)


def combined_row(best: dict[str, MaskRow], default: MaskRow) -> MaskRow:
    """The best value of each axis together. best: a row by the axis's field."""
    changes = {field: getattr(row.labeler, field) for field, row in best.items()}
    labeler = StyleMixingConfig.model_validate({**default.labeler.model_dump(), **changes})
    return MaskRow(name=COMBINED, title="the best of each setting", kind=default.kind, labeler=labeler)


def _place(value: int | str) -> tuple[bool, int, str]:
    """Numbers in their order, then words."""
    return (False, value, "") if isinstance(value, int) else (True, 0, value)

"""What the mask benchmark compares: a row is one way to make masks, an axis is the rows that differ in one setting.

Controls never see a variant, or see them spoilt: what they reach, correlation across variants need not explain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig

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
Mode = Literal["readout", "clusters"]

DEFAULT, COMBINED = "default", "combined"
MODES: tuple[Mode, ...] = ("readout", "clusters")
_AXES = ("variants", "clusters", "normalisation", "crossover", "variant_resolution")
_LOWEST_RESOLUTION = 8
_TITLES: dict[Mode, str] = {"readout": "read-out", "clusters": "clusters"}
_PAPER: dict[str, Any] = {"masks_from": "clusters", "clusters": 2, "normalisation": "standardised", "restarts": 16}


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
    shuffled: variants are put into an order of each pixel's own, which destroys correlation between pixels.
    single_image: the image's own colours are clustered; the border's share stands for affinity to it.
    average_mask: where `fit` says background usually is; the same mask for every image.
    average_grabcut: GrabCut (Rother et al., 2004) on the image, starting from that mask.
    grabcut: GrabCut told that a frame `parameter` pixels wide is background.
    border_fill: what flood fills from the border leave, `parameter` levels of 255 from one pixel to the next.
    all_background: no foreground at all.

    With `masks_from: readout` masks of shuffled variants and of single images teach a read-out, too."""
    labeler: StyleMixingConfig
    parameter: int | None = None
    merged_by_truth: bool = False
    """Clusters are given to foreground or background by the truth: the most that any merging of them can reach."""
    subject: SubjectName = "generator"
    """generator: its images, judged by an oracle. untruncated: the same at psi 1, where images differ more.
    drawings: ideal recolourings of drawings, with exact masks."""


@dataclass(frozen=True)
class Axis:
    """A setting, and the rows of one mode that differ in it alone."""

    field: str
    mode: Mode
    rows: tuple[MaskRow, ...]


def mask_rows(spec: GeneratorSpec, fit_samples: int | None, quick: bool) -> tuple[MaskRow, ...]:
    """All rows but the combined one, for a generator.

    fit_samples: images of `fit`; None for the default. quick: settings vary in the default's mode alone, and nothing is
    measured without truncation.
    """
    make = _RowMaker(fit_samples)
    numbers = sorted({*_varied(spec)["clusters"], StyleMixingConfig().clusters})
    by_clusters: dict[str, Any] = {"masks_from": "clusters"}
    return (
        *(row for mode in MODES for row in _style_mixing_rows(spec, make, mode, quick)),
        make("paper", "k = 2, standardised, 16 starts, clusters", "style_mixing", **_PAPER),
        make(
            "ceiling",
            "clusters merged by the truth, edges as they are",
            "style_mixing",
            merged_by_truth=True,
            **by_clusters,
        ),
        make("other-judge", "the other oracle", "other_judge"),
        make("shuffled", "shuffled variants", "shuffled", **by_clusters),
        make(
            "shuffled-ceiling", "shuffled variants merged by the truth", "shuffled", merged_by_truth=True, **by_clusters
        ),
        make("shuffled-readout", "read-out taught by those of shuffled variants", "shuffled", masks_from="readout"),
        *(
            make(f"single-image-{k}", f"N = 1: the image's colours, k = {k}", "single_image", clusters=k, **by_clusters)
            for k in numbers
        ),
        make("single-image-ceiling", "N = 1 merged by the truth", "single_image", merged_by_truth=True, **by_clusters),
        make("single-image-readout", "read-out taught by those of N = 1", "single_image", masks_from="readout"),
        make("average-mask", "one mask for all images", "average_mask", **by_clusters),
        make("average-grabcut", "GrabCut from that mask", "average_grabcut", **by_clusters),
        *(make(f"grabcut-{i}", f"GrabCut, frame of {i} px", "grabcut", parameter=i) for i in (1, 2, 4)),
        *(make(f"border-fill-{t}", f"fill from the border, {t}", "border_fill", parameter=t) for t in (4, 8, 16, 32)),
        make("all-background", "everything background", "all_background"),
        *([] if quick else _rows_elsewhere("untruncated", make)),
        *_rows_elsewhere("drawings", make),
    )


class _RowMaker:
    """Rows from settings of the row and of the labeler alike."""

    def __init__(self, fit_samples: int | None) -> None:
        self._fixed = {} if fit_samples is None else {"fit_samples": fit_samples}

    def __call__(self, name: str, title: str, kind: Kind, **settings: Any) -> MaskRow:
        own = {key: settings.pop(key) for key in ("parameter", "subject", "merged_by_truth") if key in settings}
        labeler = StyleMixingConfig.model_validate({**self._fixed, **settings})
        return MaskRow(name=name, title=title, kind=kind, labeler=labeler, **own)


def _varied(spec: GeneratorSpec) -> dict[str, tuple[Any, ...]]:
    """What is tried beside each setting's default."""
    sizes = [size for size, _ in spec.channels if _LOWEST_RESOLUTION <= size < spec.resolution]
    return {
        "variants": (2, 4, 8, 16, 32),
        "clusters": (2, 4, 8, 16),
        "normalisation": ("none", "centred", "standardised"),
        "crossover": tuple(range(1, spec.num_ws)),
        "variant_resolution": (*sizes, None) if spec.architecture == "skip" else (None,),
    }


def _style_mixing_rows(spec: GeneratorSpec, make: _RowMaker, mode: Mode, quick: bool) -> list[MaskRow]:
    """The labeler's defaults in one mode, and one setting changed at a time."""
    default = StyleMixingConfig()
    rows = [make(base_of(mode), f"style mixing, {_TITLES[mode]}", "style_mixing", masks_from=mode)]
    if quick and mode != default.masks_from:
        return rows
    for field, values in _varied(spec).items():
        for value in values:
            if value != getattr(default, field):
                shown = as_text(value)
                name, title = f"{field}-{shown}", f"{field} {shown}, {_TITLES[mode]}"
                changes = {"masks_from": mode, field: value}
                rows.append(make(_in_mode(name, mode), title, "style_mixing", **changes))
    return rows


def _rows_elsewhere(subject: SubjectName, make: _RowMaker) -> list[MaskRow]:
    """The rows that tell most, on another subject. Drawings have no features to read from."""
    at: dict[str, Any] = {"subject": subject, "masks_from": "clusters"}
    rows = [
        make(f"{subject}-clusters", "style mixing, clusters", "style_mixing", **at),
        make(f"{subject}-variants-4", "variants 4, clusters", "style_mixing", variants=4, **at),
        make(f"{subject}-paper", "k = 2, standardised, 16 starts, clusters", "style_mixing", **{**at, **_PAPER}),
        make(
            f"{subject}-ceiling",
            "clusters merged by the truth, edges as they are",
            "style_mixing",
            merged_by_truth=True,
            **at,
        ),
        make(f"{subject}-shuffled", "shuffled variants", "shuffled", **at),
        make(
            f"{subject}-shuffled-ceiling",
            "shuffled variants merged by the truth",
            "shuffled",
            merged_by_truth=True,
            **at,
        ),
        make(f"{subject}-single-image", "N = 1: the image's colours", "single_image", **at),
        make(f"{subject}-average-mask", "one mask for all images", "average_mask", **at),
        make(f"{subject}-average-grabcut", "GrabCut from that mask", "average_grabcut", **at),
    ]
    if subject == "drawings":
        return rows
    reading = {**at, "masks_from": "readout"}
    return [
        make(f"{subject}-readout", "style mixing, read-out", "style_mixing", **reading),
        *rows,
        make(f"{subject}-single-image-readout", "read-out taught by those of N = 1", "single_image", **reading),
        make(f"{subject}-other-judge", "the other oracle", "other_judge", subject=subject),
    ]


def base_of(mode: Mode) -> str:
    """The row of a mode that its axes vary."""
    return _in_mode(DEFAULT, mode)


def default_of(subject: SubjectName) -> str:
    """The row that a subject's others are compared to."""
    if subject == "generator":
        return DEFAULT
    return f"{subject}-{'clusters' if subject == 'drawings' else StyleMixingConfig().masks_from}"


def is_label_free_mixing(row: MaskRow) -> bool:
    """Whether a row is style mixing as a user would run it on the generator."""
    return (row.kind, row.subject, row.merged_by_truth) == ("style_mixing", "generator", False)


def axes_of(rows: Sequence[MaskRow]) -> tuple[Axis, ...]:
    """The settings that were varied one at a time, in either mode."""
    axes = []
    for field in _AXES:
        for mode in MODES:
            base = next(row.labeler for row in rows if row.name == base_of(mode))
            same = {field: getattr(base, field)}
            members = [row for row in rows if is_label_free_mixing(row) and row.labeler.model_copy(update=same) == base]
            if len(members) > 1:
                rows_in_order = sorted(members, key=lambda row: _place(getattr(row.labeler, field)))
                axes.append(Axis(field, mode, tuple(rows_in_order)))
    return tuple(axes)


def combined_row(best: dict[str, MaskRow], default: MaskRow) -> MaskRow:
    """The best value of each axis together. best: a row by the axis's field."""
    changes = {field: getattr(row.labeler, field) for field, row in best.items()}
    labeler = StyleMixingConfig.model_validate({**default.labeler.model_dump(), **changes})
    return MaskRow(name=COMBINED, title="the best of each setting", kind=default.kind, labeler=labeler)


def as_text(value: int | str | None) -> str:
    """A setting's value as run files write it."""
    return "null" if value is None else str(value)


def _in_mode(name: str, mode: Mode) -> str:
    return name if mode == StyleMixingConfig().masks_from else f"{name}-{mode}"


def _place(value: int | str | None) -> tuple[bool, int, str]:
    """Numbers in their order, then words."""
    return (False, value, "") if isinstance(value, int) else (True, 0, str(value))

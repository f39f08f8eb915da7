"""The mask benchmark as tables for people: `masks.md`."""

from collections.abc import Sequence

from labelmill.pipeline.benchmark.markdown import markdown_table
from labelmill.pipeline.benchmark.masks.results import ConfidenceCurve, MaskBenchmark, MasksRowResult
from labelmill.pipeline.benchmark.masks.rows import MODES, Axis, Kind, as_text, axes_of, base_of, default_of
from labelmill.pipeline.benchmark.masks.subjects import BATCH_SIZE

_HEAD = ("labels by", "mIoU", "95 %", "against default", "fg", "bg", "3 px trimap", "where judges agree", "dev", "ms")
_PHOTOS, _GENERATED = "CelebAMask-HQ photos", "FFHQ generator, 1024 px"
# Feng et al., CVPR 2023, Table 1: IoU of foreground and background, and their mean, on images of a generator and on
# photos; and what each method learns from.
PUBLISHED = {
    ("DatasetGAN", "16 labeled images", _GENERATED): (0.83, 0.73, 0.78),
    ("Labels4Free", "10,000 images, no label", _GENERATED): (0.92, 0.85, 0.88),
    ("Segmentation in Style", "50 + 15,000 images, clusters named by hand", _GENERATED): (0.89, 0.77, 0.83),
    ("network-free style mixing", "nothing", _GENERATED): (0.87, 0.73, 0.80),
    ("DatasetGAN", "16 labeled images", _PHOTOS): (0.87, 0.73, 0.80),
    ("Labels4Free", "10,000 images, no label", _PHOTOS): (0.92, 0.80, 0.86),
    ("Segmentation in Style", "50 + 15,000 images, clusters named by hand", _PHOTOS): (0.92, 0.81, 0.87),
    ("network-free style mixing", "nothing", _PHOTOS): (0.91, 0.81, 0.86),
}
# Controls with a parameter that was chosen on dev.
_FAMILIES: tuple[Kind, ...] = ("single_image", "grabcut", "border_fill")


def summary_rows(benchmark: MaskBenchmark) -> list[MasksRowResult]:
    """The rows that answer the question: ours, what bounds it, and the controls, each at its best on dev."""
    ours = dict.fromkeys((benchmark.default, benchmark.tuned, *(base_of(mode) for mode in MODES), "paper"))
    bounds = ("ceiling", "other-judge")
    controls = ("shuffled", "shuffled-readout", "single-image-readout", "average-mask", "average-grabcut")
    chosen = [best_on_dev(_family(benchmark, kind)) for kind in _FAMILIES]
    named = [benchmark.result(name) for name in (*ours, *bounds, *controls)]
    return [*named, *chosen, benchmark.result("all-background")]


def _family(benchmark: MaskBenchmark, kind: Kind) -> list[MasksRowResult]:
    rows = [result for result in benchmark.rows if result.row.kind == kind]
    plain = [
        result for result in rows if not result.row.merged_by_truth and result.row.labeler.masks_from == "clusters"
    ]
    return [result for result in (plain or rows) if result.row.subject == "generator"]


def along(axis: Axis, benchmark: MaskBenchmark) -> dict[str, MasksRowResult]:
    """Results by the setting's value. One variant is the image itself."""
    results = {as_text(getattr(row.labeler, axis.field)): benchmark.result(row.name) for row in axis.rows}
    if axis.field != "variants":
        return results
    number = axis.rows[0].labeler.clusters
    alone = "single-image-readout" if axis.mode == "readout" else f"single-image-{number}"
    return {"1": benchmark.result(alone), **results}


def axes_by_field(benchmark: MaskBenchmark) -> dict[str, list[Axis]]:
    """Both modes' axes of each setting."""
    found: dict[str, list[Axis]] = {}
    for axis in axes_of([result.row for result in benchmark.rows]):
        found.setdefault(axis.field, []).append(axis)
    return found


def best_on_dev(results: Sequence[MasksRowResult]) -> MasksRowResult:
    """The row of the highest mIoU on dev images."""
    return max(results, key=lambda result: result.dev.scores.miou or 0.0)


def markdown(benchmark: MaskBenchmark) -> str:
    """The page."""
    tuned = benchmark.result(benchmark.tuned)
    parts = [
        "# Quality of masks",
        _preamble(benchmark),
        "## In short",
        _table(summary_rows(benchmark), benchmark),
        f"The default's settings are the same for every generator; the rest `fit` chooses without labels. Tuned is the "
        f"row of style mixing that is best on dev images: `{tuned.row.name}`. Controls with a parameter stand with the "
        f"value that is best there.",
        "![Controls](masks-controls.png)",
        "![Examples](masks-examples.png)",
        "## One setting at a time",
    ]
    for field, axes in axes_by_field(benchmark).items():
        rows = [result for axis in axes for result in along(axis, benchmark).values()]
        parts += [f"### {field}", _table(rows, benchmark)]
    parts += ["![Settings](masks-settings.png)", "![Cost](masks-cost.png)"]
    untruncated = [result for result in benchmark.rows if result.row.subject == "untruncated"]
    if untruncated:
        parts += ["## Without truncation", _UNTRUNCATED, _table(untruncated, benchmark)]
    parts += ["## Ideal style mixing", _DRAWINGS]
    parts += [_table([result for result in benchmark.rows if result.row.subject == "drawings"], benchmark)]
    parts += ["## Dropping images that the labeler is unsure of", *map(_confidence, benchmark.confidence)]
    all_rows = [result for result in benchmark.rows if result.row.subject == "generator"]
    parts += ["![Confidence](masks-confidence.png)", "## Published", _PUBLISHED, _published_table(benchmark)]
    parts += ["## All rows", _table(all_rows, benchmark)]
    return "\n\n".join(parts) + "\n"


_UNTRUNCATED = "At psi 1 images differ more from each other, and each of them from the average."
_DRAWINGS = (
    "Drawings of the avatars domain in other palettes are what style mixing with a perfect generator would give. Their "
    "masks are exact."
)
_PUBLISHED = (
    "Beside Feng et al. (CVPR 2023), Table 1: photos of faces, and another truth. Methods can be compared there with "
    "each other, figures not with ours."
)


def _published_table(benchmark: MaskBenchmark) -> str:
    """Our rows first, in the same columns."""
    images = f"{benchmark.circumstances.checkpoint}, {benchmark.num_test} images"
    learned = f"{benchmark.num_fit} generated images, no label"
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys((benchmark.default, "paper")):
        result = benchmark.result(name)
        scores = result.test.scores
        figures = (scores.iou["foreground"], scores.iou["background"], scores.miou)
        rows.append((_title(result), learned, images, *map(_percent, figures)))
    rows += [(*keys, *(f"{100 * value:.0f}" for value in figures)) for keys, figures in PUBLISHED.items()]
    return markdown_table(("masks by", "learns from", "on", "fg", "bg", "mIoU"), rows, num_texts=3)


def _preamble(benchmark: MaskBenchmark) -> str:
    circumstances = benchmark.circumstances
    quick = " A quick run: few images, wide intervals." if benchmark.quick else ""
    return (
        f"Foreground against background on images of `{circumstances.checkpoint}` (psi "
        f"{circumstances.truncation_psi}), as {circumstances.judges} sees them: {benchmark.num_test} test images, on "
        f"which nothing was chosen, and {benchmark.num_dev} dev images; `fit` saw {benchmark.num_fit} others.{quick} "
        f"In percent. IoU is of one confusion matrix over all images; intervals come from resampling the images, "
        f"those against the default from resampling both rows' images together; the trimap is mIoU within a band along "
        f"true boundaries (a 3 x 3 square around each boundary pixel). ms: from seed to mask, an image, in batches of "
        f"{BATCH_SIZE}, on {circumstances.device} with {circumstances.threads} threads."
    )


def _table(results: Sequence[MasksRowResult], benchmark: MaskBenchmark) -> str:
    return markdown_table(_HEAD, [_cells(result, benchmark) for result in results])


def _cells(result: MasksRowResult, benchmark: MaskBenchmark) -> tuple[str, ...]:
    scores, seconds = result.test.scores, result.seconds_per_image
    low, high = result.interval
    return (
        _title(result),
        _percent(scores.miou),
        f"{_percent(low)} to {_percent(high)}",
        _against_default(result, benchmark),
        _percent(scores.iou["foreground"]),
        _percent(scores.iou["background"]),
        _percent(scores.trimap_3px.miou),
        _percent(result.test.agreed.miou),
        _percent(result.dev.scores.miou),
        "" if seconds is None else f"{1000 * seconds:.1f}",
    )


def _title(result: MasksRowResult) -> str:
    if result.crossover is None or result.row.labeler.crossover != "auto":
        return result.row.title
    return f"{result.row.title} (crossover {result.crossover})"


def _against_default(result: MasksRowResult, benchmark: MaskBenchmark) -> str:
    if result.row.name == default_of(result.row.subject):
        return ""
    difference = benchmark.against_default[result.row.name]
    low, high = difference.interval
    return f"{100 * difference.miou:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _confidence(curve: ConfidenceCurve) -> str:
    correlation = "none" if curve.rank_correlation is None else f"{curve.rank_correlation:.2f}"
    title = f"mIoU of the images that are kept, `{curve.row}`; rank correlation of confidence and mIoU {correlation}."
    dropped = markdown_table(
        ("dropped", *(f"{share:.0%}" for share in curve.dropped_share)),
        [
            ("least confident", *map(_percent, curve.by_confidence)),
            ("lowest mIoU (the most any confidence can reach)", *map(_percent, curve.at_best)),
        ],
    )
    if not curve.bins:
        return f"{title}\n\n{dropped}"
    predicted = markdown_table(
        ("confidence, tenths of the images", *(_percent(group.confidence) for group in curve.bins)),
        [("mean of their mIoU", *(_percent(group.miou) for group in curve.bins))],
    )
    return f"{title}\n\n{dropped}\n\n{predicted}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"

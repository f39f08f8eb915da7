"""The class benchmark as tables for people: `classes.md`."""

from collections.abc import Sequence

from labelmill.pipeline.benchmark.classes.results import (
    CLASS_PROMPTS,
    DEFAULT,
    RARE,
    ClassBenchmark,
    ClassResult,
    StudentResult,
)
from labelmill.pipeline.benchmark.markdown import markdown_table

_GROUPS = {
    "reference": "How far the judges agree",
    "discovery": "Without and with discovery of rare classes",
    "untruncated": "Without truncation",
    "layers": "Layers",
    "clusters": "Number of clusters",
    "naming": "Naming",
}
_PUBLISHED = """\
## Published figures, as context

Of the paper (Pakhomov et al., 2021), on photos, for networks that learned from the masks; nothing here is comparable
with them but the order of methods.

| dataset | Segmentation in Style | others |
| --- | --- | --- |
| CelebA-Mask8, mIoU | 73.1 | DatasetGAN 70.0, semanticGAN 69.0 |
| CelebAMask-HQ, 19 classes less two, left and right merged, mIoU | 62.5 | DRN with all labels 70.5 |
| CelebAMask-HQ, beard, IoU | 84.3 | DRN with all labels 88.8 |
| OpenEDS, mIoU | 82.4 | SegNet with all labels 84.1 |
| FFHQ, foreground and background, mIoU | 83 | DatasetGAN 78, Labels4Free 88 |
"""


def markdown(benchmark: ClassBenchmark) -> str:
    """The page."""
    parts = ["# Semantic classes by feature clusters and prompts", _preamble(benchmark)]
    for group, title in _GROUPS.items():
        rows = [result for result in benchmark.rows if result.row.group == group]
        if group in ("layers", "clusters", "naming") and rows:
            rows = [benchmark.result(DEFAULT), *rows]
        if rows:
            parts += [f"## {title}", _iou_table(rows), *([] if group == "reference" else [_cost_table(rows)])]
        if group in ("discovery", "untruncated") and rows:
            parts += [_changes(rows), *_found(rows)]
    parts += ["## Clusters of the default", _clusters(benchmark.result(DEFAULT))]
    if benchmark.students:
        parts += ["## Networks that learned the masks", _students(benchmark.students)]
    parts.append(_PUBLISHED)
    return "\n\n".join(part for part in parts if part) + "\n"


def _preamble(benchmark: ClassBenchmark) -> str:
    circumstances = benchmark.circumstances
    quick = " A quick run: few images, few rows." if benchmark.quick else ""
    return (
        f"The {len(CLASS_PROMPTS)} classes of the avatars domain on {benchmark.num_test} images of "
        f"`{circumstances.checkpoint}` (psi {circumstances.truncation_psi} where nothing else is said), on which "
        f"nothing was chosen, as {circumstances.judges} sees them. No label is used but to score: each class has one "
        f"prompt, its name, and the prompt model is the bundled one, which learned from true captions of drawings "
        f"(domain-supervised prompts).{quick} IoU in percent, of one confusion matrix over all images; a class that "
        f"neither oracle nor mask has anywhere is left out of the mean. Named by truth: every cluster named by what "
        f"most of its pixels are on {benchmark.num_dev} other images. Judges agree: without the pixels that oracle A "
        f"sees otherwise.\n\n"
        f"Images and masks are {circumstances.resolution} px: brows, eyes and mouths are 1 to "
        f"{3 * circumstances.resolution // 32} pixels high. "
        f"The first table is the other oracle's score, and no figure above it can be trusted.\n\n"
        f"Measured on {circumstances.device} with {circumstances.threads} thread."
    )


def _iou_table(rows: Sequence[ClassResult]) -> str:
    head = ["", "mIoU", "named by truth", "judges agree", *CLASS_PROMPTS]
    body = []
    for result in rows:
        truly = None if result.truly_named is None else result.truly_named.miou
        ious = [result.scores.iou[name] for name in CLASS_PROMPTS]
        figures = [result.scores.miou, truly, result.agreed.miou, *ious]
        body.append([_title(result), *map(_percent, figures)])
    return markdown_table(head, body)


def _cost_table(rows: Sequence[ClassResult]) -> str:
    head = [
        "",
        "layers",
        "clusters",
        "unsure",
        "named rightly",
        "of their pixels",
        "images/s",
        "bare synthesis",
        "share",
    ]
    body = []
    for result in rows:
        named, seconds, bare = result.named, result.seconds_per_image, result.bare_seconds_per_image
        right = sum(cluster.share for cluster in named if cluster.name == cluster.truth)
        total = sum(cluster.share for cluster in named)
        body.append(
            [
                _title(result),
                ", ".join(result.layers),
                str(len(result.clusters)),
                str(sum(cluster.is_unsure for cluster in result.clusters)),
                f"{sum(cluster.name == cluster.truth for cluster in named)} of {len(named)}",
                _percent(right / total if total else None),
                *(["", "", ""] if not seconds or not bare else _speed(seconds, bare)),
            ]
        )
    return markdown_table(head, body)


def _speed(seconds: float, bare: float) -> list[str]:
    return [f"{1 / seconds:.0f}", f"{1 / bare:.0f}", f"{bare / seconds:.0%}"]


def _changes(rows: Sequence[ClassResult]) -> str:
    """What discovery changes in each class, in points."""
    base = rows[0]
    body = []
    for result in rows[1:]:
        pairs = [(result.scores.iou[name], base.scores.iou[name]) for name in CLASS_PROMPTS]
        body.append(
            [
                _title(result),
                *("" if None in pair else f"{100 * ((pair[0] or 0) - (pair[1] or 0)):+.1f}" for pair in pairs),
            ]
        )
    if not body:
        return ""
    about = f"Change in points of IoU against {base.row.title}; rare on purpose: {', '.join(RARE)}."
    return f"{about}\n\n{markdown_table(['', *CLASS_PROMPTS], body)}"


def _found(rows: Sequence[ClassResult]) -> list[str]:
    """What looking for rare classes gave."""
    head = ["", "nearer the prompt", "lowest positive score", "balanced accuracy in W", "strength", "moved", "wanted"]
    body = [
        [
            f"{result.row.title}: {record.prompt}",
            f"{record.num_nearer} of {record.num_scored}",
            f"{record.least_positive_score:.3f}",
            f"{record.accuracy:.2f}",
            f"{record.strength:.2f}",
            f"{record.moved_share:.0%}",
            f"{record.moved_share_wanted:.0%}",
        ]
        for result in rows
        for record in result.discoveries
    ]
    return [markdown_table(head, body)] if body else []


def _clusters(result: ClassResult) -> str:
    head = ["cluster", "name", "truth", "of its pixels", "% of all pixels", "similarity", "margin"]
    body = [
        [
            str(number),
            f"{cluster.name} (unsure)" if cluster.is_unsure else cluster.name,
            cluster.truth,
            _percent(cluster.truth_share),
            _percent(cluster.share),
            "" if cluster.similarity is None else f"{cluster.similarity:.2f}",
            "" if cluster.margin is None else f"{cluster.margin:.2f}",
        ]
        for number, cluster in enumerate(result.clusters)
    ]
    return markdown_table(head, body)


def _students(students: Sequence[StudentResult]) -> str:
    head = ["learns from", "pairs", "mIoU", *CLASS_PROMPTS, "pairs, s", "training, s"]
    body = [
        [
            student.title,
            str(student.num_pairs),
            _percent(student.scores.miou),
            *(_percent(student.scores.iou[name]) for name in CLASS_PROMPTS),
            "" if student.label_seconds is None else f"{student.label_seconds:.0f}",
            f"{student.training_seconds:.0f}",
        ]
        for student in students
    ]
    first = students[0]
    about = (
        "The paper's last step: its dilated ResNet-18 by its recipe (students.py), here from random weights, "
        f"for {first.steps} steps (the recipe: 1000) and with images enlarged {first.upscale} times inside the network "
        f"(the recipe: to 128 px), tested on {first.scores.num_images} drawings that nothing has seen, with exact "
        "masks."
    )
    return f"{about}\n\n{markdown_table(head, body)}"


def _title(result: ClassResult) -> str:
    return f"{result.row.title} (`{result.row.name}`)"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"

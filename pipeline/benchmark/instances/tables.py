"""The instances benchmark as Markdown."""

from collections.abc import Sequence

from labelmill.pipeline.benchmark.instances.results import InstanceRow, InstancesBenchmark
from labelmill.pipeline.benchmark.markdown import markdown_table

_HEAD = ("instances by", "boxes", "box_error", "things", "rest", "mIoU", "per instance")


def markdown(found: InstancesBenchmark) -> str:
    """The tables, and what they were measured with."""
    settings = found.settings
    points = [
        (str(point.row), f"{point.kept:.2f}", _percent(point.miou), _percent(point.iou_of_instances))
        for point in found.dev
    ]
    texts = [
        "# Instances",
        f"IoU in percent on pictures that {settings.checkpoint} ({settings.resolution} px) makes of several seeds: "
        f"people whose features are joined before row 3 of w (psi {settings.truncation_psi:g}), and parts of single "
        f"portraits (psi {settings.parts_psi:g}). Truth and boxes are oracle B's; jittered boxes have each side moved "
        f"by up to {settings.jitter:.0%} of the box. Rows in italics are controls.",
    ]
    for subject in dict.fromkeys(row.subject for row in found.rows):
        rows = [row for row in found.rows if row.subject == subject]
        scores = rows[0].scores
        row = found.parts_crossover.get(subject, found.crossover)
        texts += [
            f"## {subject.capitalize()}",
            f"{scores.num_pictures} pictures, {scores.num_instances} instances, mixed from row {row} on.",
            _table(rows),
        ]
    return "\n\n".join(
        [
            *texts,
            "## Row to mix from",
            "Dev pictures of two people, exact boxes. `kept`: mean IoU of the detector's boxes on portraits and their "
            "variants.",
            markdown_table(("row", "kept", "mIoU", "per instance"), points),
            f"{found.cpu_seconds:.0f} CPU seconds in all ({settings.device}, {settings.threads} thread).\n",
        ]
    )


def _table(rows: Sequence[InstanceRow]) -> str:
    cells = []
    for row in rows:
        scores = row.scores
        values = (scores.iou_of_things, scores.iou_of_rest, scores.miou, scores.iou_of_instances)
        name = f"*{row.method}*" if row.is_control else row.method
        cells.append((name, row.boxes, f"{row.box_error:g}", *map(_percent, values)))
    return markdown_table(_HEAD, cells, num_texts=2)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"

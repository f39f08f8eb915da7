"""The photos benchmark as Markdown."""

from collections.abc import Sequence

from labelmill.pipeline.benchmark.markdown import markdown_table
from labelmill.pipeline.benchmark.photos.results import PhotoRow, PhotosBenchmark


def markdown(found: PhotosBenchmark) -> str:
    """The tables, and what they were measured with."""
    settings, costs, quality = found.settings, found.costs, found.quality
    unsupervised = [row for row in found.rows if row.kind != "supervised"]
    supervised = [row for row in found.rows if row.kind == "supervised"]
    points = [(point.space, str(point.radius), _percent(point.miou)) for point in found.dev]
    ranks = [(name, f"{value:.2f}") for name, value in quality.rank_correlation.items()]
    psnr = ", ".join(f"{space} {value:.1f} dB" for space, value in found.psnr_db.items())
    return "\n\n".join(
        [
            "# Masks of photos",
            f"{settings.num_test} drawings (seeds 8000000 on) that neither generator nor oracle has seen, with exact "
            f"masks of the foreground, through {settings.checkpoint} ({settings.resolution} px). On generated images "
            f"the same labeler has a mIoU of {_percent(found.generated_miou)}, judged by oracle B.",
            _rows(unsupervised, found.generated_miou),
            "Rows that have seen exact masks:",
            _rows(supervised, found.generated_miou),
            f"Reconstructions: {psnr}. CPU seconds ({settings.device}, {settings.threads} thread): "
            f"{costs.encoder_seconds:.0f} for the encoder, {costs.seconds_per_photo:.2f} per photo.",
            "## Quality",
            f"Spearman's correlation with a mask's own IoU over the test photos. Without the fifth of lowest quality, "
            f"mIoU rises from {_percent(quality.miou_of_all)} to {_percent(quality.miou_of_best)}.",
            markdown_table(("score", "correlation"), ranks),
            "## Radius",
            f"Chosen on {settings.num_dev} other drawings (seeds 8100000 on).",
            markdown_table(("space", "radius", "mIoU"), points),
        ]
    )


def _rows(rows: Sequence[PhotoRow], generated: float) -> str:
    cells = []
    for row in rows:
        miou = row.scores.miou or 0.0
        cells.append((row.title, _percent(miou), f"{miou / generated:.3f}", *map(_percent, row.scores.iou.values())))
    return markdown_table(("masks", "mIoU", "of generated", "background", "foreground"), cells)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"

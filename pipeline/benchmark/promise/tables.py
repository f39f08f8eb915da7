"""The promise benchmark as Markdown."""

from labelmill.pipeline.benchmark.markdown import markdown_table
from labelmill.pipeline.benchmark.promise.results import PromiseBenchmark, PromiseRow


def markdown(benchmark: PromiseBenchmark) -> str:
    """The whole page."""
    return "\n\n".join(["# Whether promises hold", _about(benchmark), _table(benchmark)]) + "\n"


def _about(benchmark: PromiseBenchmark) -> str:
    known = benchmark.settings
    return (
        f"`quality.promise` on `{known.checkpoint}` ({known.resolution} px) with the labeler `{known.labeler}`. For "
        f"each row, {known.num_redraws} times: images are drawn as annotated, with {known.judge}'s masks, out of "
        f"{known.num_pool}; a confidence limit is calibrated on them; and among the remaining images that it keeps "
        f"those are counted whose mIoU is below what was promised. The promise holds where the mean over all redraws "
        f"is at most the risk; a redraw whose masks do not carry it is refused and keeps nothing. Of those that are "
        f"not refused the share may be higher, and a second try on more images after a refusal keeps somewhat less "
        f"than it promises: lower the risk for it. Percent."
    )


def _table(benchmark: PromiseBenchmark) -> str:
    head = [
        "psi",
        "mIoU promised",
        "risk",
        "annotated",
        "below, of all",
        "**below, of kept**",
        "of kept, if any",
        "a tenth exceed",
        "kept",
        "refused",
    ]
    return markdown_table(head, [_cells(row) for row in benchmark.rows])


def _cells(row: PromiseRow) -> list[str]:
    shares = (row.below, row.risk_found, row.risk_of_kept, row.highest, row.kept)
    below, found, of_kept, highest, kept = (f"{100 * share:.1f}" for share in shares)
    return [
        f"{row.truncation_psi:g}",
        f"{100 * row.miou:g}",
        f"{100 * row.risk:g}",
        str(row.num_masks),
        below,
        f"**{found}**",
        of_kept,
        highest,
        kept,
        str(row.num_refused),
    ]

"""The downstream benchmark as tables for people: `downstream.md`."""

from labelmill.pipeline.benchmark.downstream.results import DownstreamBenchmark, DownstreamRowResult
from labelmill.pipeline.benchmark.markdown import markdown_table

COLUMNS = ("fg", "bg", "mIoU", "trimap fg", "trimap bg", "trimap mIoU")

# Feng et al., CVPR 2023, Table 3: DeepLabV3 trained from scratch on 1024 px FFHQ synthetics with masks of each
# method, tested on CelebAMask-HQ photos; U-Net for the real masks. IoU, then IoU within a 3 px trimap.
PUBLISHED = {
    "1000 real masks (U-Net)": (0.95, 0.87, 0.91, 0.53, 0.45, 0.49),
    "DatasetGAN": (0.90, 0.79, 0.84, 0.43, 0.39, 0.41),
    "Labels4Free": (0.92, 0.82, 0.87, 0.43, 0.38, 0.41),
    "Segmentation in Style": (0.92, 0.80, 0.86, 0.45, 0.33, 0.39),
    "network-free style mixing": (0.92, 0.82, 0.87, 0.42, 0.43, 0.42),
}


def markdown(benchmark: DownstreamBenchmark) -> str:
    """The page."""
    parts = ["# Networks trained on the masks", _preamble(benchmark), _table(benchmark)]
    reading = _what_labels_are_worth(benchmark)
    parts += [reading] if reading else []
    parts += ["## Published", _PUBLISHED, _published_table()]
    return "\n\n".join(parts) + "\n"


_PUBLISHED = (
    "Feng et al. (CVPR 2023), Table 3: another domain (photos of faces at 1024 px), a larger network and a trimap "
    "whose definition is not stated. What can be compared is each row's distance to its own supervised row, not the "
    "figures."
)


def _preamble(benchmark: DownstreamBenchmark) -> str:
    known = benchmark.circumstances
    num_seeds = max(len(row.networks) for row in benchmark.rows)
    seeds = f"mean ± standard deviation of {num_seeds} networks" if num_seeds > 1 else "one network per row"
    return (
        f"Each row trains {known.architecture} (images enlarged {known.upscale} times inside it) from random weights "
        f"for {known.steps} steps of {known.batch_size}, foreground against background, and is tested on "
        f"{known.num_test} drawings of the avatars domain that nothing has seen, with exact masks, at their "
        f"{known.resolution} px. "
        f"Synthetic rows learn from {known.num_synthetic} images of `{known.checkpoint}` (psi "
        f"{known.truncation_psi}) with the row's masks, unselected; supervised rows from drawings with exact masks. "
        f"IoU in percent, of one confusion matrix; {seeds}. The trimap is the band of metrics.boundary_band. "
        f"Seconds: of making the pairs, and of one training, on {known.device} with {known.threads} threads."
    )


def _table(benchmark: DownstreamBenchmark) -> str:
    head = ("learns from", "pairs", *COLUMNS, "pairs, s", "training, s")
    return markdown_table(head, [_cells(row) for row in benchmark.rows])


def _cells(row: DownstreamRowResult) -> tuple[str, ...]:
    figures = row.figures()
    label_seconds = row.networks[0].label_seconds
    times = [result.training_seconds for result in row.networks]
    return (
        row.title,
        str(row.num_pairs) if row.num_pairs else "",
        *(_figure(figures[column]) if column in figures else "" for column in COLUMNS),
        "" if label_seconds is None else f"{label_seconds:.0f}",
        f"{sum(times) / len(times):.0f}" if row.num_pairs else "",
    )


def _figure(value: tuple[float, float | None]) -> str:
    middle, deviation = value
    return f"{100 * middle:.1f}" if deviation is None else f"{100 * middle:.1f} ± {100 * deviation:.1f}"


def _what_labels_are_worth(benchmark: DownstreamBenchmark) -> str:
    """How many exact masks give what the synthetic pairs give."""
    mious = {row.row: row.figures()["mIoU"][0] for row in benchmark.rows}
    supervised = [(row.num_pairs, mious[row.row]) for row in benchmark.rows if row.row.startswith("supervised")]
    if "style_mixing" not in mious or not supervised:
        return ""
    ours = mious["style_mixing"]
    enough = [count for count, miou in sorted(supervised) if miou >= ours]
    most = max(supervised)
    gap = f"{100 * (most[1] - ours):.1f} points below {most[0]} exact masks"
    if not enough:
        return f"Masks by style mixing, without a label, do better than {most[0]} exact masks."
    if enough[0] == min(supervised)[0]:
        return f"{enough[0]} exact mask does better than masks by style mixing: {gap}."
    fewer = max(count for count, _ in supervised if count < enough[0])
    return f"Masks by style mixing, without a label, are worth between {fewer} and {enough[0]} exact ones: {gap}."


def _published_table() -> str:
    head = ("masks by", *COLUMNS)
    rows = [(name, *(f"{100 * value:.0f}" for value in figures)) for name, figures in PUBLISHED.items()]
    return markdown_table(head, rows)

"""The report of a finished dataset: one HTML page with everything inside, to look at and to pass on."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jinja2
import yaml
from markupsafe import Markup

from labelmill.pipeline.dataset.claim import shard_splits
from labelmill.pipeline.pictures.overlay import IGNORE_HATCH, class_colours
from labelmill.pipeline.report.data import (
    Picture,
    Tally,
    interleaved,
    picture,
    read_candidates,
    read_manifest_and_records,
    read_pictures,
    spread,
    spread_rows,
)
from labelmill.pipeline.report.figures import Histogram, describe_histogram, draw_histogram
from labelmill.pipeline.report.pictures import BannerTile, Triple, banner_tile, fitting_edge, show_triple
from labelmill.pipeline.shards.sample_files import OPTIONAL_FILES
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import QualityConfig
from labelmill.schemas.manifest import Manifest
from labelmill.schemas.sample import Sample
from labelmill.schemas.shard import ShardRecord

REPORT_PATH = "report/index.html"
NUM_SAMPLES, NUM_LEAST_CONFIDENT, NUM_DROPPED, NUM_BANNER = 24, 12, 12, 8
MAX_LISTED_SHARDS = 2000

Redraw = Callable[[Sequence[int]], list[Sample]]


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart."""

    name: str
    amount: float
    share: float
    """Of the whole, in [0, 1]."""
    colour: str
    note: str


@dataclass(frozen=True)
class Panels:
    """The pictures of the page."""

    banner: list[BannerTile]
    samples: list[Triple]
    least_confident: list[Triple]
    dropped: list[Triple]


def write_report(store: Store, redraw: Redraw | None) -> str:
    """Write the report of a complete dataset and return its path in the store.

    `redraw` makes the dropped candidates of some seeds again, in order, to be shown; without it they are counted
    only. Raises OutputError when the dataset is not complete, or damaged.
    """
    manifest, records = read_manifest_and_records(store)
    tally = Tally([*manifest.classes, "ignore"], NUM_LEAST_CONFIDENT, NUM_DROPPED)
    for record in records:
        tally.add(read_candidates(store, manifest, record))
    panels = _panels(store, manifest, records, tally, redraw)
    splits = shard_splits(store, len(records), manifest.config["dataset"]["splits"])
    page = _render(manifest, records, splits, tally, panels)
    store.replace(REPORT_PATH, page.encode())
    return REPORT_PATH


def _panels(
    store: Store, manifest: Manifest, records: Sequence[ShardRecord], tally: Tally, redraw: Redraw | None
) -> Panels:
    """Pick, read or redraw, and encode what is shown."""
    sample_rows = spread_rows(store, manifest, records, NUM_SAMPLES)
    pictures = read_pictures(store, [*sample_rows, *tally.least_confident], manifest)
    samples = [pictures[row.seed] for row in sample_rows]
    least_confident = [pictures[row.seed] for row in tally.least_confident]
    dropped = _redrawn(tally, redraw) if redraw is not None else []
    colours = class_colours(len(manifest.classes))
    edge = fitting_edge([*samples, *least_confident, *dropped], colours)
    return Panels(
        banner=[banner_tile(samples[index], colours, edge) for index in spread(len(samples), NUM_BANNER)],
        samples=[show_triple(item, manifest.classes, colours, edge) for item in samples],
        least_confident=[show_triple(item, manifest.classes, colours, edge) for item in least_confident],
        dropped=[show_triple(item, manifest.classes, colours, edge) for item in dropped],
    )


def _redrawn(tally: Tally, redraw: Redraw) -> list[Picture]:
    """Dropped candidates of every reason, drawn again."""
    rows = interleaved(tally.dropped.values(), NUM_DROPPED)
    samples = redraw([row.seed for row in rows]) if rows else []
    return [picture(row, sample) for row, sample in zip(rows, samples, strict=True)]


def _render(
    manifest: Manifest, records: Sequence[ShardRecord], splits: Sequence[str], tally: Tally, panels: Panels
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("labelmill.pipeline.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=_count, size=_size, percent=_percent, seconds=_seconds)
    quality = QualityConfig.model_validate(manifest.config["quality"]).keeping(manifest.promise)
    return environment.get_template("page.html.j2").render(
        manifest=manifest,
        optional_files=[file for file in OPTIONAL_FILES if file.ending in manifest.optional_files],
        run_file=yaml.safe_dump(manifest.config, sort_keys=False, allow_unicode=True),
        panels=panels,
        num_dropped=manifest.num_candidates - manifest.num_samples,
        quality=quality,
        legend=_legend(manifest),
        class_bars=_class_bars(manifest, tally),
        charts=[
            (Markup(draw_histogram(histogram)), describe_histogram(histogram))
            for histogram in _histograms(tally, quality)
        ],
        reason_bars=_reason_bars(manifest, quality),
        stage_bars=_stage_bars(records),
        num_timed=sum(record.seconds_by_stage is not None for record in records),
        shards=list(zip(records, splits, strict=True))[:MAX_LISTED_SHARDS],
        shards_by_split=Counter(splits),
        devices=Counter(record.device for record in records if record.device is not None),
    )


def _legend(manifest: Manifest) -> list[tuple[str, str]]:
    """Name and colour of each class."""
    colours = class_colours(len(manifest.classes))
    return [(name, _hex(colour)) for name, colour in zip(manifest.classes, colours, strict=True)]


def _class_bars(manifest: Manifest, tally: Tally) -> list[Bar]:
    """Share of pixels by class, in the order of mask values; of ignored ones too where there are any."""
    total = sum(manifest.class_pixels.values())
    colours = _legend(manifest)
    if manifest.class_pixels["ignore"]:
        colours.append(("ignore", _hex(IGNORE_HATCH)))
    return [
        Bar(
            name=name,
            amount=manifest.class_pixels[name],
            share=manifest.class_pixels[name] / total,
            colour=colour,
            note=_percent(tally.containing[name] / tally.num_kept),
        )
        for name, colour in colours
    ]


def _histograms(tally: Tally, quality: QualityConfig) -> list[Histogram]:
    def chart(score: str, label: str, minimum: float, maximum: float | None) -> Histogram:
        limits = (minimum, maximum) if quality.enabled else (None, None)
        return Histogram(score, label, tally.histograms[score, True], tally.histograms[score, False], *limits)

    return [
        chart("confidence", "confidence", quality.confidence_min, None),
        chart("foreground", "foreground share", quality.foreground_min, quality.foreground_max),
        chart("largest_component", "largest component of the foreground", quality.largest_component_min, None),
    ]


def _reason_bars(manifest: Manifest, quality: QualityConfig) -> list[Bar]:
    """Drops by reason, the most frequent first."""
    meanings = {
        "foreground_too_small": f"foreground below {quality.foreground_min:g}",
        "foreground_too_large": f"foreground above {quality.foreground_max:g}",
        "low_confidence": f"confidence below {quality.confidence_min:g}",
        "too_few_instances": f"fewer than {quality.min_instances} instances",
        "fragmented": f"largest component below {quality.largest_component_min:g} of the foreground",
        "uncertain": "among the share that labeler.drop_portion drops",
    }
    counts = sorted(manifest.dropped_by_reason.items(), key=lambda item: (-item[1], item[0]))
    return [
        Bar(reason, count, count / manifest.num_candidates, "var(--dropped)", meanings.get(reason, ""))
        for reason, count in counts
    ]


def _stage_bars(records: Sequence[ShardRecord]) -> list[Bar]:
    """Seconds per stage over all shards with timings, in the order of the stages."""
    timed = [record for record in records if record.seconds_by_stage is not None]
    num_samples = sum(record.num_samples for record in timed)
    seconds: dict[str, float] = defaultdict(float)
    for record in timed:
        for stage, spent in (record.seconds_by_stage or {}).items():
            seconds[stage] += spent
    total = sum(seconds.values())
    return [
        Bar(stage, spent, spent / total if total else 0.0, "var(--kept)", f"{1000 * spent / num_samples:,.2f} ms")
        for stage, spent in seconds.items()
    ]


def _hex(colour: Sequence[int]) -> str:
    return "#" + bytes(colour).hex()


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _percent(share: float) -> str:
    """A share with two digits that matter; 0 and 100 only where exact."""
    if share in (0, 1):
        return f"{share:.0%}"
    if share < 0.0001:
        return "< 0.01%"
    if share > 0.999:
        return "> 99.9%"
    return f"{share:.{0 if 0.1 <= share <= 0.99 else 1 if share >= 0.01 else 2}%}"


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.{0 if num_bytes >= 100 or unit == 'bytes' else 1}f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def _seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"

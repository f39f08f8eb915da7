"""Charts of the report, as SVG to be put into the page: their colours are the page's, light or dark."""

import io
import re
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

# Matplotlib writes these colours; the page's CSS variables take their places.
_INK, _FAINT, _KEPT, _DROPPED = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {_INK: "--soft", _FAINT: "--line", _KEPT: "--kept", _DROPPED: "--dropped"}
# Bars in a chart: of the tallied bins, so many are put together that there are no more.
_MAX_BARS = 50


@dataclass(frozen=True)
class Histogram:
    """Counts over equal bins of [0, 1], and the limits of the quality rules on that score."""

    name: str
    """Unique in the page."""
    label: str
    kept: NDArray[np.int64]
    dropped: NDArray[np.int64]
    minimum: float | None
    """Candidates below are dropped."""
    maximum: float | None
    """Candidates above are dropped."""


def draw_histogram(histogram: Histogram) -> str:
    """An <svg> element: kept and dropped stacked, with the limits as dashed lines."""
    edges, kept, dropped = _bars(histogram)
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": histogram.name,
            "font.size": 12.5,
            "text.color": _INK,
            "axes.edgecolor": _FAINT,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    ):
        figure = Figure(figsize=(5.0, 3.0), layout="constrained")
        axes = figure.add_subplot()
        width = edges[1:] - edges[:-1]
        axes.bar(edges[:-1], kept, width, align="edge", color=_KEPT)
        axes.bar(edges[:-1], dropped, width, align="edge", bottom=kept, color=_DROPPED)
        _dress(axes, histogram.label, (float(edges[0]), float(edges[-1])))
        _mark_limits(axes, histogram)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _for_page(stream.getvalue(), histogram.name)


def describe_histogram(histogram: Histogram) -> str:
    """The chart in a sentence, for those who cannot see it."""
    parts = []
    for name, counts in (("kept", histogram.kept), ("dropped", histogram.dropped)):
        bins = np.flatnonzero(counts)
        if bins.size:
            middle = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
            low, high = bins[0] / len(counts), (bins[-1] + 1) / len(counts)
            parts.append(
                f"{int(counts.sum()):,} {name} from {low:.2f} to {high:.2f}, median about {middle / len(counts):.2f}"
            )
    limits = [
        f"{word} {limit:g}"
        for word, limit in (("at least", histogram.minimum), ("at most", histogram.maximum))
        if limit is not None
    ]
    demand = f" The quality rules ask for {' and '.join(limits)}." if limits else ""
    return f"Histogram of {histogram.label}: {'; '.join(parts)}.{demand}"


def _bars(histogram: Histogram) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Edges and counts of the bars that cover all candidates and limits."""
    num_bins = len(histogram.kept)
    used = [float(index) for index in np.flatnonzero(histogram.kept + histogram.dropped)]
    limits = [limit * num_bins for limit in (histogram.minimum, histogram.maximum) if limit is not None]
    low, high = min(used + limits, default=0.0), max([index + 1 for index in used] + limits, default=float(num_bins))
    merged = next(size for size in (1, 2, 4, 5, 10) if (high - low) / size <= _MAX_BARS - 2)
    first, last = max(0, int(low) // merged - 1), min(num_bins // merged, -int(-high // merged) + 1)
    bars = slice(first, last)
    kept, dropped = (counts.reshape(-1, merged).sum(axis=1)[bars] for counts in (histogram.kept, histogram.dropped))
    return np.arange(first, last + 1) * merged / num_bins, kept, dropped


def _dress(axes: Axes, label: str, limits: tuple[float, float]) -> None:
    axes.set_xlim(limits)
    axes.set_xlabel(label)
    axes.set_ylabel("candidates")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", color=_FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0, pad=6)


def _mark_limits(axes: Axes, histogram: Histogram) -> None:
    low, high = axes.get_xlim()
    top = axes.get_ylim()[1] * 1.12
    axes.set_ylim(0, top)
    for limit, word, outer in ((histogram.minimum, "min", low), (histogram.maximum, "max", high)):
        if limit is None:
            continue
        axes.axvspan(min(limit, outer), max(limit, outer), color=_DROPPED, alpha=0.08, linewidth=0)
        axes.axvline(limit, color=_DROPPED, linewidth=1.4, linestyle=(0, (4, 3)))
        leftward = limit - low > 0.5 * (high - low)
        axes.annotate(
            f"{word} {limit:g}",
            (limit, top),
            xytext=(-5 if leftward else 5, -1),
            textcoords="offset points",
            ha="right" if leftward else "left",
            va="top",
            color=_DROPPED,
            fontsize=12,
        )


def _for_page(svg: str, name: str) -> str:
    """Only the element; colours and font from the page; ids that no other chart has."""
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"font: ([0-9.]+px) [^;\"]+", r"font: \1 var(--font)", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    # Its size in points would win over the page's width.
    return re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg))

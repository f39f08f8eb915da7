"""The mask benchmark as pictures, PNG."""

import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from labelmill.pipeline.benchmark.masks.results import ConfidenceCurve, MaskBenchmark, MasksRowResult
from labelmill.pipeline.benchmark.masks.rows import MODES, Axis, base_of
from labelmill.pipeline.benchmark.masks.tables import along, axes_by_field, summary_rows

Picture = NDArray[np.uint8]

_INK, _SOFT, _BLUE, _ORANGE = "#262a33", "#9aa0ad", "#3f66d8", "#d98800"
_DPI = 130
_STRIP_INCHES, _TITLE_INCHES = 5.0, 3.0


def settings_plot(benchmark: MaskBenchmark) -> bytes:
    """mIoU and trimap along each setting, in both modes."""
    fields = axes_by_field(benchmark)
    figure = Figure(figsize=(3.2 * len(fields), 6.0), layout="constrained")
    grid = figure.subplots(2, len(fields), sharey="row", sharex="col", squeeze=False)
    for column, (field, axes) in enumerate(fields.items()):
        _settings_panel(grid[0][column], axes, benchmark, lambda result: result.test.scores.miou)
        _settings_panel(grid[1][column], axes, benchmark, lambda result: result.test.scores.trimap_3px.miou)
        grid[1][column].set_xlabel(field)
    grid[0][0].set_ylabel("mIoU on test images, %")
    grid[1][0].set_ylabel("3 px trimap, %")
    grid[0][0].legend(loc="lower right", frameon=False, fontsize=8)
    return _png(figure)


def _settings_panel(
    panel: Axes, axes: Sequence[Axis], benchmark: MaskBenchmark, score: Callable[[MasksRowResult], float | None]
) -> None:
    for axis in axes:
        colour, marker = (_BLUE, "o") if axis.mode == MODES[0] else (_ORANGE, "s")
        by_value = along(axis, benchmark)
        places = np.arange(len(by_value))
        values = [_percent(score(result)) for result in by_value.values()]
        panel.plot(places, values, color=colour, marker=marker, label=axis.mode)
        default = [place for place, result in enumerate(by_value.values()) if result.row.name == base_of(axis.mode)]
        panel.axvline(default[0], color=_SOFT, linewidth=8, alpha=0.15, zorder=0)
        panel.set_xticks(places, list(by_value), fontsize=8)
    panel.margins(x=0.12)
    _dress(panel)


def controls_plot(benchmark: MaskBenchmark) -> bytes:
    """The summary's rows as bars."""
    results = summary_rows(benchmark)[::-1]
    figure = Figure(figsize=(8, 0.42 * len(results) + 1), layout="constrained")
    panel = figure.subplots()
    places = np.arange(len(results))
    ours = (benchmark.default, benchmark.tuned)
    whole = np.array([_percent(result.test.scores.miou) for result in results])
    bounds = np.array([[100 * bound for bound in result.interval] for result in results]).T
    colours = [_BLUE if result.row.name in ours else _SOFT for result in results]
    panel.barh(places, whole, color=colours, xerr=abs(bounds - whole), error_kw={"ecolor": _INK, "capsize": 2})
    near = [_percent(result.test.scores.trimap_3px.miou) for result in results]
    panel.plot(near, places, color=_ORANGE, marker="s", linestyle="", label="3 px trimap")
    panel.set_yticks(places, [_title(result, benchmark) for result in results])
    panel.set_xlim(0, 100)
    panel.set_xlabel("mIoU on test images, %")
    panel.legend(loc="lower right", fontsize=8)
    _dress(panel)
    return _png(figure)


def _title(result: MasksRowResult, benchmark: MaskBenchmark) -> str:
    is_tuned = result.row.name == benchmark.tuned != benchmark.default
    return f"tuned: {result.row.title}" if is_tuned else result.row.title


def cost_plot(benchmark: MaskBenchmark) -> bytes:
    """mIoU against the time of an image."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    timed = [(result.seconds_per_image, result) for result in benchmark.rows if result.seconds_per_image is not None]
    for is_mixed, colour, label in ((True, _BLUE, "style mixing"), (False, _SOFT, "controls")):
        chosen = [(s, result) for s, result in timed if (result.row.kind == "style_mixing") == is_mixed]
        heights = [_percent(result.test.scores.miou) for _, result in chosen]
        panel.scatter([1000 * seconds for seconds, _ in chosen], heights, color=colour, s=22, label=label)
    marks = {benchmark.tuned: "tuned", benchmark.default: "default"}
    for (name, label), marker in zip(marks.items(), "D*", strict=False):
        result = benchmark.result(name)
        place = [1000 * (result.seconds_per_image or 0)], [_percent(result.test.scores.miou)]
        panel.scatter(*place, color=_ORANGE, marker=marker, s=90, label=label, zorder=3)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("ms per image, from seed to mask")
    panel.set_ylabel("mIoU on test images, %")
    panel.legend(loc="lower right", fontsize=8)
    _dress(panel)
    return _png(figure)


def confidence_plot(curves: Sequence[ConfidenceCurve]) -> bytes:
    """mIoU of the images that are kept, against the share that was dropped; below, mIoU against confidence."""
    figure = Figure(figsize=(4.6 * len(curves), 7.2), layout="constrained")
    panels, lower = figure.subplots(2, len(curves), sharey="row", squeeze=False)
    for panel, curve in zip(lower, curves, strict=True):
        _predicted_panel(panel, curve)
    lower[0].set_ylabel("mean of images' mIoU, %")
    for panel, curve in zip(panels, curves, strict=True):
        shares = [100 * share for share in curve.dropped_share]
        panel.plot(shares, [100 * value for value in curve.at_best], color=_SOFT, label="lowest mIoU first (the most)")
        panel.plot(
            shares,
            [100 * value for value in curve.by_confidence],
            color=_BLUE,
            marker="o",
            label="least confident first",
        )
        panel.axhline(100 * curve.by_confidence[0], color=_SOFT, linestyle=":", label="at random")
        panel.set_title(curve.row, fontsize=9)
        panel.set_xlabel("dropped, %")
        _dress(panel)
    panels[0].set_ylabel("mIoU of the images kept, %")
    panels[0].legend(loc="lower right", frameon=False, fontsize=8)
    return _png(figure)


def _predicted_panel(panel: Axes, curve: ConfidenceCurve) -> None:
    """Where confidence is right, points lie on the diagonal."""
    confidences, mious = ([100 * getattr(group, name) for group in curve.bins] for name in ("confidence", "miou"))
    ends = [min(confidences + mious, default=0), 100]
    panel.plot(ends, ends, color=_SOFT, linestyle=":", label="as predicted")
    panel.plot(confidences, mious, color=_BLUE, marker="o", label="a tenth of the images each")
    panel.set_xlabel("confidence, %")
    panel.legend(loc="lower right", frameon=False, fontsize=8)
    _dress(panel)


def examples_plot(strips: Mapping[str, Picture]) -> bytes:
    """Rows of pictures with their titles: RGB [H, W, 3], or masks [H, W] of 0 and 1."""
    height, width = next(iter(strips.values())).shape[:2]
    strip_height = _STRIP_INCHES * height / width
    figure = Figure(figsize=(_STRIP_INCHES + _TITLE_INCHES, 1.08 * strip_height * len(strips)))
    panels = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    figure.subplots_adjust(_TITLE_INCHES / (_STRIP_INCHES + _TITLE_INCHES), 0.005, 0.995, 0.995, hspace=0.08)
    for panel, (title, strip) in zip(panels, strips.items(), strict=True):
        panel.imshow(strip, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        panel.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        panel.set_xticks([])
        panel.set_yticks([])
    return _png(figure)


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _dress(panel: Axes) -> None:
    panel.grid(color=_SOFT, alpha=0.3, linewidth=0.6)
    panel.set_axisbelow(True)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()

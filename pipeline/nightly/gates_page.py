"""gates.html: the verdicts, and both snapshots side by side, on one page with everything inside."""

from dataclasses import dataclass

import jinja2

from labelmill.pipeline.dataset.manifest import read_manifest
from labelmill.pipeline.pictures.overlay import class_colours
from labelmill.pipeline.report.data import Picture, read_manifest_and_records, read_pictures, spread_rows
from labelmill.pipeline.report.pictures import Triple, fitting_edge, show_triple
from labelmill.pipeline.store.store import Store
from labelmill.schemas.nightly_files import GateReport, Measures

NUM_PICTURES = 8
"""Of each snapshot."""


@dataclass(frozen=True)
class ClassShare:
    """A class in both snapshots: shares of all pixels, in [0, 1]."""

    name: str
    tonight: float
    live: float | None
    """None where nothing is live."""
    colour: str


def gates_page(tonight: Store, live: Store | None, report: GateReport) -> bytes:
    """The page. Raises OutputError where a dataset is damaged."""
    assert report.tonight is not None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("labelmill.pipeline.nightly", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    page = environment.get_template("gates_page.html.j2").render(
        report=report,
        shares=_class_shares(tonight, report.tonight, report.live_measures),
        bins=_bins(report.tonight, report.live_measures),
        pictures=_triples(tonight),
        live_pictures=[] if live is None else _triples(live),
    )
    return page.encode()


def figure(value: float | None) -> str:
    """A number of any size in few digits."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"


def _class_shares(tonight: Store, measures: Measures, live: Measures | None) -> list[ClassShare]:
    classes = read_manifest(tonight).classes
    colours = {name: f"rgb({r} {g} {b})" for name, (r, g, b) in zip(classes, class_colours(len(classes)), strict=True)}
    ours, theirs = measures.class_pixels, {} if live is None else live.class_pixels
    return [
        ClassShare(
            name=name,
            tonight=ours.get(name, 0) / sum(ours.values()),
            live=theirs.get(name, 0) / sum(theirs.values()) if theirs else None,
            colour=colours.get(name, "var(--soft)"),
        )
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) or theirs.get(name)
    ]


def _bins(tonight: Measures, live: Measures | None) -> list[tuple[str, float, float | None]]:
    """Each bin of the foreground's share with the samples in it, as shares of all."""
    width = 1 / len(tonight.foreground_histogram)
    theirs = None if live is None else live.foreground_histogram
    return [
        (
            f"{100 * number * width:.0f} to {100 * (number + 1) * width:.0f}%",
            count / tonight.num_samples,
            None if theirs is None or live is None else theirs[number] / live.num_samples,
        )
        for number, count in enumerate(tonight.foreground_histogram)
    ]


def _triples(dataset: Store) -> list[Triple]:
    manifest, records = read_manifest_and_records(dataset)
    rows = spread_rows(dataset, manifest, records, NUM_PICTURES)
    found = read_pictures(dataset, rows, manifest)
    pictures: list[Picture] = [found[row.seed] for row in rows]
    colours = class_colours(len(manifest.classes))
    edge = fitting_edge(pictures, colours)
    return [show_triple(picture, manifest.classes, colours, edge) for picture in pictures]

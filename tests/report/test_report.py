"""The report of real shards, in a real browser."""

import base64
import hashlib
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.browser import find_browser
from helpers.small_dataset import KIND
from numpy.typing import NDArray

from labelmill.pipeline.avatars.avatars import CLASSES, render
from labelmill.pipeline.dataset.finish import DatasetContext, finish_dataset
from labelmill.pipeline.pictures.overlay import class_colours
from labelmill.pipeline.quality import judge_sample
from labelmill.pipeline.report.data import Row, interleaved, spread
from labelmill.pipeline.report.figures import Histogram, describe_histogram, draw_histogram
from labelmill.pipeline.report.report import write_report
from labelmill.pipeline.shards.check import ShardOrigin
from labelmill.pipeline.shards.publisher import publish_shard, read_record
from labelmill.pipeline.shards.reader import candidates_of, members_in, metadata_in
from labelmill.pipeline.shards.sealed import seal
from labelmill.pipeline.shards.writer import ShardWriter
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import DatasetConfig, GeneratorConfig, QualityConfig, RunConfig
from labelmill.schemas.errors import OutputError
from labelmill.schemas.manifest import CheckpointSource
from labelmill.schemas.sample import Candidate, ImageShape, Sample, SampleMetadata, sample_key
from labelmill.schemas.shard import ShardTask, shard_name

Draw = Callable[[int], tuple[NDArray[np.uint8], NDArray[np.uint8]]]

HOSTILE = "<script>alert(1)</script>"
FINGERPRINT = "5f2a" * 16
STRICT = QualityConfig(confidence_min=0.55, foreground_max=0.6)
SECONDS = {"synthesise": 3.0, "label": 1.5, "encode": 0.5}


def avatar(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    portrait = render(seed, 64)
    return portrait.image_HWC, portrait.mask_HW


@dataclass(frozen=True)
class Recipe:
    """A dataset to build: seeds in order, confidences that fall from 0.99 over seventeen seeds, real rules."""

    num_shards: int = 3
    samples_per_shard: int = 12
    classes: tuple[str, ...] = CLASSES
    quality: QualityConfig = STRICT
    draw: Draw = avatar
    drop_reason: str | None = None
    """In place of the reasons that the rules give."""

    def sample(self, seed: int) -> Sample:
        image_HWC, mask_HW = self.draw(seed)
        confidence = 0.99 - 0.03 * (seed % 17)
        candidate = judge_sample(mask_HW, confidence, None, seed, self.classes, self.quality)
        if not candidate.kept and self.drop_reason is not None:
            candidate = candidate.model_copy(update={"drop_reason": self.drop_reason})
        return Sample(sample_key(seed), image_HWC, mask_HW, _metadata(candidate))

    def redraw(self, seeds: Sequence[int]) -> list[Sample]:
        return [self.sample(seed) for seed in seeds]


def _metadata(candidate: Candidate) -> SampleMetadata:
    return SampleMetadata(
        key=sample_key(candidate.seed),
        candidate=candidate,
        dropped_before=(),
        channel_means=(0.5, 0.5, 0.5),
        channel_square_means=(0.3, 0.3, 0.3),
        truncation_psi=0.7,
        truncation_cutoff=None,
        noise="const",
        method="style_mixing",
        checkpoint_sha256="ab" * 32,
        fingerprint=FINGERPRINT,
    )


def build(folder: Path, recipe: Recipe) -> Store:
    """A finished dataset, through the writer and the publisher that every run uses."""
    store = Store.open(str(folder))
    per_shard = recipe.samples_per_shard
    dataset = DatasetConfig(samples=recipe.num_shards * per_shard, samples_per_shard=per_shard)
    config = RunConfig(
        name="avatars",
        output=str(folder),
        generator=GeneratorConfig(checkpoint="bundled:avatars-64"),
        dataset=dataset,
        quality=recipe.quality,
    )
    records = []
    height, width, channels = recipe.draw(0)[0].shape
    shape = ImageShape.model_validate({"height": height, "width": width, "channels": channels})
    origin = ShardOrigin(FINGERPRINT, "ab" * 32, recipe.classes, shape, "jpg")
    with ThreadPoolExecutor(1) as threads:
        for index in range(recipe.num_shards):
            first_seed = index * dataset.seeds_per_shard
            name = shard_name("avatars", index)
            tar = _make_tar(recipe, ShardWriter("jpg", 95, threads), first_seed)
            task = ShardTask(
                index=index,
                name=name,
                num_samples=per_shard,
                first_seed=first_seed,
                num_seeds=dataset.seeds_per_shard,
            )
            records.append(
                publish_shard(
                    store,
                    task,
                    tar,
                    origin=origin,
                    seconds_by_stage=SECONDS,
                    attempts=1,
                    host="host",
                    kind=KIND,
                )
            )
    checkpoint = CheckpointSource(
        reference="bundled:avatars-64",
        sha256="ab" * 32,
        format="labelmill",
        licence="Apache-2.0 & friends",
        attribution="avataaars by Pablo Stanley",
    )
    context = DatasetContext(
        config=config,
        checkpoint=checkpoint,
        labeler_sha256=hashlib.sha256(b"fitted").hexdigest(),
        fingerprint=FINGERPRINT,
        classes=recipe.classes,
        image_shape=origin.image_shape,
    )
    finish_dataset(store, records, context)
    return store


def _make_tar(recipe: Recipe, writer: ShardWriter, seed: int) -> bytes:
    dropped: list[Candidate] = []
    while writer.num_samples < recipe.samples_per_shard:
        sample = recipe.sample(seed)
        seed += 1
        if not sample.metadata.candidate.kept:
            dropped.append(sample.metadata.candidate)
            continue
        metadata = sample.metadata.model_copy(update={"dropped_before": tuple(dropped)})
        writer.add(replace(sample, metadata=metadata))
        dropped = []
    return writer.finish()


def page_of(store: Store, recipe: Recipe) -> str:
    return store.read(write_report(store, recipe.redraw)).decode()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three shards of portraits; some candidates dropped for their confidence, some for their foreground."""
    return build(tmp_path_factory.mktemp("report") / "avatars", Recipe())


@pytest.fixture(scope="module")
def page(dataset: Store) -> str:
    return page_of(dataset, Recipe())


class Outline(HTMLParser):
    """Tags with their attributes, and text by the section that it stands in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text_by_section: dict[str, str] = {}
        self._section = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs)["id"] or ""

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        self.text_by_section[self._section] = f"{self.text_by_section.get(self._section, '')} {words}".strip()


def rows_of(store: Store) -> list[Candidate]:
    """Every candidate of a dataset, from the tars and not from the parquet files that the report reads."""
    tars = [file.path for file in store.list("shards") if file.path.endswith(".tar")]
    shards = (metadata_in(members_in(store.read(tar))) for tar in tars)
    return [candidate for samples in shards for candidate in candidates_of(samples)]


# What is on the page


def test_page_is_self_contained_and_small(page: str) -> None:
    assert len(page.encode()) < 10_000_000
    tags = Outline(page).tags
    references = [attrs[name] or "" for _, attrs in tags for name in ("src", "href", "xlink:href") if name in attrs]
    assert references
    assert all(reference.startswith(("data:", "#")) for reference in references)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in tags}
    policies = [attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "url(http" not in page and "@import" not in page


def test_page_counts_what_the_tars_hold(dataset: Store, page: str) -> None:
    candidates = rows_of(dataset)
    dropped = [candidate for candidate in candidates if not candidate.kept]
    assert {candidate.drop_reason for candidate in dropped} == {"low_confidence", "foreground_too_large"}
    sections = Outline(page).text_by_section
    assert f"Candidates {len(candidates)}" in sections[""] and "Samples 36" in sections[""]
    assert "Apache-2.0 & friends" in sections[""] and FINGERPRINT[:16] in sections[""]
    assert FINGERPRINT in sections["origin"]
    for reason in ("low_confidence", "foreground_too_large"):
        count = sum(candidate.drop_reason == reason for candidate in dropped)
        assert f"{reason} {count} · {count / len(candidates):.1%}" in sections["dropped"]
    pixels = sum(candidate.class_pixels["hair"] for candidate in candidates if candidate.kept) / (36 * 64 * 64)
    images = sum(candidate.class_pixels["hair"] > 0 for candidate in candidates if candidate.kept) / 36
    assert f"hair {pixels:.{0 if pixels >= 0.1 else 1}%} {images:.0%}" in sections["classes"]
    scores = [candidate.confidence for candidate in candidates if candidate.kept]
    low, high = np.floor(min(scores) * 200) / 200, np.ceil(max(scores) * 200) / 200
    assert f"Histogram of confidence: 36 kept from {low:.2f} to {high:.2f}, median" in page
    # 3 s of 5 s in each of 3 shards of 12 samples.
    assert "synthesise 9.00 s · 60% 250.00 ms" in sections["time"]
    assert "avatars-000002" in sections["shards"]


def test_page_shows_the_least_confident_worst_first(dataset: Store, page: str) -> None:
    kept = [candidate for candidate in rows_of(dataset) if candidate.kept]
    worst = sorted(kept, key=lambda candidate: (candidate.confidence, candidate.seed))[:12]
    shown = re.findall(r"seed (\d+)", Outline(page).text_by_section["uncertain"])
    assert shown == [str(candidate.seed) for candidate in worst]


def test_samples_are_spread_over_the_shards(dataset: Store, page: str) -> None:
    seeds = [int(seed) for seed in re.findall(r"seed (\d+)", Outline(page).text_by_section["samples"])]
    assert len(set(seeds)) == 24
    assert [sum(seed // 48 == shard for seed in seeds) for shard in range(3)] == [8, 8, 8]
    kept = {candidate.seed for candidate in rows_of(dataset) if candidate.kept}
    assert set(seeds) <= kept


def test_dropped_samples_of_every_reason_are_redrawn(dataset: Store) -> None:
    asked: list[int] = []

    def redraw(seeds: Sequence[int]) -> list[Sample]:
        asked.extend(seeds)
        return Recipe().redraw(seeds)

    page = dataset.read(write_report(dataset, redraw)).decode()
    dropped = {candidate.seed: candidate for candidate in rows_of(dataset) if not candidate.kept}
    assert len(asked) == len(set(asked)) == min(12, len(dropped))
    assert {dropped[seed].drop_reason for seed in asked} == {"low_confidence", "foreground_too_large"}
    text = Outline(page).text_by_section["dropped"]
    for seed in asked:
        assert f"seed {seed} {dropped[seed].drop_reason} confidence {dropped[seed].confidence:.2f}" in text


def test_shown_pictures_are_those_of_the_dataset(page: str) -> None:
    figure = page.split('<figure class="triple">')[1]
    seed = int(re.findall(r"seed (\d+)</span>", figure)[0])
    image_HWC, mask_HW, _ = (_decode(uri) for uri in re.findall(r'src="([^"]+)"', figure))
    true_image_HWC, true_mask_HW = avatar(seed)
    # Shown at twice the size: masks in squares of one colour each, images within JPEG's loss.
    np.testing.assert_array_equal(mask_HW[::2, ::2], class_colours(len(CLASSES))[true_mask_HW])
    np.testing.assert_array_equal(mask_HW[::2, ::2], mask_HW[1::2, 1::2])
    smaller_HWC = cv2.resize(image_HWC, (64, 64), interpolation=cv2.INTER_AREA).astype(float)
    assert np.abs(smaller_HWC - true_image_HWC).mean() < 6


def _decode(uri: str) -> NDArray[np.uint8]:
    data = np.frombuffer(base64.b64decode(uri.split(",", 1)[1]), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), dtype=np.uint8)


def test_equal_datasets_get_equal_pages(dataset: Store, page: str) -> None:
    assert page_of(dataset, Recipe()) == page


# Datasets that lack something


def test_no_drops_are_said_in_a_sentence(tmp_path: Path) -> None:
    recipe = Recipe(num_shards=1, samples_per_shard=3, quality=QualityConfig())
    text = Outline(page_of(build(tmp_path, recipe), recipe)).text_by_section
    assert text["dropped"] == "Dropped No candidate was dropped: all 3 pass every quality rule."
    assert "All samples" in text["samples"]
    recipe = replace(recipe, quality=QualityConfig(enabled=False))
    text = Outline(page_of(build(tmp_path / "off", recipe), recipe)).text_by_section
    assert "turned off" in text["dropped"]


def test_without_redraw_the_page_says_how_to_see_the_dropped(dataset: Store) -> None:
    page = dataset.read(write_report(dataset, None)).decode()
    text = Outline(page).text_by_section["dropped"]
    assert "seed" not in text.split("Reason")[0].replace("seeds", "")
    assert "labelmill report" in text and "bundled:avatars-64" in text and "--keep-rejects" in text


def test_missing_timings_are_said_in_a_sentence(tmp_path: Path) -> None:
    recipe = Recipe(num_shards=2, samples_per_shard=3)
    store = build(tmp_path, recipe)
    _forget_timings(store, 0)
    text = Outline(page_of(store, recipe)).text_by_section["time"]
    assert "1 of 2 shards" in text and "synthesise 3.00 s · 60% 1,000.00 ms" in text
    _forget_timings(store, 1)
    assert "No shard has timings" in Outline(page_of(store, recipe)).text_by_section["time"]


def _forget_timings(store: Store, index: int) -> None:
    record = read_record(store, index)
    assert record is not None
    forgotten = dict.fromkeys(("seconds_by_stage", "attempts", "host", "device", "created", "kind"))
    store.replace(f"records/{index:06d}.json", seal(record.model_copy(update=forgotten)))


def test_large_noisy_pictures_stay_within_the_limit(tmp_path: Path) -> None:
    def noise(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        random = np.random.default_rng(seed)
        return (
            random.integers(0, 256, (512, 512, 3), dtype=np.uint8),
            random.integers(0, 11, (512, 512), dtype=np.uint8),
        )

    recipe = Recipe(num_shards=1, samples_per_shard=36, quality=QualityConfig(enabled=False), draw=noise)
    assert 2_000_000 < len(page_of(build(tmp_path, recipe), recipe)) < 10_000_000


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("manifest.json", r"has no manifest\.json.*labelmill generate"),
        ("records/000001.json", r"1 of 2 records.*records/000001\.json.*verify --repair"),
        ("shards/avatars-000001.parquet", r"avatars-000001\.parquet.*verify --repair"),
        ("shards/avatars-000001.tar", r"avatars-000001\.tar.*labelmill verify"),
    ],
)
def test_an_incomplete_dataset_is_refused(tmp_path: Path, missing: str, message: str) -> None:
    recipe = Recipe(num_shards=2, samples_per_shard=2)
    store = build(tmp_path, recipe)
    store.delete(missing)
    with pytest.raises(OutputError, match=message):
        write_report(store, recipe.redraw)
    assert not store.exists("report/index.html")


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    recipe = Recipe(num_shards=1, samples_per_shard=2)
    store = build(tmp_path, recipe)
    tar = store.read("shards/avatars-000000.tar")
    store.replace("shards/avatars-000000.tar", tar[:10240])
    with pytest.raises(OutputError, match=r"avatars-000000\.tar: cannot be shown"):
        write_report(store, recipe.redraw)
    store.replace("shards/avatars-000000.tar", tar)
    store.replace("shards/avatars-000000.parquet", b"PAR1 nonsense")
    with pytest.raises(OutputError, match=r"avatars-000000\.parquet: missing or damaged"):
        write_report(store, recipe.redraw)


def test_names_are_escaped(tmp_path: Path) -> None:
    recipe = Recipe(
        num_shards=1,
        samples_per_shard=6,
        classes=("background", HOSTILE, '"><img src=x onerror=alert(2)>', *CLASSES[3:]),
        quality=QualityConfig(confidence_min=0.9),
        drop_reason=HOSTILE,
    )
    page = page_of(build(tmp_path, recipe), recipe)
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 3
    outline = Outline(page)
    assert "script" not in {tag for tag, _ in outline.tags}
    assert not any(name.startswith("on") for _, attrs in outline.tags for name in attrs)
    assert HOSTILE in outline.text_by_section["classes"] and HOSTILE in outline.text_by_section["dropped"]


# Picks and charts


def test_spread_is_even_and_never_repeats() -> None:
    assert spread(10, 5) == [1, 3, 5, 7, 9]
    assert spread(3, 24) == [0, 1, 2]
    assert spread(0, 24) == []
    picked = spread(1_000_003, 24)
    assert np.ptp(np.diff(picked)) <= 1 and len(picked) == 24


def test_interleaved_takes_from_every_group() -> None:
    def rows(reason: str, count: int) -> list[Row]:
        return [Row(seed, "shard", reason, 0.5, 0.5, 1.0) for seed in range(count)]

    picked = interleaved([rows("a", 20), rows("b", 1), rows("c", 3)], 8)
    assert [(row.drop_reason, row.seed) for row in picked] == [
        *(("a", seed) for seed in range(4)),
        ("b", 0),
        *(("c", seed) for seed in range(3)),
    ]


def test_histogram_draws_every_candidate_once_and_its_limits() -> None:
    kept, dropped = np.zeros(200, dtype=np.int64), np.zeros(200, dtype=np.int64)
    kept[[120, 150, 199]], dropped[[3, 120]] = (5, 10, 20), (7, 1)
    histogram = Histogram("one", "confidence", kept, dropped, minimum=0.5, maximum=None)
    svg = draw_histogram(histogram)
    assert svg.startswith("<svg") and svg.count("var(--kept)") and svg.count("var(--dropped)")
    assert "min 0.5" in svg and "max" not in svg
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids and len(ids) == len(set(ids)) and all(name.startswith("one-") for name in ids)
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)) and not re.findall(r"#[0-9a-f]{6}\b", svg)
    description = describe_histogram(histogram)
    assert "35 kept from 0.60 to 1.00" in description and "8 dropped from 0.01 to 0.60" in description
    assert "at least 0.5" in description


# In a browser

PROBE = """
<script>
addEventListener("load", () => {
  const all = query => [...document.querySelectorAll(query)];
  const texts = all("body *").filter(e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) &&
    !e.closest(".hidden, script, style") && e.checkVisibility());
  const shown = e => { const box = e.getBoundingClientRect(); return box.width > 0 && box.height > 0; };
  const result = {
    images: all("img").map(e => [e.naturalWidth, e.getBoundingClientRect().width, e.alt]),
    masks: all("img.crisp").map(e => e.getBoundingClientRect()).map(b => [b.x, b.y, b.width, b.height]),
    overflow: document.scrollingElement.scrollWidth,
    legend: all(".legend li").map(e => [e.textContent, getComputedStyle(e.firstChild).backgroundColor]),
    sections: Object.fromEntries(all("section").map(e =>
      [e.id, [...e.querySelectorAll("img, table, svg, .note")].filter(shown).length])),
    smallest_text: Math.min(...texts.map(e => parseFloat(getComputedStyle(e).fontSize) *
      (e.ownerSVGElement ? Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b) : 1))),
    heads_without_scope: all("th:not([scope])").length,
    repeated_ids: all("[id]").length - new Set(all("[id]").map(e => e.id)).size,
    dead_links: all("a").filter(e => !document.querySelector(e.getAttribute("href"))).length,
    requests: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    page: getComputedStyle(document.body).backgroundColor,
    charts: all(".charts figure").map(e => e.getBoundingClientRect().x),
    shard_lines: all("#shards .scroll tbody th").map(e => {
      const range = document.createRange();
      range.selectNodeContents(e);
      return range.getClientRects().length;
    }),
    past_the_edge: all("main *, header *").filter(e => !e.closest(".scroll, .hidden") &&
      e.getBoundingClientRect().right > innerWidth + 1).length,
  };
  if (parent != window) {
    parent.postMessage(JSON.stringify(result), "*");
    return;
  }
  const output = document.createElement("pre");
  output.id = "probe";
  output.textContent = JSON.stringify(result);
  document.body.append(output);
});
</script>
"""


# A window is never narrower than 500 pixels: a phone's page is shown in a frame of another, which takes its measures.
PHONE = """
<!DOCTYPE html><body><iframe src="probed.html" style="width: 390px; height: 7000px; border: 0"></iframe><script>
addEventListener("message", event => {
  const output = document.createElement("pre");
  output.id = "probe";
  output.textContent = event.data;
  document.body.append(output);
});
</script>
"""


@dataclass(frozen=True)
class Visit:
    """What a browser printed, and what it complained about."""

    stdout: str
    console: list[str]


@pytest.fixture(scope="module")
def browser() -> str:
    return find_browser()


def visit(browser: str, file: Path, *arguments: str) -> Visit:
    """Open a file in a headless browser 1280 pixels wide, with a fresh profile and no way to the network."""
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={file.parent / 'profile'}"),
        *("--window-size=1280,7000", *arguments, file.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Visit(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def probe(browser: str, page: str, folder: Path, *arguments: str, on_phone: bool = False) -> dict[str, object]:
    """The page measured by a script, which its security policy would not run: that is taken out of the copy.

    on_phone: 390 pixels wide."""
    policy = re.search(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", page)
    assert policy is not None
    file = folder / "probed.html"
    file.write_text(page.replace(policy[0], "").replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    if on_phone:
        file = folder / "phone.html"
        file.write_text(PHONE, encoding="utf-8")
        arguments = (*arguments, "--virtual-time-budget=5000")  # for the message between frames
    dom = visit(browser, file, "--dump-dom", *arguments).stdout
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None, dom[-2000:]
    measured = json.loads(found[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))
    assert isinstance(measured, dict)
    return measured


def test_browser_shows_everything(browser: str, page: str, tmp_path: Path) -> None:
    measured = probe(browser, page, tmp_path)
    images = measured["images"]
    assert isinstance(images, list) and len(images) >= 3 * (24 + 12 + 2) + 8
    assert all(natural > 0 and shown >= 110 and alt for natural, shown, alt in images)
    assert measured["overflow"] == 1280
    colours = [f"rgb({red}, {green}, {blue})" for red, green, blue in class_colours(len(CLASSES)).tolist()]
    legend = measured["legend"]
    assert isinstance(legend, list)
    assert [tuple(entry) for entry in legend[:-1]] == list(zip(CLASSES, colours, strict=True))
    assert legend[-1][0] == "ignore"
    sections = measured["sections"]
    assert isinstance(sections, dict)
    panels = ["samples", "uncertain", "dropped", "classes", "scores", "time", "shards"]
    assert list(sections) == [*panels, "origin"]
    assert all(sections[panel] > 0 for panel in panels)
    smallest = measured["smallest_text"]
    assert isinstance(smallest, float | int) and smallest >= 11
    nothing = ("heads_without_scope", "repeated_ids", "dead_links")
    assert {key: measured[key] for key in nothing} == dict.fromkeys(nothing, 0)
    assert measured["requests"] == []


def test_browser_shows_it_on_a_phone(browser: str, tmp_path: Path) -> None:
    """One column of charts, names of shards in one line, nothing past the edge, however long names are."""
    recipe = Recipe(samples_per_shard=6, drop_reason="a_reason_of_many_words_" * 3)
    measured = probe(browser, page_of(build(tmp_path / "dataset", recipe), recipe), tmp_path, on_phone=True)
    charts = measured["charts"]
    assert isinstance(charts, list) and len(charts) == 3 and len(set(charts)) == 1
    assert measured["shard_lines"] == [1, 1, 1]
    assert measured["overflow"] == 390 and measured["past_the_edge"] == 0
    smallest = measured["smallest_text"]
    assert isinstance(smallest, float | int) and smallest >= 10


def test_browser_has_nothing_to_complain_about(browser: str, page: str, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text(page, encoding="utf-8")
    visited = visit(browser, file, f"--screenshot={tmp_path / 'page.png'}")
    assert visited.console == []
    screenshot_HWC = np.asarray(cv2.imread(str(tmp_path / "page.png"), cv2.IMREAD_COLOR_RGB))
    assert screenshot_HWC.shape[1] == 1280
    # Masks reach the screen in their exact colours, with no blend of two at their edges.
    boxes = probe(browser, page, tmp_path)["masks"]
    assert isinstance(boxes, list) and len(boxes) >= 24 + 12 + 2
    allowed = {tuple(colour) for colour in class_colours(len(CLASSES)).tolist()}
    for left, top, width, height in boxes:
        mask_HWC = screenshot_HWC[round(top) + 2 : int(top + height) - 2, round(left) + 2 : int(left + width) - 2]
        assert mask_HWC.size and {tuple(colour) for colour in mask_HWC.reshape(-1, 3).tolist()} <= allowed


def test_browser_follows_the_dark_scheme(browser: str, page: str, tmp_path: Path) -> None:
    light = probe(browser, page, tmp_path)
    dark = probe(browser, page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert light["page"] == "rgb(245, 246, 250)" and dark["page"] == "rgb(15, 18, 25)"


def test_browser_runs_nothing_that_names_hold(browser: str, tmp_path: Path) -> None:
    recipe = Recipe(
        num_shards=1,
        samples_per_shard=6,
        classes=("background", HOSTILE, "x" * 300, '"><img src=x onerror=alert(2)>', *CLASSES[4:]),
        quality=QualityConfig(confidence_min=0.9),
        drop_reason=HOSTILE + "y" * 200,
    )
    measured = probe(browser, page_of(build(tmp_path / "dataset", recipe), recipe), tmp_path)
    assert measured["requests"] == []
    assert measured["overflow"] == 1280
    images, legend = measured["images"], measured["legend"]
    assert isinstance(images, list) and all(natural > 0 for natural, _, _ in images)
    assert isinstance(legend, list) and [name for name, _ in legend[:-1]] == list(recipe.classes)

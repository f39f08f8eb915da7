"""What the class benchmark measures: rows, and what each gave."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from labelmill.pipeline.benchmark.masks.results import MasksSettings
from labelmill.pipeline.labelers.feature_clusters.fitted import DiscoveryRecord
from labelmill.schemas.labelers.feature_clusters import DiscoverConfig, FeatureClustersConfig
from labelmill.schemas.scores import Scores

CLASS_PROMPTS = {
    name: [name]
    for name in (
        "background", "skin", "hair", "eyes", "brows", "nose", "mouth", "clothes", "glasses", "beard", "hat",
    )
}  # fmt: skip
"""The 11 classes of the avatars domain in the oracles' order, each with the one prompt that is its name."""
PROMPTED_CLUSTERS = FeatureClustersConfig(
    method="feature_clusters",
    names=CLASS_PROMPTS,
    prompt_model="bundled:avatars-prompts",
    min_margin=0.2,
    unsure="background",
)
RARE = ("hat", "glasses", "beard")
_FEW: dict[str, Any] = {"clusters": 24, "normalisation": "none", "foreground": "clusters"}
"""As in the paper."""
DEFAULT = "default"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassRow(_Record):
    """One setting."""

    name: str
    title: str
    group: Literal["reference", "discovery", "layers", "clusters", "naming", "untruncated"]
    truncation_psi: float
    labeler: FeatureClustersConfig | None
    """null: the other oracle, as if it were a labeler."""


class ClusterResult(_Record):
    """A cluster's name and what it is."""

    name: str
    is_unsure: bool
    truth: str
    """The class that most of its pixels have, as the oracle sees them."""
    truth_share: float
    """Share of its pixels that have it."""
    share: float
    """Of all pixels of the test images."""
    similarity: float | None
    margin: float | None


class ClassResult(_Record):
    """`classes-rows/<name>.json`."""

    row: ClassRow
    key: str
    layers: list[str]
    scores: Scores
    """Against oracle B."""
    agreed: Scores
    """The same without the pixels on which the oracles disagree."""
    truly_named: Scores | None
    """With every cluster named by what most of its pixels are on other images."""
    clusters: list[ClusterResult]
    seconds_per_image: float | None
    bare_seconds_per_image: float | None
    """Of synthesis alone, in the same minutes."""
    discoveries: list[DiscoveryRecord]

    @property
    def named(self) -> list[ClusterResult]:
        """Clusters that got a name and cover anything."""
        return [cluster for cluster in self.clusters if not cluster.is_unsure and cluster.share > 0]


class StudentResult(_Record):
    """`classes-students/<name>.json`: a network that learned masks, on drawings that nothing has seen."""

    key: str
    name: str
    title: str
    steps: int
    upscale: int
    """How much images are enlarged inside the network."""
    num_pairs: int
    label_seconds: float | None
    """That its masks took, fit included; null for exact ones."""
    training_seconds: float
    scores: Scores


class ClassBenchmark(_Record):
    """`classes.json`."""

    format: Literal["labelmill-class-benchmark"] = "labelmill-class-benchmark"
    version: Literal[1] = 1
    quick: bool
    circumstances: MasksSettings
    num_dev: int
    num_test: int
    rows: tuple[ClassResult, ...]
    students: tuple[StudentResult, ...]

    def result(self, row: str) -> ClassResult:
        """A row by its name."""
        return next(result for result in self.rows if result.row.name == row)


def discover(*rare: str) -> list[DiscoverConfig]:
    """What to look for, by names of classes."""
    article = {"hat": "a hat", "glasses": "glasses", "beard": "a beard"}
    return [
        DiscoverConfig(prompt=f"a person with {article[name]}", against=f"a person without {article[name]}", name=name)
        for name in rare
    ]


def class_rows(default: FeatureClustersConfig, layers: tuple[str, ...], truncation_psi: float) -> list[ClassRow]:
    """All rows. layers: convolutions to compare, coarse to fine; the default differs in one setting from each row."""

    def row(name: str, title: str, group: str, psi: float = truncation_psi, **changes: object) -> ClassRow:
        labeler = FeatureClustersConfig.model_validate({**default.model_dump(), **changes})
        return ClassRow.model_validate(
            {"name": name, "title": title, "group": group, "truncation_psi": psi, "labeler": labeler}
        )

    found = [
        row(DEFAULT, f"default: {layers[-1]}, k {default.clusters}", "discovery"),
        *(row(f"discover-{name}", f"discovery of {name}", "discovery", discover=discover(name)) for name in RARE),
        row("discover-all", "discovery of all three", "discovery", discover=discover(*RARE)),
        row("untruncated", "psi 1, default", "untruncated", 1.0),
        row("untruncated-discover", "psi 1, discovery of all three", "untruncated", 1.0, discover=discover(*RARE)),
        *(row(f"layer-{name}", name, "layers", layers=name) for name in layers[:-1]),
        row("layers-two", f"{layers[-3]} + {layers[-1]}", "layers", layers=[layers[-3], layers[-1]]),
        row("layers-all", " + ".join(layers[1:]), "layers", layers=list(layers[1:])),
        row("layers-auto", "auto", "layers", layers="auto"),
        row("plain", f"{layers[-1]}, not standardised", "layers", normalisation="none"),
        *(row(f"clusters-{k}", f"k {k}", "clusters", clusters=k) for k in (12, 24, 48, 192)),
        row("clusters-chosen", "k chosen from 24 to 192", "clusters", clusters=[24, 48, 96, 192]),
        row("foreground-of-clusters", "clusters alone decide on the foreground", "clusters", foreground="clusters"),
        row("few", "k 24, not standardised, clusters alone", "clusters", **_FEW),
        *(row(f"fit-{n}", f"another fit, {n}", "clusters", fit_first_seed=4_100_000_000 - n * 1000) for n in (1, 2)),
        *(row(f"margin-{margin:g}", f"margin {margin:g}", "naming", min_margin=margin) for margin in (0.0, 0.1, 0.3)),
    ]
    other = ClassRow(
        name="other-judge", title="oracle A", group="reference", truncation_psi=truncation_psi, labeler=None
    )
    return [other, *found]

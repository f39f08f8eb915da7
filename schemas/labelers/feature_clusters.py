"""The run file's section of the feature-clusters labeler."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from labelmill.schemas.cluster_mapping import ClassName, ClusterMapping, check_class_names, load_mapping
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.section import PRINTABLE, SEED_LIMIT, LocatedSection, Section, check_seed_range, folder_of
from labelmill.schemas.user_path import expand_user

_LEAST_POSITIVES = 8
"""Fewest images that the direction of an edit can be learned from."""


class DiscoverConfig(Section):
    """A rare class to look for, and what to tell it from."""

    prompt: str = Field(min_length=1)
    """Description of an image with the class: `a person with a beard`."""
    against: str = Field(min_length=1)
    """Description of any other image: `a person without a beard`. An image's score is how much nearer `prompt` is."""
    name: str | None = None
    """The class of `names` to look for. New clusters that prompts give another name, or none, are dropped, as the edit
    did not show the class. null keeps all new clusters."""
    positive_share: float = Field(0.05, gt=0, le=0.5)
    """Share of the scored images, those with the highest scores, that count as images with the class."""
    moved_share: float = Field(0.5, gt=0, le=1)
    """Share of the images of `fit` that the edit must bring above the lowest score of those; the weakest such edit is
    taken."""
    extra_clusters: int = Field(8, ge=0, le=64)
    """Clusters in addition to `clusters`. They start from pixels of edited images: those nearest to the class `name`,
    or without a name those that the edit changes most. With a name choose more than the class needs: too few clusters
    are mixtures that prompts do not name so, far too many are splinters of other classes. Without a name all are
    kept."""

    def num_positive(self, num_scored: int) -> int:
        """Number of the scored images that count as images with the class."""
        return round(self.positive_share * num_scored)


class FeatureClustersConfig(LocatedSection):
    """Semantic parts without labels: pixels of all images clustered by the generator's features (Segmentation in
    Style, Pakhomov et al., 2021).

    `fit` clusters features over many images; a sample is labeled from its own synthesis, each pixel by the nearest
    centroid. Clusters get names by prompts, or by hand in the `clusters.yaml` that `fit` writes; without either they
    are `cluster_0`, ... The defaults were chosen on the bundled generator and an earlier training of it.
    """

    method: Literal["feature_clusters"]
    """Name of the labeling method."""
    layers: str | list[str] | None = None
    """Convolutions whose features are clustered: one, such as b64.conv1, a list to concatenate, or `auto`. null: the
    second convolution of block b64, or of the generator's highest block if that is lower. `auto` compares the second
    convolutions of all blocks from b16 to b128 in `fit`, by how stable their clusters are and how well the clusters
    follow the images' colours (pipeline/labelers/feature_clusters/choose.py)."""
    normalisation: Literal["none", "standardised"] = "standardised"
    """`standardised` divides every channel by its standard deviation; the paper does not."""
    clusters: Annotated[int, Field(ge=2, le=4096)] | list[Annotated[int, Field(ge=2, le=4096)]] = 96
    """k of k-means. Many more than there are classes: small parts get clusters of their own, and names join those of
    one class. On dev images of the bundled generators 24 give a mIoU of .29 to .37, 96 .44 to .49, and 192 .01 more.
    From a list with `names`, `fit` chooses the k whose clusters show most classes, among equals one with few pixels in
    unsure clusters, and among these the smallest; without names, the k with the most clusters found in both halves of
    the images, minus those that are not (pipeline/labelers/feature_clusters/choose.py)."""
    restarts: int = Field(4, ge=1, le=64)
    """k-means starts; the start with the least inertia is kept."""
    iterations: int = Field(20, ge=1, le=200)
    """Lloyd iterations per start, on some of the pixels."""
    passes: int = Field(3, ge=1, le=50)
    """Lloyd iterations after the starts, each over all images of `fit`."""
    fit_samples: int = Field(256, ge=16)
    """Images that `fit` clusters. Memory does not grow with their number."""
    fit_first_seed: int = Field(4_100_000_000, ge=0, lt=SEED_LIMIT)
    """First seed of these images; the others count up from it."""
    names: dict[ClassName, list[str]] | None = None
    """Prompts per class, such as `hair: [hair, a hairstyle]`; the first class is the background. Each cluster gets the
    class with the nearest prompt; several clusters may share a class."""
    prompt_model: str | None = Field(None, pattern=PRINTABLE)
    """The vision-language model that `names` and `discover` need: `bundled:avatars-prompts`, or a model of open-clip
    with a file of its weights, `open-clip:RN50@path/to/weights`, relative to the run file."""
    naming_samples: int = Field(64, ge=1)
    """Images of `fit` that the prompt model sees to name clusters."""
    min_margin: float = Field(0.02, ge=0, le=2)
    """A cluster is unsure unless the cosine of its class exceeds every other class's by at least this."""
    unsure: Literal["background", "ignore"] = "ignore"
    """Label of the pixels of unsure clusters until a person names them."""
    mapping: str | ClusterMapping | None = None
    """Path of a `clusters.yaml`, relative to the run file, which names clusters instead of `names`. `names` still
    decides k of a list and the new clusters that `discover` keeps, so leave it unchanged. The file is read once: its
    content, not its path, is part of the run."""
    foreground: Literal["label_free", "clusters", "auto"] = "auto"
    """What decides between background (the first class) and the rest: the clusters, or the foreground that style mixing
    finds without labels (`label_free`), within which clusters then compete. `auto`: the latter where clusters have
    names, and it agrees with their foreground."""
    least_agreement: float = Field(0.7, ge=0, le=1)
    """Least IoU (mean of foreground and background) of both foregrounds for `foreground: auto`. Clusters of the bundled
    generators, whose backgrounds mix with clothes, give .8 and less."""
    style_mixing: StyleMixingConfig = StyleMixingConfig()
    """How style mixing looks for that foreground."""
    discover: list[DiscoverConfig] = Field(default_factory=list)
    """Rare classes for which images are edited, so that each class gets its own clusters."""
    discovery_samples: int = Field(2000, ge=100)
    """Images scored for `discover`."""
    discovery_truncation_psi: float = Field(1.0, ge=0, le=2)
    """Truncation psi of these images: a low value makes rare things rarer."""
    discovery_first_seed: int = Field(4_200_000_000, ge=0, lt=SEED_LIMIT)
    """First seed of these images; the others count up from it."""
    edited_samples: int = Field(64, ge=8)
    """Edited images per rare class that its clusters are fitted to."""
    probabilities: bool = Field(False, exclude_if=lambda wanted: not wanted)
    """Samples also get {key}.probabilities.png: how likely each pixel is of each class. What ignored clusters have is
    shared by the others. With names from prompts, on the bundled generator, the likeliest class has 92.5 % on average
    and is right in 88.5 %: prompts may name clusters wrongly, which no probability knows of."""

    @property
    def wants_foreground(self) -> bool:
        """Whether style mixing looks for a foreground."""
        return self.foreground != "clusters" and (self.names is not None or self.mapping is not None)

    @field_validator("clusters")
    @classmethod
    def _check_candidates(cls, clusters: int | list[int]) -> int | list[int]:
        if isinstance(clusters, list) and (not clusters or sorted(set(clusters)) != clusters):
            raise ValueError(f"a list of k must be in rising order, got {clusters}")
        return clusters

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: str | list[str] | None) -> str | list[str] | None:
        if isinstance(layers, list) and (not layers or len(set(layers)) != len(layers)):
            raise ValueError(f"a list of layers must name at least one layer and each only once, got {layers}")
        return layers

    @field_validator("names")
    @classmethod
    def _check_names(cls, names: dict[str, list[str]] | None) -> dict[str, list[str]] | None:
        if names is not None:
            check_class_names(list(names))
            mute = [name for name, prompts in names.items() if not prompts or not all(map(str.strip, prompts))]
            if mute:
                raise ValueError(f"each class needs a prompt; {', '.join(mute)} has none, or an empty one")
        return names

    @field_validator("mapping", mode="before")
    @classmethod
    def _read_mapping(cls, mapping: Any, info: ValidationInfo) -> Any:
        return load_mapping(folder_of(info) / expand_user(mapping)) if isinstance(mapping, str) else mapping

    @model_validator(mode="after")
    def _check_together(self) -> "FeatureClustersConfig":
        check_seed_range("fit_first_seed", self.fit_first_seed, self.fit_samples)
        check_seed_range("discovery_first_seed", self.discovery_first_seed, self.discovery_samples)
        if self.foreground == "label_free" and self.names is None and self.mapping is None:
            raise ValueError(
                "foreground: label_free, but clusters without names have no background; set labeler.names or "
                "labeler.mapping, or foreground: auto"
            )
        if self.style_mixing.parts != 1 or self.style_mixing.masks_from != "readout":
            raise ValueError(
                "style_mixing: only the foreground as a whole, read from features, is of use here; leave out parts and "
                "masks_from"
            )
        asking = [name for name in ("names", "discover") if getattr(self, name)]
        if asking and self.prompt_model is None:
            raise ValueError(
                f"{' and '.join(asking)}: prompts need a vision-language model; set labeler.prompt_model, such as "
                f"bundled:avatars-prompts or open-clip:RN50@/path/to/weights, or leave prompts out and name clusters "
                f"by hand with labeler.mapping"
            )
        unknown = [rare.name for rare in self.discover if rare.name is not None and rare.name not in (self.names or {})]
        if unknown:
            raise ValueError(
                f"discover: {', '.join(unknown)} not among the classes of names; add it there with its prompts, or "
                f"leave `name` out"
            )
        for rare in self.discover:
            num_positive = rare.num_positive(self.discovery_samples)
            if num_positive < _LEAST_POSITIVES:
                raise ValueError(
                    f"discover: positive_share {rare.positive_share:g} of {self.discovery_samples} images is "
                    f"{num_positive} for {rare.prompt!r}; {_LEAST_POSITIVES} are needed: raise discovery_samples, or "
                    f"the share"
                )
        for name in ("naming_samples", "edited_samples"):
            if getattr(self, name) > self.fit_samples and (name == "naming_samples" or self.discover):
                raise ValueError(
                    f"{name}: {getattr(self, name)} of the {self.fit_samples} images of fit_samples; lower the first "
                    f"or raise the second"
                )
        return self

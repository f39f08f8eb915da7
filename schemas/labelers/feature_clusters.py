"""The run file's section of the feature-clusters labeler."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from labelmill.schemas.cluster_mapping import ClassName, ClusterMapping, check_class_names, load_mapping
from labelmill.schemas.section import PRINTABLE, SEED_LIMIT, LocatedSection, Section, check_seed_range, folder_of
from labelmill.schemas.user_path import expand_user

_LEAST_POSITIVES = 8
"""Images that the direction of an edit can be learned from."""


class DiscoverConfig(Section):
    """A rare class to look for: what it is, and what it is told from."""

    prompt: str = Field(min_length=1)
    """What an image with the class shows: `a person with a beard`."""
    against: str = Field(min_length=1)
    """What any other image shows: `a person without a beard`. Images are scored by how much nearer the prompt is."""
    name: str | None = None
    """The class of `names` that this is. New clusters that prompts give another name, or none, are dropped again: the
    edit did not show what was asked for. null keeps them all."""
    positive_share: float = Field(0.05, gt=0, le=0.5)
    """Share of the scored images that are taken for images with the class: those of the highest scores."""
    moved_share: float = Field(0.5, gt=0, le=1)
    """The edit is the weakest that brings so many of the images of `fit` over the lowest score of those."""
    extra_clusters: int = Field(8, ge=0, le=64)
    """Clusters beside `clusters`, which start from pixels of edited images: those that come nearest to the class
    `name`, or without a name those that the edit changes most. With a name take more than it needs: few are mixtures
    that prompts do not give it, very many are splinters of other classes. Without one all are kept."""

    def num_positive(self, num_scored: int) -> int:
        """How many of the scored images are taken for images with the class."""
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
    """Convolutions whose features are clustered: one such as b64.conv1, a list that is concatenated, or `auto`. null:
    the second one of the block b64, or of the generator's highest if that is lower. `auto` compares the second
    ones of all blocks from b16 to b128 in `fit`, by how stable their clusters are and how well these follow the
    images' colours (pipeline/labelers/feature_clusters/choose.py)."""
    normalisation: Literal["none", "standardised"] = "none"
    """`standardised` divides every channel by its deviation; the paper does not."""
    clusters: Annotated[int, Field(ge=2, le=4096)] | list[Annotated[int, Field(ge=2, le=4096)]] = 24
    """k of k-means. Of a list with `names`, `fit` takes the k whose clusters bear most classes, of equals one with few
    pixels in unsure clusters, and of these the least; without names, that with the most clusters which come out of
    either half of the images, less those that do not (pipeline/labelers/feature_clusters/choose.py)."""
    restarts: int = Field(4, ge=1, le=64)
    """k-means starts; the one with the least inertia is kept."""
    iterations: int = Field(20, ge=1, le=200)
    """Lloyd iterations of each start, on some pixels."""
    passes: int = Field(3, ge=1, le=50)
    """Lloyd iterations after that, each over all images of `fit`."""
    fit_samples: int = Field(256, ge=16)
    """Images that `fit` clusters. Memory does not grow with them."""
    fit_first_seed: int = Field(4_100_000_000, ge=0, lt=SEED_LIMIT)
    """Seeds of those images count up from here."""
    names: dict[ClassName, list[str]] | None = None
    """A class's prompts, such as `hair: [hair, a hairstyle]`; the first class is the background. Each cluster gets the
    class with the nearest prompt; several may share one."""
    prompt_model: str | None = Field(None, pattern=PRINTABLE)
    """The vision-language model that `names` and `discover` need: `bundled:avatars-prompts`, or a model of open-clip
    with a file of its weights, `open-clip:RN50@path/to/weights`, relative to the run file."""
    naming_samples: int = Field(64, ge=1)
    """Images of `fit` that clusters are looked at in."""
    min_margin: float = Field(0.02, ge=0, le=2)
    """A cluster is unsure unless the cosine of its class is so much above every other class's."""
    unsure: Literal["background", "ignore"] = "ignore"
    """What pixels of unsure clusters become until somebody names them."""
    mapping: str | ClusterMapping | None = None
    """Path of a `clusters.yaml`, relative to the run file, which then decides instead of `names`; these still choose k
    of a list, and which new clusters `discover` keeps, so leave them as they were. It is read once: its content, not
    its path, is part of the run."""
    discover: list[DiscoverConfig] = Field(default_factory=list)
    """Rare classes for which images are edited, so that they get clusters of their own."""
    discovery_samples: int = Field(2000, ge=100)
    """Images that are scored for `discover`."""
    discovery_truncation_psi: float = Field(1.0, ge=0, le=2)
    """Truncation psi of those images: rare things are rarer where it is low."""
    discovery_first_seed: int = Field(4_200_000_000, ge=0, lt=SEED_LIMIT)
    """Seeds of those images count up from here."""
    edited_samples: int = Field(64, ge=8)
    """Edited images of each rare class, which its clusters are fitted to."""

    @field_validator("clusters")
    @classmethod
    def _check_candidates(cls, clusters: int | list[int]) -> int | list[int]:
        if isinstance(clusters, list) and (not clusters or sorted(set(clusters)) != clusters):
            raise ValueError(f"a list of k must rise, got {clusters}")
        return clusters

    @field_validator("layers")
    @classmethod
    def _check_layers(cls, layers: str | list[str] | None) -> str | list[str] | None:
        if isinstance(layers, list) and (not layers or len(set(layers)) != len(layers)):
            raise ValueError(f"a list of layers names each once and one at least, got {layers}")
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
                    f"{name}: {getattr(self, name)} of the {self.fit_samples} images of fit_samples; lower the one or "
                    f"raise the other"
                )
        return self

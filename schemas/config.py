"""The run file: every field, its meaning and its one default.

A run file is YAML. Unknown keys are refused, values are never coerced, and all mistakes are reported at
once with their dotted keys.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from schemas.cluster_mapping import ClassName, ClusterMapping, check_class_names, load_mapping
from schemas.secrets import secret_in

# NumPy's RandomState, which NVIDIA's tools draw latents from, takes seeds below 2^32.
SEED_LIMIT = 2**32

# A path or URL: not empty, no control characters.
PRINTABLE = r"^[^\x00-\x1f]+$"


def _check_seed_range(name: str, first: int, count: int) -> None:
    if first + count > SEED_LIMIT:
        raise ValueError(
            f"{name} {first} plus {count} seeds passes 2^32, the limit of seeds; "
            f"{name} may be at most {max(0, SEED_LIMIT - count)}"
        )


class Section(BaseModel):
    """A part of a run file: frozen, strict about its keys, fields documented beneath them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def refused_secret(kind: str) -> str:
    """Why a checkpoint's URL may not hold a secret, of a kind that `secret_in` names."""
    return (
        f"{kind} in a URL is not supported: a run file is no place for secrets. Fetch the file and give its path, or "
        f"put it into a bucket (s3://, gs://, az://), whose credentials come from the environment"
    )


class GeneratorConfig(Section):
    """Which generator, and how latents become images."""

    checkpoint: str = Field(pattern=PRINTABLE)
    """`bundled:NAME`, a path, or an https://, s3://, gs:// or az:// URL of a StyleGAN2 checkpoint."""
    truncation_psi: float = Field(0.7, ge=0, le=2)
    """Truncation psi: 0 gives the mean image, 1 the untruncated distribution."""
    truncation_cutoff: int | None = Field(None, ge=1)
    """Truncate only the first so many rows of w. null truncates all of them."""
    noise: Literal["const", "none", "per_seed"] = "const"
    """Noise inputs: the checkpoint's own buffers, zeros, or drawn from each sample's seed. Variants of an
    image always share its noise."""
    classes: list[int] | dict[int, float] | Literal["all"] | None = None
    """For class-conditional generators: a list of class ids, a mapping of id to weight, or `all`."""

    @field_validator("checkpoint")
    @classmethod
    def _check_secrets(cls, checkpoint: str) -> str:
        secret = secret_in(checkpoint) if checkpoint.startswith(("http://", "https://")) else None
        if secret is not None:
            raise ValueError(refused_secret(secret))
        return checkpoint


class StyleMixingConfig(Section):
    """Network-free masks: pixels of a segment change together under style mixing (Feng et al., CVPR 2023).

    `fit` recolours many images by mixing styles, clusters their pixels, and merges the clusters into foreground and
    background without a label. The paper does not publish its own settings; these were chosen on an earlier training of
    the bundled generator and on ideal recolourings of drawings.
    """

    method: Literal["style_mixing"] = "style_mixing"
    """Name of the labeling method."""
    masks_from: Literal["readout", "clusters"] = "readout"
    """`clusters`, the paper's way: every image is recoloured, and its own clusters are its mask. `readout`: clusters
    of the images of `fit` teach a linear read-out of the generator's features, solved in closed form, and an image is
    labeled from its own synthesis alone, with no variants. It averages out what clusters get wrong at random, and costs
    a tenth."""
    parts: int = Field(1, ge=1, le=32)
    """Parts that the foreground is split into, by how they are recoloured and where they lie; each means the same in
    every image. Classes are then `background`, `part_1`, ... (the largest first) instead of `foreground`."""
    variants: int = Field(16, ge=2, le=256)
    """Style-mixed variants of an image that are clustered. With `masks_from: clusters` the time a sample goes with
    them."""
    variant_resolution: int | Literal["auto"] | None = "auto"
    """Resolution at which variants are synthesised and clustered; masks are snapped to the image's edges. null: the
    image's. `auto`: the lowest, of 32 pixels or more, whose masks hardly differ from those of full variants on images
    of `fit`. Generators with an RGB output at full resolution alone (`orig`, `resnet`) cannot stop lower. Of
    rectangular images it is the number of the block where synthesis stops, such as 64 for b64."""
    crossover: int | Literal["auto"] = "auto"
    """First row of w taken from the donor. Lower rows keep the image's layout. `auto` chooses it in `fit`: the lowest
    row, hence the strongest change of colour, that both following settings allow."""
    min_layout_agreement: float = Field(0.5, ge=0, le=1)
    """`crossover: auto` asks that the edges of image and variants agree so well, from the row on: 0 as those of two
    different images, 1 as those of an image with itself."""
    max_foreground_loss: float = Field(0.01, ge=0, le=1)
    """`crossover: auto` asks that masks from the variants agree with masks from the unmixed images' own colours: their
    mIoU may be so much below that of the best row."""
    clusters: int = Field(8, ge=2, le=64)
    """k of k-means. Above 2, clusters are merged into foreground and background by evidence calibrated in
    `fit`; 2 is the paper's setting."""
    normalisation: Literal["none", "centred", "standardised"] = "standardised"
    """What is done to each pixel's vector over the variants before clustering: nothing, its mean colour
    subtracted, or that and division by its deviation (correlation)."""
    restarts: int = Field(4, ge=1, le=64)
    """k-means starts an image; the one with the least inertia is kept."""
    iterations: int = Field(10, ge=1, le=100)
    """Lloyd iterations a start, a fixed number so that the work never depends on the data."""
    donor_first_seed: int = Field(4_000_000_000, ge=0, lt=SEED_LIMIT)
    """Seeds of the donors count up from here. All images share the donors, in this order."""
    donor_truncation_psi: float = Field(1.0, ge=0, le=2)
    """Truncation psi of the donors: higher means stronger colours."""
    fit_samples: int = Field(128, ge=16)
    """Images that `fit` looks at."""
    fit_first_seed: int = Field(4_100_000_000, ge=0, lt=SEED_LIMIT)
    """Seeds of those images count up from here."""

    @model_validator(mode="after")
    def _check_seeds(self) -> "StyleMixingConfig":
        _check_seed_range("donor_first_seed", self.donor_first_seed, self.variants)
        _check_seed_range("fit_first_seed", self.fit_first_seed, self.fit_samples)
        return self


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


class FeatureClustersConfig(Section):
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
    images' colours (pipeline/labelers/choose_clustering.py)."""
    normalisation: Literal["none", "standardised"] = "none"
    """`standardised` divides every channel by its deviation; the paper does not."""
    clusters: Annotated[int, Field(ge=2, le=4096)] | list[Annotated[int, Field(ge=2, le=4096)]] = 24
    """k of k-means. Of a list with `names`, `fit` takes the k whose clusters bear most classes, of equals one with few
    pixels in unsure clusters, and of these the least; without names, that with the most clusters which come out of
    either half of the images, less those that do not (pipeline/labelers/choose_clustering.py)."""
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
    with a file of its weights, `open-clip:RN50@/path/to/weights`."""
    naming_samples: int = Field(64, ge=1)
    """Images of `fit` that clusters are looked at in."""
    min_margin: float = Field(0.02, ge=0, le=2)
    """A cluster is unsure unless the cosine of its class is so much above every other class's."""
    unsure: Literal["background", "ignore"] = "ignore"
    """What pixels of unsure clusters become until somebody names them."""
    mapping: str | ClusterMapping | None = None
    """Path of a `clusters.yaml`, which then decides instead of `names`; these still choose k of a list, and which new
    clusters `discover` keeps, so leave them as they were. It is read once: its content, not its path, is part of the
    run."""
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
    def _read_mapping(cls, mapping: Any) -> Any:
        return load_mapping(mapping) if isinstance(mapping, str) else mapping

    @model_validator(mode="after")
    def _check_together(self) -> "FeatureClustersConfig":
        _check_seed_range("fit_first_seed", self.fit_first_seed, self.fit_samples)
        _check_seed_range("discovery_first_seed", self.discovery_first_seed, self.discovery_samples)
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


def _method_of(values: Any) -> Any:
    """The labeling method that a section is about; style mixing unless it says another."""
    if isinstance(values, dict):
        return str(values.get("method", StyleMixingConfig.model_fields["method"].default))
    return getattr(values, "method", None)


LabelerConfig = Annotated[
    Annotated[StyleMixingConfig, Tag("style_mixing")] | Annotated[FeatureClustersConfig, Tag("feature_clusters")],
    Discriminator(_method_of),
]


class DatasetConfig(Section):
    """How many samples, in which shards."""

    samples: int = Field(ge=1)
    """Samples delivered, exactly. No part of the fingerprint: raise it later and shards are added."""
    samples_per_shard: int = Field(500, ge=1)
    """Samples a shard; the last shard holds the remainder."""
    max_candidates_per_sample: int = Field(4, ge=1)
    """A shard may try at most so many seeds a sample before it fails."""
    first_seed: int = Field(0, ge=0, lt=SEED_LIMIT)
    """The first seed of shard 0. Each shard owns a block of seeds. Two datasets of one checkpoint share the images of
    the seeds that they share: give one to score on a range of its own, such as 2000000000."""
    image_format: Literal["jpg", "png", "webp"] = "jpg"
    """File format of the images. Masks are always 8-bit gray PNG."""
    image_quality: int = Field(95, ge=1, le=100)
    """Quality of jpg (4:4:4) and webp images."""
    splits: dict[str, float] = Field(default_factory=lambda: {"train": 0.9, "val": 0.1})
    """Share of shards a split. A shard's split follows from its index alone, so it never changes."""

    @field_validator("splits")
    @classmethod
    def _check_splits(cls, splits: dict[str, float]) -> dict[str, float]:
        if not splits or any(share < 0 for share in splits.values()) or abs(sum(splits.values()) - 1) > 1e-6:
            raise ValueError(f"shares must be 0 or more and sum to 1, got {splits}")
        strange = [name for name in splits if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name)]
        if strange:
            raise ValueError(
                f"{', '.join(map(repr, strange))} cannot name a split, as loaders (Hugging Face datasets among them) "
                f"take letters, digits and _ alone, a letter first"
            )
        return splits

    @property
    def seeds_per_shard(self) -> int:
        return self.samples_per_shard * self.max_candidates_per_sample

    @property
    def num_shards(self) -> int:
        return -(-self.samples // self.samples_per_shard)

    @model_validator(mode="after")
    def _check_seeds(self) -> "DatasetConfig":
        _check_seed_range("first_seed", self.first_seed, self.num_shards * self.seeds_per_shard)
        return self


class QualityConfig(Section):
    """Which samples are kept. Every drop is recorded with its reason."""

    enabled: bool = True
    """false keeps everything."""
    allow_weak_labeler: bool = False
    """Label even where `fit` found nothing that masks could mean, as with an untrained generator. No part of the
    fingerprint: it changes no byte."""
    foreground_min: float = Field(0.05, ge=0, le=1)
    """Drop as `foreground_too_small` when the foreground covers less of the image."""
    foreground_max: float = Field(0.95, ge=0, le=1)
    """Drop as `foreground_too_large` when the foreground covers more of the image."""
    confidence_min: float = Field(0.5, ge=0, le=1)
    """Drop as `low_confidence` when the labeler's confidence is lower."""
    largest_component_min: float = Field(0.8, ge=0, le=1)
    """Drop as `fragmented` when the largest connected piece holds less of the foreground."""


class NumericsConfig(Section):
    """What can change the bits of a shard. Part of the fingerprint."""

    batch_size: int = Field(16, ge=1, le=1024)
    """Candidates synthesised at once."""
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    """Arithmetic of synthesis. Half precisions need a GPU."""
    threads: int = Field(2, ge=1, le=256)
    """CPU threads within one operation. Their number decides how matrix products are split and thereby the last
    bits of a pixel, so it is fixed here instead of following the machine."""


class ExecutionConfig(Section):
    """Where the work runs. Never changes a byte, and never part of the fingerprint."""

    executor: Literal["local", "ray"] = "local"
    """`local` works in this process; `ray` has workers on a Ray cluster: the one that RAY_ADDRESS names, or that
    `ray start` started here, or one started for this run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes the GPU if there is one."""
    encode_threads: int = Field(2, ge=1, le=64)
    """Threads that encode images and masks while the device synthesises, in each worker."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Most Ray workers at once. Those that the cluster has no room for wait, which makes an autoscaler add nodes.
    `auto` takes as many as the cluster's nodes have room for, and more as nodes join."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs a Ray worker: a whole number, or a fraction, such as 0.5 for two workers a GPU. `auto` is 1, but 0 with
    `device: cpu` or where no node of the cluster has a GPU when the run starts."""
    cpus_per_worker: int = Field(2, ge=1)
    """CPU cores that a Ray worker reserves: for synthesis without a GPU, for encoding with one."""
    node_labels: dict[str, str] = Field(default_factory=dict)
    """Ray workers go only to nodes with these labels, e.g. {ray.io/accelerator-type: H200} on a mixed cluster."""
    shard_timeout_s: float = Field(3600, gt=0)
    """A Ray worker that takes longer for a shard is ended, and the shard made by another. The fit has as long."""
    start_timeout_s: float = Field(600, gt=0)
    """A Ray worker may take so long to load, the checkpoint's way over the network included; a run without any worker
    for twice as long ends, resumable."""
    keep_rejects: bool = False
    """Write dropped candidates to `rejects/`, one tar a shard, to look at."""

    @model_validator(mode="after")
    def _check_gpus(self) -> "ExecutionConfig":
        gpus = self.gpus_per_worker
        if gpus != "auto" and gpus > 1 and gpus != int(gpus):
            raise ValueError(f"gpus_per_worker: {gpus:g} is neither a whole number nor a fraction below 1")
        if gpus != "auto" and gpus > 0 and self.device == "cpu":
            raise ValueError(
                f"gpus_per_worker: {gpus:g} would reserve GPUs that `device: cpu` never uses; set 0 or auto"
            )
        if gpus == 0 and self.device == "cuda":
            raise ValueError("gpus_per_worker: 0, but `device: cuda` needs one; set 1, a fraction or auto")
        return self


class RunConfig(Section):
    """A whole run file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """Prefix of the shard files: lower-case letters, digits, - and _."""
    output: str = Field(pattern=PRINTABLE)
    """Folder or bucket that the dataset is written to: a path, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or
    az://CONTAINER/PREFIX. Credentials come from the environment, never from here."""
    generator: GeneratorConfig
    labeler: LabelerConfig = StyleMixingConfig()
    dataset: DatasetConfig
    quality: QualityConfig = QualityConfig()
    numerics: NumericsConfig = NumericsConfig()
    execution: ExecutionConfig = ExecutionConfig()

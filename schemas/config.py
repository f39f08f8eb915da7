"""The run file: every field, its meaning and its one default.

A run file is YAML. Unknown keys are refused, values are never coerced, and all mistakes are reported at
once with their dotted keys.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from labelmill.schemas.instances import InstancesConfig
from labelmill.schemas.labelers.alpha_network import AlphaNetworkConfig
from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig
from labelmill.schemas.labelers.few_shot import FewShotConfig
from labelmill.schemas.labelers.network import NetworkLabelerConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.promise import Promise, PromiseConfig
from labelmill.schemas.secrets import secret_in
from labelmill.schemas.section import PRINTABLE, SEED_LIMIT, LocatedSection, Section, check_seed_range


def refused_secret(kind: str) -> str:
    """The message that refuses a secret in a checkpoint's URL. kind: as `secret_in` names it."""
    return (
        f"{kind} in a URL is not supported: a run file must not hold secrets. Fetch the file and give its path, or "
        f"put it into a bucket (s3://, gs://, az://), whose credentials come from the environment"
    )


class GeneratorConfig(LocatedSection):
    """The generator, and how latents become images."""

    checkpoint: str = Field(pattern=PRINTABLE)
    """`bundled:NAME`, a path relative to the run file, or an https://, s3://, gs:// or az:// URL of a StyleGAN2
    checkpoint."""
    truncation_psi: float = Field(0.7, ge=0, le=2)
    """Truncation psi: 0 gives the mean image, 1 the untruncated distribution."""
    truncation_cutoff: int | None = Field(None, ge=1)
    """Number of leading rows of w that are truncated. null: all of them."""
    noise: Literal["const", "none", "per_seed"] = "const"
    """Noise inputs: the checkpoint's own buffers (`const`), zeros (`none`), or drawn from each sample's seed
    (`per_seed`). Variants of an image always share its noise."""
    classes: list[int] | dict[int, float] | Literal["all"] | None = None
    """For class-conditional generators: a list of class ids, a mapping of id to weight, or `all`."""

    @field_validator("checkpoint")
    @classmethod
    def _check_secrets(cls, checkpoint: str) -> str:
        secret = secret_in(checkpoint) if checkpoint.startswith(("http://", "https://")) else None
        if secret is not None:
            raise ValueError(refused_secret(secret))
        return checkpoint


def _method_of(values: Any) -> Any:
    """The labeling method of a section; style mixing unless it names another."""
    if isinstance(values, dict):
        return str(values.get("method", StyleMixingConfig.model_fields["method"].default))
    return getattr(values, "method", None)


LabelerConfig = Annotated[
    Annotated[StyleMixingConfig, Tag("style_mixing")]
    | Annotated[FeatureClustersConfig, Tag("feature_clusters")]
    | Annotated[FewShotConfig, Tag("few_shot")]
    | Annotated[AlphaNetworkConfig, Tag("alpha_network")]
    | Annotated[NetworkLabelerConfig, Tag("network")],
    Discriminator(_method_of),
]


class DatasetConfig(Section):
    """Number of samples and how they are divided into shards."""

    samples: int = Field(ge=1)
    """Exact number of samples in the dataset. Not part of the fingerprint: a larger number adds shards later."""
    samples_per_shard: int = Field(500, ge=1)
    """Samples per shard; the last shard holds the remainder."""
    max_candidates_per_sample: int = Field(4, ge=1)
    """Seeds a shard may try per kept sample before it fails."""
    first_seed: int = Field(0, ge=0, lt=SEED_LIMIT)
    """First seed of shard 0. Each shard owns a block of seeds. Two datasets from the same checkpoint have the same
    image for the same seed: give a dataset to score on a separate range, such as 2000000000."""
    image_format: Literal["jpg", "png", "webp"] = "jpg"
    """File format of the images. Masks are always 8-bit gray PNG."""
    image_quality: int = Field(95, ge=1, le=100)
    """Encoding quality of jpg (4:4:4) and webp images."""
    splits: dict[str, float] = Field(default_factory=lambda: {"train": 0.9, "val": 0.1})
    """Share of the shards per split. A shard's split depends only on its index, so it never changes."""

    @field_validator("splits")
    @classmethod
    def _check_splits(cls, splits: dict[str, float]) -> dict[str, float]:
        if not splits or any(share < 0 for share in splits.values()) or abs(sum(splits.values()) - 1) > 1e-6:
            raise ValueError(f"shares must be 0 or more and sum to 1, got {splits}")
        strange = [name for name in splits if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,63}", name)]
        if strange:
            raise ValueError(
                f"{', '.join(map(repr, strange))} cannot name a split, as loaders (Hugging Face datasets among them) "
                f"accept only letters, digits and _, starting with a letter"
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
        check_seed_range("first_seed", self.first_seed, self.num_shards * self.seeds_per_shard)
        return self


class QualityConfig(Section):
    """Rules that decide which samples are kept. Every dropped candidate is recorded with its reason."""

    enabled: bool = True
    """false keeps every candidate."""
    allow_weak_labeler: bool = False
    """Label even if `fit` found nothing that masks could show, as with an untrained generator. Not part of the
    fingerprint: it changes no byte."""
    foreground_min: float = Field(0.05, ge=0, le=1)
    """Drop as `foreground_too_small` if the foreground covers a smaller share of the image."""
    foreground_max: float = Field(0.95, ge=0, le=1)
    """Drop as `foreground_too_large` if the foreground covers a larger share of the image."""
    confidence_min: float = Field(0.5, ge=0, le=1)
    """Drop as `low_confidence` if the labeler's confidence is lower."""
    largest_component_min: float = Field(0.8, ge=0, le=1)
    """Drop as `fragmented` if the largest connected component holds a smaller share of the foreground."""
    min_instances: int | None = Field(None, ge=1, exclude_if=lambda least: least is None)
    """Drop as `too_few_instances` if an image has fewer instances. null: none are needed."""
    promise: PromiseConfig | None = Field(None, exclude_if=lambda promise: promise is None)
    """A promise about the kept samples' masks, which sets a higher `confidence_min` where it needs one."""

    def keeping(self, promise: Promise | None) -> "QualityConfig":
        """The same rules with the confidence limit that keeps a promise."""
        return self if promise is None else self.model_copy(update={"confidence_min": promise.confidence_min})


class NumericsConfig(Section):
    """Settings that can change the bits of a shard. Part of the fingerprint."""

    batch_size: int = Field(16, ge=1, le=1024)
    """Candidates per batch of synthesis."""
    precision: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Arithmetic of synthesis. Half precisions, of the top four resolutions, need a GPU; convolutions of the other
    resolutions then use TF32. `auto` is float16 on GPUs of compute capability 7.0 or newer (Volta), else float32; the
    fingerprint holds what it was."""
    threads: int = Field(2, ge=1, le=256)
    """CPU threads within one operation. The number decides how matrix products are split and thereby the last bits of
    a pixel, so it is set here instead of following the machine."""


class ExecutionConfig(Section):
    """Where the work runs. Never changes a byte and is never part of the fingerprint."""

    executor: Literal["local", "ray"] = "local"
    """`local` works in this process; `ray` uses workers on a Ray cluster: the one that RAY_ADDRESS names, the one that
    `ray start` started on this machine, or one started for this run."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` uses a GPU if there is one."""
    encode_threads: Annotated[int, Field(ge=1, le=64)] | Literal["auto"] = "auto"
    """Threads per worker that judge and encode images and masks while the device synthesises. `auto`: the cores of the
    worker (on Ray `cpus_per_worker`) less 2, and 2 at least."""
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Largest number of Ray workers at once. Workers without room in the cluster wait, which makes an autoscaler add
    nodes. `auto` starts as many as the cluster's nodes have room for, and more as nodes join."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """GPUs per Ray worker: 1, or a fraction, such as 0.5 for two workers per GPU. `auto` is 1, but 0 with
    `device: cpu` or if no node of the cluster has a GPU when the run starts."""
    cpus_per_worker: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """CPU cores reserved per Ray worker: for encoding with a GPU, for synthesis without one. `auto`: with a GPU the
    node's cores divided by its GPUs, 16 at most; 2 without one, or if no node has a GPU yet when the run starts."""
    node_labels: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that Ray workers may use, e.g. {ray.io/accelerator-type: H200} on a mixed cluster."""
    shard_timeout_s: float = Field(3600, gt=0)
    """Seconds a Ray worker may take per shard. A slower worker is ended and another one makes the shard. The same limit
    holds for the fit."""
    start_timeout_s: float = Field(600, gt=0)
    """Seconds a Ray worker may take to load, including the download of the checkpoint. A run without any worker for
    twice as long ends; rerun it to resume."""
    keep_rejects: bool = False
    """Write dropped candidates to `rejects/`, one tar per shard, for inspection."""

    @model_validator(mode="after")
    def _check_gpus(self) -> "ExecutionConfig":
        gpus = self.gpus_per_worker
        if gpus != "auto" and gpus > 1:
            raise ValueError(
                f"gpus_per_worker: {gpus:g}, but a worker computes on one GPU; set 1, and more `workers` for more GPUs"
            )
        if gpus != "auto" and gpus > 0 and self.device == "cpu":
            raise ValueError(
                f"gpus_per_worker: {gpus:g} would reserve GPUs that `device: cpu` never uses; set 0 or auto"
            )
        if gpus == 0 and self.device == "cuda":
            raise ValueError("gpus_per_worker: 0, but `device: cuda` needs one; set 1, a fraction or auto")
        return self


class RunConfig(Section):
    """A run file."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """Prefix of the shard files: lower-case letters, digits, - and _."""
    output: str = Field(pattern=PRINTABLE)
    """Folder or bucket that the dataset is written to: a path relative to the working directory (unlike all other paths
    in a run file), s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX. Credentials come only from the
    environment."""
    generator: GeneratorConfig
    labeler: LabelerConfig = StyleMixingConfig()
    instances: InstancesConfig | None = Field(None, exclude_if=lambda instances: instances is None)
    """Things in an image one by one, beside the labeler's mask. null: none."""
    dataset: DatasetConfig
    quality: QualityConfig = QualityConfig()
    numerics: NumericsConfig = NumericsConfig()
    execution: ExecutionConfig = ExecutionConfig()

    def computing(self, numerics: NumericsConfig) -> "RunConfig":
        """The same run with the numerics that `auto` means on the device that makes it."""
        return self.model_copy(update={"numerics": numerics})

    @model_validator(mode="after")
    def _check_instances(self) -> "RunConfig":
        if self.quality.min_instances is not None and self.instances is None:
            raise ValueError("quality.min_instances: set, but there are no `instances`; add the section or remove it")
        return self

    def keeping(self, promise: Promise | None) -> "RunConfig":
        """The same run with the confidence limit that keeps a promise: for labeling, never for the run's identity."""
        return self.model_copy(update={"quality": self.quality.keeping(promise)})

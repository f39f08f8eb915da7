"""The run file: every field, its meaning and its one default.

A run file is YAML. Unknown keys are refused, values are never coerced, and all mistakes are reported at
once with their dotted keys.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from labelmill.schemas.labelers.feature_clusters import FeatureClustersConfig
from labelmill.schemas.labelers.style_mixing import StyleMixingConfig
from labelmill.schemas.secrets import secret_in
from labelmill.schemas.section import PRINTABLE, SEED_LIMIT, LocatedSection, Section, check_seed_range


def refused_secret(kind: str) -> str:
    """Why a checkpoint's URL may not hold a secret, of a kind that `secret_in` names."""
    return (
        f"{kind} in a URL is not supported: a run file is no place for secrets. Fetch the file and give its path, or "
        f"put it into a bucket (s3://, gs://, az://), whose credentials come from the environment"
    )


class GeneratorConfig(LocatedSection):
    """Which generator, and how latents become images."""

    checkpoint: str = Field(pattern=PRINTABLE)
    """`bundled:NAME`, a path relative to the run file, or an https://, s3://, gs:// or az:// URL of a StyleGAN2
    checkpoint."""
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
        check_seed_range("first_seed", self.first_seed, self.num_shards * self.seeds_per_shard)
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
    """Folder or bucket that the dataset is written to: a path relative to the working directory (alone among a run
    file's paths), s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX. Credentials come from the
    environment, never from here."""
    generator: GeneratorConfig
    labeler: LabelerConfig = StyleMixingConfig()
    dataset: DatasetConfig
    quality: QualityConfig = QualityConfig()
    numerics: NumericsConfig = NumericsConfig()
    execution: ExecutionConfig = ExecutionConfig()

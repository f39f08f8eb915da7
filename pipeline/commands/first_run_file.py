"""A run file for a checkpoint, with the reasons for its values in comments."""

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from labelmill.pipeline.generator.checkpoints import open_checkpoint
from labelmill.pipeline.generator.checkpoints.native import LoadedCheckpoint
from labelmill.pipeline.generator.checkpoints.source import BUNDLED_PREFIX
from labelmill.pipeline.generator.sampling import Sampler
from labelmill.pipeline.generator.spec import GeneratorSpec
from labelmill.pipeline.labelers.methods import method_of
from labelmill.pipeline.process.device import choose_device
from labelmill.pipeline.process.memory import free_bytes
from labelmill.schemas.config import NumericsConfig, RunConfig
from labelmill.schemas.user_path import expand_user
from labelmill.schemas.yaml_file import parse_yaml, validate

# Activations of the widest block that are alive at once, with what a labeler taps of them.
_LIVE_ACTIVATIONS = 8
_SHARE_OF_MEMORY = 0.25
_MOST_PER_BATCH = {"cpu": NumericsConfig().batch_size, "cuda": 64}
"""Past these, larger batches have not been faster."""
# A shard's images are in memory once as they are and once encoded.
_SHARD_BYTES = 2**28
_SAMPLES = 1000
_SAMPLES_PER_SHARD = (100, 50, 20)
"""Each divides _SAMPLES, since only datasets of full shards can grow, into enough shards for the splits."""
_PLAIN = re.compile(r"[A-Za-z0-9./][A-Za-z0-9_./~+-]*|bundled:[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class FirstRunFile:
    """A run file that `labelmill validate` accepts."""

    text: str
    name: str
    """Of the run."""


def first_run_file(checkpoint: str, out: Path | None) -> FirstRunFile:
    """Look at a checkpoint and write a run file for it.

    out: where the file will lie, which relative paths in it start from; None for NAME.yaml in the working directory.
    Raises CheckpointError, and ConfigError where generator and run do not go together.
    """
    device = choose_device()
    loaded = open_checkpoint(checkpoint, device)
    name = _run_name(checkpoint)
    path = out or Path(f"{name}.yaml")
    text = _text(loaded, name, _reference(checkpoint, path.parent), device)
    config = validate(parse_yaml(text, str(path)), str(path), RunConfig, path.parent)
    sampler = Sampler(loaded.generator, config.generator, config.numerics, device)
    method_of(config.labeler).check(config.labeler, sampler)
    return FirstRunFile(text, name)


def _text(loaded: LoadedCheckpoint, name: str, reference: str, device: torch.device) -> str:
    spec = loaded.generator.spec
    licence = _one_line(loaded.info.provenance.get("licence", "not stated in the file"))
    per_shard = _samples_per_shard(spec)
    batch_size, batch_reason = _batch_size(spec, device)
    classes = f"{spec.c_dim} classes" if spec.c_dim else "unconditional"
    colours = "gray" if spec.img_channels == 1 else "RGB"
    lines = [
        f"# {_one_line(loaded.info.name)}: StyleGAN2 {spec.architecture}, {spec.size_in_words}, {colours}, "
        f"{classes}, {spec.num_ws} rows of w.",
        f"# Licence of the generator: {licence}.",
        "# Next: `labelmill preview` this file for masks, `labelmill plan` for time and size, `labelmill generate`.",
        f"name: {name}",
        _line(f"output: ./out/{name}", "or a bucket: s3://BUCKET/PREFIX, gs://..., az://..."),
        "generator:",
        f"  checkpoint: {_yaml_text(reference)}",
        _line("  truncation_psi: 0.7", "1 shows more variety and more failed images, 0.5 less of both"),
    ]
    if spec.c_dim:
        lines.append(
            _line("  classes: all", f"or a list of ids from 0 to {spec.c_dim - 1}, or a mapping of id to weight")
        )
    return "\n".join(
        [
            *lines,
            "labeler:",
            "  # Foreground and background without any label or training: needs nothing but the generator.",
            "  # Classes instead: few_shot learns yours from ten images (`labelmill annotate pick`), feature_clusters",
            "  # finds some by words or a look at clusters. What each needs: schemas/labelers; run files: deploy/runs.",
            "  method: style_mixing",
            "dataset:",
            _line(f"  samples: {_SAMPLES}", "a start; a larger number adds shards later and changes none"),
            _line(f"  samples_per_shard: {per_shard}", _shard_reason(spec, per_shard)),
            _line("  image_format: jpg", "of quality 95, colours as fine as the rest; png for exact pixels"),
            _line("  splits: {train: 0.9, val: 0.1}", "whole shards are split"),
            "numerics:",
            _line(f"  batch_size: {batch_size}", batch_reason),
            _precision_line(spec),
            _line("# execution: {executor: ray}", "on a cluster, one GPU per worker; needs a bucket as output"),
            "",
        ]
    )


def _line(text: str, reason: str) -> str:
    return f"{text:<33} # {reason}"


def _precision_line(spec: GeneratorSpec) -> str:
    if spec.conv_clamp is None:
        return _line("  precision: float32", "the file has no conv_clamp, without which float16 may overflow on GPUs")
    return _line(
        "  precision: auto", "float16 on GPUs that are fast at it, as the file has the conv_clamp that it needs"
    )


def _batch_size(spec: GeneratorSpec, device: torch.device) -> tuple[int, str]:
    """A power of two, and why."""
    most = _MOST_PER_BATCH[device.type]
    budget = _SHARE_OF_MEMORY * free_bytes(device)
    fitting = max(1, int(budget // _bytes_per_image(spec)))
    size = min(most, 1 << (fitting.bit_length() - 1))
    megabytes = size * _bytes_per_image(spec) / 1e6
    where = "this GPU" if device.type == "cuda" else "this machine's CPU"
    if size == most:
        return size, f"on {where} more is hardly faster; takes about {megabytes:,.0f} MB"
    return size, f"a quarter of the memory of {where} that is free now, about {megabytes:,.0f} MB"


def _bytes_per_image(spec: GeneratorSpec) -> int:
    """Memory of one image in a batch, roughly: float32 activations of its largest block."""
    largest = max(width * math.prod(spec.size_at(resolution)) for resolution, width in spec.channels)
    return 4 * _LIVE_ACTIVATIONS * largest


def _samples_per_shard(spec: GeneratorSpec) -> int:
    of_image = spec.image_shape.num_pixels * spec.img_channels
    return next((count for count in _SAMPLES_PER_SHARD if count * of_image <= _SHARD_BYTES), _SAMPLES_PER_SHARD[-1])


def _shard_reason(spec: GeneratorSpec, per_shard: int) -> str:
    megabytes = per_shard * spec.image_shape.num_pixels * spec.img_channels / 1e6
    return f"{_SAMPLES // per_shard} shards to split; one is made in memory, {megabytes:,.1f} MB of pixels"


def _run_name(checkpoint: str) -> str:
    """Lower-case letters, digits, - and _, from the last part of a reference."""
    last = checkpoint.removeprefix(BUNDLED_PREFIX).rstrip("/").rpartition("/")[2]
    stem = last.rpartition(".")[0] or last
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:48] or "dataset"


def _reference(checkpoint: str, folder: Path) -> str:
    """As a run file in that folder names it."""
    if "://" in checkpoint or checkpoint.startswith(BUNDLED_PREFIX) or expand_user(checkpoint).is_absolute():
        return checkpoint
    return os.path.relpath(checkpoint, folder)


def _yaml_text(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def _one_line(text: str) -> str:
    """Of a file's own words: a comment is one line."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())[:200]

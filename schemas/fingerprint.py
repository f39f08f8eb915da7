"""What decides a shard's bytes: the identity of a run, and its hash, the fingerprint."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from labelmill.schemas.config import RunConfig

# Bumped whenever the same configuration would give other bytes. Part of every fingerprint.
FORMAT_VERSION = 2


def identity(config: RunConfig, checkpoint_sha256: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What decides a shard's bytes, as JSON-ready values: the configuration without `output`, `execution`,
    `dataset.samples` and `quality.allow_weak_labeler`, the checkpoint by its content instead of its place, the
    content of what `fit` reads beside it, and the format version.

    inputs: SHA-256 by name of what the labeling method's `fit` and a promise's calibration read. Without any, the
    identity does not mention them. One that bears the name of a key of the labeler's stands for it: content counts, not
    the place where it lies.
    """
    values = config.model_dump(mode="json", exclude={"output", "execution"})
    del values["dataset"]["samples"], values["quality"]["allow_weak_labeler"]
    values["generator"]["checkpoint"] = f"sha256:{checkpoint_sha256}"
    for name in inputs.keys() & values["labeler"].keys():
        del values["labeler"][name]
    if config.instances is not None:
        del values["instances"]["detector"]["path"]  # its content is among the inputs
    if config.quality.promise is not None:
        del values["quality"]["promise"]["annotations"]  # its content is among the inputs
    if inputs:
        values["inputs"] = {name: f"sha256:{digest}" for name, digest in inputs.items()}
    return {"format_version": FORMAT_VERSION, **values}


def fingerprint(run_identity: Mapping[str, Any], labeler_sha256: str) -> str:
    """SHA-256 over the canonical JSON of a run's identity and its fitted labeler's hash, as hex."""
    values = {"identity": run_identity, "labeler_sha256": labeler_sha256}
    return hashlib.sha256(canonical_json(values)).hexdigest()


def differing_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Dotted keys at which two identities differ, as `key: ours (here) / theirs (there)` lines."""
    flat_ours, flat_theirs = dict(flattened(ours)), dict(flattened(theirs))
    keys = sorted(flat_ours.keys() | flat_theirs.keys())
    absent = "absent"
    return [
        f"{key}: {flat_ours.get(key, absent)} in the run file, {flat_theirs.get(key, absent)} in the output"
        for key in keys
        if flat_ours.get(key, absent) != flat_theirs.get(key, absent)
    ]


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Values of nested mappings by dotted key, in order."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def canonical_json(values: Any) -> bytes:
    """JSON with sorted keys and no spaces, so that equal values give equal bytes."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

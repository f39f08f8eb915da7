"""Who an output belongs to: run.json claims it for one configuration, fingerprint.json for one fitted labeler.

Both are written before any shard and never changed, so that a labeler which is damaged, fitted again or exchanged later
is found before it labels anything. Each can be written anew from the other, because a fingerprint is the hash of both.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from labelmill.pipeline.dataset.manifest import (
    MANIFEST_PATH,
    RUN_PATH,
    json_bytes,
    read_index,
    read_manifest,
    read_run_file,
)
from labelmill.pipeline.dataset.splits import assign_splits, num_hashed_shards
from labelmill.pipeline.process.log import log
from labelmill.pipeline.shards.publisher import read_record
from labelmill.pipeline.shards.sealed import seal, unseal
from labelmill.pipeline.store.store import Store
from labelmill.schemas.errors import OutputError
from labelmill.schemas.fingerprint import differing_keys, fingerprint
from labelmill.schemas.manifest import Claim, Manifest, RunFile
from labelmill.schemas.shard import Kind

FINGERPRINT_PATH = "fingerprint.json"


def claim_output(store: Store, run_identity: Mapping[str, Any]) -> None:
    """Make the output this run's, or find that it is already.

    Raises OutputError for an output that holds other things, or a run of another identity, or whose server lets
    drivers overwrite each other: then nothing is left written.
    """
    check_claim(store, run_identity)
    content = json_bytes(RunFile(identity=dict(run_identity)))
    if store.claim(RUN_PATH, content):
        return
    check_claim(store, run_identity)  # another driver may have claimed it meanwhile
    if store.read(RUN_PATH) != content and not _is_claimed_by(store, run_identity):
        log(f"{store.url}/{RUN_PATH} was damaged; rewriting it", level="warning")
        store.replace(RUN_PATH, content)


def claimed_identity(store: Store, run_identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity that an output is held against: the run's, but of an output of earlier versions, whose identities
    did not mention what `fit` reads beside the generator, the run's without it."""
    if "inputs" not in run_identity:
        return dict(run_identity)
    former = {key: value for key, value in run_identity.items() if key != "inputs"}
    is_former = next(_fingerprints_by_hash(store, former), None) is not None or _is_claimed_by(store, former)
    return former if is_former else dict(run_identity)


def check_claim(store: Store, run_identity: Mapping[str, Any]) -> None:
    """Whether the output is this run's, or free; writes nothing. Raises OutputError where it is neither."""
    if next(_fingerprints_by_hash(store, run_identity), None) is not None:
        return  # run.json says the same, or is damaged
    if not store.exists(RUN_PATH):
        stranger = store.first_file()
        if stranger is not None and not store.exists(RUN_PATH):  # another driver may have claimed it meanwhile
            raise OutputError(_foreign(store, stranger))
        if not store.exists(RUN_PATH):
            return
    differences = differing_keys(run_identity, read_run_file(store).identity)
    if differences:
        refusal = f"{store.url}: was made by another configuration ({RUN_PATH}); use a new output, or change back:"
        raise OutputError("\n  ".join([refusal, *differences]))


def claim_fingerprint(
    store: Store, run_identity: Mapping[str, Any], labeler_path: str, labeler_sha256: str, kind: Kind
) -> Claim:
    """Make the output this labeler's, or find that it is already. Raises OutputError where it is another's."""
    check_labeler_claim(store, run_identity, labeler_path, labeler_sha256)
    claim = Claim(
        fingerprint=fingerprint(run_identity, labeler_sha256),
        labeler_sha256=labeler_sha256,
        claimed_on=kind,
        num_hashed_shards=_num_hashed(store, run_identity["dataset"]["splits"]),
    )
    if store.create(FINGERPRINT_PATH, seal(claim)):
        return claim
    standing = read_claim(store)
    if standing is None or standing.fingerprint != fingerprint(run_identity, standing.labeler_sha256):
        log(f"{store.url}/{FINGERPRINT_PATH} was damaged; rewriting it", level="warning")
        store.replace(FINGERPRINT_PATH, seal(claim))
        return claim
    check_labeler_claim(store, run_identity, labeler_path, labeler_sha256)  # another driver's, of this moment
    return standing


def check_labeler_claim(store: Store, run_identity: Mapping[str, Any], labeler_path: str, labeler_sha256: str) -> None:
    """Raises OutputError where the output says of itself that another labeler is its own."""
    known = known_fingerprint(store, run_identity)
    is_claimed = known is None and store.exists(FINGERPRINT_PATH)
    if is_claimed:
        known = known_fingerprint(store, run_identity)  # by another driver, at this moment
    if is_claimed and known is None:
        raise OutputError(
            f"{store.url}/{FINGERPRINT_PATH}: is damaged, and no shard exists yet that shows whether {labeler_path} "
            f"is the labeler that it named. Delete both and run `labelmill generate` again"
        )
    if known is not None and known.value != fingerprint(run_identity, labeler_sha256):
        raise OutputError(
            f"{store.url}/{labeler_path}: is not the labeler that {known.path} names: it was damaged, exchanged, or "
            f"fitted anew where results differ in a bit. Its shards would not match the existing ones. Restore it "
            f"from a copy, or delete it and run `labelmill generate` again, which fits it anew and takes it if it "
            f"comes out the same, or use a new output"
        )


@dataclass(frozen=True)
class KnownFingerprint:
    """What an output says of itself."""

    value: str
    path: str
    """The file that says so."""


def known_fingerprint(store: Store, run_identity: Mapping[str, Any]) -> KnownFingerprint | None:
    """The fingerprint of the labeler that the output was claimed for; None where nothing tells.

    Outputs of earlier versions have no fingerprint.json, but manifest and records name it.
    """
    return next(_fingerprints_by_hash(store, run_identity), None) or _fingerprint_of_records(store)


def read_claim(store: Store) -> Claim | None:
    """fingerprint.json; None where it is missing or damaged."""
    try:
        found = unseal(store.read(FINGERPRINT_PATH), Claim)
    except FileNotFoundError:
        return None
    return found.content if found is not None and found.is_sealed else None


def shard_splits(store: Store, num_shards: int, splits: Mapping[str, float]) -> list[str]:
    """The split of each of an output's shards, by index."""
    claim = read_claim(store)
    return assign_splits(num_shards, splits, _num_hashed(store, splits) if claim is None else claim.num_hashed_shards)


def _fingerprints_by_hash(store: Store, run_identity: Mapping[str, Any]) -> Iterator[KnownFingerprint]:
    """Fingerprints that are hashes of this identity: proof that the output is of this very run."""
    claim = read_claim(store)
    if claim is not None and claim.fingerprint == fingerprint(run_identity, claim.labeler_sha256):
        yield KnownFingerprint(claim.fingerprint, FINGERPRINT_PATH)
    manifest = _manifest(store)
    if manifest is not None and manifest.fingerprint == fingerprint(run_identity, manifest.labeler_sha256):
        yield KnownFingerprint(manifest.fingerprint, MANIFEST_PATH)


def _fingerprint_of_records(store: Store) -> KnownFingerprint | None:
    for file in store.list("records"):
        stem = file.path.removeprefix("records/").removesuffix(".json")
        record = read_record(store, int(stem)) if stem.isdecimal() else None
        if record is not None:
            return KnownFingerprint(record.fingerprint, file.path)
    return None


def _is_claimed_by(store: Store, run_identity: Mapping[str, Any]) -> bool:
    try:
        return not differing_keys(run_identity, read_run_file(store).identity)
    except OutputError:
        return False


def _foreign(store: Store, stranger: str) -> str:
    if store.exists(FINGERPRINT_PATH) or store.exists(MANIFEST_PATH):
        return (
            f"{store.url}: has lost its {RUN_PATH}, and its {FINGERPRINT_PATH} and {MANIFEST_PATH} are not of this "
            f"configuration; use the run file that it was made with, or a new output"
        )
    return (
        f"{store.url}: has no {RUN_PATH} and holds files that are not labelmill's, such as {stranger}; choose an empty "
        f"or a new folder (or restore {RUN_PATH} from a copy, if it was lost)"
    )


def _manifest(store: Store) -> Manifest | None:
    try:
        return read_manifest(store)
    except OutputError:
        return None


def _num_hashed(store: Store, splits: Mapping[str, float]) -> int:
    """How many shards an earlier version has divided into splits, as index or manifest have it."""
    try:
        index = read_index(store)
    except OutputError:
        return _num_hashed_by_counts(_manifest(store), splits)
    return num_hashed_shards([shard.split for shard in index.shardlist], splits)


def _num_hashed_by_counts(manifest: Manifest | None, splits: Mapping[str, float]) -> int:
    if manifest is None:
        return 0
    per_shard, num_shards = manifest.config["dataset"]["samples_per_shard"], manifest.num_shards
    for num_hashed in (0, num_shards):
        counts = Counter(dict.fromkeys(splits, 0))
        for index, split in enumerate(assign_splits(num_shards, splits, num_hashed)):
            counts[split] += min(per_shard, manifest.num_samples - index * per_shard)
        if dict(counts) == manifest.samples_by_split:
            return num_hashed
    return 0

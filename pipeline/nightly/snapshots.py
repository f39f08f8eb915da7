"""The snapshots of a nightly root: each one an ordinary dataset in a folder of its own, under snapshots/."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from pydantic import ValidationError

from labelmill.pipeline.dataset.manifest import MANIFEST_PATH, read_index
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError, OutputError
from labelmill.schemas.fingerprint import canonical_json, identity
from labelmill.schemas.nightly_files import GateReport, Latest

SNAPSHOTS = "snapshots"
GATES_PATH, GATES_PAGE_PATH = "gates.json", "gates.html"
"""In each snapshot."""
_NAME = re.compile(r"(?P<night>\d{4}-\d{2}-\d{2})-(?P<digest>[0-9a-f]{12})")
_NIGHT_CHARACTERS, _DIGEST_CHARACTERS = 10, 12

State = Literal["unfinished", "complete", "passed", "rejected"]


@dataclass(frozen=True)
class Snapshot:
    """A folder under snapshots/."""

    name: str
    state: State
    """unfinished: without a manifest. complete: not judged yet. passed, rejected: by verification and gates."""

    @property
    def night(self) -> str:
        """The date that it was begun for."""
        return night_of(self.name)

    @property
    def digest(self) -> str:
        """What its content follows from, in short."""
        return self.name[-_DIGEST_CHARACTERS:]


def snapshot_digest(run: RunConfig, checkpoint_sha256: str, inputs: Mapping[str, str]) -> str:
    """Twelve hex digits for everything that a snapshot's shards follow from: the resolved run without output and
    execution, the checkpoint by its content, that of what `fit` reads beside it (`inputs`, SHA-256 by name), and the
    code's format version."""
    values = {"identity": identity(run, checkpoint_sha256, inputs), "samples": run.dataset.samples}
    return hashlib.sha256(canonical_json(values)).hexdigest()[:_DIGEST_CHARACTERS]


def snapshot_name(night: date, digest: str) -> str:
    return f"{night.isoformat()}-{digest}"


def night_of(name: str) -> str:
    """The date that a snapshot was begun for, ISO 8601."""
    return name[:_NIGHT_CHARACTERS]


def snapshot_url(root: Store, name: str) -> str:
    """A snapshot's dataset, as other commands take it."""
    return f"{root.url.rstrip('/')}/{SNAPSHOTS}/{name}"


def open_snapshot(root: Store, name: str) -> Store:
    return Store.open(snapshot_url(root, name))


def list_snapshots(root: Store) -> list[Snapshot]:
    """All snapshots, the oldest first. Folders of other names are none."""
    names = [name for name in root.folders(SNAPSHOTS) if _NAME.fullmatch(name)]
    return [Snapshot(name, state_of(open_snapshot(root, name))) for name in names]


def state_of(snapshot: Store) -> State:
    """How far a snapshot is."""
    if not snapshot.exists(MANIFEST_PATH):
        return "unfinished"
    report = read_report(snapshot)
    return "complete" if report is None else "passed" if report.passed else "rejected"


def read_report(snapshot: Store) -> GateReport | None:
    """What verification and gates said; None where they were not asked, or what they said is unreadable."""
    try:
        return GateReport.model_validate_json(snapshot.read(GATES_PATH))
    except (FileNotFoundError, ValidationError):
        return None


def tonights_name(snapshots: Sequence[Snapshot], night: date, digest: str) -> str:
    """The snapshot to make, or to go on with: the newest one of this digest, whatever its date, else a new one."""
    alike = [snapshot.name for snapshot in snapshots if snapshot.digest == digest]
    return alike[-1] if alike else snapshot_name(night, digest)


def find_snapshot(snapshots: Sequence[Snapshot], wanted: str) -> Snapshot:
    """The snapshot of that name, or the one whose name begins so. Raises ConfigError."""
    found = [snapshot for snapshot in snapshots if snapshot.name.startswith(wanted)]
    exact = [snapshot for snapshot in found if snapshot.name == wanted]
    if exact or len(found) == 1:
        return (exact or found)[0]
    names = ", ".join(snapshot.name for snapshot in found or snapshots) or "none"
    raise ConfigError(f"{wanted}: {'names several snapshots' if found else 'is not a snapshot'}; there are: {names}")


def check_publishable(root: Store, name: str, latest: Latest) -> None:
    """Whether a snapshot may be live: it passed the gates, and all its shards are there. Raises OutputError."""
    url = snapshot_url(root, name)
    if name in latest.retiring:
        raise OutputError(f"{url}: is being deleted")
    snapshot = open_snapshot(root, name)
    state = state_of(snapshot)
    if state != "passed":
        reason = {
            "unfinished": "is not complete",
            "complete": "was not judged by the gates yet",
            "rejected": "did not pass the gates (gates.html shows why). To accept it, run its night again with wider "
            "limits: `labelmill nightly CONFIG --date DATE --set gates.NAME=VALUE`",
        }[state]
        raise OutputError(f"{url}: {reason}")
    sizes = {file.path: file.num_bytes for file in snapshot.list("shards")}
    for shard in read_index(snapshot).shardlist:
        if sizes.get(shard.url) != shard.filesize:
            raise OutputError(f"{url}/{shard.url}: is missing or damaged; `labelmill verify {url}` shows the details")

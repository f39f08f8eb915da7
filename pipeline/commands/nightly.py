"""The `labelmill nightly` commands."""

import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from labelmill.pipeline.commands.arguments import HELP_OPTIONS, Overrides, Root
from labelmill.schemas.nightly import load_nightly_config


class _NightlyGroup(TyperGroup):
    """`labelmill nightly CONFIG` is short for `labelmill nightly run CONFIG`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_file = bool(args) and args[0] not in (*self.commands, *HELP_OPTIONS) and not _is_mistyped(args[0])
        return super().parse_args(ctx, ["run", *args] if is_file else args)


def _is_mistyped(word: str) -> bool:
    """Whether a word is meant as a command: it is written like one, and there is no such file."""
    return re.fullmatch(r"[A-Za-z][A-Za-z-]*", word) is not None and not Path(word).exists()


nightly = typer.Typer(no_args_is_help=True, cls=_NightlyGroup)

NightlyFile = Annotated[Path, typer.Argument(help="The nightly file (YAML).", metavar="NIGHTLY.YAML")]
Night = Annotated[
    datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Date of the night (default: today in UTC).")
]
SnapshotName = Annotated[str, typer.Argument(help="A snapshot's name, or the start of one.", metavar="SNAPSHOT")]


@nightly.command("run")
def nightly_run(nightly_file: NightlyFile, overrides: Overrides = None, date: Night = None) -> None:
    """Make tonight's snapshot and publish it if it passes its gates. Rerun the same command to resume."""
    from labelmill.workers.nightly import run_night

    night = (date or datetime.now(UTC)).date()
    print(run_night(load_nightly_config(nightly_file, overrides or ()), night))


@nightly.command("validate")
def nightly_validate(nightly_file: NightlyFile, overrides: Overrides = None, date: Night = None) -> None:
    """Check a nightly file, its checkpoint and its seeds, and show what a night would make. Writes nothing."""
    from labelmill.workers.nightly import check_night

    night = (date or datetime.now(UTC)).date()
    print("\n".join(check_night(load_nightly_config(nightly_file, overrides or ()), night)))


@nightly.command("status")
def nightly_status(
    root: Root,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="Print metrics in Prometheus' text format.")] = False,
) -> None:
    """Show the live snapshot, the other snapshots, and the run that holds the lock."""
    from labelmill.pipeline.nightly.commands import open_root
    from labelmill.pipeline.nightly.prometheus import prometheus_text
    from labelmill.pipeline.nightly.status import nightly_status as look
    from labelmill.pipeline.nightly.status import nightly_status_lines

    found = look(open_root(root), time.time())
    if metrics:
        print(prometheus_text(found), end="")
    else:
        print(found.model_dump_json(indent=2) if as_json else "\n".join(nightly_status_lines(found)))


@nightly.command("rollback")
def nightly_rollback(
    root: Root,
    snapshot: Annotated[
        str | None,
        typer.Argument(help="Snapshot to make live (default: the one that was live before).", metavar="SNAPSHOT"),
    ] = None,
) -> None:
    """Make an earlier snapshot live at once, even while a run is in progress."""
    from labelmill.pipeline.nightly.commands import open_root
    from labelmill.pipeline.nightly.commands import rollback as roll_back

    latest = roll_back(open_root(root), snapshot, datetime.now(UTC).isoformat(timespec="seconds"))
    print(f"{latest.snapshot} is live")


@nightly.command("pin")
def nightly_pin(root: Root, snapshot: SnapshotName) -> None:
    """Pin a snapshot so that retention never deletes it."""
    from labelmill.pipeline.nightly.commands import open_root, pin_snapshot

    print(f"{pin_snapshot(open_root(root), snapshot)} is pinned")


@nightly.command("unpin")
def nightly_unpin(root: Root, snapshot: SnapshotName) -> None:
    """Unpin a snapshot so that retention may delete it."""
    from labelmill.pipeline.nightly.commands import open_root, unpin_snapshot

    print(f"{unpin_snapshot(open_root(root), snapshot)} is no longer pinned")


@nightly.command("prune")
def nightly_prune(
    nightly_file: NightlyFile,
    overrides: Overrides = None,
    date: Night = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted; delete nothing.")] = False,
) -> None:
    """Delete the snapshots that retention does not keep. Every night ends with this step."""
    from labelmill.workers.nightly import prune_root

    night = (date or datetime.now(UTC)).date()
    for fate in prune_root(load_nightly_config(nightly_file, overrides or ()), night, dry_run):
        verb = "kept" if fate.is_kept else "would be deleted" if dry_run else "deleted"
        print(f"{fate.snapshot.name}: {verb}: {fate.reason}")

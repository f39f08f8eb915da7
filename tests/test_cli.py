"""What the command says of itself."""

from importlib.metadata import version
from pathlib import Path

import click
import pytest
import typer
from typer.testing import CliRunner

from labelmill.pipeline.cli import app
from labelmill.schemas.errors import ConfigError


def _commands() -> list[list[str]]:
    """Every command and group, as the words that call it."""
    found: list[list[str]] = []

    def walk(command: click.Command, words: list[str]) -> None:
        found.append(words)
        for name, below in getattr(command, "commands", {}).items():
            walk(below, [*words, name])

    walk(typer.main.get_command(app), [])
    return found


def test_the_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"labelmill {version('labelmill')}\n")


@pytest.mark.parametrize("words", _commands(), ids=" ".join)
def test_every_command_helps(words: list[str]) -> None:
    short = CliRunner().invoke(app, [*words, "-h"])
    assert short.exit_code == 0 and f"Usage: root {' '.join(words)}".strip() in short.stdout.replace("  ", " ")
    assert short.stdout == CliRunner().invoke(app, [*words, "--help"]).stdout


@pytest.mark.parametrize(
    ("words", "meant"),
    [(["genrate"], "generate"), (["nightly", "rollbak", "ROOT"], "rollback"), (["annotate", "pik"], "pick")],
)
def test_a_mistyped_command_is_told_as_such(
    words: list[str], meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, words)
    typed = words[-1] if words[-1].islower() else words[1]
    assert result.exit_code == 2 and f"No such command '{typed}'. Did you mean '{meant}'?" in result.output
    assert "nightly run" not in result.output


def test_a_nightly_file_may_be_called_like_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("nights", "./nights"):
        (tmp_path / "nights").write_text("no: nightly file")
        result = CliRunner().invoke(app, ["nightly", word])
        assert isinstance(result.exception, ConfigError) and "nights: 3 mistakes" in str(result.exception)

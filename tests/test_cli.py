"""What the command says of itself."""

from importlib.metadata import version

import click
import pytest
import typer
from typer.testing import CliRunner

from labelmill.pipeline.cli import app


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

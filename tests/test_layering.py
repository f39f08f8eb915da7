"""Imports go one way: schemas <- pipeline <- workers; torch never in schemas."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("schemas", "pipeline", "workers")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _imported(path: Path) -> list[tuple[str, bool]]:
    """(top-level package, whether the import is made inside a function) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], id(node) in lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            found.append((node.module.split(".")[0], id(node) in lazy))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    imported = _imported(path)
    names = {name for name, _ in imported}
    if package == "schemas":
        assert not names & {"pipeline", "workers", "torch", "ray"}
    if package == "pipeline":
        eager = {name for name, is_lazy in imported if not is_lazy}
        assert "ray" not in names
        assert "workers" not in (eager if path.name == "cli.py" else names)


def test_the_rule_sees_an_import(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("import torch.nn\ndef f():\n    from workers.local import run_locally\n")
    assert set(_imported(module)) == {("torch", False), ("workers", True)}

"""Which code decides a number: the definitions that a function or class reaches by name.

Computed, not listed: names are followed through imports (lazy ones too) and annotations within this product's packages.
The code is hashed as a set of definitions without imports, docstrings and comments, so that definitions and files may
move, and files may be renamed. What runs at the top level of a module counts as soon as anything of it is reached.
Nothing is imported or executed here.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACKAGES = ("pipeline", "workers", "schemas")
_PREFIX = "labelmill"
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_Import = tuple[str, str | None]
"""A module's name, and the name imported from it; None for the module itself."""
Place = tuple[Path, str]
"""A file, and a name at its top level."""


class Reach:
    """The definitions that some definitions reach by name, in the packages at a root."""

    def __init__(self, root: Path, start: Iterable[Place], without: Iterable[Place] = ()) -> None:
        """without: what is not followed."""
        self.files: set[Path] = set()
        """Modules of which anything is reached."""
        self._root, self._seen = root, set(without)
        self._modules: dict[Path, _Module] = {}
        self._code: set[str] = set()
        for path, name in start:
            assert name in self._module(path).definitions, f"{path} defines no {name} at its top level"
            self._take(path, name)

    def digest(self) -> str:
        """A hash of the definitions, whatever their order and places."""
        return hashlib.sha256("\n".join(sorted(self._code)).encode()).hexdigest()

    def _module(self, path: Path) -> "_Module":
        if path not in self._modules:
            self._modules[path] = _Module(path)
        return self._modules[path]

    def _take(self, path: Path, name: str) -> None:
        if (path, name) in self._seen:
            return
        self._seen.add((path, name))
        module = self._module(path)
        if name in module.imports:
            self._follow(module.imports[name])
        if name not in module.definitions:
            return  # imported, a builtin or a local variable
        if path not in self.files:
            self.files.add(path)
            self._add(path, module.always)
        self._add(path, module.definitions[name])

    def _add(self, path: Path, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            for imported in _imports(statement):
                self._follow(imported)
            bare = _Bare().visit(statement)
            self._code.add(ast.dump(bare))
            for name in {node.id for node in ast.walk(bare) if isinstance(node, ast.Name)}:
                self._take(path, name)

    def _follow(self, imported: _Import) -> None:
        module, name = imported
        parts = module.removeprefix(f"{_PREFIX}.").split(".")
        if parts[0] not in _PACKAGES:
            return
        path = self._file(parts)
        if name is not None and name not in self._module(path).names:
            path, name = self._file([*parts, name]), None
        for each in self._module(path).names if name is None else [name]:
            self._take(path, each)

    def _file(self, parts: list[str]) -> Path:
        folder = self._root.joinpath(*parts)
        return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


class _Module:
    """What the names at a module's top level stand for."""

    def __init__(self, path: Path) -> None:
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, _Import] = {}
        self.always: list[ast.stmt] = []
        """Statements that define nothing: they run whichever name is wanted."""
        for statement in ast.parse(path.read_bytes(), path).body:
            self._read(statement)

    @property
    def names(self) -> list[str]:
        return [*self.definitions, *self.imports]

    def _read(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self.imports |= _bound(statement)
        elif isinstance(statement, _DEFINITIONS):
            self._define({statement.name}, statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            self._define({name for target in targets for name in _stored(target)}, statement)
        elif not _is_documentation(statement) and not _is_main(statement):
            self._read_block(statement)

    def _read_block(self, block: ast.stmt) -> None:
        """A condition, a loop, a call: it runs anyway, and what it binds means the whole of it."""
        self.always.append(block)
        for node in ast.walk(block):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self.imports |= _bound(node)
            elif isinstance(node, _DEFINITIONS):
                self._define({node.name}, block)
        self._define(set(_stored(block)), block)

    def _define(self, names: set[str], statement: ast.stmt) -> None:
        for name in names:
            self.definitions.setdefault(name, []).append(statement)
        if not names:
            self.always.append(statement)


class _Bare(ast.NodeTransformer):
    """Code without imports and documentation."""

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if _is_documentation(node) else self.generic_visit(node)


def _imports(code: ast.AST) -> Iterator[_Import]:
    """Every import within code, lazy ones too."""
    for node in ast.walk(code):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _bound(node).values()


def _bound(node: ast.Import | ast.ImportFrom) -> dict[str, _Import]:
    """What an import binds names to."""
    if isinstance(node, ast.Import):
        return {alias.asname or alias.name.split(".")[0]: (alias.name, None) for alias in node.names}
    assert node.level == 0 and node.module, "imports are absolute"
    return {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}


def _stored(code: ast.AST) -> list[str]:
    return [node.id for node in ast.walk(code) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _is_documentation(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _is_main(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"

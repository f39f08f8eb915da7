"""The floors: a file imports its own room and rooms of lower floors alone, lazily or not, and nothing in circles."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("schemas", "pipeline", "workers")
FLOORS = (
    ("schemas",),
    ("process", "pictures", "quality"),
    ("store", "training", "avatars"),
    ("generator", "shards"),
    ("dataset", "prompt_models", "annotations", "networks"),
    ("labelers", "report", "segmentation"),
    ("instances",),
    ("photos",),
    ("promise", "annotate"),
    ("benchmark", "nightly", "make_shard", "check_run"),
    ("workers",),
    ("commands",),
    ("api", "cli"),
)
"""From the ground up. A room is a folder or a file of pipeline/, or one of the packages beside it."""
# Heavy libraries, and who alone may import them.
KEPT_APART = {"torch": ("pipeline", "workers"), "ray": ("workers",)}


def _modules(root: Path) -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(("labelmill", *path.relative_to(root).with_suffix("").parts))
            found[name.removesuffix(".__init__")] = path
    return found


def _imports(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """What a file imports, anywhere in it: modules of the product whole, others by their first name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in inner]
        else:
            continue
        yield from (name if name in modules else name.split(".")[0] for name in names)


def _room(module: str) -> str:
    """labelmill.pipeline.store.bucket -> store, labelmill.workers.pool -> workers."""
    _, package, *inner = module.split(".")
    return inner[0] if package == "pipeline" and inner else package


def _problems(root: Path) -> list[str]:
    modules = _modules(root)
    floors = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
    arrows = {name: set(_imports(path, modules)) for name, path in modules.items()}
    problems = []
    for name in modules.keys() - {"labelmill.pipeline"}:
        room, package = _room(name), name.split(".")[1]
        if room not in floors:
            problems.append(f"{name}: room {room} is on no floor")
            continue
        for target in arrows[name]:
            if target in PACKAGES:
                problems.append(f"{name}: imports {target} by its bare name instead of labelmill.{target}")
            if package not in KEPT_APART.get(target, PACKAGES):
                problems.append(f"{name}: imports {target}")
            if target not in modules:
                continue
            if _room(target) != room and floors.get(_room(target), -1) >= floors[room]:
                problems.append(f"{name}: imports {target}, which is no lower")
    return problems + [f"circle: {' -> '.join(circle)}" for circle in _circles(arrows)]


def _circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, each circle once, by depth-first search."""
    done, way, circles = set[str](), list[str](), list[list[str]]()

    def visit(name: str) -> None:
        if name in way:
            circles.append([*way[way.index(name) :], name])
        elif name not in done:
            way.append(name)
            for target in sorted(arrows[name] & arrows.keys()):
                visit(target)
            way.pop()
            done.add(name)

    for name in sorted(arrows):
        visit(name)
    return circles


def test_imports_run_down_the_floors() -> None:
    assert not _problems(ROOT)


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        (
            "pipeline/store/store.py",
            "def f():\n    import labelmill.pipeline.dataset.plan",
            "labelmill.pipeline.store.store: imports labelmill.pipeline.dataset.plan, which is no lower",
        ),
        (
            "pipeline/report/page.py",
            "from labelmill.pipeline.segmentation import train",
            "labelmill.pipeline.report.page: imports labelmill.pipeline.segmentation.train, which is no lower",
        ),
        ("pipeline/attic/attic.py", "", "labelmill.pipeline.attic.attic: room attic is on no floor"),
        ("schemas/run.py", "import torch.nn", "labelmill.schemas.run: imports torch"),
        ("pipeline/cli.py", "import ray", "labelmill.pipeline.cli: imports ray"),
        (
            "workers/pool.py",
            "from pipeline.cli import main",
            "labelmill.workers.pool: imports pipeline by its bare name instead of labelmill.pipeline",
        ),
        (
            "workers/pool.py",
            "import labelmill.workers.pool",
            "circle: labelmill.workers.pool -> labelmill.workers.pool",
        ),
    ],
)
def test_an_arrow_that_runs_up_is_seen(tmp_path: Path, file: str, text: str, problem: str) -> None:
    sound = {
        "pipeline/dataset/card.py": "from labelmill.pipeline.dataset import plan",
        "pipeline/dataset/plan.py": "import labelmill.schemas.run",
        "pipeline/segmentation/train.py": "import torch",
        "schemas/run.py": "import json",
    }
    for name, content in sound.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert not _problems(tmp_path)
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert _problems(tmp_path) == [problem]

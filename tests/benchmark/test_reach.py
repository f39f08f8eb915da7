"""Which code decides a number: what is followed, and which edits count."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from labelmill.pipeline.benchmark.classes.run import ClassSweep
from labelmill.pipeline.benchmark.classes.students import measure_students
from labelmill.pipeline.benchmark.downstream.run import _Bench
from labelmill.pipeline.benchmark.masks.run import judge_by
from labelmill.pipeline.benchmark.masks.sweep import MaskSweep
from labelmill.pipeline.benchmark.oracle.oracle import Oracle
from labelmill.pipeline.benchmark.reach import Reach
from labelmill.pipeline.benchmark.record import reach_of
from labelmill.pipeline.labelers.common import kmeans

ROOT = Path(__file__).resolve().parents[2]
MEASURE = "pipeline/measure.py"
FILES = {
    MEASURE: '''
"""Measures."""
import numpy as np
from pipeline.numbers import double, Shape as Form
from pipeline import tables
from schemas import limits

LIMIT = limits.MOST  # comment

def measure(form: "Form", other: Form) -> int:
    """Documentation."""
    from pipeline.lazy import halve
    return halve(double(LIMIT))

def show() -> str:
    return tables.table(measure(1))
''',
    "pipeline/__init__.py": "",
    "schemas/__init__.py": "",
    "pipeline/numbers/__init__.py": """
from pipeline.numbers.plain import double
from pipeline.numbers.shape import Shape
""",
    "pipeline/numbers/plain.py": "STEP = 2\ndef double(x): return STEP * x\ndef unused(): return 0\n",
    "pipeline/numbers/shape.py": "class Shape:\n    def area(self): return _area(self)\ndef _area(shape): return 1\n",
    "pipeline/lazy.py": "import torch\ntorch.set_something(1)\ndef halve(x): return x / 2\n",
    "pipeline/tables.py": "def table(x): return str(x)\n",
    "schemas/limits.py": "MOST = 3\nif MOST:\n    MOST += 1\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def digest(root: Path) -> str:
    return Reach(root, [(root / MEASURE, "measure")]).digest()


def edited(root: Path, name: str, old: str, new: str) -> str:
    """The digest after an edit."""
    path = root / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return digest(root)


def test_only_modules_that_are_reached_count(root: Path) -> None:
    files = Reach(root, [(root / MEASURE, "measure")]).files
    names = {str(path.relative_to(root)) for path in files}
    assert names == {name for name in FILES if name != "pipeline/tables.py" and "__init__" not in name}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (MEASURE, "halve(double(LIMIT))", "double(halve(LIMIT))"),
        ("pipeline/numbers/plain.py", "STEP = 2", "STEP = 3"),  # through a package's names
        ("pipeline/numbers/shape.py", "return 1", "return 2"),  # a method of an argument's class
        ("pipeline/lazy.py", "x / 2", "x // 2"),  # imported where it is needed
        ("pipeline/lazy.py", "set_something(1)", "set_something(2)"),  # runs on import
        ("schemas/limits.py", "MOST = 3", "MOST = 4"),  # a whole module under its name
        ("schemas/limits.py", "MOST += 1", "MOST += 2"),  # within a condition
    ],
)
def test_an_edit_of_what_is_reached_counts(root: Path, name: str, old: str, new: str) -> None:
    before = digest(root)
    assert edited(root, name, old, new) != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (MEASURE, "comment", "other comment"),
        (MEASURE, "Documentation.", "Other words."),
        (MEASURE, "Measures.", "Says what it says."),
        (MEASURE, "import numpy as np", "import os\nimport numpy as np"),
        (MEASURE, "numbers import double, Shape", "numbers.plain import double\nfrom pipeline.numbers import Shape"),
        (MEASURE, "from pipeline.lazy", "from labelmill.pipeline.lazy"),
        (MEASURE, "return tables.table(measure(1))", "return ''"),
        ("pipeline/tables.py", "str(x)", "repr(x)"),
        ("pipeline/numbers/plain.py", "def unused(): return 0", "def unused(): return 1"),
    ],
)
def test_an_edit_of_anything_else_does_not_count(root: Path, name: str, old: str, new: str) -> None:
    before = digest(root)
    assert edited(root, name, old, new) == before


def test_files_and_definitions_may_move(root: Path) -> None:
    before = digest(root)
    (root / "pipeline" / "common").mkdir()
    (root / "pipeline" / "lazy.py").rename(root / "pipeline" / "common" / "halving.py")
    assert edited(root, MEASURE, "pipeline.lazy", "pipeline.common.halving") == before
    # A definition goes to a file of its own.
    plain = (root / "pipeline" / "numbers" / "plain.py").read_text()
    (root / "pipeline" / "numbers" / "steps.py").write_text("STEP = 2\n")
    moved = plain.replace("STEP = 2\n", "from pipeline.numbers.steps import STEP\n")
    assert edited(root, "pipeline/numbers/plain.py", plain, moved) == before


def test_a_root_that_is_not_there_is_refused(root: Path) -> None:
    with pytest.raises(AssertionError, match=r"measure\.py defines no nothing at its top level"):
        Reach(root, [(root / MEASURE, "nothing")])


def test_an_import_of_a_missing_module_is_refused(root: Path) -> None:
    (root / "pipeline" / "lazy.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"lazy\.py"):
        digest(root)


# The benchmarks


@pytest.mark.parametrize(
    "measuring",
    [(MaskSweep, judge_by, Oracle), (ClassSweep, measure_students), (_Bench,)],
    ids=["masks", "classes", "downstream"],
)
def test_benchmarks_reach_what_decides_and_nothing_that_prints(measuring: tuple[Callable[..., object], ...]) -> None:
    files = {str(path.relative_to(ROOT)) for path in reach_of(*measuring).files}
    for deciding in ("kmeans", "generator/spec", "generator/sampling", "generator/networks", "metrics", "foreground"):
        assert any(re.search(rf"{deciding}\.py$", name) for name in files), deciding
    printing = r"nightly|report|tables|plots|shard|store|bucket|manifest|cli\.py|workers/"
    assert not [name for name in files if re.search(printing, name)]


def test_the_key_outlives_a_move_and_another_import_name(tmp_path: Path) -> None:
    """The product's own code, some of it moved, under either import name."""

    def digest_of_copy(name: str, prefix: str, target: str) -> str:
        copy, old = tmp_path / name, Path(inspect.getfile(kmeans)).resolve().relative_to(ROOT)
        module, new = (str(Path(path).with_suffix("")).replace("/", ".") for path in (old, target))
        for package in ("pipeline", "schemas", "workers"):
            for path in (ROOT / package).rglob("*.py"):
                text = re.sub(
                    r"(from|import) (?:labelmill\.)?(pipeline|schemas|workers)\b", rf"\1 {prefix}\2", path.read_text()
                )
                text = text.replace(f"{prefix}{module} ", f"{prefix}{new} ")
                place = copy / (target if path.relative_to(ROOT) == old else path.relative_to(ROOT))
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text)
        sweep = copy / Path(inspect.getfile(MaskSweep)).resolve().relative_to(ROOT)
        return Reach(copy, [(sweep, "MaskSweep")]).digest()

    as_it_is = Reach(ROOT, [(Path(inspect.getfile(MaskSweep)).resolve(), "MaskSweep")]).digest()
    assert digest_of_copy("bare", "", "pipeline/labelers/elsewhere/means.py") == as_it_is
    assert digest_of_copy("prefixed", "labelmill.", "pipeline/means.py") == as_it_is

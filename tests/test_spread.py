"""How the suite is spread over processes: the names in the lists are those of files."""

import re
from pathlib import Path

from helpers.spread import LONG, ON_RAY, long_ones_first

TESTS = Path(__file__).resolve().parent


def test_every_name_is_a_file() -> None:
    assert set(LONG) <= {path.name for path in TESTS.rglob("test_*.py")}
    assert LONG[: len(ON_RAY)] == ON_RAY


def test_whoever_starts_ray_does_so_in_one_process() -> None:
    starts = r"^from helpers\.ray_nodes import|\bray_cluster: RayNodes|^from chaos\.command import"
    on_ray = [path for path in TESTS.rglob("test_*.py") if re.search(starts, path.read_text(), flags=re.MULTILINE)]
    assert {path.name for path in on_ray} == set(ON_RAY)


class _Item:
    def __init__(self, name: str, number: int = 0) -> None:
        self.path, self.number = TESTS / name, number


def test_long_files_come_first_and_keep_their_order() -> None:
    items = [_Item("test_store.py"), _Item("test_storm.py", 1), _Item("test_plan.py"), _Item("test_storm.py", 2)]
    long_ones_first(items)  # type: ignore[arg-type]
    names = [(item.path.name, item.number) for item in items]
    assert names == [("test_storm.py", 1), ("test_storm.py", 2), ("test_store.py", 0), ("test_plan.py", 0)]

"""Thousands of mutated files in a process of limited memory: see fuzz_checkpoints.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_checkpoints.py")


def run_fuzz(tmp_path: Path, *options: str) -> dict[str, float]:
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    result = json.loads(finished.stdout.splitlines()[-1])
    assert isinstance(result, dict)
    assert list(tmp_path.iterdir()) == []
    return result


def test_some_mutated_files(tmp_path: Path) -> None:
    result = run_fuzz(tmp_path, "--count", "250")
    assert result["files"] == 250
    # Both outcomes are there: damage to numbers loads, damage to structure is refused.
    assert 10 < result["loaded"] < 125
    assert result["resident_growth_mib"] < 128
    assert result["seconds"] < 60


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_mutated_files(tmp_path: Path) -> None:
    result = run_fuzz(tmp_path, "--count", "20000", "--seed", "1")
    assert result["files"] == 20_000
    assert result["resident_growth_mib"] < 128


def test_the_memory_limit_is_real() -> None:
    """In the same process an allocation past the headroom fails."""
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from fuzz_checkpoints import limit_memory\n"
        "limit_memory(256)\n"
        "bytearray(100 * 2**20)\n"
        "try:\n    bytearray(300 * 2**20)\nexcept MemoryError:\n    print('refused')\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout == "refused\n"

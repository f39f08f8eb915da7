"""The wheel, installed away from the repository, holds all that the demo needs."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
SMALL = ("generator.checkpoint=bundled:avatars-32", "labeler.fit_samples=16", "dataset.samples=16")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`labelmill` of a clean environment, which has the libraries of this one but not the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=120)
    (wheel,) = folder.glob("labelmill-*.whl")
    venv.create(folder / "env", symlinks=True, with_pip=False)
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    subprocess.run(
        [*pip, "--python", str(folder / "env"), "install", "--force-reinstall", *options[:1], str(wheel)], check=True
    )
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "env" / "bin" / "labelmill"


def _run(command: Path, folder: Path, *words: str) -> str:
    done = subprocess.run([str(command), *words], cwd=folder, env=ALONE, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_the_demo_runs_from_a_wheel_beside_a_folder_called_pipeline(command: Path, tmp_path: Path) -> None:
    for name in ("pipeline", "schemas", "workers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not labelmill')\n")
    said = _run(command, tmp_path, "demo", *(word for value in SMALL for word in ("--set", value)))
    run_file = Path(said.split(":")[0])
    assert run_file.is_relative_to(command.parents[1]) and run_file.read_bytes() == _demo()
    assert (tmp_path / "out" / "demo" / "report" / "index.html").exists()
    assert "16 samples in 1 shards" in said


def _demo() -> bytes:
    return (ROOT / "deploy" / "runs" / "demo.yaml").read_bytes()

"""README and the documents that it leads to are true: every command block runs, every file that they name is there."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from labelmill.schemas.config import RunConfig
from labelmill.schemas.nightly import load_nightly_config
from labelmill.schemas.segmentation import SegmentationTrainingConfig
from labelmill.schemas.training import TrainGeneratorConfig
from labelmill.schemas.yaml_file import load_config, parse_yaml, validate

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted(ROOT.glob("pipeline/*/README.md"))]
README = DOCUMENTS[0].read_text(encoding="utf-8")
TEXTS = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", "\n".join(TEXTS), flags=re.MULTILINE | re.DOTALL)
MOST_LINES = 150


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone after `make demo` and `make test`: the blocks run in it, one after the other."""
    folder = tmp_path_factory.mktemp("readme") / "labelmill"
    ignored = shutil.ignore_patterns(".git", ".venv", "out", "build", "*.egg-info", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=ignored)
    # The demo on fewer and smaller images: `make demo`, `plan` and `preview` fit a labeler each.
    demo = folder / "deploy" / "runs" / "demo.yaml"
    text = demo.read_text(encoding="utf-8")
    assert "  method: style_mixing\n" in text
    text = text.replace("  method: style_mixing\n", "  method: style_mixing\n  fit_samples: 32\n")
    demo.write_text(text.replace("bundled:avatars-64", "bundled:avatars-32"))
    (folder / ".venv").mkdir()
    for name in ("demo", "dev"):
        (folder / ".venv" / name).touch()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    return folder


def _commands() -> list[str]:
    return [text for language, text in BLOCKS if language in ("bash", "sh", "console")]


def test_there_are_commands() -> None:
    text = "\n".join(_commands())
    assert "make demo" in text and "make test" in text and "labelmill generate" in text
    assert len(README.splitlines()) <= MOST_LINES and len(DOCUMENTS) == 7


@pytest.mark.timeout(900)
def test_every_command_block_runs(workplace: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for block in _commands():
        # This test is part of `make test`; pip would change the environment that it runs in. test_ray_job.py has a head
        # to send jobs to.
        elsewhere = r"make test|pip install|git clone|cd |ray job"
        lines = [line for line in block.splitlines() if not re.match(elsewhere, line)]
        script = "set -euo pipefail\n" + "\n".join(lines)
        done = subprocess.run(
            ["bash", "-c", script], cwd=workplace, env=environment, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert (workplace / "out" / "demo" / "report" / "index.html").is_file()


@pytest.mark.parametrize("block", [text for language, text in BLOCKS if language == "python"])
def test_every_python_block_runs(workplace: Path, block: str) -> None:
    done = subprocess.run([sys.executable, "-c", block], cwd=workplace, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_blocks_need_is_installed_by_make_demo_or_named_before_them() -> None:
    """Libraries that readers use are not all among labelmill's own. Ray Data needs pandas without importing it here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {project["name"], *(re.split(r"[\[<>=]", line)[0].lower() for line in project["dependencies"])}
    packages = {"cv2": "opencv-python-headless"}
    text = "\n".join(TEXTS)
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL))
    assert blocks
    for block in blocks:
        paragraph = text[: block.start()].rstrip().rpartition("\n\n")[2]
        named = set(" ".join(re.findall(r"`pip install -c constraints\.txt ([^`]+)`", paragraph)).split())
        modules = {line.split()[1].split(".")[0] for line in block[1].splitlines() if re.match(r"(import|from) ", line)}
        needed = {packages.get(module, module) for module in modules - sys.stdlib_module_names}
        assert needed <= installed | named, block[1]
        assert "ray.data" not in block[1] or "pandas" in named


def test_every_installation_keeps_the_pytorch_that_is_there() -> None:
    """Without the constraints, torchvision's newest version brings its own PyTorch: gigabytes of CUDA."""
    lines = re.findall(r"pip install [^`\n]+", "\n".join(TEXTS))
    assert len([line for line in lines if ".[" in line]) >= 2
    assert all("-c constraints.txt" in line for line in lines)
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"torch", "torchvision", "datasets", "pandas"} <= pinned


@pytest.mark.parametrize("block", [text for language, text in BLOCKS if language == "yaml"])
def test_every_configuration_is_valid(block: str) -> None:
    values = parse_yaml(block, "README.md")
    segmentation = SegmentationTrainingConfig if "held_out" in values else TrainGeneratorConfig
    validate(values, "README.md", RunConfig if "generator" in values else segmentation)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "runs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_run_file_is_valid(path: Path) -> None:
    if "nightly" in path.name:
        load_nightly_config(path)
    else:
        load_config(path, RunConfig)


def test_the_training_file_is_valid() -> None:
    load_config(ROOT / "deploy" / "train.yaml", SegmentationTrainingConfig)


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, *sorted((ROOT / "deploy").glob("*.md"))], ids=lambda path: str(path.parent)
)
def test_every_local_link_leads_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[)#]|src=\"([^\"]+)\"", text) for link in link if link]
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []

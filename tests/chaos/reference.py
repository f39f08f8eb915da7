"""What every disturbed run must come to in the end: the same dataset, made here without Ray and undisturbed."""

import json
import subprocess
import tempfile
from pathlib import Path

import yaml
from chaos.disturbed_run import ROOT, generate_command
from chaos.places import digests
from chaos.schedule import NUM_SHARDS, SAMPLES_PER_SHARD


def prepare(folder: Path) -> None:
    """Leave run file, checkpoint and digests of the dataset in a folder, unless they are there."""
    if (folder / "reference.json").exists():
        return
    # These take a second to import, which those who only read the reference need not wait for.
    from helpers.tiny_run import save_tiny_generator, tiny_run

    from labelmill.schemas.config import RunConfig

    folder.mkdir(parents=True, exist_ok=True)
    save_tiny_generator(folder / "tiny.safetensors")
    values = tiny_run(folder / "tiny.safetensors", "overridden")
    values["dataset"] = {"samples": NUM_SHARDS * SAMPLES_PER_SHARD, "samples_per_shard": SAMPLES_PER_SHARD}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(generate_command(folder / "run.yaml", f"{name}/out", "local"), cwd=ROOT, check=True)
        output = Path(name, "out")
        files = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    config = RunConfig.model_validate(values)
    reference = {
        "digests": digests(files),
        "num_shards": config.dataset.num_shards,
        "seeds_per_shard": config.dataset.seeds_per_shard,
    }
    (folder / "reference.json").write_text(json.dumps(reference, indent=1))

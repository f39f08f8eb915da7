"""`labelmill generate` that dies while an alpha network is trained, and is run again."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import yaml
from helpers.ray_runs import shards_of
from helpers.tiny_run import tiny_run

LABELER = {
    "method": "alpha_network", "layers": ["b16.conv1"], "background": "corner_mean", "background_layer": "b8.conv1",
    "steps": 10, "watch_interval": 2, "watch_samples": 8, "batch_size": 2, "width": 4, "discriminator_width": 4,
    "seed": 6,
}  # fmt: skip
"""Two trainings collapse at step 6, the third ends."""
# A process runs the command on each run file until some write of the fit's states; 0: to its end.
COMMANDS = """
import os, signal, sys
from pathlib import Path
import labelmill.workers.generate, labelmill.workers.local
from labelmill.pipeline.cli import run_command

def run(run_file, fatal_write):
    left = [fatal_write]
    for name in ("replace", "rename"):
        def dying(self, target, move=getattr(Path, name)):
            left[0] -= ".fit" in self.parts
            if left[0] == 0 and fatal_write:
                os.kill(os.getpid(), signal.SIGKILL)
            return move(self, target)
        setattr(Path, name, dying)
    sys.argv[1:] = ["generate", run_file]
    run_command()
    os._exit(0)

for command in sys.argv[1:]:
    run_file, fatal_write = command.split(":")
    child = os.fork() or run(run_file, int(fatal_write))
    print("ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr, flush=True)
"""


def made(output: Path) -> dict[str, bytes]:
    """The labeler and the shards."""
    return {path.name: path.read_bytes() for path in (output / "labeler").iterdir()} | shards_of(str(output))


def test_a_generate_that_is_killed_while_it_trains_ends_with_the_same_bytes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Killed within a state, before a state gets its name, where the third training begins, and within that."""
    dataset = {"samples": 4, "samples_per_shard": 2}
    for name in ("whole", "killed"):
        values = tiny_run(tiny_checkpoint, name) | {"labeler": LABELER, "dataset": dataset}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    runs = ("whole.yaml:0", *(f"killed.yaml:{write}" for write in (10, 7, 51, 25, 0)))
    command = [sys.executable, "-c", COMMANDS, *runs]
    done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=240)
    told = re.findall(r"ended with (-?\d+)|(starts again)|resumes at (step \d+) of 10", done.stderr)
    twice = ["starts again"] * 2
    killed = str(-signal.SIGKILL)
    assert ["".join(words) for words in told] == [
        *twice, "0", killed, "step 2", killed, "step 2", *twice, killed,
        "step 6", "starts again", killed, "step 4", "0",
    ], done.stderr  # fmt: skip
    assert made(tmp_path / "killed") == made(tmp_path / "whole")
    assert len(made(tmp_path / "whole")) >= 3 and not (tmp_path / "killed" / ".fit").exists()

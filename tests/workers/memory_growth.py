"""Resident memory of the driver and the workers over a long run, by command:

python tests/workers/memory_growth.py --images 60000

Prints each process's growth in MB per 10,000 images of the run: least squares over the second half of it. Ends with 1
when one grows by 1 MB or more.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import yaml

sys.path[:0] = [str(Path(__file__).resolve().parents[number]) for number in (1, 2)]

from helpers.drivers import Driver  # noqa: E402
from helpers.ray_nodes import environment, own_ray  # noqa: E402
from helpers.tiny_run import save_tiny_generator, tiny_run  # noqa: E402

BAR_MEGABYTES = 1.0
SAMPLES_PER_SHARD = 500


@dataclass
class History:
    """A process's resident memory as the run went on."""

    name: str
    images: list[int] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def growth(self, from_images: int) -> float:
        """MB per 10,000 images, by least squares."""
        late = [(x, y) for x, y in zip(self.images, self.megabytes, strict=True) if x >= from_images]
        return float(np.polyfit(*zip(*late, strict=True), 1)[0]) * 10_000


def watch(folder: Path, images: int, workers: int) -> list[History]:
    """Run the command and look at its processes every second."""
    save_tiny_generator(folder / "tiny.safetensors")
    values = tiny_run(folder / "tiny.safetensors", folder / "out")
    values["labeler"] = {
        "variants": 2,
        "crossover": 3,
        "clusters": 2,
        "restarts": 1,
        "iterations": 2,
        "fit_samples": 16,
    }
    values["dataset"] = {"samples": images, "samples_per_shard": SAMPLES_PER_SHARD}
    values["numerics"] = {"batch_size": 50, "threads": 1}
    values["execution"] = {
        "executor": "ray",
        "workers": workers,
        "cpus_per_worker": 1,
        "encode_threads": 1,
        "device": "cpu",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    histories: dict[int, History] = {}
    with own_ray() as own, environment(**own, RAY_ADDRESS="local"), Driver("generate", folder / "run.yaml") as driver:
        process = psutil.Process(driver.pid)
        while not driver.has_ended(seconds=1):
            done = SAMPLES_PER_SHARD * len(list((folder / "out").glob("shards/*.tar")))
            for looked_at in [process, *_workers(process)]:
                name = "driver" if looked_at is process else f"worker {looked_at.pid}"
                history = histories.setdefault(looked_at.pid, History(name))
                history.images.append(done)
                history.megabytes.append(looked_at.memory_info().rss / 2**20)
        assert driver.wait() == 0, driver.text
    return list(histories.values())


def _workers(driver: psutil.Process) -> list[psutil.Process]:
    return [child for child in driver.children(recursive=True) if "".join(child.cmdline()[:1]).startswith("ray::_Ray")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        histories = watch(Path(folder), options.images, options.workers)
    growths = []
    for history in histories:
        growths.append(history.growth(options.images // 2))
        ends = f"{history.megabytes[len(history.megabytes) // 2]:.1f} to {history.megabytes[-1]:.1f} MB"
        print(f"{history.name}: {growths[-1]:+.3f} MB per 10,000 images, {ends} over the second half")
    return 0 if max(growths) < BAR_MEGABYTES else 1


if __name__ == "__main__":
    sys.exit(main())

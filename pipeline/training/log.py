"""The log of a training: one JSON object a line, the same after a resume as without one."""

import json
from pathlib import Path

from torch import Tensor

from labelmill.pipeline.process.files import write_atomically


class TrainingLog:
    """log.jsonl: every `interval` steps, the means of what was added since. One line, one flush."""

    def __init__(self, path: Path, interval: int) -> None:
        self.path, self.interval = path, interval
        self._sums: dict[str, tuple[Tensor | float, int]] = {}
        self._last: tuple[int, float] = (0, 0.0)

    def add(self, name: str, value: Tensor) -> None:
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = (total + value.detach(), count + 1)

    def sums(self) -> dict[str, tuple[float, int]]:
        """Sum and count since the last line, so that a resumed training writes the same next line."""
        return {name: (float(total), count) for name, (total, count) in self._sums.items()}

    def step(self, num_steps: int, images_seen: int, seconds: float) -> None:
        """Write a line after every `interval` steps."""
        if num_steps % self.interval:
            return
        means = {name: round(float(total) / count, 6) for name, (total, count) in self._sums.items()}
        images, since = images_seen - self._last[0], seconds - self._last[1]
        line = {
            "step": num_steps,
            "images": images_seen,
            "seconds": round(seconds, 1),
            "images_per_second": round(images / since, 2) if since > 0 else None,
            **means,
        }
        with self.path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        self._sums, self._last = {}, (images_seen, seconds)

    def truncate(self, num_steps: int, sums: object) -> None:
        """Drop lines of steps after `num_steps`, which will be taken again, and restore the running sums."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step_of(line) <= num_steps]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept).encode())
        assert isinstance(sums, dict)
        self._sums = {str(name): (float(total), int(count)) for name, (total, count) in sums.items()}
        if kept:
            last = json.loads(kept[-1])
            self._last = (last["images"], last["seconds"])


def _step_of(line: str) -> int:
    """Step of a log line; a line that a kill cut short counts as after every step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return 2**62

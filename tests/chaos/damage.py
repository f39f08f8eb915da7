"""Damage at rest by command: python tests/chaos/damage.py --count 1000 --jobs 1, or --seed N for one case."""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

if __name__ in ("__main__", "__mp_main__"):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from chaos.damaged_run import Result, make_references, run_case

_CHUNK = 50


def run_cases(seeds: Sequence[int]) -> list[Result]:
    """In this process, quietly."""
    import torch

    torch.set_num_threads(1)
    # A file system in memory, where there is one: every write is pushed to the disk otherwise.
    memory = Path("/dev/shm")
    folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    with folder as name, contextlib.redirect_stderr(io.StringIO()):
        references = make_references(Path(name))
        return [run_case(seed, references, Path(name) / "case") for seed in seeds]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every case went right."""
    parser = argparse.ArgumentParser(description="Outputs that are damaged between runs, by seed.")
    parser.add_argument("--count", type=int, default=1000, help="how many cases")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, help="one case alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        (result,) = run_cases([options.seed])
        print("\n  ".join([f"{result.seed}:", *result.story, *(f"WRONG: {problem}" for problem in result.problems)]))
        return 1 if result.problems else 0
    start, end = options.first_seed, options.first_seed + options.count
    chunks = [range(first, min(first + _CHUNK, end)) for first in range(start, end, _CHUNK)]
    begun, results = time.monotonic(), []
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as processes:
        for some in processes.map(run_cases, chunks):
            results += some
            for result in some:
                if result.problems:
                    print(result, flush=True)
            print(f"{len(results)} cases", file=sys.stderr, flush=True)
    wrong = [result.seed for result in results if result.problems]
    kinds = Counter(line.split()[0] for result in results for line in result.story)
    print(f"{len(results)} cases in {time.monotonic() - begun:.0f} s, {len(wrong)} wrong: {wrong}")
    print(f"what befell them: {dict(kinds.most_common())}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

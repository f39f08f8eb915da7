"""The storm's command line: many schedules, each in a process of its own, and a line about each."""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from chaos.disturbed_run import ROOT, Outcome, Reference, append, run_schedule
from chaos.reference import prepare
from chaos.schedule import schedule_of

SCRIPT = Path(__file__).with_name("storm.py")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every schedule ran and went right."""
    parser = argparse.ArgumentParser(description="Runs on Ray that are killed, frozen and refused, by seed.")
    parser.add_argument("--count", type=int, default=200, help="how many schedules")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seed", type=int, help="one schedule alone")
    parser.add_argument("--jobs", type=int, default=1, help="schedules at once")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start none after so long")
    parser.add_argument("--show", action="store_true", help="print the schedules and run none")
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "storm", help="results and logs")
    options = parser.parse_args(arguments)
    seeds = (
        [options.seed] if options.seed is not None else range(options.first_seed, options.first_seed + options.count)
    )
    if options.show:
        print("\n".join(str(schedule_of(seed)) for seed in seeds))
        return 0
    folder: Path = options.folder.absolute()
    prepare(folder / "reference")
    if options.seed is not None:
        return run_here(options.seed, folder)
    done = {line["seed"] for line in read_results(folder)}
    run_all([seed for seed in seeds if seed not in done], folder, options.jobs, options.minutes)
    lines = [line for line in read_results(folder) if line["seed"] in seeds]
    print("\n".join(summary(lines)))
    unfinished = set(seeds) - {line["seed"] for line in lines}
    if unfinished:
        print(f"no result: {sorted(unfinished)}: it crashed, or the time was up")
    return 0 if not unfinished and not any(line["problems"] or line["skipped"] for line in lines) else 1


def run_here(seed: int, folder: Path) -> int:
    """One schedule, in this process."""
    # As an exception, so that disks are unmounted and processes ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    schedule = schedule_of(seed)
    print(schedule, flush=True)
    outcome = run_schedule(schedule, Reference.load(folder / "reference"), folder / "logs" / str(seed))
    append(outcome, folder / "results.jsonl")
    print(line_of(outcome), flush=True)
    return 1 if outcome.problems else 0


def run_all(seeds: Sequence[int], folder: Path, jobs: int, minutes: float) -> None:
    """Each schedule in its own process, which adopts and ends all of its Ray."""
    end = time.monotonic() + 60 * minutes

    def run(seed: int) -> None:
        if time.monotonic() < end:
            subprocess.run([sys.executable, str(SCRIPT), "--seed", str(seed), "--folder", str(folder)], cwd=ROOT)

    with ThreadPoolExecutor(jobs) as threads:
        list(threads.map(run, seeds))


def line_of(outcome: Outcome) -> str:
    """For whoever watches."""
    verdict = outcome.skipped or "; ".join(outcome.problems[:3]) or "right"
    missed = f", missed: {'; '.join(outcome.missed)}" if outcome.missed else ""
    return (
        f"  {outcome.seed}: exits {outcome.exits} after {outcome.seconds} s, {outcome.seconds_to_end} s after the last "
        f"fault, {outcome.looks_per_second} looks/s, left behind {outcome.left_behind}{missed}: {verdict}"
    )


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The last line of each seed."""
    path = folder / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list({line["seed"]: line for line in lines}.values())


def summary(lines: Sequence[dict[str, Any]]) -> list[str]:
    """What happened, in numbers."""
    ran = [line for line in lines if line["skipped"] is None]
    wrong = [line for line in ran if line["problems"]]
    # Without when, where, how long and how much.
    kinds = Counter(re.split(r" at | in | for |\s\d+% ", fault)[0] for line in ran for fault in line["hit"])
    exits = Counter(str(line["exits"][0]) for line in ran)
    longest = max(ran, key=lambda line: max(line["seconds"]), default=None)
    slowest = max(ran, key=lambda line: line["seconds_to_end"] or 0, default=None)
    report = [
        f"{len(ran)} schedules, {len(ran) - len(wrong)} right, {len(lines) - len(ran)} skipped",
        f"exit statuses: {dict(sorted(exits.items()))}, {sum(len(line['exits']) > 1 for line in ran)} reruns",
        f"faults that hit: {dict(kinds.most_common())}",
        f"faults that came too late: {sum(len(line['missed']) for line in ran)}",
    ]
    if longest is not None and slowest is not None:
        report += [
            f"longest run: {max(longest['seconds'])} s (seed {longest['seed']})",
            f"longest time from the last fault to the end: {slowest['seconds_to_end']} s (seed {slowest['seed']})",
            f"slowest observer: {min(line['looks_per_second'] for line in ran)} looks/s",
            f"processes left behind: {sum(len(line['left_behind']) for line in ran)}",
        ]
    return report + [f"wrong: seed {line['seed']}: {'; '.join(line['problems'][:3])}" for line in wrong]

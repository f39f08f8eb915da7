"""An output that is damaged between runs, and drivers of different sizes, killed or frozen, one inside another.

Each run must end well or refuse, naming a damaged file; whoever does what the refusal says must come to the same bytes
in the end, and never is a dataset called complete that `verify` would refuse.
"""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from chaos.damages import Damage, damage
from helpers.tiny_run import save_tiny_generator, tiny_run

from labelmill.pipeline.dataset.verify import verify
from labelmill.pipeline.shards.publisher import same_content
from labelmill.pipeline.shards.sealed import unseal
from labelmill.pipeline.store.store import Store
from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import LabelmillError
from labelmill.schemas.shard import ShardRecord
from labelmill.schemas.yaml_file import validate
from labelmill.workers.generate import generate

SMALL, LARGE, SAMPLES_PER_SHARD = 8, 14, 2
_MOST_REMEDIES = 12

Files = dict[str, bytes]


class KilledError(BaseException):
    """The driver is dead: nothing catches it."""


@dataclass(frozen=True)
class References:
    """What undisturbed runs make."""

    config: RunConfig
    complete: dict[int, Files]
    """By samples."""
    other_run: Files
    """The files of another configuration's run of the same name."""

    def starts(self) -> dict[str, Files]:
        """What an output may hold at first."""
        small, large = self.complete[SMALL], self.complete[LARGE]
        claimed = {path: data for path, data in large.items() if path.startswith(("labeler/", "run.", "fingerprint."))}
        begun = {path: data for path, data in large.items() if "00000" in path and _index(path) < 3}
        earlier = {path: _of_earlier_version(path, data) for path, data in small.items() if path != "fingerprint.json"}
        return {
            "small": small,
            "large": large,
            "begun": claimed | begun,
            "claimed": claimed,
            "earlier version": earlier,
        }


@dataclass
class Result:
    """How a case went: `problems` is empty when all is right."""

    seed: int
    story: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.seed}: {'; '.join(self.story)}: {'; '.join(self.problems) or 'right'}"


def make_references(folder: Path) -> References:
    """Run undisturbed."""
    save_tiny_generator(folder / "tiny.safetensors")
    values = tiny_run(folder / "tiny.safetensors", folder / "out")
    values["dataset"] = {"samples": SMALL, "samples_per_shard": SAMPLES_PER_SHARD}
    config = validate(values, "damage", RunConfig)
    complete = {}
    for samples in (SMALL, LARGE):
        generate(_sized(config, folder / str(samples), samples))
        complete[samples] = _files(folder / str(samples))
    generator = config.generator.model_copy(update={"truncation_psi": 0.5})
    other = _sized(config.model_copy(update={"generator": generator}), folder / "other", LARGE)
    generate(other)
    return References(config, complete, _files(folder / "other"))


def run_case(seed: int, references: References, folder: Path) -> Result:
    """Damage an output, run drivers on it, mend what they name, and look at the end."""
    random, result = Random(f"damage {seed}"), Result(seed)
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    name, files = random.choice(list(references.starts().items()))
    _write(output, files)
    result.story.append(f"start {name}")
    done = [damage(output, references.other_run, random) for _ in range(random.choice((1, 1, 1, 2, 3)))]
    result.story += map(str, done)
    if name == "claimed" and _nothing_tells(done):
        result.story.append("skipped: nothing is left that tells")
        return result
    case = _Case(references, output, done, result)
    sizes = [LARGE] if name == "large" else []
    for _ in range(random.choice((1, 1, 2))):
        sizes.append(random.choice((SMALL, LARGE)))
        case.drive(sizes[-1], random)
    case.mend(max([*sizes, *case.sizes_beside]))
    return result


def _nothing_tells(done: list[Damage]) -> bool:
    """Another labeler in an output that has lost its claim, and has no shard yet, is this output's."""
    touched = {path for item in done for path in item.paths}
    is_lost = any(item.kind == "delete" and "fingerprint.json" in item.paths for item in done) or "run.json" in touched
    return is_lost and "fingerprint.json" in touched and any(path.startswith("labeler/") for path in touched)


def _shard(path: str) -> str:
    """What a refusal names it by: of a shard's three files it may name the others, which are left of it."""
    return path if "0000" not in path else path.rsplit(".", 1)[0][-6:]


class _Case:
    def __init__(self, references: References, output: Path, done: list[Damage], result: Result) -> None:
        self._references, self._output, self._result = references, output, result
        self._damaged = {path for item in done for path in item.paths}
        self.sizes_beside: list[int] = []

    def drive(self, samples: int, random: Random) -> None:
        """One run; perhaps killed at a write, or frozen there while another run goes from its start to its end."""
        what, at = random.choice(("calm", "calm", "killed", "frozen")), random.randrange(12)
        beside = random.choice((SMALL, LARGE))

        def interrupt() -> None:
            if what == "killed":
                raise KilledError
            self.sizes_beside.append(beside)
            self._result.story.append(f"{beside} beside")
            self._run(beside)

        self._result.story.append(f"{what} {samples}" + (f" at {at}" if what != "calm" else ""))
        with _at_write(None if what == "calm" else at, interrupt):
            try:
                self._run(samples)
            except KilledError:
                self._result.story.append("died")

    def _run(self, samples: int) -> LabelmillError | None:
        try:
            generate(_sized(self._references.config, self._output, samples))
        except LabelmillError as error:
            self._refused(str(error))
            return error
        self._check_complete()
        return None

    def _refused(self, words: str) -> None:
        if "is less than the output holds" in words:
            self._result.story.append("refused: too small")
        elif not any(_shard(path) in words for path in self._damaged):
            self._result.problems.append(f"refused without naming what was damaged: {words}")
        else:
            self._result.story.append(f"refused: {words.splitlines()[-1][-90:]}")

    def _check_complete(self) -> None:
        """Right after a run that ended well: what it calls complete is."""
        problems = verify(Store.open(str(self._output))).problems
        self._result.problems += [f"complete, but {problem}" for problem in problems]

    def mend(self, samples: int) -> None:
        """Do what refusals say until the dataset is complete; then it has the bytes that it should."""
        deleted: set[str] = set()
        for _ in range(_MOST_REMEDIES):
            error = self._run(samples)
            if error is None:
                self._compare(samples)
                return
            for path in sorted(path for path in self._damaged if path in str(error)):
                if path in deleted:  # it is needed, and only a copy of it helps
                    _write(self._output, {path: self._references.complete[samples][path]})
                else:
                    (self._output / path).unlink(missing_ok=True)
                deleted.add(path)
        self._result.problems.append("what refusals say does not help")

    def _compare(self, samples: int) -> None:
        wanted, found = self._references.complete[samples], _files(self._output)
        self._result.problems += [f"lost {path}" for path in wanted.keys() - found.keys()]
        self._result.problems += [f"too much: {path}" for path in found.keys() - wanted.keys()]
        for path in wanted.keys() & found.keys():
            if not _same(path, wanted[path], found[path]):
                self._result.problems.append(f"other bytes: {path}")


@contextmanager
def _at_write(number: int | None, what: Callable[[], None]) -> Iterator[None]:
    """Do something before the so manieth write of this process, progress.json apart."""
    lock, count = threading.Lock(), 0
    originals = {name: getattr(Store, name) for name in ("create", "replace", "compare_and_swap")}

    def watched(name: str) -> Callable[..., object]:
        def write(store: Store, path: str, *arguments: object) -> object:
            nonlocal count
            with lock:
                is_it = path != "progress.json" and count == number
                count += path != "progress.json"
            if is_it:
                what()
            return originals[name](store, path, *arguments)

        return write

    for name in originals:
        setattr(Store, name, watched(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Store, name, original)


def _same(path: str, one: bytes, other: bytes) -> bool:
    if not path.startswith("records/"):
        return one == other
    first, second = unseal(one, ShardRecord), unseal(other, ShardRecord)
    return first is not None and second is not None and second.is_sealed and same_content(first.content, second.content)


def _of_earlier_version(path: str, data: bytes) -> bytes:
    record = unseal(data, ShardRecord) if path.startswith("records/") else None
    if record is None:
        return data
    return record.content.model_dump_json(indent=2, exclude={"kind", "parquet_sha256"}).encode() + b"\n"


def _index(path: str) -> int:
    return int(path.rsplit(".", 1)[0][-6:])


def _sized(config: RunConfig, output: Path, samples: int) -> RunConfig:
    dataset = config.dataset.model_copy(update={"samples": samples})
    return config.model_copy(update={"output": str(output), "dataset": dataset})


def _files(output: Path) -> Files:
    paths = [
        path for path in output.rglob("*") if path.is_file() and "#" not in path.name and path.name != "progress.json"
    ]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def _write(output: Path, files: Files) -> None:
    for path, data in files.items():
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_bytes(data)

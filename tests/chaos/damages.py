"""What may happen to the files of an output while nobody looks: drawn by a seed, done to a folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

Files = Mapping[str, bytes]

# Its content is about the past; nothing follows from it.
_IRRELEVANT = "progress.json"


@dataclass(frozen=True)
class Damage:
    """One thing that happened."""

    kind: str
    paths: tuple[str, ...]
    """Files that are not as they were, or were not there."""

    def __str__(self) -> str:
        return f"{self.kind} {', '.join(self.paths)}"


def damage(folder: Path, others: Files, random: Random) -> Damage:
    """Do one thing to a folder. others: the files of another run of the same name."""
    kinds = [_flip, _cut, _zero, _delete, _edit, _swap, _exchange, _stranger] if _files(folder) else [_stranger]
    return random.choice(kinds)(folder, others, random)


def _files(folder: Path) -> list[str]:
    paths = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in paths if "#" not in Path(path).name and path != _IRRELEVANT]


def _some_file(folder: Path, random: Random, ending: str = "") -> str:
    """Any file, with the ending where there is one; those of which there are few as often as those of which there are
    many."""
    paths = _files(folder)
    fitting = [path for path in paths if path.endswith(ending)] or paths
    kind = random.choice(sorted({_kind_of(path) for path in fitting}))
    return random.choice([path for path in fitting if _kind_of(path) == kind])


def _kind_of(path: str) -> str:
    return "records" if path.startswith("records/") else path.rsplit(".", 1)[-1] if "shards/" in path else path


def _changed(name: str, change: Callable[[bytes, Random], bytes]) -> Callable[[Path, Files, Random], Damage]:
    def do(folder: Path, others: Files, random: Random) -> Damage:
        path = _some_file(folder, random)
        before = (folder / path).read_bytes()
        (folder / path).write_bytes(change(before, random) if before else b"\0")
        return Damage(name, (path,))

    return do


def _flipped(data: bytes, random: Random) -> bytes:
    position = random.randrange(len(data))
    return data[:position] + bytes([data[position] ^ 1 << random.randrange(8)]) + data[position + 1 :]


_flip = _changed("flip", _flipped)
_cut = _changed("cut", lambda data, random: data[: random.choice((0, random.randrange(len(data))))])
_zero = _changed("zero", lambda data, random: bytes(len(data)))


def _delete(folder: Path, others: Files, random: Random) -> Damage:
    path = _some_file(folder, random)
    (folder / path).unlink()
    return Damage("delete", (path,))


def _edit(folder: Path, others: Files, random: Random) -> Damage:
    """A digit of a JSON file becomes another one: it stays readable, and says what is not so."""
    path = _some_file(folder, random, ".json")
    data = bytearray((folder / path).read_bytes())
    digits = [position for position, value in enumerate(data) if 0x30 <= value <= 0x39]
    if not digits:
        return _flip(folder, others, random)
    position = random.choice(digits)
    data[position] = random.choice([value for value in b"123456789" if value != data[position]])
    (folder / path).write_bytes(data)
    return Damage("edit", (path,))


def _swap(folder: Path, others: Files, random: Random) -> Damage:
    """Two files of a kind in each other's place."""
    first = _some_file(folder, random)
    alike = [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _kind_of(str(path.relative_to(folder))) == _kind_of(first)
    ]
    second = random.choice(alike)
    one, other = (folder / first).read_bytes(), (folder / second).read_bytes()
    if one == other:
        return _flip(folder, others, random)
    (folder / first).write_bytes(other)
    (folder / second).write_bytes(one)
    return Damage("swap", (first, second))


def _exchange(folder: Path, others: Files, random: Random) -> Damage:
    """Files of another run in the place of this one's: one, or a whole shard with all that follows from it."""
    path = _some_file(folder, random)
    taken = [path]
    if path.endswith(".tar") and random.random() < 0.5:
        index = path[-10:-4]
        taken += [path.replace(".tar", ".parquet"), f"records/{index}.json"]
    taken = [path for path in taken if path in others]
    if not taken or all((folder / path).exists() and (folder / path).read_bytes() == others[path] for path in taken):
        return _flip(folder, others, random)
    for path in taken:
        (folder / path).write_bytes(others[path])
    return Damage("exchange", tuple(taken))


def _stranger(folder: Path, others: Files, random: Random) -> Damage:
    path = random.choice(
        ("shards/zzz-000001.tar", "shards/tiny-000042.tar", "shards/tiny-0000001.tar", "shards/a.txt",
         "records/000042.json", "shards/tiny-000042.parquet")
    )  # fmt: skip
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(random.choice([b"", *others.values()]))
    return Damage("stranger", (path,))

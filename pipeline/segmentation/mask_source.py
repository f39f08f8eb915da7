"""Where masks come from: a folder of PNG files, shards, or a whole dataset; read one at a time, by name.

Only names, places and sizes are kept; a bucket's shards are held in memory one at a time.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from labelmill.pipeline.dataset.manifest import MANIFEST_PATH, RUN_PATH, read_index, read_manifest
from labelmill.pipeline.pictures.mask_png import MaskError, decode_mask
from labelmill.pipeline.pictures.photos import files_below
from labelmill.pipeline.segmentation.tar_members import TarMember, members_of
from labelmill.pipeline.shards.reader import DamagedTarError, Member, is_metadata, parse_metadata
from labelmill.pipeline.shards.sample_files import MASK
from labelmill.pipeline.store.store import Store
from labelmill.schemas.user_path import expand_user

MASK_ENDING = f".{MASK.ending}"
# Two empty blocks end a tar; writers fill it up to a record, 20 blocks, or a few of them.
_LEAST_TAIL_BYTES, _MOST_TAIL_BYTES = 2 * 512, 2**20

_Open = Callable[[str], BinaryIO]


@dataclass(frozen=True)
class StoredMask:
    """A mask's bytes: a whole file, or a part of a tar."""

    file: str
    name: str
    """As messages say it."""
    offset: int = 0
    num_bytes: int = -1
    """-1: to the file's end."""


class MaskSource:
    """Masks by name, in the order of their names."""

    def __init__(
        self, place: str, masks: Mapping[str, StoredMask], open_file: _Open, classes: tuple[str, ...] | None
    ) -> None:
        self.place = place
        """As the user wrote it."""
        self.classes = classes
        """Names of the values 0, 1, ... where the source states them."""
        self.keys: tuple[str, ...] = tuple(sorted(masks))
        self._masks = masks
        self._open_file = open_file

    def name(self, key: str) -> str:
        """The file, for messages."""
        return self._masks[key].name

    def read(self, key: str) -> NDArray[np.uint8]:
        """A mask as it is stored, [H, W] uint8. Raises MaskError naming the file."""
        mask = self._masks[key]
        try:
            with self._open_file(mask.file) as file:
                file.seek(mask.offset)
                return decode_mask(file.read(mask.num_bytes))
        except OSError as error:
            raise MaskError(f"{mask.name}: cannot be read: {error.strerror or error}") from error
        except MaskError as error:
            raise MaskError(f"{mask.name}: {error}") from error


def open_masks(place: str) -> MaskSource:
    """Open what a person names: a folder of PNG masks (`a.png` or `a.mask.png`) and its subfolders, a .tar or a folder
    of them, or a dataset's output (a folder, or a bucket's URL).

    Raises MaskError, or OutputError for a dataset that is not complete.
    """
    path = expand_user(place.removeprefix("file://"))
    if "://" in place and not place.startswith("file://"):
        return _dataset(place)
    try:
        if path.is_file():
            return _local_tars(place, [path])
        if not path.is_dir():
            raise MaskError(f"{place}: does not exist")
        if (path / MANIFEST_PATH).exists() or (path / RUN_PATH).exists():
            return _dataset(place)
        tars = sorted(entry for entry in path.iterdir() if entry.is_file() and entry.suffix.lower() == ".tar")
        pngs = [file for file in files_below(path) if file.is_file() and file.suffix.lower() == ".png"]
    except OSError as error:
        raise MaskError(f"{place}: cannot be read: {error.strerror or error}") from error
    if tars and any(file.parent == path for file in pngs):
        raise MaskError(f"{place}: holds both {tars[0].name} and {pngs[0].name}; give a folder of one kind")
    if not tars and not pngs:
        raise MaskError(
            f"{place}: holds no mask: no .png, no .tar, and it is not a dataset (it has no {MANIFEST_PATH})"
        )
    return _local_tars(place, tars) if tars else _folder(place, path, pngs)


def _folder(place: str, folder: Path, pngs: Sequence[Path]) -> MaskSource:
    """Where some files are called .mask.png, the others are their images. Masks go by their path below the folder."""
    named = [file for file in pngs if file.name.lower().endswith(MASK_ENDING)]
    ending = MASK_ENDING if named else ".png"
    masks = (
        (file.relative_to(folder).as_posix()[: -len(ending)], StoredMask(str(file), str(file)))
        for file in named or pngs
    )
    return MaskSource(place, _by_key(masks), _open_local, None)


def _local_tars(place: str, tars: Sequence[Path]) -> MaskSource:
    return _shards(place, [str(tar) for tar in tars], _open_local, None)


def _dataset(place: str) -> MaskSource:
    store = Store.open(place)
    classes = tuple(read_manifest(store).classes)
    tars = [shard.url for shard in read_index(store).shardlist]
    if store.folder is None:
        return _shards(place, tars, _LastShard(store), classes)
    return _shards(place, [str(store.folder / tar) for tar in tars], _open_local, classes)


def _shards(place: str, tars: Sequence[str], open_file: _Open, classes: tuple[str, ...] | None) -> MaskSource:
    masks: list[tuple[str, StoredMask]] = []
    for tar in tars:
        try:
            with open_file(tar) as file:
                members = list(_members(file))
                found = _classes_in(file, members)
        except (OSError, DamagedTarError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise MaskError(f"{tar}: {reason}") from error
        if found is not None and found != (classes or found):
            raise MaskError(f"{tar}: has the classes {', '.join(found)}, others of {place} {', '.join(classes or ())}")
        classes = classes or found
        masks += [
            (
                member.name.removesuffix(MASK_ENDING),
                StoredMask(tar, f"{tar}: {member.name}", member.offset, member.num_bytes),
            )
            for member in members
            if member.name.endswith(MASK_ENDING)
        ]
    if not masks:
        raise MaskError(f"{place}: its shards hold no {MASK_ENDING}")
    return MaskSource(place, _by_key(masks), open_file, classes)


def _members(file: BinaryIO) -> Iterator[TarMember]:
    """The files in a tar. Raises DamagedTarError, at the latest at the end: a whole tar ends in empty blocks."""
    end = 0
    for member in members_of(file):
        end = member.end
        yield member
    file.seek(end)
    tail = file.read(_MOST_TAIL_BYTES + 1)
    if not _LEAST_TAIL_BYTES <= len(tail) <= _MOST_TAIL_BYTES or tail.strip(b"\0"):
        raise DamagedTarError(f"is cut, or broken, after byte {end}")


def _classes_in(file: BinaryIO, members: Sequence[TarMember]) -> tuple[str, ...] | None:
    """The classes that the first sample's metadata lists; None in a tar that labelmill did not write."""
    for member in members:
        name = member.name.rpartition("/")[2]
        if is_metadata(name):
            file.seek(member.offset)
            try:
                metadata = parse_metadata(Member(name, memoryview(file.read(member.num_bytes))))
            except DamagedTarError:
                return None
            return metadata.candidate.classes
    return None


def _by_key(masks: Sequence[tuple[str, StoredMask]] | Iterator[tuple[str, StoredMask]]) -> dict[str, StoredMask]:
    """Raises MaskError where two masks have one name."""
    found: dict[str, StoredMask] = {}
    for key, mask in masks:
        if key in found:
            raise MaskError(f"{mask.name}: another mask has the same name: {found[key].name}")
        found[key] = mask
    return found


def _open_local(file: str) -> BinaryIO:
    return Path(file).open("rb")


class _LastShard:
    """Opens a bucket's shards, keeping the last one: masks are read in the order of their names, shards' too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path: str | None = None
        self._content = b""

    def __call__(self, path: str) -> BinaryIO:
        if path != self._path:
            self._content, self._path = self._store.read(path), path
        return io.BytesIO(self._content)

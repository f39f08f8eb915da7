"""The files in a tar, as any tool may have packed it: what webdataset reads, this reads.

Shards that labelmill wrote are held to more by `labelmill verify`: see pipeline/shards/reader.py.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from labelmill.pipeline.shards.reader import DamagedTarError

_BLOCK_BYTES = 512


@dataclass(frozen=True)
class TarMember:
    """A plain file in a tar."""

    name: str
    """Its path, without a leading `./`."""
    offset: int
    """Where its content begins."""
    num_bytes: int

    @property
    def key(self) -> str:
        """What the files of a sample have in common: the path up to the first dot of the file's own name."""
        folder, slash, name = self.name.rpartition("/")
        return f"{folder}{slash}{name.partition('.')[0]}"

    @property
    def ending(self) -> str:
        """The rest of the name, after that dot."""
        return self.name.rpartition("/")[2].partition(".")[2]

    @property
    def end(self) -> int:
        """Where the next header begins."""
        return self.offset + -(-self.num_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def members_of(file: BinaryIO) -> Iterator[TarMember]:
    """The plain files, in order; the tar is not read as a whole.

    Raises DamagedTarError for what is no tar, and for files with holes. `tarfile` ends in silence at a
    cut or a broken header: callers know how many files there should be, or look at the end.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for header in archive:
                if header.issparse():
                    raise DamagedTarError(f"member {header.name!r} is stored with holes")
                name = header.name.removeprefix("./")
                is_hidden = name.rpartition("/")[2].startswith(".")  # the `._KEY.jpg` of macOS, which is no sample
                if header.isreg() and not is_hidden:
                    yield TarMember(name, header.offset_data, header.size)
    except tarfile.TarError as error:
        raise DamagedTarError(f"is not a readable tar ({error}); compressed ones must be unpacked first") from error

"""What is in a shard's tar, read in memory: nothing is extracted, nothing in it is trusted."""

import io
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from labelmill.pipeline.shards.sample_files import METADATA
from labelmill.schemas.errors import OutputError
from labelmill.schemas.sample import Candidate, SampleMetadata

# TarWriter pads to whole records of 20 blocks.
_BLOCK_BYTES, _RECORD_BYTES = 512, 10240
_METADATA_NAME = re.compile(rf"\d+\.{re.escape(METADATA.ending)}")


class DamagedTarError(OutputError):
    """A shard's tar is cut, altered, or not ours. The message says where; callers add which file."""


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    data: memoryview

    @property
    def key(self) -> str:
        """What the files of a sample have in common."""
        return self.name.partition(".")[0]

    @property
    def ending(self) -> str:
        """The rest of the name, after the first dot."""
        return self.name.partition(".")[2]


def members_in(tar: bytes) -> Iterator[Member]:
    """The plain files in a tar, in order. Raises DamagedTarError, at the latest at the end.

    `tarfile` ends in silence at a cut or a broken header, so the end is checked here.
    """
    content, end = memoryview(tar), 0
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
            for header in archive:
                if header.type != tarfile.REGTYPE or header.pax_headers:
                    raise DamagedTarError(f"member {header.name!r} is not a plain file")
                data = content[header.offset_data : header.offset_data + header.size]
                if len(data) != header.size:
                    raise DamagedTarError(f"it is cut within member {header.name!r}")
                end = header.offset_data + -(-header.size // _BLOCK_BYTES) * _BLOCK_BYTES
                yield Member(header.name, data)
    except tarfile.TarError as error:
        raise DamagedTarError(f"it is not a readable tar ({error})") from error
    tail = content[end:]
    if len(tail) < 2 * _BLOCK_BYTES or len(tar) % _RECORD_BYTES or bytes(tail).strip(b"\0"):
        raise DamagedTarError(f"it is cut, or broken, after byte {end} of {len(tar)}")


def metadata_in(members: Iterable[Member]) -> list[SampleMetadata]:
    """The metadata of every sample among the members of a tar, in order. Raises DamagedTarError."""
    return [parse_metadata(member) for member in members if is_metadata(member.name)]


def is_metadata(name: str) -> bool:
    """Whether a member's name is that of a sample's metadata."""
    return _METADATA_NAME.fullmatch(name) is not None


def parse_metadata(member: Member) -> SampleMetadata:
    """A sample's metadata from its JSON member. Raises DamagedTarError."""
    try:
        metadata = SampleMetadata.model_validate_json(bytes(member.data))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise DamagedTarError(f"{member.name}: {where or 'JSON'}: {error.errors()[0]['msg']}") from error
    if member.name != METADATA.member(metadata.key):
        raise DamagedTarError(f"{member.name} says that it is of sample {metadata.key}")
    return metadata


def candidates_of(samples: list[SampleMetadata]) -> list[Candidate]:
    """The candidates that a shard's samples account for, in order."""
    return [candidate for sample in samples for candidate in (*sample.dropped_before, sample.candidate)]

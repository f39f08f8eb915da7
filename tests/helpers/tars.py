"""A shard's tar, changed as its maker might have made it."""

import io
import tarfile
from collections.abc import Callable


def repacked(tar: bytes, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> bytes:
    """The tar with the members, by name, that `change` makes of its own."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in change(members).items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return stream.getvalue()

"""Reading a file that a person names, which may turn out to be a pipe, a device, or anything of any size."""

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def read_regular_file(path: Path, most_bytes: int) -> bytes:
    """The content of a file of `most_bytes` at most.

    Raises OSError, in words, for anything else, of which nothing is read: pipes and devices may have no end, and one
    that nobody writes to would be waited for.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, f"it is {_KINDS[stat.S_IFMT(found.st_mode)]}, not a regular file")
    if found.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, and at most {most_bytes:,} are read")
    with path.open("rb") as file:
        return file.read(found.st_size)

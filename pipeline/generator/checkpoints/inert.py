"""What is left of a pickle when nothing in it may run: names, records, views of bytes; and the limits of all this."""

from collections.abc import Callable
from dataclasses import dataclass

Constructor = Callable[[tuple[object, ...]], object]

# The pickles of a 1024 px generator with its discriminator hold about 100,000 operations.
MAX_OPERATIONS = 1_000_000
# No layer of a StyleGAN2 has more channels, features or classes.
MAX_WIDTH = 65_536
# No network has more modules, tensors, or characters in a name. A file of references to itself could pretend to.
MAX_PARTS = 8192
MAX_NAME = 100
_MAX_LINE_BYTES = 4096


class UnreadableError(ValueError):
    """Why a file cannot be used, without its name, which `open_checkpoint` puts in front."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle refers to; allowed, and nothing but a name."""

    name: str


@dataclass(slots=True)
class Record:
    """An instance of a class that is not loaded: its name, the arguments and the state stored for it."""

    name: str
    args: tuple[object, ...] = ()
    state: object = None

    def set_state(self, state: object) -> None:
        self.state = state


@dataclass(slots=True)
class Budget:
    """Operations left for one file, shared by the pickles nested in it."""

    operations: int = MAX_OPERATIONS


@dataclass(slots=True)
class Cursor:
    """A position in the bytes of a file."""

    content: memoryview
    position: int = 0

    def take(self, num_bytes: int) -> memoryview:
        """The next bytes, as a view. Raises UnreadableError past the end."""
        end = self.position + num_bytes
        if end > len(self.content):
            raise UnreadableError(
                f"truncated: {num_bytes:,} bytes are announced at position {self.position:,}, the file has "
                f"{len(self.content) - self.position:,} left. Fetch it again"
            )
        piece = self.content[self.position : end]
        self.position = end
        return piece

    def line(self) -> str:
        """Text up to the next line feed."""
        window = bytes(self.content[self.position : self.position + _MAX_LINE_BYTES])
        length = window.find(b"\n")
        if length < 0:
            raise UnreadableError(f"truncated or damaged: an unfinished line at position {self.position:,}")
        self.position += length + 1
        return window[:length].decode("utf-8", errors="replace")


def describe_value(value: object) -> str:
    """A stored value for an error message: short whatever the file says."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    return f"a {type(value).__name__}"

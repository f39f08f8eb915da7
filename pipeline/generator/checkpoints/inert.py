"""What is left of a pickle when nothing in it may run: names, records, views of bytes; and the limits of all this."""

from collections.abc import Callable
from dataclasses import dataclass, field

Constructor = Callable[[tuple[object, ...]], object]

# The pickles of a 1024 px generator with its discriminator hold about 100,000 operations.
MAX_OPERATIONS = 1_000_000
# No layer of a StyleGAN2 has more channels, features or classes.
MAX_WIDTH = 65_536
# No network has more modules, tensors, or characters in a name. A file of references to itself could pretend to.
MAX_PARTS = 8192
MAX_NAME = 100
_MAX_LINE_BYTES = 4096
_MAX_COPIED_BYTES = 64 * 2**20
_MAX_UNKNOWN_NAMES = 64
_MAX_REASON = 300

SAVE_WEIGHTS = (
    "Save the weights alone, where the code that made the file is installed: "
    "torch.save({'g_ema': G.state_dict()}, 'weights.pt')"
)
OTHER_NETWORK = "Give a network that StyleGAN2's own code can load"
FETCH_AGAIN = "Fetch it again, or save it again where it was made"


class UnreadableError(ValueError):
    """Why a file cannot be used, without its name, which `open_checkpoint` puts in front.

    `advice` is the sentence on what to do next; "" where the reason ends with it.
    """

    def __init__(self, reason: str, advice: str | None = None) -> None:
        super().__init__(reason)
        is_broken = reason.startswith(("damaged", "truncated"))
        self.advice = advice if advice is not None else FETCH_AGAIN if is_broken else SAVE_WEIGHTS

    def sentence(self) -> str:
        """The reason and the advice."""
        return f"{self}. {self.advice}" if self.advice else str(self)


class ExhaustedError(UnreadableError):
    """The file asks for more work or memory than any checkpoint needs: nothing further of it is read."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A name that the pickle refers to, and nothing but a name."""

    name: str


# Records, and what else is compared by identity: comparing or printing what files share many times could take forever.
@dataclass(slots=True, eq=False, repr=False)
class Record:
    """An instance of a class that is not loaded: its name, the arguments, the state and the items stored for it."""

    name: str
    args: tuple[object, ...] = ()
    state: object = None
    items: dict[object, object] = field(default_factory=dict)

    def set_state(self, state: object) -> None:
        self.state = state


def dictionary_of(value: object) -> dict[object, object] | None:
    """What a value holds by name: of a dictionary, of an instance of a class like one, or its attributes."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, Record):
        return None
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    return value.items or (state if isinstance(state, dict) else value.items)


class Dictionary(dict[object, object]):
    """A dictionary of a class with attributes, such as the OrderedDict that torch keeps a module's names in."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        super().__init__()
        self.state: object = None

    def set_state(self, state: object) -> None:
        self.state = state


@dataclass(frozen=True, slots=True, eq=False)
class Unusable:
    """A value whose description cannot be followed, which only matters where it is needed."""

    reason: str
    advice: str | None = None

    @classmethod
    def because(cls, error: UnreadableError) -> "Unusable":
        """For what a constructor cannot use; short, as such values may be made of each other."""
        return cls(text_of(f"cannot be read ({error})", _MAX_REASON))

    def error(self, subject: str) -> UnreadableError:
        """What to raise where the value is needed."""
        return UnreadableError(f"{subject} {self.reason}", self.advice)


@dataclass(slots=True)
class Budget:
    """Operations and copied bytes left for one file, and the unknown names met: shared by the pickles nested in it."""

    operations: int = MAX_OPERATIONS
    copied_bytes: int = _MAX_COPIED_BYTES
    unknown_names: dict[str, None] = field(default_factory=dict)
    """In order, at most 64."""

    @classmethod
    def of(cls, num_file_bytes: int) -> "Budget":
        """For a file of this size: old pickles store bytes as text, which is copied once."""
        return cls(copied_bytes=num_file_bytes + _MAX_COPIED_BYTES)

    def spend(self, operations: int, copied_bytes: int = 0) -> None:
        """Raises ExhaustedError when too little is left."""
        self.operations -= operations
        self.copied_bytes -= copied_bytes
        if self.operations < 0:
            raise ExhaustedError(f"more than {MAX_OPERATIONS:,} pickle operations; no StyleGAN2 needs that")
        if self.copied_bytes < 0:
            raise ExhaustedError("damaged: the same text stands for many times its bytes")

    def note_unknown(self, name: str) -> None:
        if len(self.unknown_names) < _MAX_UNKNOWN_NAMES:
            self.unknown_names[name] = None


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
                f"{len(self.content) - self.position:,} left"
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


def text_of(value: object, limit: int = MAX_NAME) -> str:
    """The one way from a stored value to text: at most `limit` printable characters, containers never looked into."""
    if isinstance(value, str):
        cut = value if len(value) <= limit else value[: limit - 3] + "..."
        return cut if cut.isprintable() else "".join(c if c.isprintable() else "?" for c in cut)
    if value is None or isinstance(value, bool | int | float):
        return repr(value)[:limit]
    if isinstance(value, Record | Global):
        return f"a record of {text_of(value.name, limit)}"
    return f"a {type(value).__name__}"


def describe_value(value: object) -> str:
    """A stored value for an error message: text in quotes, anything else by `text_of`."""
    return repr(text_of(value, 60)) if isinstance(value, str) else text_of(value)

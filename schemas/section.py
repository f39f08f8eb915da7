"""What every part of a run file has in common: the base class of its sections, and limits that several of them have."""

from pydantic import BaseModel, ConfigDict

# NumPy's RandomState, which NVIDIA's tools draw latents from, takes seeds below 2^32.
SEED_LIMIT = 2**32

# A path or URL: not empty, no control characters.
PRINTABLE = r"^[^\x00-\x1f]+$"


def check_seed_range(name: str, first: int, count: int) -> None:
    """Raises ValueError where seeds that count up from `first` would pass the limit. name: of the field."""
    if first + count > SEED_LIMIT:
        raise ValueError(
            f"{name} {first} plus {count} seeds passes 2^32, the limit of seeds; "
            f"{name} may be at most {max(0, SEED_LIMIT - count)}"
        )


class Section(BaseModel):
    """A part of a run file: frozen, strict about its keys, fields documented beneath them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

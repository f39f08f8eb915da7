"""JSON files that tell whether they are as they were written: their last field is the SHA-256 of all before it."""

import hashlib
import re
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)

_SEAL = re.compile(rb',\n  "checksum": "([0-9a-f]{64})"\n}\n')
_SEAL_BYTES = len(b',\n  "checksum": "') + 64 + len(b'"\n}\n')


@dataclass(frozen=True)
class Unsealed(Generic[Model]):
    """What such a file holds."""

    content: Model
    is_sealed: bool
    """False for a file without a checksum, as earlier versions wrote them: then nothing says that it is unchanged."""


def seal(content: BaseModel) -> bytes:
    """The file. Equal contents give equal bytes."""
    text = content.model_dump_json(indent=2).encode().removesuffix(b"\n}")
    return text + b',\n  "checksum": "' + hashlib.sha256(text).hexdigest().encode() + b'"\n}\n'


def unseal(data: bytes, kind: type[Model]) -> Unsealed[Model] | None:
    """Read such a file; None where it is damaged or something else."""
    found = _SEAL.fullmatch(data, max(0, len(data) - _SEAL_BYTES))
    try:
        if found is None:
            return Unsealed(kind.model_validate_json(data), is_sealed=False)
        text = data[: found.start()]
        if hashlib.sha256(text).hexdigest().encode() != found[1]:
            return None
        return Unsealed(kind.model_validate_json(text + b"\n}"), is_sealed=True)
    except ValidationError:
        return None

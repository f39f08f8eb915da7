"""Random numbers that follow from where a training is, so that a resumed one takes the same steps."""

import hashlib


def seed_of(*place: object) -> int:
    """A seed, 0 to 2^63 - 1, that follows from a place such as (seed of the training, step, purpose)."""
    digest = hashlib.blake2b("/".join(map(str, place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1

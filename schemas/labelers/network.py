"""The run file's section of the network labeler."""

from typing import Literal, Self

from pydantic import Field, model_validator

from labelmill.schemas.network import NetworkConfig
from labelmill.schemas.section import SEED_LIMIT, check_seed_range


class NetworkLabelerConfig(NetworkConfig):
    """Masks by a segmentation network that a user has, of its own classes, the first of which is the background.

    `fit` copies the network into the output and measures what it sees in images of the generator; nothing is learned.
    Whether another method has better masks than the network tells `labelmill evaluate OUTPUT --judge MODEL` on that
    method's dataset: it shows where the two differ.
    """

    method: Literal["network"]
    """Name of the labeling method."""
    fit_samples: int = Field(64, ge=1)
    """Images on which `fit` measures what the network sees."""
    fit_first_seed: int = Field(4_100_000_000, ge=0, lt=SEED_LIMIT)
    """First seed of these images; the others count up from it."""

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        check_seed_range("fit_first_seed", self.fit_first_seed, self.fit_samples)
        return self

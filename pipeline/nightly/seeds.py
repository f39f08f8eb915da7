"""Which seeds a night has."""

from datetime import date, timedelta

from labelmill.schemas.config import RunConfig
from labelmill.schemas.errors import ConfigError
from labelmill.schemas.nightly import NightlyConfig
from labelmill.schemas.section import SEED_LIMIT


def run_of(config: NightlyConfig, night: date) -> RunConfig:
    """The night's run, its output not yet set. Raises ConfigError for a night that has no seeds."""
    if config.seeds == "fixed":
        return config.run
    dataset = config.run.dataset.model_copy(update={"first_seed": first_seed(config, night)})
    return config.run.model_copy(update={"dataset": dataset})


def first_seed(config: NightlyConfig, night: date) -> int:
    """The first of the night's own fresh_seeds.per_night seeds. Raises ConfigError for a night that has none."""
    fresh = config.fresh_seeds
    number = (night - fresh.since).days
    if number < 0:
        raise ConfigError(
            f"fresh_seeds.since: {fresh.since} is after the night of {night}, which therefore has no seeds; an "
            f"earlier date changes the seeds of all nights"
        )
    if nights_left(config, night) <= 0:
        last = fresh.since + timedelta(days=_num_nights(config) - 1)
        raise ConfigError(
            f"fresh_seeds: the seeds below 2^32 are used up: {last} was the last night of {fresh.per_night} seeds. "
            f"Set fresh_seeds.since to {night} to begin again with the seeds of the night of {fresh.since}, or "
            f"fresh_seeds.per_night to less"
        )
    return config.run.dataset.first_seed + number * fresh.per_night


def nights_left(config: NightlyConfig, night: date) -> int:
    """Nights that have fresh seeds, this one included; 0 or less when they are used up."""
    return _num_nights(config) - (night - config.fresh_seeds.since).days


def _num_nights(config: NightlyConfig) -> int:
    return (SEED_LIMIT - config.run.dataset.first_seed) // config.fresh_seeds.per_night

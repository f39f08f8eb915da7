"""Errors for users. Each class carries the exit status that `labelmill` ends with."""

EXIT_RESUMABLE = 75
"""Interrupted, or no worker available: rerun the same command to resume."""


class LabelmillError(ValueError):
    """An error that a user can correct. The message names the file or dotted key, the value, and what to do next."""

    exit_code = 2


class ConfigError(LabelmillError):
    """The run file is wrong. The message lists every mistake, one per line."""


class CheckpointError(LabelmillError):
    """A generator checkpoint cannot be used. The message names the file, what it is, and what would work."""


class OutputError(LabelmillError):
    """The output folder or bucket cannot take this run: foreign, unwritable, or of another fingerprint."""


class ShardError(LabelmillError):
    """A shard cannot be made from this configuration: its seeds ran out."""

    exit_code = 3


class StalledError(LabelmillError):
    """A run cannot continue for an outside reason: no worker starts, or Ray does not answer."""

    exit_code = EXIT_RESUMABLE


class VerificationError(LabelmillError):
    """A dataset is not what its manifest says, or a sample does not come out the same again."""

    exit_code = 4


class GateError(LabelmillError):
    """Tonight's dataset is complete but differs too much from the live one. The message names the gates."""

    exit_code = 5


class LockedError(LabelmillError):
    """Another run holds the lock, or has taken it over. The message names the run and when its lock expires."""

    exit_code = 6


class LockExpiredError(LockedError):
    """The lock expired while its owner was alive: its machine was frozen, or a clock jumped. Rerun to resume."""

    exit_code = EXIT_RESUMABLE

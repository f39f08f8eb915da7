"""Errors that speak to a person. Each kind carries the exit status that `labelmill` ends with."""

EXIT_RESUMABLE = 75
"""Interrupted, or nothing to work with: the same command goes on."""


class LabelmillError(ValueError):
    """What a user can understand and mend: names the file or dotted key, the value, and a way out."""

    exit_code = 2


class ConfigError(LabelmillError):
    """The run file is wrong. The message lists every mistake, one a line."""


class CheckpointError(LabelmillError):
    """A generator checkpoint cannot be used. The message names the file, what it is, what would work."""


class OutputError(LabelmillError):
    """The output folder or bucket cannot take this run: foreign, unwritable, or of another fingerprint."""


class ShardError(LabelmillError):
    """A shard cannot be made from this configuration: its seeds ran out."""

    exit_code = 3


class StalledError(LabelmillError):
    """A run cannot go on where it is, through no fault of its own: no worker starts, or Ray does not answer."""

    exit_code = EXIT_RESUMABLE


class VerificationError(LabelmillError):
    """A dataset is not what its manifest says."""

    exit_code = 4


class GateError(LabelmillError):
    """Tonight's dataset is whole but differs too much from the one that is live. The message names the gates."""

    exit_code = 5


class LockedError(LabelmillError):
    """Another run has the lock, or has taken it over. The message names it and says until when."""

    exit_code = 6


class LockExpiredError(LockedError):
    """The lock ran out though its owner lives: its machine was frozen, or a clock jumped. The same command goes on."""

    exit_code = EXIT_RESUMABLE

"""Errors that a user can act on; each becomes one message and exit code 2 on the command line."""


class ForecastError(Exception):
    """Input, environment or request is wrong; the message says what, where and what to do."""


class RecipeError(ForecastError):
    """A recipe has unknown, missing or contradictory keys."""


class DataError(ForecastError):
    """A data file or store cannot be read, is incomplete or holds implausible values."""


class GridError(ForecastError):
    """A grid is not what the model or the reader needs."""


class MeshError(ForecastError):
    """A mesh does not divide the model or does not match the ranks at hand."""


class CheckpointError(ForecastError):
    """A checkpoint is missing, damaged or of an incompatible format."""


class OutputError(ForecastError):
    """An output exists already, cannot be written or is in use by another run."""


class StoppedError(Exception):
    """A run was stopped by a fault or a signal and can be resumed; exit code 3."""


class SignalledError(StoppedError):
    """A run was stopped by a signal to one of its ranks, and by nothing else."""

"""Every error Saccade raises on purpose, as one tree.

All of them derive from `SaccadeError`, so that one `except` catches them and the command line can turn
each into a single line and exit code 2. Those about arguments are `ValueError`s as well, which is what
callers of a PyTorch operator expect. A message says what was expected, what came, and what to do.
"""


class SaccadeError(Exception):
    """Base class of all errors raised on purpose by Saccade."""


class ArgumentError(SaccadeError, ValueError):
    """An argument does not fit: the message names it, its value, and the remedy."""


class ShapeError(ArgumentError):
    """Shapes that cannot belong to one attention problem."""


class DtypeError(ArgumentError, TypeError):
    """A dtype that is not supported, or tensors that do not share one."""


class DeviceError(ArgumentError):
    """Tensors on different devices."""


class MaskError(ArgumentError):
    """A mask whose meaning is ambiguous or whose lengths do not fit the problem."""


class BackendError(ArgumentError):
    """A backend that does not exist or cannot serve this problem."""


class DerivativeError(SaccadeError, RuntimeError):
    """A derivative that the operator does not have: forward mode, or of second order."""


class NotAskedError(SaccadeError, AttributeError):
    """A report was read for a statistic that was not asked for."""


class UnsupportedModelError(SaccadeError):
    """A model whose attention does not come through Saccade; it is left as it was."""


class ModelNotFoundError(SaccadeError):
    """No model could be loaded from the name or folder given."""


class IntegrityError(SaccadeError):
    """A file whose content is not what it should be."""


class TraceError(SaccadeError):
    """Something about a trace; the classes below say what."""


class NotATraceError(TraceError):
    """There is no trace at a path, or something else is."""


class TraceVersionError(TraceError):
    """A trace of a version of the format that this Saccade does not know."""


class TraceFormatError(TraceError):
    """A trace's metadata break the specification (docs/trace-format.md); nothing of it is used."""


class DamagedTraceError(TraceError):
    """A file of a trace is missing, cut off, or not what was written."""


class TraceExistsError(TraceError):
    """A recording would write where something is already."""


class TraceBusyError(TraceError):
    """Another recorder is writing to the trace."""


class TraceWriteError(TraceError):
    """A trace cannot be written on: the disk is full, or refuses. What was finished before is whole."""


class NotRecordedError(TraceError, AttributeError):
    """A trace was asked for something that was not kept in it."""


class MissingExtraError(SaccadeError, ImportError):
    """An optional dependency is not installed; the message ends with the command that installs it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'saccade[{extra}]'")

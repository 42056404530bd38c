"""The version, in its only place: the build reads it from this line, `saccade` re-exports it."""

__version__ = "0.1.0"

"""Traces: what a model attended to, recorded while it runs, kept in memory or in a Zarr store, and read back."""

from saccade.trace.choice import default_statistics
from saccade.trace.recorder import Recording
from saccade.trace.recording import record
from saccade.trace.tokens import Texts, Tokens
from saccade.trace.trace import Entry, Site, Trace, open_trace

__all__ = ["Entry", "Recording", "Site", "Texts", "Tokens", "Trace", "default_statistics", "open_trace", "record"]

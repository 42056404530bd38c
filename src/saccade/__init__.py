"""Saccade: an attention engine for PyTorch that can show its work."""

from saccade import errors, masks, nn, scores, statistics
from saccade._version import __version__
from saccade.adapters.torch_sdpa import sdpa
from saccade.functional import attention

__all__ = ["__version__", "attention", "errors", "masks", "nn", "scores", "sdpa", "statistics"]

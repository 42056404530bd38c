"""Saccade: an attention engine for PyTorch that can show its work."""

from saccade import errors, masks, nn, scores, statistics
from saccade._version import __version__
from saccade.adapters.huggingface import attach, detach
from saccade.adapters.observation import observe
from saccade.adapters.torch_sdpa import sdpa
from saccade.functional import attention

__all__ = [
    "__version__",
    "attach",
    "attention",
    "detach",
    "errors",
    "masks",
    "nn",
    "observe",
    "scores",
    "sdpa",
    "statistics",
]

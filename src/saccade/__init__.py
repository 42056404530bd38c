"""Saccade: an attention engine for PyTorch that can show its work.

Names are imported when they are first used, so that `saccade --help` need not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from saccade._version import __version__

if TYPE_CHECKING:
    from saccade import analysis, errors, masks, nn, scores, statistics
    from saccade.adapters.huggingface import attach, detach
    from saccade.adapters.observation import observe
    from saccade.adapters.torch_sdpa import sdpa
    from saccade.functional import attention
    from saccade.pattern import Pattern
    from saccade.trace import Trace, open_trace, record

__all__ = [
    "Pattern",
    "Trace",
    "__version__",
    "analysis",
    "attach",
    "attention",
    "detach",
    "errors",
    "masks",
    "nn",
    "observe",
    "open_trace",
    "record",
    "scores",
    "sdpa",
    "statistics",
]

_MODULES = ("analysis", "errors", "masks", "nn", "scores", "statistics")
_HOME = {
    "Pattern": "pattern",
    "Trace": "trace",
    "attach": "adapters.huggingface",
    "attention": "functional",
    "detach": "adapters.huggingface",
    "observe": "adapters.observation",
    "open_trace": "trace",
    "record": "trace",
    "sdpa": "adapters.torch_sdpa",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"saccade.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'saccade' has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"saccade.{_HOME[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)

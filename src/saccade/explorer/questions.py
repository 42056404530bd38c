"""Questions about what there is: the document, and the tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from saccade._version import __version__
from saccade.explorer.explorer import NO_MODEL
from saccade.explorer.parameters import read
from saccade.explorer.parcel import Answer
from saccade.explorer.work import Asked

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer

_MEMORY = Path("/proc/self/clear_refs")  # by which job "cost" asks how much memory a call took


@dataclass(frozen=True)
class NoParameters:
    """Of a question that has none."""


@dataclass(frozen=True)
class Sequence:
    """Of question `tokens`: a text's id and one of its sequences."""

    text: str
    sequence: str


def document(explorer: Explorer, parameters: Mapping[str, Any], cancelled: Asked) -> Answer:
    """What there is to look at: About."""
    del cancelled
    read(NoParameters, parameters)
    texts = explorer.library.texts
    return {
        "model": _model_name(explorer),
        "writer": _writer(explorer),
        "precision": "full",
        "abilities": _abilities(explorer),
        "texts": [text.info for text in texts],
        "more": explorer.library.more,
    }


def _model_name(explorer: Explorer) -> str:
    if explorer.reader is not None:
        name, part = explorer.reader.name, explorer.reader.part
        return f"{name} ({part})" if part else name
    assert explorer.trace is not None
    return explorer.trace.metadata.name or explorer.trace.metadata.model


def _writer(explorer: Explorer) -> str:
    here = f"saccade {__version__}, torch {torch.__version__}"
    recorded = None if explorer.trace is None else explorer.trace.metadata.writer
    return here if recorded in {None, f"saccade {__version__}"} else f"{here}; recorded by {recorded}"


def _abilities(explorer: Explorer) -> Mapping[str, Any]:
    reads: Any = True if explorer.reader is not None else NO_MODEL
    exact = any(info["exact"] for text in explorer.library.texts for info, _ in text.sites)
    inside: Any = True
    if explorer.reader is None and not exact:
        inside = "the trace has no queries and keys: record with keep='qkv' (saccade record --keep qkv)"
    measures: Any = True if _MEMORY.exists() else "this system does not tell how much memory a process has used"
    return {"read": reads, "inside": inside, "meaning": reads, "cost": measures}


def tokens(explorer: Explorer, parameters: Mapping[str, Any], cancelled: Asked) -> Answer:
    """The tokens of one sequence of a text: TokensAnswer."""
    del cancelled
    asked = read(Sequence, parameters)
    found = explorer.text(asked.text).tokens(asked.sequence)
    return {"labels": found.labels, "word": found.word.int(), "special": found.special}

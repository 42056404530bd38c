"""`Explorer`: whoever knows the patterns, asked by name.

What the page asks is a question (answered at once) or a job (which takes its time, says how far it is, and may need the
model). Both are functions of an explorer and of parameters that come from outside; here is only which there are. They
are imported when they are first asked, so that a trace is looked at without what only a model needs.

Any number of threads may ask. What is computed from a trace needs no lock; a job that runs the model holds
`Explorer.model_lock` while it does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from threading import Lock
from typing import Any

from saccade.adapters.pretrained import Pretrained
from saccade.errors import ArgumentError
from saccade.explorer.cache import Cache
from saccade.explorer.library import Library, Text
from saccade.explorer.parcel import Answer
from saccade.explorer.work import Asked, Cancelled, never
from saccade.trace import Trace

__all__ = ["Cancelled", "Explorer", "never"]

NO_MODEL = (
    "there is no model to read with; to open a trace with the model that it was recorded from: "
    "saccade explore TRACE --model NAME"
)

# Where the function of each name is: (explorer, parameters, cancelled) -> Answer.
QUESTIONS = {
    "document": "questions",
    "tokens": "questions",
    "heads": "overview",
    "tile": "tiles",
    "window": "tiles",
    "margins": "tiles",
    "strongest": "strongest",
    "inside": "inside",
}
# (explorer, parameters, progress, cancelled) -> Answer
JOBS = {"read": "reading", "roles": "roles", "meaning": "meaning", "cost": "cost"}

CACHE_BYTES = 512 << 20

Progress = Callable[[float, str], None]


def untold(share: float, what: str) -> None:
    """For work whose progress nobody follows."""
    del share, what


class Explorer:
    """Answers what is asked of the texts that a model has read.

    Args:
        trace: a trace, stored or in memory.
        reader: a model that reads further texts.

    Raises:
        ArgumentError: there is neither, or the trace was not recorded from this model.

    Attributes:
        library: the texts.
        reader: the model, or None.
        model_lock: held by whoever runs the model.
        cache: what was computed or read and may be asked for again.
    """

    def __init__(self, trace: Trace | None = None, reader: Pretrained | None = None) -> None:
        if trace is None and reader is None:
            raise ArgumentError("there is nothing to explore: expected a trace, or a model that can read")
        if trace is not None and reader is not None:
            _check_same_model(trace, reader)
        self.trace, self.reader = trace, reader
        self.library = Library(trace)
        self.model_lock = Lock()
        self.cache = Cache(CACHE_BYTES)

    def about(self) -> Answer:
        """What there is to look at: question "document"."""
        return self.answer("document", {})

    def answer(self, question: str, parameters: Mapping[str, Any], cancelled: Asked = never) -> Answer:
        """The answer to a question.

        Args:
            question: its name, see `QUESTIONS`.
            parameters: strings of a link, or JSON.
            cancelled: asked several times a second whether the answer is still wanted.

        Raises:
            ArgumentError: there is no such question, or a parameter does not fit.
            Cancelled: it is not wanted any more.
            SaccadeError: it cannot be answered; the message says why.
        """
        answered: Answer = _function("question", question, QUESTIONS)(self, parameters, cancelled)
        return answered

    def run(
        self, job: str, parameters: Mapping[str, Any], progress: Progress = untold, cancelled: Asked = never
    ) -> Answer:
        """What a job finds.

        Args:
            job: its name, see `JOBS`.
            parameters: strings of a link, or JSON.
            progress: told the share that is done, from 0 to 1, and what is being done.
            cancelled: see `answer`.

        Raises:
            As `answer`.
        """
        found: Answer = _function("job", job, JOBS)(self, parameters, progress, cancelled)
        return found

    def text(self, text: str) -> Text:
        """A text by its id; see `Library.text`."""
        return self.library.text(text)


def _function(kind: str, name: str, homes: Mapping[str, str]) -> Callable[..., Any]:
    if name not in homes:
        raise ArgumentError(f"there is no {kind} {name[:100]!r}; expected one of {', '.join(homes)}")
    function: Callable[..., Any] = getattr(import_module(f"saccade.explorer.{homes[name]}"), name)
    return function


def _check_same_model(trace: Trace, reader: Pretrained) -> None:
    """Two models under one name would be compared with each other unnoticed."""
    from saccade.trace.choice import fingerprint

    if trace.metadata.fingerprint != fingerprint(reader.model):
        raise ArgumentError(
            f"the trace was recorded from {trace.metadata.name or trace.metadata.model}, and {reader.name} has other "
            "weights: explore the trace without a model, or with the one that it was recorded from"
        )

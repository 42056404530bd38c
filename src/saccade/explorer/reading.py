"""Job `read`: the model reads a text, and what it attends to is kept in memory; and how any job runs the model.

A model is run by one job at a time, watched while it runs (`run_of_model`): at each attention call, one or a few in
each layer, the job says how far it is, is given up if nobody waits for it any more, and is refused if what is to be
kept of it would be too much. Whatever ends a run, the model is afterwards as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from saccade.adapters import huggingface
from saccade.adapters.observation import Call, Running, watching
from saccade.adapters.pretrained import Encoded, Pretrained, encode, together
from saccade.backends import Inputs
from saccade.errors import ArgumentError
from saccade.explorer.explorer import NO_MODEL
from saccade.explorer.parameters import read as parameters_of
from saccade.explorer.parcel import Answer
from saccade.explorer.work import Asked, go_on
from saccade.masks import Dense, Lengths
from saccade.scores import DenseBias, Problem
from saccade.statistics import Statistic
from saccade.trace import Recording, record

if TYPE_CHECKING:
    from saccade.explorer.explorer import Explorer, Progress

MOST_BYTES = 2 << 30  # that a run may keep
# Bytes that the statistics of a recording take for each query of a head; see `trace.choice.default_statistics`.
STATISTICS_BYTES = 148
PATIENCE = 0.1  # seconds between two looks at whether a job that waits for the model is still wanted


@dataclass(frozen=True)
class NewText:
    """Parameters of the job: a text, and the id of one that was only come by on the way to it; "" for none."""

    text: str
    instead: str = ""


def read(explorer: Explorer, parameters: Mapping[str, Any], progress: Progress, cancelled: Asked) -> Answer:
    """The model reads a text, which joins the others: ReadAnswer.

    Raises:
        ArgumentError: there is no model; the text is empty, or too long for the model or for memory.
        UnsupportedModelError: the model's attention does not come through Saccade.
        Cancelled: nobody waits for it any more.
    """
    asked = parameters_of(NewText, parameters)
    reader = reader_of(explorer)
    encoded = encode_whole(reader, asked.text)
    count = len(encoded.tokens)
    steps = Steps(progress, cancelled)
    steps.begin(calls_of(reader.model), f"reading {count:,} tokens", keeping=f"the text is {count:,} tokens long")
    with run_of_model(explorer, steps):
        trace = _recorded(reader, asked.text, encoded)
    explorer.library.pass_by(asked.instead)
    return {"text": explorer.library.add(trace).info}


def _recorded(reader: Pretrained, text: str, encoded: Encoded) -> Recording:
    with record(reader.model, reader.tokenizer, keep="qkv", name=reader.name) as trace, torch.no_grad():
        trace.next(texts=[text])
        reader.model(**together(reader, [encoded]))
    return trace


def reader_of(explorer: Explorer) -> Pretrained:
    """The model that reads.

    Raises:
        ArgumentError: there is none.
    """
    if explorer.reader is None:
        raise ArgumentError(NO_MODEL)
    return explorer.reader


def encode_whole(reader: Pretrained, text: str) -> Encoded:
    """A text as tokens, none of them cut off.

    Raises:
        ArgumentError: it is empty, or longer than the model can read.
    """
    encoded = encode(reader, text, truncate=True)
    if encoded.dropped:
        raise ArgumentError(
            f"the text is {len(encoded.tokens) + encoded.dropped:,} tokens long; {reader.name} has positions for "
            f"{reader.limit:,}: shorten it"
        )
    return encoded


# ---------------------------------------------------------------------------------------- running the model


def calls_of(model: nn.Module) -> int:
    """About how many attention calls a forward makes: its modules that attend, or its layers where those share one."""
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", None) or 0
    return max(len(huggingface.attention_sites(model)), layers, 1)


@contextmanager
def run_of_model(explorer: Explorer, steps: Steps) -> Iterator[None]:
    """The model is this job's, which takes a step at each attention call that the model makes here.

    Raises:
        Cancelled: the job was given up while another had the model.
        UnsupportedModelError: as of `saccade.observe`.
    """
    with _held(explorer.model_lock, steps.cancelled), watching(reader_of(explorer).model, steps):
        yield


@contextmanager
def _held(lock: Lock, cancelled: Asked) -> Iterator[None]:
    while not lock.acquire(timeout=PATIENCE):
        go_on(cancelled)
    try:
        yield
    finally:
        lock.release()


class Steps:
    """The listener of a job: what it is told at each attention call.

    Args:
        progress: who is told how far it is.
        cancelled: who knows whether it is still wanted.
    """

    def __init__(self, progress: Progress, cancelled: Asked) -> None:
        self.cancelled = cancelled
        self._progress = progress
        self._calls, self._done, self._bytes = 1, 0, 0
        self._what, self._share = "", (0.0, 1.0)
        self._keeping: str | None = None

    def begin(
        self, calls: int, what: str, share: tuple[float, float] = (0.0, 1.0), *, keeping: str | None = None
    ) -> None:
        """A stage of the job.

        Args:
            calls: about how many attention calls it makes.
            what: what is being done.
            share: from which share of the job to which.
            keeping: what is recorded, in words; None if nothing is. A run is refused as soon as it is seen that so many
                calls would keep more than `MOST_BYTES`.
        """
        self._calls, self._done, self._bytes = calls, 0, 0
        self._what, self._share, self._keeping = what, share, keeping
        self._tell()

    def statistics(self, running: Running, lengths: Lengths) -> Sequence[Statistic]:
        """See `Listener`."""
        del running, lengths
        return ()

    def called(self, call: Call, running: Running, problem: Problem, inputs: Inputs) -> None:
        """See `Listener`."""
        del call, running
        go_on(self.cancelled)
        self._done += 1
        if self._keeping is not None:
            self._bytes += bytes_kept(problem, inputs)
            self._check_bytes()
        self._tell()

    def entered(self, running: Running, forward: int) -> None:
        """See `Listener`."""

    def left(self, running: Running, forward: int, output: Any) -> None:
        """See `Listener`."""

    def _tell(self) -> None:
        start, stop = self._share
        self._progress(start + (stop - start) * min(self._done / self._calls, 1.0), self._what)

    def _check_bytes(self) -> None:
        expected = self._bytes / self._done * max(self._calls, self._done)
        if expected > MOST_BYTES:
            raise ArgumentError(
                f"{self._keeping}: to keep what the model attends to would take {expected / 2**30:.1f} GiB of memory, "
                f"and at most {MOST_BYTES / 2**30:.1f} are taken: shorten it"
            )


def bytes_kept(problem: Problem, inputs: Inputs) -> int:
    """About what a recording with queries, keys, values, statistics and hidden states keeps of a call."""
    lengths = inputs.lengths
    tensors = [inputs.query, inputs.key, inputs.value, inputs.query]  # a hidden state is about as wide as its queries
    if isinstance(problem.bias, DenseBias):
        tensors.append(problem.bias.values)
    if isinstance(problem.mask, Dense):
        tensors.append(problem.mask.visible)
    return sum(x.nbytes for x in tensors) + STATISTICS_BYTES * lengths.batch * lengths.heads * lengths.queries

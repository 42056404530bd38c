"""`record`: keep what a model attends to while it runs.

Each forward of the model (or of a part of it that is called directly, as `generate` calls an encoder) is one entry.
Its attention calls are rows of stacks: calls of one shape lie together, so that a whole model's statistic is one array.
What a call consists of is copied to main memory at once, and handed to a sink; nothing of the model is held on to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from saccade.adapters import huggingface
from saccade.adapters.observation import check_complete, watching
from saccade.errors import ArgumentError
from saccade.statistics import Statistic
from saccade.trace.blocks import Blocks
from saccade.trace.choice import Choice, about
from saccade.trace.recorder import Recorder, Recording
from saccade.trace.storage import MemorySink
from saccade.trace.writing import DiskSink

LONGEST_NAME = 1000


@contextmanager
def record(
    model: nn.Module,
    tokenizer: Any = None,
    *,
    keep: str = "statistics",
    statistics: Statistic | Sequence[Statistic] | None = None,
    layers: Sequence[int | str] | None = None,
    heads: Sequence[int] | None = None,
    hidden: bool = True,
    to: str | Path | None = None,
    resume: bool = False,
    name: str | None = None,
) -> Iterator[Recording]:
    """Keep what a model attends to, in memory or on disk, while it runs in this context.

    Models are served and watched as by `saccade.observe`; afterwards the model is what it was, also after an error. A
    forward that an exception ends leaves no entry, and an exception before the first entry leaves no trace. On disk,
    entries are written while the model runs, in memory of one layer and a few times 8 MiB. What gradient checkpointing
    computes again is an entry again.

    Args:
        model: any module whose attention comes through Saccade: see `saccade.observe`.
        tokenizer: of Hugging Face; without one, tokens are known by their numbers only.
        keep: "statistics"; "qk": queries and keys as well (after rotary embedding), from which every entry of the
            pattern is exact; "qkv": values as well.
        statistics: what to ask of every call, from `saccade.statistics`; None for `default_statistics`. With queries
            and keys the lse is always among it.
        layers: only these: numbers from 0, or names of sites.
        heads: only these.
        hidden: keep the hidden state that enters each layer, and the one that leaves the last.
        to: a new folder, by custom named ``.zarr``; None keeps the recording in memory.
        resume: go on with a recording of the same model and options at `to`, after its last whole entry.
        name: what the model is called; None for what its configuration says.

    Yields:
        The recording, a `Trace` that grows.

    Raises:
        ArgumentError: an argument does not fit; nested contexts ask for one statistic in two ways.
        UnsupportedModelError, ShapeError: as of `saccade.observe`.
        TraceExistsError, TraceBusyError, TraceWriteError: `to` cannot be written to.
        MissingExtraError: `to` needs the packages of the trace extra.

    >>> import torch, saccade
    >>> class Net(torch.nn.Module):
    ...     def forward(self, x):
    ...         return saccade.attention(x, x, x)
    >>> net = Net()
    >>> with saccade.record(net, keep="qk") as trace:
    ...     _ = net(torch.zeros(1, 2, 4, 8))
    >>> trace.sites
    ['']
    >>> trace[0, ""].pattern[0, 0, 0].tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    choice = Choice.checked(keep, statistics, layers, heads, hidden=hidden)
    _check_others(tokenizer, to, name, resume=resume)
    said = about(model, choice, name)
    _check_layers(model, choice)
    sink = MemorySink(said) if to is None else DiskSink(Path(to), said, resume=resume)
    recorder = Recorder(model, sink, choice, tokenizer)
    try:
        with watching(model, recorder) as watch:
            yield recorder.recording
            recorder.drop()
        if watch.count or not resume:  # resumed, nothing may be left to do
            check_complete(model, recorder.calling, watch)
            choice.check_used(recorder.seen)
    except BaseException:
        recorder.drop()
        sink.close(failed=True)
        raise
    sink.close()


def _check_others(tokenizer: Any, to: Any, name: Any, *, resume: bool) -> None:
    """Refuse what is no tokenizer, no folder, or no name."""
    lacking = [what for what in ("convert_ids_to_tokens", "decode", "all_special_ids") if not hasattr(tokenizer, what)]
    if tokenizer is not None and lacking:
        raise ArgumentError(
            f"tokenizer is {type(tokenizer).__name__}; expected one of Hugging Face, it has no {lacking[0]}"
        )
    if to is not None and (not isinstance(to, str | Path) or "://" in str(to) or "\0" in str(to)):
        raise ArgumentError(f"to = {to!r}: expected a folder on this machine")
    if name is not None and (not isinstance(name, str) or len(name) > LONGEST_NAME):
        raise ArgumentError(f"name is {type(name).__name__}; expected a string of at most {LONGEST_NAME} characters")
    if resume and to is None:
        raise ArgumentError("resume=True needs to=, the folder of the recording to go on with")


def _check_layers(model: nn.Module, choice: Choice) -> None:
    """Refuse a layer that a Hugging Face model cannot have; of other models it is known when they have run."""
    if model not in huggingface.huggingface_models(model):
        return
    blocks = Blocks(model)
    known = [(blocks.of(site)[1] or 0) + 1 for site in huggingface.attention_sites(model)]
    most = max([*known, getattr(model.config, "num_hidden_layers", 0) or 0])  # ALBERT has fewer than it runs
    asked = [layer for layer in choice.layers or () if isinstance(layer, int)]
    if max(asked, default=0) >= most:
        raise ArgumentError(f"layers = {asked}: {type(model).__name__} has layers 0 to {most - 1}")

"""What a model reads so that the roles of its heads show: texts, repeated random tokens, what a trace holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from saccade.adapters.pretrained import Encoded, Pretrained, encode, together
from saccade.analysis.roles.scoring import Reading, is_punctuation
from saccade.errors import ArgumentError, NotRecordedError
from saccade.trace.tokens import Tokens
from saccade.trace.trace import Site

LENGTH = 64  # random tokens before they repeat, where there is room


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model is called with, and the tokens that this is."""

    inputs: dict[str, Tensor]
    reading: Reading


@dataclass(frozen=True)
class Untold:
    """Stands in for a tokenizer that nobody gave."""

    model_max_length: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None

    def __call__(self, *_: object, **__: object) -> None:
        """There is nothing to call."""
        raise ArgumentError("a text needs a tokenizer: give tokenizer=, or text=None for random tokens")


# ---------------------------------------------------------------------------------------- texts


def text_batches(reader: Pretrained, text: str | Sequence[str], size: int, *, truncate: bool) -> list[Batch]:
    """Texts as batches that the model can read; shorter ones are padded at their ends.

    Raises:
        ArgumentError: there is no text, one is empty or too long, or there is no tokenizer.
    """
    texts = [text] if isinstance(text, str) else list(text)
    if not texts or not all(isinstance(one, str) for one in texts):
        raise ArgumentError("text: expected a string, a list of strings with at least one, or None for random tokens")
    if isinstance(reader.tokenizer, Untold):
        reader.tokenizer()
    encoded = [encode(reader, one, truncate=truncate) for one in texts]
    return [
        _batch(reader, encoded[start : start + size], texts[start : start + size])
        for start in range(0, len(texts), size)
    ]


def _batch(reader: Pretrained, encoded: Sequence[Encoded], texts: Sequence[str]) -> Batch:
    inputs = together(reader, encoded)
    valid = inputs["attention_mask"].bool()
    marks = [torch.tensor(_separators(reader, one, text)) for one, text in zip(encoded, texts, strict=True)]
    separators = pad_sequence(marks, True, False)  # noqa: FBT003
    return _on_device(reader, inputs, Reading(inputs["input_ids"], valid, separators, valid.shape[1]))


def _separators(reader: Pretrained, encoded: Encoded, text: str) -> list[bool]:
    """Which tokens of a text are special or punctuation."""
    ids = encoded.inputs["input_ids"][0].tolist()
    if encoded.spans is None:
        pieces = [reader.tokenizer.decode([i]) for i in ids]
    else:
        pieces = [text[start:stop] for start, stop in encoded.spans]
    return [special or is_punctuation(piece) for special, piece in zip(encoded.special, pieces, strict=True)]


def _on_device(reader: Pretrained, inputs: dict[str, Tensor], reading: Reading) -> Batch:
    device = reader.model.get_input_embeddings().weight.device
    separators = None if reading.separators is None else reading.separators.to(device)
    moved = Reading(reading.ids.to(device), reading.valid.to(device), separators, reading.queries)
    return Batch({name: x.to(device) for name, x in inputs.items()}, moved)


# ---------------------------------------------------------------------------------------- random tokens


@dataclass(frozen=True, eq=False)
class Repeats:
    """Random tokens, the same ones twice in a row.

    Attributes:
        batch: what the model is called with.
        length: how many before they repeat.
    """

    batch: Batch
    length: int


def random_repeats(reader: Pretrained, length: int | None, count: int, seed: int) -> Repeats:
    """Sequences of random tokens, each read twice in a row, between the model's own [CLS] and [SEP] if it has them.

    No token stands twice in a sequence before it repeats, if there are enough of them; special ones are left out.

    Args:
        reader: the model.
        length: tokens before they repeat; None for `LENGTH`, or what the model has positions for.
        count: how many sequences.
        seed: of the random numbers.

    Raises:
        ArgumentError: the model has positions for fewer, or no ordinary tokens.
    """
    tokenizer = reader.tokenizer
    begin = [i for i in (getattr(tokenizer, "cls_token_id", None),) if i is not None]
    end = [i for i in (getattr(tokenizer, "sep_token_id", None),) if i is not None and begin]
    most = None if reader.limit is None else (reader.limit - len(begin) - len(end)) // 2
    length = _checked_length(reader, length, most)
    vocabulary = _vocabulary(reader)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.stack([_draw(vocabulary, length, generator) for _ in range(count)])
    frame = [torch.tensor(ids, dtype=torch.int64).expand(count, -1) for ids in (begin, end)]
    ids = torch.cat([frame[0], rows, rows, frame[1]], 1)
    reading = Reading(ids, torch.ones_like(ids, dtype=torch.bool), _separators_of_ids(tokenizer, ids), ids.shape[1])
    return Repeats(_on_device(reader, {"input_ids": ids}, reading), length)


def _checked_length(reader: Pretrained, length: int | None, most: int | None) -> int:
    if length is None:
        length = LENGTH if most is None else min(LENGTH, most)
    elif not isinstance(length, int) or isinstance(length, bool):
        raise ArgumentError(f"length = {length!r}: expected an integer of at least 2, or None")
    if length < 2 or (most is not None and length > most):  # noqa: PLR2004  of one token nothing is to be learnt
        room = "" if most is None else f"; {reader.name} has positions for {most}, twice"
        raise ArgumentError(f"length = {length} random tokens: expected at least 2{room}")
    return length


def _vocabulary(reader: Pretrained) -> Tensor:
    """The ids of ordinary tokens."""
    size = reader.model.get_input_embeddings().num_embeddings
    special = set(getattr(reader.tokenizer, "all_special_ids", ()))
    if hasattr(reader.tokenizer, "__len__"):
        size = min(size, len(reader.tokenizer))
    ids = [i for i in range(size) if i not in special]
    if not ids:
        raise ArgumentError(f"{reader.name} has no ordinary tokens to draw from")
    return torch.tensor(ids)


def _draw(vocabulary: Tensor, length: int, generator: torch.Generator) -> Tensor:
    if length <= len(vocabulary):
        return vocabulary[torch.randperm(len(vocabulary), generator=generator)[:length]]
    return vocabulary[torch.randint(len(vocabulary), (length,), generator=generator)]


def _separators_of_ids(tokenizer: Any, ids: Tensor) -> Tensor | None:
    if isinstance(tokenizer, Untold):
        return None
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    known = {i: i in special or is_punctuation(tokenizer.decode([i])) for i in ids.unique().tolist()}
    return torch.tensor([[known[i] for i in row] for row in ids.tolist()])


# ---------------------------------------------------------------------------------------- traces


def reading_of_site(site: Site) -> Reading | None:
    """The tokens of a recorded call; None if its queries are not known to be the last of its keys."""
    try:
        queries, keys = site.tokens, site.key_tokens
    except NotRecordedError:
        return None
    later = keys.ids.shape[1] - queries.ids.shape[1]
    if queries.name != keys.name or later < 0 or not torch.equal(keys.ids[:, later:], queries.ids):
        return None
    return Reading(keys.ids, keys.visible, _separators_of_tokens(keys), queries.ids.shape[1])


def _separators_of_tokens(tokens: Tokens) -> Tensor | None:
    if tokens.texts is None:
        return None
    marks = [[is_punctuation(label) for label in tokens.labels(b)] for b in range(len(tokens.ids))]
    return torch.tensor(marks).reshape(tokens.ids.shape) | tokens.texts.special

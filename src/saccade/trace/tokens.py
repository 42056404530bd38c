"""The tokens that a model read, with their texts where a tokenizer is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saccade.trace import metadata
from saccade.trace.storage import Arrays, Open


@dataclass(frozen=True, eq=False)
class Texts:
    """What a batch of tokens says.

    Attributes:
        token: ``B`` lists of ``N`` strings, as the tokenizer writes its tokens.
        text: ``B`` texts.
        start, stop: int32 ``(B, N)``, the characters of the text that a token stands for; equal where there are none.
        special: booleans ``(B, N)``: the token stands for begin, end, padding or the like.
    """

    token: list[list[str]]
    text: list[str]
    start: Tensor
    stop: Tensor
    special: Tensor


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of a batch, ``B`` sequences of ``N``.

    Attributes:
        name: the argument of the model that held them.
        ids: int64 ``(B, N)``.
        visible: booleans ``(B, N)``, False for padding.
        texts: None if no tokenizer was given.
    """

    name: str
    ids: Tensor
    visible: Tensor
    texts: Texts | None = None

    def __len__(self) -> int:
        return self.ids.shape[1]

    def labels(self, batch: int = 0) -> list[str]:
        """What to print for each token of a batch element: its piece of the text, or its number."""
        if self.texts is None:
            return [str(int(i)) for i in self.ids[batch]]
        text, words = self.texts.text[batch], self.texts.token[batch]
        spans = zip(self.texts.start[batch].tolist(), self.texts.stop[batch].tolist(), strict=True)
        return [text[a:b] or word for (a, b), word in zip(spans, words, strict=True)]

    # ------------------------------------------------------------------------------------ in a trace

    def form(self) -> metadata.Sequence:
        """How a trace describes them."""
        return metadata.Sequence(self.name, self.ids.shape[0], self.ids.shape[1], self.texts is not None)

    def write(self, entry: Open, number: int) -> None:
        """As an entry's sequence of that number."""
        entry.put(f"sequences/{number}/ids", self.ids)
        entry.put(f"sequences/{number}/visible", self.visible)
        if self.texts is not None:
            words = np.array(self.texts.token, dtype=object).reshape(self.ids.shape)
            entry.put(f"sequences/{number}/token", words)
            entry.put(f"sequences/{number}/text", np.array(self.texts.text, dtype=object))
            for name in ("start", "stop", "special"):
                entry.put(f"sequences/{number}/{name}", getattr(self.texts, name))

    @classmethod
    def read(cls, arrays: Arrays, number: int) -> Tokens:
        """An entry's sequence of that number."""

        def part(name: str) -> Any:
            return arrays.read(f"sequences/{number}/{name}")

        form = arrays.metadata.sequences[number]
        tokens = cls(form.name, part("ids"), part("visible"))
        if not form.labelled:
            return tokens
        texts = Texts(part("token").tolist(), part("text").tolist(), part("start"), part("stop"), part("special"))
        return replace(tokens, texts=texts)

    # ------------------------------------------------------------------------------------ of a run

    def then(self, rows: Tensor, later: Tokens) -> Tokens:
        """Those of some rows, followed by later ones: the keys of a call that reads from a cache."""
        texts = None
        if self.texts is not None and later.texts is not None:
            texts = _joined(self.texts, rows, later.texts)
        ids, visible = torch.cat([self.ids[rows], later.ids], 1), torch.cat([self.visible[rows], later.visible], 1)
        return Tokens(self.name, ids, visible, texts)


def _joined(first: Texts, rows: Tensor, later: Texts) -> Texts:
    chosen = rows.tolist()
    shift = torch.tensor([len(first.text[i]) for i in chosen], dtype=torch.int32, device="cpu")[:, None]
    return Texts(
        [first.token[i] + token for i, token in zip(chosen, later.token, strict=True)],
        [first.text[i] + text for i, text in zip(chosen, later.text, strict=True)],
        torch.cat([first.start[rows], later.start + shift], 1),
        torch.cat([first.stop[rows], later.stop + shift], 1),
        torch.cat([first.special[rows], later.special], 1),
    )


# ---------------------------------------------------------------------------------------- from a tokenizer


def read_texts(tokenizer: Any, ids: Tensor, visible: Tensor, texts: Sequence[str] | None = None) -> Texts:
    """What tokens say, by the tokenizer that made them.

    Where the tokenizer, given the text, makes these very tokens, their places in it are its own word. Else the text is
    the tokens' own, each decoded by itself.

    Args:
        tokenizer: a tokenizer of Hugging Face.
        ids: int64 ``(B, N)``.
        visible: which are no padding.
        texts: the texts, if they are known; else they are decoded.
    """
    found = [
        _read_text(tokenizer, row, seen, None if texts is None else texts[i])
        for i, (row, seen) in enumerate(zip(ids.tolist(), visible, strict=True))
    ]
    words, whole, starts, stops = zip(*found, strict=True) if found else ((), (), (), ())
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    shape = ids.shape
    return Texts(
        list(words),
        list(whole),
        torch.tensor(starts, dtype=torch.int32, device="cpu").reshape(shape),
        torch.tensor(stops, dtype=torch.int32, device="cpu").reshape(shape),
        torch.tensor([[i in special for i in row] for row in ids.tolist()], dtype=torch.bool, device="cpu").reshape(
            shape
        ),
    )


def _read_text(
    tokenizer: Any, ids: list[int], visible: Tensor, text: str | None
) -> tuple[list[str], str, list[int], list[int]]:
    """A sequence's tokens, its text, and where in it each token starts and stops."""
    words = [str(word) for word in tokenizer.convert_ids_to_tokens(ids)]
    here = visible.nonzero()[:, 0].tolist()
    wanted = [ids[i] for i in here]
    if tokenizer.is_fast and wanted:
        said = tokenizer.decode(wanted, skip_special_tokens=True) if text is None else text
        spans = _spans(tokenizer, said, wanted)
        if spans is not None:
            starts, stops = [0] * len(ids), [0] * len(ids)
            for i, (start, stop) in zip(here, spans, strict=True):
                starts[i], stops[i] = start, stop
            return words, said, starts, stops
    pieces = [tokenizer.decode([i], clean_up_tokenization_spaces=False) for i in ids]
    ends = np.cumsum([len(piece) for piece in pieces]).tolist()
    return words, "".join(pieces), [0, *ends[:-1]] if ends else [], ends


def _spans(tokenizer: Any, text: str, ids: list[int]) -> list[tuple[int, int]] | None:
    """Where the tokenizer finds these tokens in a text; None if it makes others of it."""
    for framed in (True, False):
        encoded = tokenizer(
            text, add_special_tokens=framed, return_offsets_mapping=True, truncation=True, max_length=len(ids)
        )
        if encoded["input_ids"] == ids:
            return [(int(start), int(stop)) for start, stop in encoded["offset_mapping"]]
    return None

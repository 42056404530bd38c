"""A text before a model that is to be ablated: how it is run with many rows of that text, and where its words are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saccade.adapters.pretrained import Encoded, Pretrained, encode, wrap
from saccade.analysis.words import find_word, not_found
from saccade.errors import ArgumentError

Text = str | Mapping[str, Any]
Place = str | int


@dataclass(frozen=True, eq=False)
class Reading:
    """One text, and the model that reads it.

    Attributes:
        name: how the model is called.
        model: the module that is run.
        inputs: what it is called with, tensors ``(1, ...)`` and other values.
        tokenizer: None if the text was given as tensors and nobody named one.
        text: "" if only its tensors are known.
        encoded: None likewise.
        options: further arguments of a call.
    """

    name: str
    model: nn.Module
    inputs: Mapping[str, Any]
    tokenizer: Any = None
    text: str = ""
    encoded: Encoded | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, rows: int) -> Any:
        """The model's outputs for so many rows of this text."""
        repeated = {
            name: x.repeat_interleave(rows, 0) if isinstance(x, Tensor) and x.dim() else x
            for name, x in self.inputs.items()
        }
        return self.model(**{**self.options, **repeated})

    @property
    def ids(self) -> Tensor | None:
        """The tokens' numbers ``(N,)``, if the model reads any."""
        ids = self.inputs.get("input_ids")
        return ids[0] if isinstance(ids, Tensor) else None

    def labels(self, count: int) -> list[str]:
        """What to call each of so many tokens: its piece of the text, else its number."""
        if self.encoded is None:
            return [str(i) for i in range(count)]
        tokens, spans = self.encoded.tokens, self.encoded.spans
        pieces = [""] * len(tokens) if spans is None else [self.text[start:stop].strip() for start, stop in spans]
        return [piece or token for piece, token in zip(pieces, tokens, strict=True)]

    def places(self, what: Place | Sequence[Place], count: int) -> list[int]:
        """The positions of a word (in all its occurrences), of a position, or of several of these, each once.

        Args:
            what: words and positions; a negative position counts from the end.
            count: of the text's tokens.

        Raises:
            ArgumentError: there is no such word or position.
        """
        if isinstance(what, str):
            return self._of_word(what)
        if isinstance(what, Sequence):
            found = [place for one in what for place in self.places(one, count)]
            if not found:
                raise ArgumentError("an empty list of tokens: expected words or positions")
            return list(dict.fromkeys(found))
        if not isinstance(what, int) or isinstance(what, bool) or not -count <= what < count:
            raise ArgumentError(f"there is no token {what!r}: the text has {count} tokens, 0 to {count - 1}")
        return [what % count]

    def _of_word(self, word: str) -> list[int]:
        if self.encoded is None or self.encoded.spans is None:
            raise ArgumentError(
                f"where {word!r} stands is not known: that needs the text as a string and a fast tokenizer. "
                "Positions of tokens can be given instead"
            )
        found = find_word(word, self.text, self.encoded.spans, self.encoded.special)
        if not found:
            raise not_found(word, self.text, self.encoded.tokens)
        return [place for occurrence in found for place in occurrence]


def read(model: Any, text: Text, tokenizer: Any, options: Mapping[str, Any]) -> Reading:
    """A text before a model.

    Args:
        model: a `Pretrained`, a Hugging Face model, or another module.
        text: a string, or what the module is called with.
        tokenizer: of the model, if that is no `Pretrained`.
        options: further arguments of a call.

    Raises:
        ArgumentError: the text is empty, or no tokenizer reads it; tensors are of another batch size than 1; the model
            is in training mode.
        UnsupportedModelError: the model does not read text.
    """
    if tokenizer is not None and not isinstance(model, Pretrained):
        model = wrap(model, tokenizer)
    loaded = model if isinstance(model, Pretrained) else None
    module = loaded.model if loaded is not None else model
    if not isinstance(module, nn.Module):
        raise ArgumentError(f"model is {type(module).__name__}; expected a Pretrained or a torch.nn.Module")
    name = loaded.name if loaded is not None else type(module).__name__
    if any(part.training for part in module.modules()):
        raise ArgumentError(
            f"{name} is in training mode, or a part of it, and dropout would be taken for an effect: call model.eval()"
        )
    options = _accepted(module) | dict(options)
    if isinstance(text, str):
        if loaded is None:
            raise ArgumentError(f"the text is a string, and {name} has no tokenizer: give tokenizer=")
        encoded = encode(loaded, text)
        return Reading(name, module, _moved(encoded.inputs, module), loaded.tokenizer, text, encoded, options)
    _check_tensors(text)
    return Reading(name, module, _moved(text, module), loaded and loaded.tokenizer, options=options)


def _accepted(module: nn.Module) -> dict[str, Any]:
    """Nothing reads a cache here, so none is filled."""
    return {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}


def _check_tensors(inputs: Any) -> None:
    if not isinstance(inputs, Mapping) or not any(isinstance(x, Tensor) for x in inputs.values()):
        raise ArgumentError(f"text is {type(inputs).__name__}; expected a string, or a dict of tensors by keyword")
    for name, x in inputs.items():
        if isinstance(x, Tensor) and x.dim() and x.shape[0] != 1:
            raise ArgumentError(f"{name} has shape {tuple(x.shape)}; expected one text, (1, ...): it is repeated here")


def _moved(inputs: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    return {name: x.to(device) if isinstance(x, Tensor) else x for name, x in inputs.items()}

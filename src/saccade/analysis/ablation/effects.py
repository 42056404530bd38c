"""What is measured of an ablated model: its loss, one token's logit, how far a word's vector moved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.analysis.ablation.parts import Layer
from saccade.analysis.ablation.text import Place, Reading
from saccade.errors import ArgumentError, ShapeError, UnsupportedModelError

Measured = dict[str, Tensor]
Measure = Callable[[Any, int], Measured]
Function = Callable[[Any, int], Tensor]

VALUE = "value"  # of the numbers measured, the one whose change is the effect
DIMS = 3  # (rows, N, vocabulary)


class Effect(ABC):
    """A number for each row of a model's outputs. Its change from the whole model to an ablated one is the effect.

    Attributes:
        sign: what the sign of an effect says.
        options: arguments without which the model does not return what is needed.
    """

    sign: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def label(self) -> str:
        """What may change, in a few words, with its unit."""

    @abstractmethod
    def measure(self, reading: Reading, layers: Sequence[Layer], plain: Any) -> Measure:
        """What makes numbers of outputs and their count of rows: `VALUE` among them, each ``(rows,)``.

        Args:
            reading: the text and its model.
            layers: its self-attention.
            plain: the whole model's outputs for one row.

        Raises:
            UnsupportedModelError: the model does not return what is needed.
            ArgumentError: the text does not hold what is asked for.
        """


@dataclass(frozen=True)
class Loss(Effect):
    """Mean cross-entropy of a causal language model's prediction of tokens 1 to N - 1, in nats."""

    sign: ClassVar[str] = "above 0: the text is predicted worse without it"

    def label(self) -> str:
        """See `Effect`."""
        return "the next-token loss (nats)"

    def measure(self, reading: Reading, layers: Sequence[Layer], plain: Any) -> Measure:
        """See `Effect`."""
        if not predicts(reading) or not all(layer.causal for layer in layers):
            raise UnsupportedModelError(
                f"{reading.name} ({type(reading.model).__name__}) predicts no next token, so it has no loss; expected "
                "a causal language model with its head (an encoder reads in both directions). "
                "effect=WordVector(word) measures how far a word's vector moves in any model"
            )
        _check_logits(reading, plain)
        ids = reading.ids
        assert ids is not None
        if len(ids) == 1:
            raise ArgumentError("the text is one token long: there is no next token to predict")

        def losses(outputs: Any, rows: int) -> Measured:
            found = [F.cross_entropy(outputs.logits[row, :-1].float(), ids[1:]) for row in range(rows)]
            return {VALUE: torch.stack(found)}

        return losses


@dataclass(frozen=True)
class Logit(Effect):
    """The log-probability of a token, in nats; its plain logit comes beside it.

    A logit alone may move because all of them do, which changes no prediction.

    Args:
        token: as the tokenizer writes it in a text (a GPT-2 token that begins a word begins with a space), or its
            number.
        position: where it is predicted: a causal model predicts at -1, the last token, what comes next.
    """

    sign: ClassVar[str] = "below 0: it spoke for the token"

    token: str | int
    position: int = -1

    def label(self) -> str:
        """See `Effect`."""
        where = "" if self.position == -1 else f" at token {self.position}"
        return f"the log-probability of {self.token!r}{where} (nats)"

    def measure(self, reading: Reading, layers: Sequence[Layer], plain: Any) -> Measure:
        """See `Effect`."""
        del layers
        if not predicts(reading):
            raise UnsupportedModelError(
                f"{reading.name} ({type(reading.model).__name__}) has no logits; expected a language model with its "
                "head, such as GPT2LMHeadModel"
            )
        _check_logits(reading, plain)
        (place,) = reading.places(self.position, plain.logits.shape[1])
        number = self._number(reading, plain.logits.shape[2])

        def logits(outputs: Any, rows: int) -> Measured:
            at = outputs.logits[:rows, place].float()
            return {VALUE: at.log_softmax(-1)[:, number], "logit": at[:, number]}

        return logits

    def _number(self, reading: Reading, vocabulary: int) -> int:
        if isinstance(self.token, int):
            if not 0 <= self.token < vocabulary:
                raise ArgumentError(f"there is no token {self.token}: {reading.name} has {vocabulary}, from 0")
            return self.token
        if reading.tokenizer is None:
            raise ArgumentError(f"which token {self.token!r} is needs a tokenizer: give its number instead")
        ids = reading.tokenizer(self.token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == reading.tokenizer.unk_token_id:
            pieces = " ".join(reading.tokenizer.convert_ids_to_tokens(ids))
            raise ArgumentError(
                f"{self.token!r} is not one token that {reading.name} knows, but {pieces}; expected one, written as it "
                "stands in a text, or its number"
            )
        return int(ids[0])


@dataclass(frozen=True)
class WordVector(Effect):
    """How far a word's vector turns: 1 minus the cosine of it with and without; 0 if nothing changes.

    The length of the difference as a share of the vector's comes beside it (``distance``). The vector is the mean over
    the word's tokens, in all its occurrences.

    Args:
        word: a word, a token's position, or a list of these.
        layer: of the model's hidden states: 0 is what enters the first layer, 1 what leaves it; -1 is the last.
    """

    sign: ClassVar[str] = "0: it points where it did"
    options: ClassVar[dict[str, Any]] = {"output_hidden_states": True}

    word: Place | Sequence[Place]
    layer: int = -1

    def label(self) -> str:
        """See `Effect`."""
        word = f"“{self.word}”" if isinstance(self.word, str) else f"token {self.word}"
        where = "" if self.layer == -1 else f" in hidden state {self.layer}"
        return f"the direction of {word}{where} (1 − cosine)"

    def measure(self, reading: Reading, layers: Sequence[Layer], plain: Any) -> Measure:
        """See `Effect`."""
        del layers
        states = getattr(plain, "hidden_states", None)
        if states is None:
            raise UnsupportedModelError(f"{reading.name} returns no hidden states; give a function as the effect")
        if not -len(states) <= self.layer < len(states):
            raise ArgumentError(f"there is no hidden state {self.layer}: {reading.name} has {len(states)}, from 0")
        places = reading.places(self.word, states[self.layer].shape[1])

        def vectors(outputs: Any) -> Tensor:
            found: Tensor = outputs.hidden_states[self.layer][:, places].double().mean(1)
            return found

        before = vectors(plain)

        def turned(outputs: Any, rows: int) -> Measured:
            after = vectors(outputs)[:rows]
            # 1 - cos(a, b) = |a/|a| - b/|b||² / 2, without the cancellation
            cosine = (F.normalize(after, dim=-1) - F.normalize(before, dim=-1)).square().sum(-1) / 2
            return {VALUE: cosine, "distance": (after - before).norm(dim=-1) / before.norm(dim=-1)}

        return turned


@dataclass(frozen=True)
class Custom(Effect):
    """A function of outputs and their count of rows that gives a tensor ``(rows,)``."""

    sign: ClassVar[str] = "above 0: the value is larger without it"

    function: Function = field(compare=False)

    def label(self) -> str:
        """See `Effect`."""
        return "the value of " + getattr(self.function, "__name__", type(self.function).__name__).replace(
            "<lambda>", "the effect's function"
        )

    def measure(self, reading: Reading, layers: Sequence[Layer], plain: Any) -> Measure:
        """See `Effect`."""
        del reading, layers, plain

        def checked(outputs: Any, rows: int) -> Measured:
            found = self.function(outputs, rows)
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            if shape != (rows,):
                raise ShapeError(f"effect returned {shape}; expected a number for each row, a tensor ({rows},)")
            return {VALUE: found}

        return checked


def as_effect(effect: Effect | Function | None) -> Effect:
    """An effect; a function as one.

    Raises:
        ArgumentError: it is neither.
    """
    if effect is None:
        return Loss()
    if isinstance(effect, Effect):
        return effect
    if isinstance(effect, type) or not callable(effect):
        raise ArgumentError(f"effect = {effect!r}: expected Loss(), Logit(token), WordVector(word) or a function")
    return Custom(effect)


def predicts(reading: Reading) -> bool:
    """Whether a model has a head that makes tokens of hidden states."""
    head = getattr(reading.model, "get_output_embeddings", None)
    return head is not None and head() is not None and reading.ids is not None


def _check_logits(reading: Reading, plain: Any) -> None:
    logits = getattr(plain, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() != DIMS:
        raise UnsupportedModelError(f"{reading.name} returned no logits (rows, N, vocabulary); expected return_dict")

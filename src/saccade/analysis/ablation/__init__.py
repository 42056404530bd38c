"""`ablate`: heads or tokens are taken away, and what changes is measured.

Where a model looks does not say what follows from it. So the model is run again without a head (Michel et al., arXiv
1905.10650; Voita et al., arXiv 1905.09418) or without what a token says (value zeroing: Mohebbi et al., arXiv
2301.12971), and its loss, a logit or a word's vector is compared. The text is repeated in a batch whose rows go without
different parts, so a small model's heads are all ablated in a handful of forwards.

What this does not show: an ablated model computes what it never computed in training, and another head may take over
what one did, so an effect of 0 does not mean that a head did nothing (Wang et al., arXiv 2211.00593, section 3.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from saccade.adapters.intervention import intervening
from saccade.analysis.ablation import picture
from saccade.analysis.ablation.change import REMOVALS, Drawn, Mean, Removal, Shuffled, StandIn, Survey, Zero
from saccade.analysis.ablation.effects import (
    VALUE,
    Effect,
    Function,
    Logit,
    Loss,
    Measure,
    Measured,
    WordVector,
    as_effect,
)
from saccade.analysis.ablation.parts import Heads, Layer, Part, Parts, Plan, Tokens
from saccade.analysis.ablation.text import Reading, Text, read
from saccade.analysis.result import Result
from saccade.errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CAVEAT", "Ablation", "Effect", "Heads", "Logit", "Loss", "Tokens", "WordVector", "ablate"]

HOW = {"zero": "set to zero", "mean": "replaced by a mean", "resample": "replaced by draws"}
CAVEAT = "An ablated model is off its training, and backup heads may hide an effect (Wang et al. 2022)."

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Ablation(Result):
    """What changed when parts were taken away.

    Attributes:
        effect: the value without a part minus `baseline`, ``(layer, head)`` of all heads, ``(token,)`` of all tokens,
            ``(part,)`` of those chosen; NaN where a layer has no such head.
        value: without it, likewise.
        further: what else the effect measures, likewise, by name: see `Logit` and `WordVector`.
        baseline: the whole model's value.
        measured: what the value is, with its unit.
        sign: what the sign of an effect says.
        what: "heads" or "tokens".
        how: what was put in their place.
        model: its name.
        text: "" if it was given as tensors.
        layers: the self-attention sites, in order: what a layer's number means.
        plan: what stands where.
    """

    CAVEAT: ClassVar[str] = CAVEAT

    effect: Tensor
    value: Tensor
    further: Mapping[str, Tensor]
    baseline: float
    measured: str
    sign: str
    what: str
    how: str
    model: str
    text: str
    layers: Sequence[str]
    plan: Plan

    def arrays(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        """See `Result`."""
        named = {"effect": self.effect, "value": self.value, **self.further}
        return {name: (self.plan.dims, numbers.numpy()) for name, numbers in named.items()}

    def coordinates(self) -> dict[str, Sequence[Any]]:
        """See `Result`."""
        return self.plan.along

    def about(self) -> dict[str, Any]:
        """See `Result`."""
        names = ("model", "text", "what", "how", "measured", "sign", "baseline")
        return {name: getattr(self, name) for name in names} | {"sites": list(self.layers), "caveat": CAVEAT}

    def strongest(self, count: int) -> list[tuple[str, float]]:
        """The parts of the largest effects in either direction, with these, the largest first."""
        found = self.effect.flatten()
        named = [(part.name, float(found[cell])) for part, cell in zip(self.plan.parts, self.plan.cells, strict=True)]
        return sorted(named, key=lambda each: -abs(each[1]))[:count]

    @property
    def done(self) -> str:
        """What was done, in words."""
        noun = "head" if self.what == "heads" else "token’s values"
        return f"each {noun} {HOW[self.how]}" if self.plan.dims != ("part",) else f"{self.what} {HOW[self.how]}"

    def draw(self, axis: Axes) -> None:
        """A map of layers and heads, or a bar for each part; brown below 0, blue above."""
        picture.draw(self, axis)


def ablate(
    model: Any,
    text: Text,
    parts: Parts | None = None,
    *,
    how: str = "zero",
    effect: Effect | Function | None = None,
    tokenizer: Any = None,
    reference: Text | Sequence[Text] | None = None,
    seed: int = 0,
    batch: int = 16,
    on_progress: Progress | None = None,
) -> Ablation:
    """Take heads or tokens away, one part after the other, and measure what changes.

    A head is ablated by what it gives to the output projection, a token by the values that self-attention reads of it;
    cross-attention stays as it is. Rows are ablated independently; memory is that of a forward of `batch` texts (for
    `Loss` and `Logit` its logits, batch x N x vocabulary, are most of it), and the model is afterwards what it was,
    also after an error.

    Args:
        model: a `Pretrained`, or a Hugging Face model with `tokenizer`; or any module whose attention comes through
            Saccade, with tensors as the text and a function as the effect. In eval mode.
        text: a string, or a dict of what the model is called with, whose tensors are ``(1, ...)``.
        parts: `Heads` or `Tokens`; None for all heads.
        how: what takes the place of what is gone: "zero"; "mean", over the tokens of the reference; "resample", its
            tokens drawn at random, one for each token of the text. Without a reference the mean is over this text,
            and "resample" lets a head's outputs change places, or gives a token the value of another.
        effect: what is measured: `Loss` (None: a causal language model's), `Logit`, `WordVector`, or a function of the
            model's outputs and their number of rows that returns a tensor ``(rows,)``.
        tokenizer: see `model`.
        reference: texts, each of the kind that `text` is.
        seed: of what is drawn at random.
        batch: rows in one forward.
        on_progress: called with the number of parts done, and of all.

    Returns:
        The effects: value without a part minus the whole model's value.

    Raises:
        ArgumentError: an argument does not fit; there is no such layer, head, word or token.
        UnsupportedModelError: the model's attention does not come through Saccade, or it returns nothing that `effect`
            could be measured of.
        ShapeError: a function returned something else than a number for each row.

    >>> import torch, saccade
    >>> class Net(torch.nn.Module):
    ...     def forward(self, x):
    ...         return saccade.attention(x, x, x)
    >>> ones = {"x": torch.ones(1, 2, 4, 8)}  # each of two heads gives 4 x 8 ones
    >>> found = ablate(Net().eval(), ones, effect=lambda output, rows: output.sum((1, 2, 3)))
    >>> found.baseline, found.effect.tolist()
    (64.0, [[-32.0, -32.0]])
    """
    parts = Heads() if parts is None else parts
    _check(parts, how, reference, batch)
    asked = as_effect(effect)
    reading = read(model, text, tokenizer, asked.options)
    with torch.no_grad():
        own: StandIn = Zero() if how == "zero" or reference is not None else Mean() if how == "mean" else Shuffled(seed)
        layers, plain = _survey(reading, parts.noun, own)
        plan = parts.plan(reading, layers)
        measure = asked.measure(reading, layers, plain)
        stand_in: StandIn = own
        if reference is not None:
            stand_in = Mean() if how == "mean" else Drawn([layer.keys for layer in layers], seed)
            for other in _texts(reference):
                _survey(read(model, other, tokenizer, {}), parts.noun, stand_in)
        whole = measure(plain, 1)
        found = _run(reading, plan.parts, REMOVALS[parts.noun](stand_in), measure, batch, on_progress)
    arrays = {name: _placed(numbers, plan) for name, numbers in found.items()}
    value, baseline = arrays.pop(VALUE), float(whole[VALUE])
    return Ablation(
        effect=value - baseline,
        value=value,
        further=arrays,
        baseline=baseline,
        measured=asked.label(),
        sign=asked.sign,
        what=parts.noun,
        how=how,
        model=reading.name,
        text=reading.text,
        layers=[layer.site for layer in layers],
        plan=plan,
    )


def _check(parts: Any, how: Any, reference: Any, batch: Any) -> None:
    if not isinstance(parts, Parts):
        raise ArgumentError(f"parts = {parts!r}: expected Heads(...) or Tokens(...)")
    if how not in HOW:
        raise ArgumentError(f"how = {how!r}: expected one of {', '.join(HOW)}")
    if how == "zero" and reference is not None:
        raise ArgumentError('how = "zero" reads no reference; expected "mean" or "resample" with one')
    if not isinstance(batch, int) or batch < 1:
        raise ArgumentError(f"batch = {batch!r}: expected a number of rows from 1")


def _texts(reference: Text | Sequence[Text]) -> Sequence[Text]:
    texts = [reference] if isinstance(reference, str | Mapping) else list(reference)
    if not texts:
        raise ArgumentError("reference holds no text; expected at least one")
    return texts


def _survey(reading: Reading, noun: str, keep: StandIn) -> tuple[list[Layer], Any]:
    """The whole model's layers, and its outputs."""
    survey = Survey(noun, keep)
    with intervening(reading.model, survey):
        outputs = reading.run(1)
    return survey.layers, outputs


def _run(
    reading: Reading,
    parts: Sequence[Part],
    removal: Removal,
    measure: Measure,
    batch: int,
    on_progress: Progress | None,
) -> Measured:
    """What is measured without each part, ``(parts,)``."""
    found = []
    with intervening(reading.model, removal):
        for start in range(0, len(parts), batch):
            some = parts[start : start + batch]
            removal.without(some)
            found.append(measure(reading.run(len(some)), len(some)))
            if on_progress is not None:
                on_progress(start + len(some), len(parts))
    return {name: torch.cat([numbers[name] for numbers in found]) for name in found[0]}


def _placed(numbers: Tensor, plan: Plan) -> Tensor:
    """Numbers of parts as an array; NaN where there is no part."""
    placed = torch.full((math.prod(plan.shape),), math.nan, dtype=torch.float64)
    placed[list(plan.cells)] = numbers.double().cpu()
    return placed.view(plan.shape)

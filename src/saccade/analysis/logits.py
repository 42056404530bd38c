"""What a causal language model would predict early, and which heads and MLPs a prediction is made of.

The logit lens reads a hidden state of any layer with the model's own last norm and output matrix, as if no layer came
after it (nostalgebraist 2020; Belrose et al. 2023, arXiv 2303.08112, section 2).

Direct logit attribution splits a logit into the terms of the last hidden state: each head's output, each MLP's, the
embedding, each bias (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"). Norms are taken with the
deviation that they divided by. The terms are followed through all layers to the logit itself, so they sum to it, in
models whose layers have norms in the way as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saccade.analysis.following import ATTENTION, BIAS, COMPUTED, CONSTANT, Following
from saccade.analysis.places import Place, find_token, labels
from saccade.analysis.replay import RESIDUAL, Layer, OneLayer, Plan, Replay
from saccade.analysis.result import Result
from saccade.errors import ArgumentError, UnsupportedModelError
from saccade.trace.blocks import path_of
from saccade.trace.trace import Trace
from saccade.views import drawing
from saccade.views.units import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EMBEDDING, BIASES = "embedding", "biases"
MOST_PREDICTED = 32
MOST_NAMED = 24  # tokens whose predictions are written into the picture


@dataclass(frozen=True, eq=False)
class LogitLens(Result):
    """What each layer's hidden state would predict.

    Attributes:
        probability: ``(L + 1, T, K)``, of the K likeliest next tokens; layer 0 is what enters the first.
        logit: ``(L + 1, T, K)``, theirs.
        predicted: ``(L + 1, T, K)``, their ids.
        final: ``(L + 1, T)``, the probability, in each layer, of what the last layer finds likeliest.
        words: ``predicted`` as strings, nested lists; ids where there is no tokenizer.
        tokens: labels of the tokens that are read.
    """

    probability: Float[Tensor, "layer token rank"]
    logit: Float[Tensor, "layer token rank"]
    predicted: Int[Tensor, "layer token rank"]
    final: Float[Tensor, "layer token"]
    words: list[list[list[str]]]
    tokens: list[str]

    SIZE = (9.0, 4.5)
    CAVEAT: ClassVar[str] = (
        "Only the last layer was trained to be read so; early ones may mislead (Belrose et al. 2023)."
    )

    def coordinates(self) -> dict[str, Any]:
        """Tokens by their labels."""
        return {"token": self.tokens}

    def about(self) -> dict[str, Any]:
        """The predicted tokens' strings."""
        return {"words": self.words}

    def draw(self, axis: Axes) -> None:
        """The likeliest next token of each layer and token, and how likely it is."""
        best = self.probability[..., 0]
        image = axis.imshow(best.numpy(), cmap=drawing.pale(), vmin=0, vmax=float(best.max()), aspect="auto")
        drawing.name_cells(axis, self.tokens, [str(layer) for layer in range(len(best))])
        axis.set_xlabel("after reading", fontsize=8)
        axis.set_ylabel("layers passed", fontsize=8)
        if len(self.tokens) <= MOST_NAMED:
            for layer, row in enumerate(self.words):
                for token, words in enumerate(row):
                    ink = "white" if best[layer, token] > 0.5 * best.max() else "black"
                    axis.text(token, layer, drawing.short(words[0]), ha="center", va="center", fontsize=7, color=ink)
        axis.set_title("What each layer would predict next", fontsize=9)
        drawing.colour_bar(axis, image, "probability")


@dataclass(frozen=True, eq=False)
class LogitAttribution(Result):
    """What a logit is made of.

    Attributes:
        terms: all of them, which sum to the logit: each head, each MLP, the embedding, and all biases.
        heads: ``(L, H)``, what each head adds to it.
        mlps: ``(L,)``, what each MLP adds, and whatever else is computed in its layer.
        embedding: what the embedding adds.
        biases: what all biases add.
        logit: the logit, or the difference of two.
        capped: whether the model caps its logits after that; the terms are those of the logit before.
        target: whose logit.
        against: minus whose; None if it is one logit.
        token: label of the token after which it is predicted.
    """

    CAVEAT: ClassVar[str] = "Terms are not causes: without one, the others would change (McGrath et al. 2023)."

    terms: Float[Tensor, "term"]
    heads: Float[Tensor, "layer head"]
    mlps: Float[Tensor, "layer"]
    embedding: float
    biases: float
    logit: float
    capped: bool
    target: str
    against: str | None
    token: str

    SIZE = (7.0, 4.5)

    def coordinates(self) -> dict[str, Any]:
        """The terms by name."""
        layers, heads = self.heads.shape
        named = [f"layer {layer} head {head}" for layer in range(layers) for head in range(heads)]
        return {"term": [*named, *(f"layer {layer} MLP" for layer in range(layers)), EMBEDDING, BIASES]}

    def about(self) -> dict[str, Any]:
        """Which logit, and its terms that are of no layer."""
        names = ("logit", "capped", "target", "against", "token", "embedding", "biases")
        return {name: getattr(self, name) for name in names}

    def draw(self, axis: Axes) -> None:
        """Heads as a map, the MLPs beside them."""
        both = torch.cat([self.heads, self.mlps[:, None]], 1)
        limit = float(both.abs().max()) or 1.0
        image = axis.imshow(both.numpy(), cmap=drawing.both(), vmin=-limit, vmax=limit, aspect="auto")
        heads = self.heads.shape[1]
        drawing.name_cells(axis, [*map(str, range(heads)), "MLP"], [str(layer) for layer in range(len(both))])
        axis.axvline(heads - 0.5, color="#555555", linewidth=0.6)
        rest = f"embedding {self.embedding:+.2f}, biases {self.biases:+.2f}, in all {self.logit:+.2f}"
        axis.set_xlabel(f"head\n{rest}", fontsize=8)
        axis.set_ylabel("layer", fontsize=8)
        than = f" rather than “{drawing.short(self.against)}”" if self.against is not None else ""
        axis.set_title(f"What predicts “{drawing.short(self.target)}”{than}", fontsize=9)
        drawing.colour_bar(axis, image, "part of the logit")


def logit_lens(
    trace: Trace,
    tokens: Sequence[Place] | None = None,
    *,
    top: int = 5,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    entry: int = 0,
    batch: int = 0,
) -> LogitLens:
    """What a causal language model would predict from the hidden states of each layer.

    O(L N) states through the model's end, and one token through its layers for each of them; O(N V) memory for a
    vocabulary of V.

    Args:
        trace: of a model with its output matrix, with hidden states and ``keep="qkv"``.
        tokens: after which, positions or words; None for all.
        top: how many of the likeliest.
        model: the recorded model; not needed while the recording and its model are in memory.
        tokenizer: what names predicted tokens; None for their ids.
        entry: which forward.
        batch: which element of the batch.

    Raises:
        ArgumentError: there is no such token, or `top` does not fit.
        UnsupportedModelError: the model predicts no next token, as an encoder.
        NotRecordedError: something was not kept.
    """
    if not isinstance(top, int) or isinstance(top, bool) or not 1 <= top <= MOST_PREDICTED:
        raise ArgumentError(f"top = {top!r}: expected 1 to {MOST_PREDICTED}")
    replay = _replay(trace, model, entry, batch)
    call = replay.site(replay.layers[-1].sites[0])
    listed = range(call.shape[2]) if tokens is None else tokens
    places = [find_token(token, call.known_tokens, call.shape[2], batch) for token in listed]
    positions = torch.tensor(places)
    lens = _Lens(replay)
    last = lens.logits(replay.state(replay.layers[-1], positions, after=True))
    best = last.argmax(-1, keepdim=True)
    earlier = (lens.logits(replay.state(layer, positions)) for layer in replay.layers)
    found = [_likeliest(logits, top, best) for logits in chain(earlier, [last])]
    logit, predicted, probability, final = (torch.stack(part) for part in zip(*found, strict=True))
    return LogitLens(
        probability=probability,
        logit=logit,
        predicted=predicted,
        final=final,
        words=[[[_word(tokenizer, i) for i in ids] for ids in row] for row in predicted.tolist()],
        tokens=[labels(call.known_tokens, call.shape[2], batch)[i] for i in places],
    )


def _likeliest(logits: Tensor, top: int, best: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of logits ``(T, V)`` the largest, whose they are, and their probabilities; and the probability of `best`."""
    chances = logits.softmax(-1)
    largest = logits.topk(top)
    return largest.values, largest.indices, chances.gather(-1, largest.indices), chances.gather(-1, best)[:, 0]


def logit_attribution(
    trace: Trace,
    target: int | str,
    token: Place = -1,
    *,
    against: int | str | None = None,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    entry: int = 0,
    batch: int = 0,
) -> LogitAttribution:
    """What each head and MLP adds to the logit of a next token. O(L H) vectors through each layer.

    Args:
        trace: of a model with its output matrix, with hidden states and ``keep="qkv"``.
        target: the next token: its id, or with a tokenizer the text of one token (``" bank"``).
        token: after which it is predicted: a position or word.
        against: another next token, whose logit is subtracted.
        model: the recorded model; not needed while the recording and its model are in memory.
        tokenizer: what names tokens.
        entry: which forward.
        batch: which element of the batch.

    Raises:
        ArgumentError: there is no such token, or a text is several.
        UnsupportedModelError: the model predicts no next token, or its layers cannot be taken apart.
        NotRecordedError: something was not kept.
    """
    replay = _replay(trace, model, entry, batch)
    call = replay.site(replay.layers[-1].sites[0])
    position = find_token(token, call.known_tokens, call.shape[2], batch)
    terms = _Terms(replay)
    logits, parts, capped = terms.of_logits(position)
    ids = [_id(tokenizer, name, len(logits)) for name in (target, against) if name is not None]
    sign = torch.tensor([1.0, -1.0])[: len(ids)]
    total = (logits[ids] * sign).sum()
    heads, mlps, others = terms.sorted((parts[:, ids] * sign).sum(-1))
    return LogitAttribution(
        terms=torch.cat([heads.flatten(), mlps, others]),
        heads=heads,
        mlps=mlps,
        embedding=float(others[0]),
        biases=float(others[1]),
        logit=float(total),
        capped=capped,
        target=_word(tokenizer, ids[0]),
        against=None if against is None else _word(tokenizer, ids[1]),
        token=labels(call.known_tokens, call.shape[2], batch)[position],
    )


# ---------------------------------------------------------------------------------------- the model's end


def _replay(trace: Trace, model: nn.Module | None, entry: int, batch: int) -> Replay:
    """A replay of a model that predicts the next token.

    Raises:
        UnsupportedModelError: it does not.
    """
    replay = Replay(trace, model, entry=entry, batch=batch)
    head = getattr(replay.model, "get_output_embeddings", lambda: None)()
    name = type(replay.model).__name__
    if head is None:
        raise UnsupportedModelError(
            f"{name} has no output matrix, so no logits to look at. Expected a causal language model with its head, "
            "such as GPT2LMHeadModel"
        )
    sites = {path_of(site) for layer in replay.layers for site in layer.sites}
    looking_ahead = [s for s in sites if not getattr(replay.model.get_submodule(s), "is_causal", False)]
    if looking_ahead:
        raise UnsupportedModelError(
            f"{name} predicts no next token: in {min(looking_ahead)} tokens see what comes after them, as in an "
            "encoder. Expected a causal language model"
        )
    return replay


def _head(model: Any) -> nn.Module:
    found: nn.Module = model.get_output_embeddings()
    return found


class _Lens(OneLayer):
    """What the model's end makes of any states: they take the place of what one token leaves the last layer with."""

    changes = True

    def __init__(self, replay: Replay) -> None:
        super().__init__(replay.layers[-1])
        self.replay = replay
        self._states = torch.empty(0)

    def left(self, layer: Layer, state: Tensor, following: Following) -> Tensor:
        """See `Plan`: a sequence of all the states, as the model's end does the same to every token."""
        del layer, following
        return self._states[None].to(state)

    def logits(self, states: Tensor) -> Tensor:
        """``(M, V)`` of states ``(M, width)``."""
        self._states = states
        found: Tensor = self.replay.run(torch.tensor([0]), self).logits
        return found.flatten(0, -2).float().cpu()  # GPT-2 takes the sequence for a batch


class _Terms(Plan):
    """The terms of the hidden state of one token, followed through all layers and the model's end.

    After layer l the stack holds the embedding, and of each layer up to l its heads, its MLP and its biases.
    """

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.heads = [replay.site(layer.sites[0]).shape[1] for layer in replay.layers]
        self._stack = torch.empty(0)

    def follows(self, layer: Layer) -> bool:
        """See `Plan`."""
        del layer
        return True

    def residual(self, layer: Layer, state: Tensor) -> Tensor:
        """See `Plan`."""
        return state[None] if layer.number == 0 else self._stack

    def attention(self, layer: Layer, site: str, output: Tensor) -> Tensor:
        """See `Plan`."""
        del layer, site
        heads = output.shape[1]
        return output[None] * torch.eye(heads).to(output).view(heads, 1, heads, 1, 1)

    def left(self, layer: Layer, state: Tensor, following: Following) -> None:
        """See `Plan`."""
        parts = following.parts(state) or {}
        attended = [part for name, part in parts.items() if name.startswith(ATTENTION)]
        if RESIDUAL not in parts or len(attended) != 1:
            raise UnsupportedModelError(
                f"{layer.name}: expected the output of one attention call and a residual in what leaves it; in it are "
                f"{', '.join(parts)}"
            )
        zero = torch.zeros_like(parts[RESIDUAL][:1])
        constants = sum((p.sum(0, keepdim=True) for n, p in parts.items() if n.startswith((BIAS, CONSTANT))), zero)
        self._stack = torch.cat([parts[RESIDUAL], attended[0], parts.get(COMPUTED, zero), constants])
        following.begin(state, {RESIDUAL: self._stack})

    def of_logits(self, position: int) -> tuple[Tensor, Tensor, bool]:
        """The logits ``(V,)``, their terms ``(K, V)``, and whether the model caps the logits after these."""
        model, following = self.replay.model, Following()
        matrix: list[Tensor] = []  # what the output matrix gave: a bounded function of it has no terms
        hook = _head(model).register_forward_hook(lambda _module, _args, output: matrix.append(output))
        try:
            output = self.replay.run(torch.tensor([position]), self, following=following)
        finally:
            hook.remove()
        for logits in (output.logits, *matrix[-1:]):
            parts = dict(following.parts(logits) or {})
            if RESIDUAL in parts:
                terms = parts.pop(RESIDUAL)
                # Biases of the model's end join those of the layers.
                biases = sum((part.sum(0, keepdim=True) for part in parts.values()), torch.zeros_like(terms[:1]))
                terms = torch.cat([terms[:-1], terms[-1:] + biases]).flatten(1)
                return logits.flatten().float().cpu(), terms.float().cpu(), logits is not output.logits
        raise UnsupportedModelError(
            f"{type(model).__name__}: what leaves its last layer cannot be followed to the logits"
        )

    def sorted(self, terms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The terms ``(K,)`` by heads ``(L, H)``, MLPs ``(L,)``, and the embedding and all biases ``(2,)``."""
        if len(set(self.heads)) > 1:
            raise UnsupportedModelError(f"layers have {sorted(set(self.heads))} heads; expected as many in each")
        by_layer = terms[1:].view(len(self.heads), self.heads[0] + 2)
        return by_layer[:, :-2], by_layer[:, -2], torch.stack([terms[0], by_layer[:, -1].sum()])


# ---------------------------------------------------------------------------------------- names


def _word(tokenizer: Any, number: int) -> str:
    return str(number) if tokenizer is None else printable(tokenizer.decode([number]))


def _id(tokenizer: Any, said: int | str, vocabulary: int) -> int:
    """The id of a next token."""
    if isinstance(said, int) and not isinstance(said, bool):
        if not 0 <= said < vocabulary:
            raise ArgumentError(f"target = {said}: the vocabulary has {vocabulary:,} tokens, from 0")
        return said
    if not isinstance(said, str) or tokenizer is None:
        raise ArgumentError(f"target = {said!r}: expected the id of a token, or with tokenizer= its text")
    ids = tokenizer(said, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        listed = " ".join(tokenizer.convert_ids_to_tokens(ids))
        raise ArgumentError(f"target = {said!r} is {len(ids)} tokens ({listed}); expected the text of one")
    return int(ids[0])

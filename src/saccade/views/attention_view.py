"""The view model: where each word looked, as plain arrays that every renderer reads.

A text is read once. Up to `EXACT_ENTRIES` weights in all heads together, the exact pattern of every
head is kept and tokens can be merged into words. Beyond that only statistics are kept: the heaviest
keys of each query, how much went to special tokens, how much each key received, and a map of 64 x
64 cells; nothing of size N x N, and nothing that is not exact. `weights is None` tells the two
apart.

Letters in shapes: L layers, H heads, N words (or tokens), k keys, c cells.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saccade.adapters.pretrained import Encoded, Pretrained, encode
from saccade.errors import ArgumentError, UnsupportedModelError
from saccade.views import units as units_of
from saccade.views.units import Unit

if TYPE_CHECKING:
    from saccade.adapters.observation import Call

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

EXACT_ENTRIES = 64 * 2**20  # weights kept, float32: 256 MiB
TOP_KEYS = 16
CELLS = 64
MEAN = "mean"
LISTED = 40  # units that an error message lists
FEWEST = 4  # units from which on neighbours are left aside and habits are named
HABIT = 0.5  # the share of weight from which on a head is said to mostly do something


@dataclass(frozen=True, eq=False)
class Summary:
    """Statistics of every head, none of size N x N.

    Attributes:
        top_keys: ``(L, H, N, k)``, the heaviest keys of each query, heaviest first; -1 where there
            are fewer.
        top_weights: ``(L, H, N, k)``.
        entropy: ``(L, H, N)`` of each query's whole row, special tokens included, in nats.
        special_mass: ``(L, H, N)``, how much of each query's attention special tokens got.
        received: ``(L, H, N)``, the weight that each key got from all queries.
        cells: ``(L, H, c, c)``, the largest weight in each cell of a coarse map.
    """

    top_keys: Integers
    top_weights: Floats
    entropy: Floats
    special_mass: Floats
    received: Floats
    cells: Floats


@dataclass(frozen=True, eq=False)
class AttentionView:
    """Where every word of a text looked, in every layer and head.

    Attributes:
        model: the model's name.
        part: "encoder" if only that part of the model was run, else "".
        text: what was read.
        kind: "words" or "tokens": what the units are.
        units: N of them, in the text's order.
        layers: L names: numbers from 0, or "mean".
        heads: H names.
        summary: statistics of every head.
        weights: ``(L, H, N, N)``, queries x keys; None for a long text. Over a word's subwords,
            keys are summed and queries averaged, so that a row still sums to 1 less what went to
            hidden units.
        hidden: labels of special units that were taken out; their mass is in
            ``summary.special_mass``.
        dropped: tokens that were cut off at the text's end.
        typed: labels of special tokens that are written in the text itself.
    """

    model: str
    text: str
    kind: str
    units: tuple[Unit, ...]
    layers: tuple[str, ...]
    heads: tuple[str, ...]
    summary: Summary
    weights: Floats | None = None
    part: str = ""
    hidden: tuple[str, ...] = field(default=())
    dropped: int = 0
    typed: tuple[str, ...] = field(default=())

    @property
    def labels(self) -> list[str]:
        """What to print for each unit."""
        return [unit.label for unit in self.units]

    @property
    def noun(self) -> str:
        """One of the units: "word" or "token"."""
        return self.kind.removesuffix("s")

    @cached_property
    def special(self) -> NDArray[np.bool_]:
        """Which units stand outside the text, ``(N,)``."""
        return np.array([unit.special for unit in self.units], dtype=bool)

    def name(self, i: int) -> str:
        """A unit's label, with ``:2`` for the second one of that label, as `find` reads it."""
        label = self.units[i].label
        nth = sum(unit.label.casefold() == label.casefold() for unit in self.units[: i + 1])
        return f"{label}:{nth}" if nth > 1 else label

    def remark_on_typed(self) -> str:
        """What to say of special tokens that are written in the text and were taken out with the others."""
        return f"The text itself has {' '.join(self.typed)}: to the model special tokens, and hidden like the others."

    def title(self, layer: int, head: int) -> str:
        """The name of one head, such as "layer 2 head 8"; arguments are positions in `layers` and `heads`."""
        names = (("layer", "layers", self.layers[layer]), ("head", "heads", self.heads[head]))
        return " ".join(f"all {many}" if name == MEAN else f"{one} {name}" for one, many, name in names)

    def short_title(self, layer: int, head: int) -> str:
        """The same where there is little room: "mean, head 4" where `title` says "all layers head 4"."""
        if MEAN not in (self.layers[layer], self.heads[head]):
            return self.title(layer, head)
        names = (("layer", self.layers[layer]), ("head", self.heads[head]))
        return ", ".join(dict.fromkeys(MEAN if name == MEAN else f"{one} {name}" for one, name in names))

    # ------------------------------------------------------------------------------------ choosing

    def select(self, layer: int | str | None = None, head: int | str | None = None) -> AttentionView:
        """The same view of some heads only.

        Args:
            layer: a layer's number, "mean" for the average over layers, None for all of them.
            head: the same for heads.

        Raises:
            ArgumentError: there is no such layer or head, or an average of a long text's summaries
                is asked for.
        """
        if self.weights is None and MEAN in (layer, head):
            raise ArgumentError(
                f"the text has {len(self.units)} {self.kind}, too many to keep exact patterns, and summaries have no "
                "average: choose numbers for --layer and --head, or shorten the text"
            )
        chosen = self._along("layer", layer, 0)
        return chosen._along("head", head, 1)  # noqa: SLF001  our own

    def _along(self, what: str, chosen: int | str | None, axis: int) -> AttentionView:
        """`select` along one axis."""
        names = self.layers if axis == 0 else self.heads
        if chosen is None:
            return self
        if chosen == MEAN:
            assert self.weights is not None
            mean: Floats = self.weights.mean(axis, keepdims=True, dtype=np.float64).astype(np.float32)
            return self._with((MEAN,), axis, summarize(mean, self.special), mean)
        if str(chosen) not in names:
            raise ArgumentError(
                f"--{what} {chosen}: there is no such {what}; {self.model} has {what}s {names[0]} to {names[-1]}"
            )
        where = [names.index(str(chosen))]
        picked = Summary(**{name: np.take(x, where, axis) for name, x in vars(self.summary).items()})
        weights = None if self.weights is None else np.take(self.weights, where, axis)
        return self._with((str(chosen),), axis, picked, weights)

    def _with(self, names: tuple[str, ...], axis: int, summary: Summary, weights: Floats | None) -> AttentionView:
        renamed = {"layers" if axis == 0 else "heads": names}
        return replace(self, summary=summary, weights=weights, **renamed)  # type: ignore[arg-type]

    def without_special(self) -> AttentionView:
        """The same view without the units that stand outside the text. Their mass stays in the summary."""
        keep = np.flatnonzero(~self.special)
        if len(keep) in {0, len(self.units)}:
            return self
        return replace(
            self,
            units=tuple(self.units[i] for i in keep),
            hidden=tuple(dict.fromkeys(unit.label for unit in self.units if unit.special)),
            summary=_keep(self.summary, keep, len(self.units)),
            weights=None if self.weights is None else self.weights[:, :, keep[:, None], keep],
        )

    def find(self, wanted: str) -> int:
        """The position of a unit by its label in any case; ``label:2`` is the second of that label.

        Raises:
            ArgumentError: there is none; the message lists those there are.
        """
        label, _, number = wanted.rpartition(":")
        places: list[int] = []
        for name, nth in ((wanted, 1), (label, int(number) if number.isdecimal() else 0)):
            places = [i for i, unit in enumerate(self.units) if unit.label.casefold() == name.casefold()]
            if 1 <= nth <= len(places):
                return places[nth - 1]
        if places and number.isdecimal():
            times = "once" if len(places) == 1 else f"{len(places)} times"
            raise ArgumentError(f"--token {wanted}: “{label}” occurs {times}")
        listed = list(dict.fromkeys(self.labels))
        more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
        raise ArgumentError(f"--token {wanted}: not in the text. Its {self.kind}: {' '.join(listed[:LISTED])}{more}")

    def last_word(self) -> int:
        """The position of the last unit that is no punctuation and not special; 0 if there is none."""
        said = [i for i, u in enumerate(self.units) if not u.special and units_of.is_word(u.label)]
        return said[-1] if said else 0

    # ------------------------------------------------------------------------------------ measuring

    @cached_property
    def telling(self) -> Floats:
        """How much each head tells, in bits, ``(L, H)``: see `information`. Of a long text a ranking, from its maps."""
        if self.weights is not None:
            return information(self.weights, self.special, self.apart)
        cells = self.summary.cells
        return information(cells, np.zeros(cells.shape[-1], dtype=bool), self.apart)

    @property
    def apart(self) -> int:
        """How far apart two units are at least for `telling` to count them: neighbours tell little."""
        return 2 if len(self.units) >= FEWEST else 1

    def most_telling(self, count: int) -> list[tuple[int, int]]:
        """Positions (layer, head) of the heads that tell most, most telling first."""
        order = np.argsort(-self.telling, axis=None, kind="stable")[:count]
        return [divmod(int(i), len(self.heads)) for i in order]

    def habit(self, layer: int, head: int) -> str:
        """What a head mostly does, if one offset or one key takes more than half of what words give each other."""
        if self.weights is None:
            return ""
        joint = self.weights[layer, head] * _between(self.weights, self.special, apart=1)
        total, n = float(joint.sum()), len(self.units)
        if n < FEWEST or total <= 0:
            return ""
        offsets = {d: float(np.trace(joint, d)) / total for d in (-2, -1, 1, 2)}
        offset = max(offsets, key=lambda d: offsets[d])
        key = int(joint.sum(0).argmax())
        if offsets[offset] > HABIT:
            return f"mostly {_OFFSETS[offset]}"
        return f"mostly “{self.units[key].label}”" if joint[:, key].sum() / total > HABIT else ""


_OFFSETS = {-2: "two back", -1: "one back", 1: "one ahead", 2: "two ahead"}


def _between(weights: Floats, special: NDArray[np.bool_], apart: int) -> NDArray[np.bool_]:
    """Which entries ``(N, N)`` join two visible, non-special units that are at least `apart` places apart."""
    positions = np.arange(len(special))
    between = (np.abs(positions[:, None] - positions) >= apart) & ~special[:, None] & ~special
    causal = not np.triu(weights, 1).any()
    return np.tril(between) if causal else between


def information(weights: Floats, special: NDArray[np.bool_], apart: int = 1) -> Floats:
    """How far each word's gaze differs from the other words', in bits, ``(L, H)``.

    Counted are the weights w between non-special words at least `apart` places apart. The common
    gaze at a key is the mean of its weights over the words that may look at it; scaled to each
    row's sum it is what that row would be if all words looked alike, e. The result is ``sum w
    log2(w / e) / n`` over n words: a Kullback-Leibler divergence, and where every pair is counted
    the mutual information of query and key (Cover and Thomas, Elements of Information Theory,
    section 2.3). It is 0 for a head in which all words look alike, whether everywhere or at one
    key, or only at special tokens; it is large for one in which each word looks sharply at a key of
    its own.

    >>> w = np.array([[[[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]]], dtype=np.float32)
    >>> float(information(w, np.zeros(4, dtype=bool), apart=0)[0, 0])
    2.0
    """
    between = _between(weights, special, apart)
    scores = np.zeros(weights.shape[:2], dtype=np.float32)
    for layer, head in np.ndindex(*scores.shape):
        counted = weights[layer, head].astype(np.float64) * between
        gaze = between * counted.sum(0) / np.maximum(between.sum(0), 1)
        gaze *= (counted.sum(1) / np.maximum(gaze.sum(1), 1e-30))[:, None]
        seen = counted > 0
        bits = (counted[seen] * np.log2(counted[seen] / gaze[seen])).sum()
        scores[layer, head] = bits / max(int((~special).sum()), 1)
    return scores


def summarize(weights: Floats, special: NDArray[np.bool_]) -> Summary:
    """The statistics of exact weights ``(L, H, N, N)``."""
    n = weights.shape[-1]
    top = np.argsort(-weights, axis=-1, kind="stable")[..., : min(TOP_KEYS, n)]
    top_weights = np.take_along_axis(weights, top, -1)
    safe = np.where(weights > 0, weights, 1)
    bounds = np.arange(min(CELLS, n)) * n // min(CELLS, n)
    return Summary(
        top_keys=np.where(top_weights > 0, top, -1),
        top_weights=top_weights,
        entropy=-(safe * np.log(safe)).sum(-1),
        special_mass=weights[..., special].sum(-1),
        received=weights.sum(-2),
        cells=np.maximum.reduceat(np.maximum.reduceat(weights, bounds, -1), bounds, -2),
    )


def _keep(summary: Summary, keep: Integers, n: int) -> Summary:
    """The summary of fewer units; removed keys leave the lists of heaviest keys."""
    position = np.full(n + 1, -1)  # its last entry answers for key -1
    position[keep] = np.arange(len(keep))
    keys = position[summary.top_keys[:, :, keep]]
    weights = np.where(keys >= 0, summary.top_weights[:, :, keep], 0)
    order = np.argsort(keys < 0, axis=-1, kind="stable")
    return Summary(
        top_keys=np.take_along_axis(keys, order, -1),
        top_weights=np.take_along_axis(weights, order, -1),
        entropy=summary.entropy[:, :, keep],
        special_mass=summary.special_mass[:, :, keep],
        received=summary.received[:, :, keep],
        cells=summary.cells,
    )


# ---------------------------------------------------------------------------------------- building


def look(pretrained: Pretrained, text: str, *, kind: str = "words", truncate: bool = False) -> AttentionView:
    """Let a model read a text and see where every word looked.

    Args:
        pretrained: from `saccade.adapters.pretrained.load`.
        text: what to read.
        kind: "words" merges subwords, "tokens" does not.
        truncate: cut a text that is too long for the model.

    Raises:
        ArgumentError: the text is empty or too long.
        UnsupportedModelError: the model's attention cannot be observed, or it is not a number.
    """
    encoded = encode(pretrained, text, truncate=truncate)
    exact = _entries(pretrained, len(encoded.tokens)) <= EXACT_ENTRIES
    calls = _observe(pretrained, encoded, exact=exact)
    merged = exact and kind == "words" and encoded.spans is not None
    units = (units_of.words if merged else units_of.tokens)(text, encoded)
    special = np.array([unit.special for unit in units], dtype=bool)
    weights = _merge(_stack(calls, "map"), units) if exact else None
    return AttentionView(
        model=pretrained.name,
        part=pretrained.part,
        text=text,
        kind="words" if merged else "tokens",
        units=units,
        layers=tuple(map(str, range(len(calls)))),
        heads=tuple(map(str, range(calls[0].report.map.shape[1]))),
        summary=_summary(calls) if weights is None else summarize(weights, special),
        weights=weights,
        dropped=encoded.dropped,
        typed=_typed(encoded),
    )


def _typed(encoded: Encoded) -> tuple[str, ...]:
    """Special tokens that cover characters of the text, each once; those added around it cover none."""
    parts = zip(encoded.tokens, encoded.special, encoded.spans or (), strict=False)
    return tuple(dict.fromkeys(token for token, special, (start, stop) in parts if special and stop > start))


def _entries(pretrained: Pretrained, n: int) -> int:
    config = pretrained.model.config.get_text_config()
    return int(config.num_hidden_layers * config.num_attention_heads * n * n)


def _observe(pretrained: Pretrained, encoded: Encoded, *, exact: bool) -> list[Call]:
    """Every self-attention call over the whole text, in the order in which the model made them."""
    import torch

    from saccade.adapters.observation import observe

    n = len(encoded.tokens)
    with (
        observe(pretrained.model, statistics=_statistics(encoded, exact=exact)) as observation,
        torch.inference_mode(),
    ):
        _run(pretrained, encoded)
    calls = [call for call in observation.calls if call.lengths.queries == call.lengths.keys == n]
    if len({call.lengths.heads for call in calls}) != 1:
        found = ", ".join(str(call.lengths.heads) for call in calls) or "none over the whole text"
        raise UnsupportedModelError(
            f"{pretrained.name}: expected layers that have the same number of heads each; found {found}"
        )
    _check_numbers(pretrained.name, calls)
    return calls


def _run(pretrained: Pretrained, encoded: Encoded) -> None:
    import inspect

    model = pretrained.model
    accepted = inspect.signature(model.forward).parameters
    inputs = {name: x.to(model.device) for name, x in encoded.inputs.items() if name in accepted}
    try:
        model(**inputs)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        from saccade.adapters.pretrained import first_line

        raise UnsupportedModelError(f"{pretrained.name} failed on this text: {first_line(error)}") from error


def _statistics(encoded: Encoded, *, exact: bool) -> list[Any]:
    import torch

    from saccade import statistics

    if exact:
        return [statistics.Map(cells=len(encoded.tokens), reduce="sum")]
    outside = torch.tensor([0 if special else -1 for special in encoded.special])
    return [
        statistics.Map(cells=CELLS, reduce="max"),
        statistics.TopKeys(TOP_KEYS),
        statistics.Entropy(),
        statistics.Mass(outside, count=1),
        statistics.Received(),
    ]


def _check_numbers(name: str, calls: list[Call]) -> None:
    for call in calls:
        if not bool(call.report.map.isfinite().all()):
            raise UnsupportedModelError(f"{name}: the attention of {call.site} is not a number (NaN)")


def _stack(calls: list[Call], name: str) -> Any:
    """One statistic of every layer as an array ``(L, H, ...)``."""
    return np.stack([call.report[name][0].float().cpu().numpy() for call in calls])


def _summary(calls: list[Call]) -> Summary:
    tops = [call.report.top_keys for call in calls]
    return Summary(
        top_keys=np.stack([top.indices[0].cpu().numpy() for top in tops]),
        top_weights=np.stack([top.weights[0].float().cpu().numpy() for top in tops]),
        entropy=_stack(calls, "entropy"),
        special_mass=_stack(calls, "mass")[..., 0],
        received=_stack(calls, "received"),
        cells=_stack(calls, "map"),
    )


def _merge(weights: Floats, units: tuple[Unit, ...]) -> Floats:
    """Tokens into units: keys are summed, queries averaged."""
    if len(units) == weights.shape[-1]:
        return weights
    starts = np.array([unit.start for unit in units])
    sizes = np.array([unit.stop - unit.start for unit in units], dtype=np.float32)
    sums = np.add.reduceat(np.add.reduceat(weights, starts, -1), starts, -2)
    return (sums / sizes[:, None]).astype(np.float32)

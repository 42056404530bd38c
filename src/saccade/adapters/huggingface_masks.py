"""The masks of transformers as intervals.

transformers describes a mask as a predicate ``(batch, head, query position, key position) ->
bool``, put together from closures by `and_masks` and `or_masks`, and its own attention functions
evaluate it on all Nq x Nk pairs. Here each known closure is recognised by its code object and
translated into intervals from what it closed over; any other one is evaluated in strips of rows.
Both are exact, and the tests compare the one with the other.

The result has to pass through code that expects a tensor ``(B, 1, Nq, Nk)``, or None. It travels as
a `CarriedMask`: a tensor to look at, without storage, that gives its intervals back to the
attention function.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from saccade import functional, masks
from saccade.errors import UnsupportedModelError
from saccade.masks import Intervals, Lengths

Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

# An unknown predicate is evaluated over at most this many query-key pairs at a time.
STRIP_PAIRS = 1 << 22


# ---------------------------------------------------------------------------------- the carrier


@dataclass(frozen=True, eq=False)
class Carried:
    """What a `CarriedMask` holds. In a compiled graph it goes without its `CarriedMask`, which cannot be made there.

    Attributes:
        visible: the keys each query sees, ``(B | 1, 1, Nq, R)``.
        hidden_keys: added to the scores, ``(B, 1, 1, Nk)``, -inf at keys that nobody sees; only for
            a padding mask with more holes than intervals should list.
        offset: the index among the keys at which the first query stands.
    """

    visible: Intervals
    hidden_keys: Tensor | None
    offset: int | Tensor

    def crop(self, dim: int, start: int, stop: int) -> Carried:
        """Only the queries (`dim` 2) or keys (`dim` 3) from `start` to `stop`."""
        starts, stops = self.visible.starts, self.visible.stops
        if dim == 2:  # noqa: PLR2004
            starts, stops = (x[:, :, start:stop] for x in (starts, stops))
            rows = Intervals(starts, stops, self.visible.keys)
            return Carried(rows, self.hidden_keys, self.offset + start)
        hidden = None if self.hidden_keys is None else self.hidden_keys[..., start:stop]
        columns = Intervals.make(starts - start, stops - start, stop - start)
        return Carried(columns, hidden, self.offset - start)


class CarriedMask(torch.Tensor):
    """A boolean mask ``(B, 1, Nq, Nk)`` without storage, for transformers to hand around.

    It can be copied, moved, expanded and sliced; a model that computes anything else with its mask
    is refused.
    """

    carried: Carried

    @staticmethod
    def __new__(  # noqa: PYI034  Self says less: nobody derives from this
        cls: type[CarriedMask], carried: Carried, shape: torch.Size, device: torch.device
    ) -> CarriedMask:
        """A carrier of that look."""
        make: Any = torch.Tensor._make_wrapper_subclass  # noqa: SLF001  there is no public way
        carrier: CarriedMask = make(cls, shape, dtype=torch.bool, device=device)
        carrier.carried = carried
        return carrier

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # of an untyped method
        return f"CarriedMask(shape={tuple(self.shape)}, runs={self.carried.visible.runs})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # PyTorch calls it with func first
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> CarriedMask:
        del types
        source, kwargs = args[0], kwargs or {}
        name = func.overloadpacket.__name__
        if name == "slice" and isinstance(source, cls):
            return source._slice(*args[1:], **kwargs)  # noqa: SLF001
        if name == "expand" and isinstance(source, cls):
            kept = (n if n >= 0 else old for n, old in zip(args[1], source.shape, strict=True))
            return cls(source.carried, torch.Size(kept), source.device)
        copies = {"detach", "alias", "clone", "_to_copy"}
        if name in copies and isinstance(source, cls) and kwargs.get("dtype", torch.bool) == torch.bool:
            return cls(source.carried, source.shape, kwargs.get("device") or source.device)
        raise UnsupportedModelError(
            f"the model computes with its attention mask ({name}), which Saccade keeps as "
            "intervals and never as "
            f"{tuple(cls._look(args))} booleans: its attention cannot come through. Use "
            "saccade.detach(model)"
        )

    @classmethod
    def _look(cls, args: tuple[Any, ...]) -> torch.Size:
        return next((x.shape for x in args if isinstance(x, cls)), torch.Size())

    def _slice(self, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> CarriedMask:
        size = self.shape[dim]
        start, stop, step = slice(start, stop, step).indices(size)
        if (start, stop, step) == (0, size, 1):
            return self
        dim %= 4
        if step != 1 or dim < 2:  # noqa: PLR2004
            raise UnsupportedModelError(
                f"the model takes [{start}:{stop}:{step}] of dimension {dim} of its attention "
                "mask; expected a range of "
                "queries or keys: its attention cannot come through Saccade. Use "
                "saccade.detach(model)"
            )
        shape = torch.Size([*self.shape[:dim], max(stop - start, 0), *self.shape[dim + 1 :]])
        return CarriedMask(self.carried.crop(dim, start, stop), shape, self.device)


def carry(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Predicate | None = None,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,  # noqa: FBT001, FBT002  transformers' signature
    device: torch.device | str = "cpu",
    **_: Any,
) -> CarriedMask | Carried:
    """The mask function that transformers calls in place of `sdpa_mask`, without Nq x Nk memory.

    Takes the same arguments. Unlike `sdpa_mask` it never answers None ("work it out from
    is_causal"): a mask always says what it means.
    """
    if torch.compiler.is_dynamo_compiling():
        asked = (batch_size, q_length, kv_length, q_offset, kv_offset)
        predicate = mask_function or _known().causal
        if functional.OBSERVED or not _traceable(predicate, use_vmap=use_vmap):
            return _carry_uncompiled(*asked, predicate, attention_mask, use_vmap, device)
        return _trace(*asked, predicate, attention_mask, device)
    device = torch.device(device)
    lengths = Lengths(batch_size, 1, q_length, kv_length, device)
    offset = int(q_offset)
    queries = torch.arange(q_length, device=device)[None] + offset
    keys = torch.arange(kv_length, device=device)[None] + kv_offset
    view = _View(lengths, queries, keys, torch.full_like(queries, kv_offset), vmap=use_vmap)
    visible = _translate(mask_function or _known().causal, view)
    hidden = None
    if attention_mask is not None:
        valid = _at(_padded(attention_mask, kv_length + kv_offset).to(device), keys)
        visible, hidden = hide_keys(visible, valid)
    shape = torch.Size([batch_size, 1, q_length, kv_length])
    return CarriedMask(Carried(visible, hidden, offset - kv_offset), shape, device)


# In a compiled model: the mask is made outside of the graph.
_carry_uncompiled = functional.uncompiled(carry)


def hide_keys(visible: Intervals, valid: Tensor) -> tuple[Intervals, Tensor | None]:
    """`visible` and `valid` ``(B, Nk)`` keys only: as intervals, or with many holes as a bias."""
    valid = valid.bool()
    if bool(valid.all()):
        return visible, None
    lengths = Lengths(valid.shape[0], 1, 1, valid.shape[1], valid.device)
    runs = masks.dense(valid[:, None, None]).resolve(lengths)
    if isinstance(runs, Intervals):
        return visible.intersection(runs), None
    bias = torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, -torch.inf)
    return visible, bias[:, None, None]


def everything(queries: int, keys: int, device: torch.device | str) -> Intervals:
    """Intervals ``(1, 1, Nq, 1)`` of queries that see every key."""
    stops = torch.full((1, 1, queries, 1), keys, device=device)
    return Intervals.make(torch.zeros_like(stops), stops, keys)


def _padded(attention_mask: Tensor, length: int) -> Tensor:
    """Keys beyond the 2-D mask are not valid yet (transformers' `prepare_padding_mask`)."""
    return torch.nn.functional.pad(attention_mask, (0, max(0, length - attention_mask.shape[-1])))


# ---------------------------------------------------------------------------------- in a graph

# The sizes of a graph's tensors cannot depend on what is in them, and a closure that was made in the graph cannot be
# opened there. So here every query sees one interval, whatever the mask, and what is hidden inside of it is a bias.


def _traceable(predicate: Predicate, *, use_vmap: bool) -> bool:
    """Whether every query is known to see one interval: causal, windows, chunks and packed documents."""
    known = _known()
    return (
        predicate is known.causal
        or predicate is known.bidirectional
        or (known.both is not None and _code(predicate) is known.both and not use_vmap)
    )


def _trace(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor,
    kv_offset: int,
    predicate: Predicate,
    attention_mask: Tensor | None,
    device: torch.device | str,
) -> Carried:
    """The mask by operations that torch.compile puts into its graph."""
    queries = torch.arange(q_length, device=device)[None] + q_offset
    keys = torch.arange(kv_length, device=device)[None] + kv_offset
    if predicate is _known().causal:
        visible = _one_run(torch.zeros_like(queries), queries + 1 - kv_offset, kv_length)
    elif predicate is _known().bidirectional:
        visible = everything(q_length, kv_length, device)
    else:
        visible = _the_run(predicate, torch.arange(batch_size, device=device), queries, keys)
    hidden = None
    if attention_mask is not None:
        valid = _at(_padded(attention_mask, kv_length + kv_offset).to(device), keys).bool()
        first, last = _ends(valid)
        visible = visible.intersection(_one_run(first[:, None], last[:, None], kv_length))
        index = torch.arange(kv_length, device=device)
        inside = (index >= first[:, None]) & (index < last[:, None])
        hidden = torch.zeros(valid.shape, device=device).masked_fill(inside & ~valid, -torch.inf)[:, None, None]
    return Carried(visible, hidden, q_offset - kv_offset)


def _one_run(starts: Tensor, stops: Tensor, keys: int) -> Intervals:
    """Intervals from ``(B | 1, Nq | 1)``."""
    return Intervals.make(starts[:, None, :, None], stops[:, None, :, None], keys)


def _ends(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first True in the last dimension, and one past that of the last; where there is none, (N, 0)."""
    index = torch.arange(seen.shape[-1], device=seen.device)
    return torch.where(seen, index, seen.shape[-1]).amin(-1), torch.where(seen, index + 1, 0).amax(-1)


def _the_run(predicate: Predicate, batch: Tensor, queries: Tensor, keys: Tensor) -> Intervals:
    """What a predicate says, if every query sees one interval, else an error when the graph runs.

    Looks at every pair, but the compiler reduces them as they are computed: no Nq x Nk memory.
    """
    head = torch.zeros(1, dtype=torch.long, device=queries.device)
    b, h, i, j = batch[:, None, None, None], head[None, :, None, None], queries[:, None, :, None], keys[:, None, None]
    seen = predicate(b, h, i, j).expand(batch.shape[0], 1, queries.shape[1], keys.shape[1])[:, 0]
    first, last = _ends(seen)
    torch._assert_async(  # noqa: SLF001  as an assert of a tensor becomes in a graph
        (seen.sum(-1) == (last - first).clamp_min(0)).all(),
        "the model's attention mask is not one interval of keys for each query: do not compile this call",
    )
    return _one_run(first, last, keys.shape[1])


# ---------------------------------------------------------------------------------- translation


@dataclass(frozen=True, eq=False)
class _View:
    """The positions that a predicate is asked about.

    Attributes:
        lengths: of the mask; H is 1.
        queries: position of each query, ``(B | 1, Nq)``.
        keys: position of each key, ``(B | 1, Nk)``.
        shift: what to add to a key's index to get its position, as each query reckons, ``(B | 1,
            Nq)``. In a packed batch positions start again with every document, and this holds
            within a query's own document only.
        vmap: unknown predicates may not be broadcast, only mapped.
        renumbered: the positions are not indices (packed sequences).
    """

    lengths: Lengths
    queries: Tensor
    keys: Tensor
    shift: Tensor
    vmap: bool
    renumbered: bool = False

    def between(self, first: Tensor | None, last: Tensor | None) -> Intervals:
        """Queries see key positions `first` to `last` ``(B | 1, Nq)``, both included; None: all."""
        zero = torch.zeros_like(self.queries)
        starts = zero if first is None else first - self.shift
        stops = zero + self.lengths.keys if last is None else last - self.shift + 1
        return Intervals.make(starts[:, None, :, None], stops[:, None, :, None], self.lengths.keys)

    def same(self, ids: Tensor) -> Intervals:
        """Queries see the keys of equal id; below 0: none."""
        documents = masks.documents(_at(ids, self.queries), key_ids=_at(ids, self.keys))
        resolved = documents.resolve(self.lengths)
        assert isinstance(resolved, Intervals)
        return resolved


def _at(table: Tensor, positions: Tensor) -> Tensor:
    """``table (B, n)`` at each row's positions ``(B | 1, N)``."""
    return table.gather(1, positions.expand(table.shape[0], -1))


Rule = Callable[[dict[str, Any], _View], Intervals | None]


def _translate(predicate: Predicate, view: _View) -> Intervals:
    """The predicate on this view as intervals: in closed form if it is known, else evaluated."""
    rule = _known().rules.get(_code(predicate))
    found = None if rule is None else rule(_closed_over(predicate), view)
    return _evaluate(predicate, view) if found is None else found


def _code(predicate: Predicate) -> CodeType | None:
    return getattr(predicate, "__code__", None)


def _closed_over(predicate: Predicate) -> dict[str, Any]:
    """What a closure captured, by name."""
    assert isinstance(predicate, FunctionType)
    cells = predicate.__closure__ or ()
    return dict(zip(predicate.__code__.co_freevars, (cell.cell_contents for cell in cells), strict=True))


def _causal(_: dict[str, Any], view: _View) -> Intervals:
    return view.between(None, view.queries)


def _bidirectional(_: dict[str, Any], view: _View) -> Intervals:
    last = torch.where(view.queries >= 0, view.shift + view.lengths.keys - 1, view.shift - 1)
    return view.between(None, last)


def _sliding(closed: dict[str, Any], view: _View) -> Intervals:
    return view.between(view.queries - closed["sliding_window"] + 1, None)


def _sliding_both_ways(closed: dict[str, Any], view: _View) -> Intervals:
    reach = closed["sliding_window"]
    return view.between(view.queries - reach, view.queries + reach)


def _chunked(closed: dict[str, Any], view: _View) -> Intervals:
    size, left = closed["chunk_size"], closed["left_padding"].to(view.lengths.device)[:, None]
    first = (view.queries - left) // size * size + left
    return view.between(first, first + size - 1)


def _blockwise(closed: dict[str, Any], view: _View) -> Intervals | None:
    return None if view.renumbered else view.same(closed["block_sequence_ids"].to(view.lengths.device))


def _packed(closed: dict[str, Any], view: _View) -> Intervals | None:
    ids = closed["packed_sequence_mask"].to(view.lengths.device)
    # Here -1 is an id like any other, while `masks.documents` takes it for "no document".
    return None if view.renumbered else view.same(ids - ids.min() if ids.numel() else ids)


def _padding(closed: dict[str, Any], view: _View) -> Intervals | None:
    valid = _at(closed["padding_mask"].to(view.lengths.device), view.keys)
    everyone = everything(view.lengths.queries, view.lengths.keys, view.lengths.device)
    visible, hidden = hide_keys(everyone, valid)
    return None if hidden is not None or view.renumbered else visible


def _offsets(closed: dict[str, Any], view: _View) -> Intervals:
    q_offset, kv_offset = int(closed["q_offset"]), int(closed["kv_offset"])
    moved = replace(
        view,
        queries=view.queries + q_offset,
        keys=view.keys + kv_offset,
        shift=view.shift + kv_offset,
    )
    return _translate(closed["mask_function"], moved)


def _either(closed: dict[str, Any], view: _View) -> Intervals:
    first, *rest = (_translate(part, view) for part in closed["mask_functions"])
    for part in rest:
        first = first.union(part)
    return first


def _both(closed: dict[str, Any], view: _View) -> Intervals:
    parts = closed["mask_functions"]
    documents = [_closed_over(part) for part in parts if _code(part) is _known().packed]
    inside = [_translate_inside(part, documents, view) for part in parts]
    first, *rest = inside
    for part in rest:
        first = first.intersection(part)
    return first


def _translate_inside(part: Predicate, documents: list[dict[str, Any]], view: _View) -> Intervals:
    """One side of an ``and``; renumbered positions are known inside of a document only."""
    if _code(part) is _known().renumbered and len(documents) == 1 and not view.renumbered:
        closed = _closed_over(part)
        packed = _renumber(closed["position_ids"], documents[0]["packed_sequence_mask"], view)
        if packed is not None:
            return _translate(closed["mask_function"], packed)
    return _translate(part, view)


def _renumber(positions: Tensor, ids: Tensor, view: _View) -> _View | None:
    """The view in positions that count up by one inside each document; None if they do not."""
    positions, ids = positions.to(view.lengths.device), ids.to(view.lengths.device)
    next_document = ids.diff()
    if not bool(((next_document > 0) | ((next_document == 0) & (positions.diff() == 1))).all()):
        return None
    queries = _at(positions, view.queries)
    return replace(
        view,
        queries=queries,
        keys=_at(positions, view.keys),
        shift=queries - (view.queries - view.shift),
        renumbered=True,
    )


def _evaluate(predicate: Predicate, view: _View) -> Intervals:
    """Any predicate, exactly, in strips of rows."""
    lengths = view.lengths
    batch = torch.arange(lengths.batch, device=lengths.device)
    head = torch.zeros(1, dtype=torch.long, device=lengths.device)
    queries, keys = (x.expand(lengths.batch, -1) for x in (view.queries, view.keys))

    def asked(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return predicate(b, h, queries[b, i], keys[b, j])

    def strip(i: Tensor, j: Tensor) -> Tensor:
        if view.vmap:
            return _mapped(asked, batch, head, i[:, 0], j[0])
        shape = (lengths.batch, 1, i.shape[0], lengths.keys)
        b, h = batch[:, None, None, None], head[None, :, None, None]
        return asked(b, h, i[None, None], j[None, None]).expand(shape)

    rows = max(1, STRIP_PAIRS // max(1, lengths.keys * lengths.batch))
    return masks.from_predicate(strip, lengths, rows=rows)


def _mapped(predicate: Predicate, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The predicate on all combinations, of which it sees one at a time, ``(B, 1, n, Nk)``."""
    # vmap cannot index with a scalar tensor; in this mode it can (transformers does the same).
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    for dims in (
        (None, None, None, 0),
        (None, None, 0, None),
        (None, 0, None, None),
        (0, None, None, None),
    ):
        predicate = torch.vmap(predicate, in_dims=dims, out_dims=0)
    with TransformGetItemToIndex():
        return predicate(b, h, i, j)


# ---------------------------------------------------------------------------------- what is known


@dataclass(frozen=True)
class _Known:
    """The closures of `transformers.masking_utils`, by code object."""

    rules: dict[CodeType | None, Rule]
    causal: Predicate
    bidirectional: Predicate
    both: CodeType | None
    packed: CodeType | None
    renumbered: CodeType | None


_cache: list[_Known] = []


def know_transformers() -> None:
    """Look up what there is in transformers; code under torch.compile cannot."""
    if not _cache:
        _cache.append(_look_up())


def _known() -> _Known:
    know_transformers()
    return _cache[0]


# Factory of transformers.masking_utils, the names that its closure must hold, and the translation.
_FACTORIES: tuple[tuple[str, set[str], Rule], ...] = (
    ("and_masks", {"mask_functions"}, _both),
    ("or_masks", {"mask_functions"}, _either),
    ("sliding_window_overlay", {"sliding_window"}, _sliding),
    ("sliding_window_bidirectional_overlay", {"sliding_window"}, _sliding_both_ways),
    ("chunked_overlay", {"chunk_size", "left_padding"}, _chunked),
    ("blockwise_overlay", {"block_sequence_ids"}, _blockwise),
    ("padding_mask_function", {"padding_mask"}, _padding),
    ("packed_sequence_mask_function", {"packed_sequence_mask"}, _packed),
    ("add_offsets_to_mask_function", {"mask_function", "q_offset", "kv_offset"}, _offsets),
)


def _look_up() -> _Known:
    from transformers import masking_utils

    def inner(factory: str, names: set[str]) -> CodeType | None:
        """The code of the closure that a factory makes; None if it is not what we know."""
        codes = list(_codes_within(getattr(masking_utils, factory, None)))
        return codes[0] if len(codes) == 1 and set(codes[0].co_freevars) == names else None

    rules: dict[CodeType | None, Rule] = {
        masking_utils.causal_mask_function.__code__: _causal,
        masking_utils.bidirectional_mask_function.__code__: _bidirectional,
    }
    rules |= {inner(factory, names): rule for factory, names, rule in _FACTORIES}
    rules.pop(None, None)
    return _Known(
        rules,
        masking_utils.causal_mask_function,
        masking_utils.bidirectional_mask_function,
        inner("and_masks", {"mask_functions"}),
        inner("packed_sequence_mask_function", {"packed_sequence_mask"}),
        inner("remap_positions_for_packed_sequence", {"mask_function", "position_ids"}),
    )


def _codes_within(factory: object) -> Iterator[CodeType]:
    code = getattr(factory, "__code__", None)
    constants = itertools.chain(code.co_consts if code else ())
    return (constant for constant in constants if isinstance(constant, CodeType) and constant.co_freevars)

"""transformers' masks as intervals: equal to its own booleans, and never Nq x Nk in memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from saccade import masks
from saccade.adapters import huggingface_masks
from saccade.adapters.huggingface import attach
from saccade.adapters.huggingface_masks import CarriedMask, carry
from saccade.errors import UnsupportedModelError
from saccade.masks import Lengths

transformers = pytest.importorskip("transformers")
from transformers import masking_utils as theirs  # noqa: E402

B, N = 3, 24
IDS = torch.tensor([[0] * 7 + [1] * 9 + [2] * 8, [0] * 24, [0] * 1 + [1] * 2 + [2] * 21])
POSITIONS = torch.stack([torch.cat([torch.arange(int((row == i).sum())) for i in row.unique()]) for row in IDS])
IMAGES = torch.tensor([[-1] * 4 + [0] * 6 + [-1] * 3 + [1] * 5 + [-1] * 6] * 2 + [[-1] * 24])
LEFT = torch.tensor([0, 3, 5])


def keep(rows: list[list[int]]) -> torch.Tensor:
    """A 2-D padding mask that hides the keys listed for each row."""
    valid = torch.ones(B, N, dtype=torch.bool)
    for row, hidden in enumerate(rows):
        valid[row, hidden] = False
    return valid


PADDINGS = {
    "none": None,
    "all valid": keep([[], [], []]),
    "left": keep([[], [0, 1], list(range(9))]),
    "right": keep([[], [22, 23], list(range(11, 24))]),
    "holes": keep([[3], [5, 6, 11], list(range(2, 20, 2))]),
    "nothing valid": keep([[], list(range(24)), []]),
}

CAUSAL = theirs.causal_mask_function
FUNCTIONS = {
    "causal": CAUSAL,
    "bidirectional": theirs.bidirectional_mask_function,
    "sliding": theirs.sliding_window_causal_mask_function(5),
    "sliding both ways": theirs.sliding_window_bidirectional_mask_function(4),
    "chunked": theirs.chunked_causal_mask_function(6, LEFT),
    "packed": theirs.packed_sequence_compatibility_function(CAUSAL, POSITIONS, IDS),
    "packed sliding": theirs.packed_sequence_compatibility_function(
        theirs.sliding_window_causal_mask_function(3), POSITIONS, IDS
    ),
    "packed chunked": theirs.packed_sequence_compatibility_function(
        theirs.chunked_causal_mask_function(4, torch.zeros(B, dtype=torch.long)), POSITIONS, IDS
    ),
    "packed both ways": theirs.and_masks(
        theirs.bidirectional_mask_function, theirs.packed_sequence_mask_function(IDS - 1)
    ),
    "images": theirs.or_masks(CAUSAL, theirs.blockwise_overlay(IMAGES)),
    "images in a window": theirs.and_masks(
        theirs.or_masks(theirs.sliding_window_causal_mask_function(5), theirs.blockwise_overlay(IMAGES)),
        theirs.sliding_window_overlay(8),
    ),
    "packed images": theirs.or_masks(
        theirs.packed_sequence_compatibility_function(CAUSAL, POSITIONS, IDS),
        theirs.blockwise_overlay(IMAGES),
    ),
    "padding inside": theirs.and_masks(CAUSAL, theirs.padding_mask_function(keep([[3], [0, 1, 9], []]))),
    "offsets": theirs.add_offsets_to_mask_function(theirs.sliding_window_causal_mask_function(5), 2, 1),
}


def unknown(batch_idx, head_idx, q_idx, kv_idx):
    del batch_idx, head_idx
    return (q_idx + kv_idx) % 3 != 0


def positions_backwards(batch_idx, head_idx, q_idx, kv_idx):
    del batch_idx, head_idx
    return kv_idx >= q_idx


UNKNOWN = {
    "unknown": unknown,
    "causal and unknown": theirs.and_masks(CAUSAL, unknown),
    "window or unknown": theirs.or_masks(theirs.sliding_window_causal_mask_function(3), unknown),
    "packed unknown": theirs.packed_sequence_compatibility_function(unknown, POSITIONS, IDS),
    "renumbered alone": theirs.remap_positions_for_packed_sequence(CAUSAL, POSITIONS),
    "positions that skip": theirs.packed_sequence_compatibility_function(CAUSAL, 2 * POSITIONS, IDS),
    "documents out of order": theirs.packed_sequence_compatibility_function(
        theirs.sliding_window_causal_mask_function(3), POSITIONS, 2 - IDS
    ),
    "backwards": positions_backwards,
}


def expected(function, padding, **sizes) -> torch.Tensor:
    return theirs.sdpa_mask(B, mask_function=function, attention_mask=padding, allow_is_causal_skip=False, **sizes)


def found(function, padding, **sizes) -> torch.Tensor:
    mask = carry(B, mask_function=function, attention_mask=padding, **sizes)
    lengths = Lengths(B, 1, sizes["q_length"], sizes["kv_length"])
    dense = mask.carried.visible.to_dense(lengths)
    if mask.carried.hidden_keys is not None:
        dense = dense & (mask.carried.hidden_keys == 0)
    return dense.expand(B, 1, -1, -1)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", FUNCTIONS | UNKNOWN)
def test_equal_to_transformers(name: str, padding: str):
    function = (FUNCTIONS | UNKNOWN)[name]
    sizes = {"q_length": N, "kv_length": N}
    if name == "offsets":
        sizes = {"q_length": N - 2, "kv_length": N - 1}
    same = found(function, PADDINGS[padding], **sizes)
    assert torch.equal(same, expected(function, PADDINGS[padding], **sizes))


@pytest.mark.parametrize("name", ["causal", "sliding", "sliding both ways", "chunked", "images"])
@pytest.mark.parametrize(
    ("q_length", "kv_length", "q_offset", "kv_offset"),
    [(1, 10, 9, 0), (4, 10, 6, 0), (6, 12, 0, 0), (1, 5, 20, 16), (3, 8, 13, 8)],
    ids=["decode", "continue", "static prefill", "sliding cache", "sliding cache prefill"],
)
def test_equal_with_a_cache(name: str, q_length, kv_length, q_offset, kv_offset):
    sizes = {"q_length": q_length, "kv_length": kv_length, "kv_offset": kv_offset}
    padding = PADDINGS["left"][:, : q_offset + q_length]
    for offset in (q_offset, torch.tensor(q_offset)):
        same = found(FUNCTIONS[name], padding, **sizes, q_offset=offset)
        assert torch.equal(same, expected(FUNCTIONS[name], padding, **sizes, q_offset=q_offset))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_known_functions_are_not_evaluated(name: str, monkeypatch: pytest.MonkeyPatch):
    def evaluated(*_):
        raise AssertionError("evaluated over all pairs")

    monkeypatch.setattr(huggingface_masks, "_evaluate", evaluated)
    carry(B, N - 2, N - 1, mask_function=FUNCTIONS[name]) if name == "offsets" else carry(
        B, N, N, mask_function=FUNCTIONS[name]
    )


def test_an_unknown_function_is_evaluated_in_strips(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_masks, "STRIP_PAIRS", 4 * N * B)
    sizes = {"q_length": N, "kv_length": N}
    assert torch.equal(found(unknown, None, **sizes), expected(unknown, None, **sizes))


def test_a_function_that_only_vmap_can_evaluate():
    table = torch.rand(N, generator=torch.Generator().manual_seed(0)) < 0.5

    def by_table(batch_idx, head_idx, q_idx, kv_idx):
        del batch_idx, head_idx
        return torch.stack([table[q_idx], table[kv_idx]]).all()

    sizes = {"q_length": N, "kv_length": N, "use_vmap": True}
    assert torch.equal(found(by_table, None, **sizes), expected(by_table, None, **sizes))


def test_many_holes_are_hidden_by_a_bias():
    """More runs than intervals should list: alternating keys, of which there are 2 N / 2."""
    length = 4 * masks.MAX_RUNS
    valid = torch.zeros(B, length, dtype=torch.bool)
    valid[:, ::2] = True
    sizes = {"q_length": length, "kv_length": length}
    mask = carry(B, mask_function=CAUSAL, attention_mask=valid, **sizes)
    assert mask.carried.visible.runs == 1
    assert torch.equal(found(CAUSAL, valid, **sizes), expected(CAUSAL, valid, **sizes))


# ---------------------------------------------------------------------------------- the carrier


def test_the_carrier_looks_like_a_mask():
    mask = carry(2, 5, 7, q_offset=2)
    assert isinstance(mask, torch.Tensor)
    assert (tuple(mask.shape), mask.dtype, mask.ndim) == ((2, 1, 5, 7), torch.bool, 4)
    with pytest.raises(RuntimeError):  # nothing is stored
        mask.untyped_storage().data_ptr()
    assert repr(mask) == "CarriedMask(shape=(2, 1, 5, 7), runs=1)"
    for copy in (mask.contiguous(), mask.clone(), mask.to("cpu"), mask.bool(), mask.detach()):
        assert isinstance(copy, CarriedMask)
        assert copy.carried is mask.carried


def test_the_carrier_can_be_sliced_and_expanded():
    mask, whole = (
        carry(2, 5, 7, q_offset=2),
        expected(CAUSAL, None, q_length=5, kv_length=7, q_offset=2),
    )
    for take in (
        (..., slice(0, 4)),
        (slice(None), slice(None), slice(None), slice(2, 6)),
        (slice(None), slice(None), slice(-2, None)),
    ):
        part = mask[take]
        dense = part.carried.visible.to_dense()
        assert part.shape[1:] == whole[:1][take].shape[1:]
        assert torch.equal(dense[0], whole[0][take[1:] if take[0] is not ... else take])
    assert mask.expand(-1, 4, -1, -1).shape == (2, 4, 5, 7)
    assert mask[:, :, -2:].carried.offset == 2 + 3
    for refused in (lambda: mask[..., ::2], lambda: mask[:1], mask.float, mask.logical_not):
        with pytest.raises(UnsupportedModelError):
            refused()


# ---------------------------------------------------------------------------------- memory


class LargestTensor(TorchDispatchMode):
    """Records the most bytes that any operation's result stores."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, torch.Tensor) and not isinstance(x, CarriedMask):
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result


LONG = 8192


def long_padded() -> dict:
    mask = torch.ones(1, LONG, dtype=torch.long)
    mask[0, :100] = 0
    mask[0, 500:600] = 0
    return {"attention_mask": mask}


def long_alternating() -> dict:
    mask = torch.zeros(1, LONG, dtype=torch.long)
    mask[0, ::2] = 1
    return {"attention_mask": mask}


def long_packed() -> dict:
    return {"position_ids": torch.arange(LONG)[None] % 1000}


@pytest.mark.parametrize("inputs", [long_padded, long_alternating, long_packed])
@pytest.mark.parametrize("window", [None, 512])
def test_nothing_grows_with_the_square_of_the_length(inputs, window):
    """A boolean Nq x Nk mask would be 64 MiB here; 1 MiB is too much already."""
    config = transformers.MistralConfig(
        vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8,
        num_key_value_heads=1, intermediate_size=8, max_position_embeddings=LONG,
        sliding_window=window,
    )  # fmt: skip
    model = transformers.MistralModel(config).eval()
    ids = torch.zeros(1, LONG, dtype=torch.long)
    with attach(model), torch.no_grad(), LargestTensor() as largest:
        model(ids, use_cache=False, **inputs())
    assert largest.bytes < LONG * LONG // 64


def test_the_memory_check_can_fail():
    with LargestTensor() as largest:
        theirs.sdpa_mask(1, LONG, LONG, allow_is_causal_skip=False)
    assert largest.bytes >= LONG * LONG

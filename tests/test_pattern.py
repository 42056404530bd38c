"""`Pattern` against the dense matrix that it stands for."""

from __future__ import annotations

import pytest
import torch
from conformance import assert_close

import saccade
from saccade import masks, scores, statistics
from saccade.errors import ArgumentError, MaskError, ShapeError

B, H, HK, NQ, NK, D = 2, 4, 2, 70, 131, 16
OFFSET = NK - NQ

torch.manual_seed(3)
DENSE = torch.rand(B, 1, NQ, NK) > 0.4
PROBLEMS = {
    "plain": {},
    "causal": {"mask": masks.causal(OFFSET)},
    "window, sinks": {"mask": masks.window(20, offset=OFFSET) | masks.prefix(2), "sinks": torch.randn(H)},
    "dense, softcap": {"mask": masks.dense(DENSE), "softcap": 3.0},
    "alibi": {"mask": masks.causal(OFFSET), "bias": scores.ALiBi(scores.alibi_slopes(H), OFFSET)},
    "relative": {"bias": scores.RelativeBias(torch.randn(H, 60), -30, OFFSET)},
    "bias": {"bias": torch.randn(1, H, NQ, NK), "mask": masks.padding(torch.tensor([NK, 40]))},
}


@pytest.fixture(params=PROBLEMS)
def options(request):
    return PROBLEMS[request.param]


@pytest.fixture(params=["cpu", "tiled", "reference"])
def backend(request):
    return request.param


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(B, H, NQ, D, generator=generator), torch.randn(B, HK, NK, D, generator=generator)


def true_pattern(query, key, options):
    """The matrix, written out: values that are the identity."""
    eye = torch.eye(NK, dtype=torch.float64).expand(B, HK, NK, NK)
    wide = {name: x.double() if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    if isinstance(wide.get("mask"), torch.Tensor):
        wide["mask"] = options["mask"]
    return saccade.attention(query.double(), key.double(), eye, **wide, backend="reference")


INDICES = [
    (0, 1, 3, 5),
    (slice(None), 2),
    (..., 4),
    (Ellipsis, slice(10, 30), slice(60, 129)),
    (1, [0, 3], slice(5, 60, 7), [130, 2, 3, -1]),
    (slice(None), slice(1, 3), torch.tensor([69, 0]), slice(None)),
    (0, -1, slice(None), 100),
    (slice(None), [3, 2, 1, 0], 7),
    (0, slice(None), [], 7),
    (0, 0, slice(9, 9), slice(None)),
    ([1, 0], slice(None, None, 2), 3, slice(-5, None)),
    1,
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing(tensors, options, backend, index):
    pattern = saccade.Pattern(*tensors, **options, backend=backend)
    expected = true_pattern(*tensors, options)
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [part for part in parts if part is Ellipsis]:
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (5 - len(parts))
    for dim in reversed(range(len(parts))):  # one after the other: all pairs of lists
        expected = expected[(slice(None),) * dim + (parts[dim],)]
    found = pattern[index]
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    if found.numel():
        assert_close(found, expected, 1e-5, str(index))


def test_dense_and_lse(tensors, options, backend):
    pattern = saccade.Pattern(*tensors, **options, backend=backend)
    assert pattern.shape == (B, H, NQ, NK)
    assert len(pattern) == B
    assert "lse known" not in repr(pattern)
    _, report = saccade.attention(*tensors, tensors[1], **options, statistics=statistics.LogSumExp())
    assert_close(pattern.lse, report.lse, 1e-5, "lse")
    assert "lse known" in repr(pattern)
    assert_close(pattern.dense(), true_pattern(*tensors, options), 1e-5, "dense")


@pytest.mark.parametrize("known", [False, True], ids=["lse unknown", "lse known"])
def test_statistics(tensors, options, backend, known):
    pattern = saccade.Pattern(*tensors, **options, backend=backend)
    if known:
        pattern.lse  # noqa: B018
    true = true_pattern(*tensors, options)
    groups, by = torch.arange(NK) // 50, torch.arange(NQ) % 3
    position = (torch.arange(NQ)[:, None] + OFFSET - torch.arange(NK)).abs()
    assert_close(pattern.entropy(), -torch.xlogy(true, true).sum(-1), 1e-4, "entropy")
    assert_close(pattern.max_weight(), true.amax(-1), 1e-5, "max weight")
    assert_close(pattern.top_keys(3).weights, true.topk(3, -1).values, 1e-5, "top keys")
    assert_close(pattern.distance(OFFSET), (true * position).sum(-1), 1e-3, "distance")
    assert_close(pattern.mass(groups)[..., 1], true[..., 50:100].sum(-1), 1e-4, "mass")
    assert_close(pattern.received(), true.sum(2), 1e-4, "received")
    assert_close(pattern.received(by)[:, :, 1], true[:, :, by == 1].sum(2), 1e-4, "received by group")
    assert_close(pattern.map(7, "max")[..., 0, 0], true[:, :, :10, :18].amax((2, 3)), 1e-5, "map")
    asked = pattern.ask([statistics.Entropy(), statistics.LogSumExp()])
    assert_close(asked.lse, pattern.lse, 0.0, "lse")


MASKS = {
    "previous": masks.window(1, 0, offset=OFFSET) & ~masks.window(0, 0, offset=OFFSET),
    "first": masks.prefix(1),
    "windows": masks.window(torch.tensor([0, 3, 40, 200]), 5, offset=OFFSET),
    "padded": masks.padding(torch.tensor([100, 7])),
    "documents": masks.documents(torch.arange(NQ) % 5, key_ids=torch.arange(NK) % 7),
    "dense": masks.dense(torch.rand(B, H, NQ, NK, generator=torch.Generator().manual_seed(1)) > 0.5),
    "nothing": masks.prefix(0),
    "all": masks.prefix(NK),
}


def test_mass_on_masks(tensors, options, backend):
    pattern = saccade.Pattern(*tensors, **options, backend=backend)
    true = true_pattern(*tensors, options)
    groups = torch.arange(NK) % 3 - 1
    for name, mask in MASKS.items():
        on = true * mask.to_dense(masks.Lengths(B, H, NQ, NK))
        found = pattern.mass_on(mask)
        assert found.shape == (B, H, NQ)
        assert_close(found, on.sum(-1), 1e-5, name)
        by_group = torch.stack([(on * (groups == g)).sum(-1) for g in range(4)], -1)
        assert_close(pattern.mass_on(mask, groups=groups, count=4), by_group, 1e-5, f"{name} by group")


def test_mass_on_a_mask_of_some_queries(tensors, options, backend):
    pattern = saccade.Pattern(*tensors, **options, backend=backend)
    on = masks.window(4, 4, offset=OFFSET + 20).to_dense(masks.Lengths(B, H, 30, NK))
    expected = (true_pattern(*tensors, options)[:, :, 20:50] * on).sum(-1)
    found = pattern.mass_on(masks.window(4, 4, offset=OFFSET + 20), queries=slice(20, 50))
    assert_close(found, expected, 1e-5, "mass")


def test_mass_on_a_mask_of_rows_that_see_nothing_or_what_is_not_finite(backend):
    """Nothing is 0; NaN is NaN, but for a row that sees no key of the mask."""
    query, key = torch.randn(2, 1, 1, 8, 4)
    key[0, 0, 2] = torch.nan
    lonely = masks.padding(torch.tensor([3])) & ~masks.window(7, 0)  # the last rows see no key
    found = saccade.Pattern(query, key, mask=lonely, backend=backend).mass_on(masks.prefix(2))
    assert found[0, 0, 0].isnan()
    assert found[0, 0, 2:].tolist() == [0.0] * 6
    causal = saccade.Pattern(query, key, mask=masks.causal(), backend=backend).mass_on(masks.prefix(2))
    assert causal.isfinite().tolist() == [[[True] * 2 + [False] * 6]]
    assert causal[0, 0, :2].tolist() == pytest.approx([1.0, 1.0])


def test_mass_on_a_mask_is_exact_far_from_zero(backend):
    """All of the weight on one key is 1, with scores in the thousands as well."""
    x = 40 * torch.eye(6)[None, None]
    pattern = saccade.Pattern(x, x.roll(1, 2), scale=1.0, backend=backend)
    previous = masks.window(1, 0) & ~masks.window(0, 0)
    assert_close(pattern.mass_on(~previous)[0, 0, :5], torch.ones(5, dtype=torch.float64), 1e-3, "mass")


def test_map_of_a_rectangle(tensors, options, backend):
    pattern = saccade.Pattern(*tensors, **options, backend=backend)
    part = true_pattern(*tensors, options)[:, :, 8:60, 20:124]
    found = pattern.map((4, 8), queries=slice(8, 60), keys=slice(20, 124))
    assert_close(found, part.unflatten(3, (8, 13)).unflatten(2, (4, 13)).mean((3, 5)), 1e-5, "mean")
    found = pattern.map((4, 8), "sum", queries=slice(8, 60), keys=slice(20, -7))
    assert_close(found, part.unflatten(3, (8, 13)).unflatten(2, (4, 13)).sum((3, 5)), 1e-4, "sum")


def test_map_of_a_rectangle_far_from_zero(backend):
    """An lse in the hundreds is of all keys: those of the rectangle must not be summed up for it."""
    query, key = 12 * torch.randn(1, 1, 20, 64), 12 * torch.randn(1, 1, 40, 64)
    pattern = saccade.Pattern(query, key, backend=backend)
    found = pattern.map((20, 10), "sum", keys=slice(10, 20))
    assert pattern.lse.abs().max() > 64
    assert_close(found, pattern.dense()[..., 10:20], 1e-3, "map")


@pytest.mark.parametrize("heads", [1, HK, H])
def test_products(tensors, options, backend, heads):
    pattern = saccade.Pattern(*tensors, **options, backend=backend)
    true = true_pattern(*tensors, options)
    value, rows = torch.randn(B, heads, NK, 5), torch.randn(NQ, 6)
    repeated = value.repeat_interleave(H // heads, 1) if heads > 1 else value
    assert_close(pattern @ value, true @ repeated.double(), 1e-5, "A @ V")
    assert_close(pattern @ value[0, 0], true @ value[0, 0].double(), 1e-5, "A @ V, one for all")
    assert_close(pattern.mT @ rows, true.mT @ rows.double(), 1e-4, "A.mT @ Y")
    assert pattern.mT.shape == (B, H, NK, NQ)
    assert pattern.mT.mT is pattern


def test_chain(backend):
    """Three layers' patterns in a row, without N x N."""
    patterns = [saccade.Pattern(*torch.randn(2, 1, 3, 50, 8), mask=masks.causal(), backend=backend) for _ in range(3)]
    y = torch.randn(1, 3, 50, 4)
    first, second, third = (a.dense() for a in patterns)
    assert_close(patterns[2] @ (patterns[1] @ (patterns[0] @ y)), third @ second @ first @ y, 1e-5, "chain")


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients(tensors, options, backend, transposed):
    options = dict(options)
    leaves = [x.clone().requires_grad_() for x in tensors]
    for name in ("sinks", "bias"):
        if isinstance(options.get(name), torch.Tensor):
            options[name] = options[name].clone().requires_grad_()
            leaves.append(options[name])
    other = torch.randn(B, H, NQ if transposed else NK, 5, requires_grad=True)
    leaves.append(other)
    pattern = saccade.Pattern(*leaves[:2], **options, backend=backend)
    ours = pattern.mT @ other if transposed else pattern @ other
    true = true_pattern(*leaves[:2], options)
    exact = (true.mT if transposed else true) @ other.double()
    weight = torch.randn_like(ours)
    found = torch.autograd.grad((ours * weight).sum(), leaves)
    expected = torch.autograd.grad((exact * weight).sum(), leaves)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 2e-4, "gradient")


def test_heads_and_their_mean(tensors, options, backend):
    pattern = saccade.Pattern(*tensors, **options, backend=backend)
    true = true_pattern(*tensors, options)
    assert_close(pattern.head(2).dense(), true[:, 2:3], 1e-5, "head")
    assert_close(pattern.head(-1).entropy(), pattern.entropy()[:, -1:], 1e-5, "entropy of a head")
    mean, exact = pattern.mean_heads(), true.mean(1, keepdim=True)
    assert mean.shape == exact.shape
    value = torch.randn(NK, 5)
    assert_close(mean @ value, exact @ value.double(), 1e-5, "mean @ V")
    assert_close(mean.mT @ torch.ones(NQ, 1), exact.sum(2)[..., None], 1e-4, "mean.mT @ Y")
    assert_close(mean.received(), exact.sum(2), 1e-4, "received")
    assert_close(mean.map((7, 1))[..., 0], exact.unflatten(2, (7, 10)).mean((3, 4)), 1e-5, "map")
    assert_close(mean[1, 0, 5:9, [3, 1]], exact[1, 0, 5:9][:, [3, 1]], 1e-5, "window")
    assert_close(mean.dense(), exact, 1e-5, "dense")


def test_halves():
    """Weights are float32; a product has the dtype of queries, or that of wider values."""
    query, key, value = torch.randn(3, 1, 2, 40, 16).bfloat16()
    pattern = saccade.Pattern(query, key)
    assert pattern.dense().dtype == pattern.dtype == torch.float32
    assert (pattern @ value).dtype == torch.bfloat16
    assert (pattern @ value.float()).dtype == torch.float32
    assert_close(pattern @ value.float(), pattern.dense() @ value.float(), 1e-5, "float32 values")
    assert (pattern.mT @ value).dtype == torch.bfloat16


def test_empty():
    pattern = saccade.Pattern(torch.randn(1, 2, 0, 8), torch.randn(1, 2, 5, 8))
    assert pattern.dense().shape == (1, 2, 0, 5)
    assert pattern.entropy().shape == (1, 2, 0)
    assert (pattern @ torch.randn(5, 3)).shape == (1, 2, 0, 3)


def test_bad_input():
    pattern = saccade.Pattern(torch.randn(1, 2, 20, 8), torch.randn(1, 2, 30, 8))
    with pytest.raises(IndexError, match="2 is out of range"):
        pattern.head(2)
    with pytest.raises(IndexError, match="out of range for 20"):
        pattern[0, 0, 20]
    with pytest.raises(IndexError, match="4 dimensions"):
        pattern[0, 0, 0, 0, 0]
    with pytest.raises(IndexError, match="expected an integer"):
        pattern["a"]
    with pytest.raises(ShapeError, match=r"broadcasts to \(1, 1 | 2, 30, width\)"):
        pattern @ torch.randn(20, 4)
    with pytest.raises(ShapeError, match="expected a tensor"):
        pattern.mT @ torch.randn(20)
    with pytest.raises(ArgumentError, match="without steps"):
        pattern.map(3, keys=slice(0, 10, 2))
    with pytest.raises(MaskError, match=r"mask is Tensor; expected one of saccade\.masks"):
        pattern.mass_on(torch.ones(20, 30, dtype=torch.bool))
    with pytest.raises(MaskError, match=r"causal\(\) is ambiguous"):
        pattern.mass_on(masks.causal())
    with pytest.raises(ShapeError, match="groups have shape"):
        pattern.mass_on(masks.prefix(3), groups=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ArgumentError, match="without steps"):
        pattern.mass_on(masks.prefix(3), queries=slice(0, 9, 2))
    long = saccade.Pattern(*torch.randn(2, 1, 1, 20_000, 2))
    with pytest.raises(ArgumentError, match=r"20,000 x 20,000 entries would take 1\.5 GiB"):
        long.dense()

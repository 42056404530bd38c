"""The suite that every backend passes: its results beside the float64 oracle.

The bar is PyTorch's own error: in a dtype, a backend may be off from float64 by twice what the plain PyTorch formula in
that dtype is off (three times for gradients). The oracle itself, `reference` in float64, is held to closed forms in
`backends/test_reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import saccade
from saccade import backends, masks, scores, statistics
from saccade.functional import check_inputs, make_problem
from saccade.masks import Lengths, Mask
from saccade.scores import Bias
from saccade.statistics import Report, Statistic

# What rounding of the last bit alone may add to any comparison, for results of size 1.
FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}


@dataclass(frozen=True)
class Shape:
    """The sizes of one problem."""

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    width: int
    value_width: int

    def __str__(self) -> str:
        return "x".join(str(getattr(self, name)) for name in self.__dataclass_fields__)

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.batch, self.heads, self.queries, self.keys)

    @property
    def offset(self) -> int:
        """The last query stands at the last key."""
        return self.keys - self.queries


# Shapes that hurt: single, empty, one row past a block of 256 and of 64, more queries than keys, odd widths, groups.
SHAPES = [
    Shape(1, 1, 1, 1, 1, 1, 1),
    Shape(1, 1, 1, 1, 40, 3, 5),
    Shape(2, 2, 2, 0, 5, 4, 4),
    Shape(2, 2, 2, 5, 0, 4, 4),
    Shape(1, 2, 1, 257, 257, 59, 59),
    Shape(2, 4, 2, 65, 130, 16, 7),
    Shape(1, 6, 2, 130, 33, 8, 24),
    Shape(3, 2, 2, 3, 3, 111, 1),
]


def _sparse(shape: Shape) -> Mask:
    generator = torch.Generator("cpu").manual_seed(1)
    blocks = -(-shape.keys // 16)
    rows = -(-shape.queries // 16)
    indices = torch.randint(-1, max(blocks, 1), (shape.heads, rows, 3), generator=generator, device="cpu")
    return masks.blocks(indices if blocks else indices.fill_(-1), 16)


def _noise(shape: Shape) -> Mask:
    generator = torch.Generator("cpu").manual_seed(2)
    size = (shape.batch, shape.heads, shape.queries, shape.keys)
    return masks.dense(torch.rand(size, generator=generator, device="cpu") < 0.5)


def _documents(shape: Shape) -> Mask:
    return masks.documents(torch.arange(shape.queries) // 7 % 3, key_ids=torch.arange(shape.keys) // 5 % 4 - 1)


def _padding(shape: Shape) -> Mask:
    lengths = torch.arange(shape.batch) * 7 % (shape.keys + 1)
    return masks.padding(lengths) & masks.causal(shape.offset)


MASKS: dict[str, Callable[[Shape], Mask | None]] = {
    "none": lambda _: None,
    "causal": lambda s: masks.causal(s.offset),
    "causal-from-first": lambda _: masks.causal(0),
    "window": lambda s: masks.window(9, 4, offset=s.offset),
    "window-by-head": lambda s: masks.window(torch.arange(s.heads) * 5, offset=s.offset),
    "sinks-and-window": lambda s: (masks.window(20, offset=s.offset) | masks.prefix(4)) & masks.causal(s.offset),
    "padding": _padding,
    "documents": _documents,
    "chunked": lambda s: masks.chunked(8, offset=s.offset) & masks.causal(s.offset),
    "blocks": _sparse,
    "dense": _noise,
    "not": lambda s: ~masks.window(9, 9, offset=s.offset),
    "nothing": lambda _: masks.prefix(0),
}


def _dense_bias(shape: Shape) -> Tensor:
    return torch.randn(1, shape.heads, shape.queries, shape.keys)


BIASES: dict[str, Callable[[Shape], Tensor | Bias | None]] = {
    "none": lambda _: None,
    "dense": _dense_bias,
    "by-key": lambda s: torch.randn(s.batch, 1, 1, s.keys),
    "alibi": lambda s: scores.ALiBi(scores.alibi_slopes(s.heads), s.offset),
    "relative": lambda s: scores.RelativeBias(torch.randn(s.heads, 9), -4, s.offset),
}


# One of each way in which a statistic is computed.
SEVERAL = [statistics.Entropy(), statistics.Received(), statistics.Mass(torch.arange(64) % 3, 3)]


@dataclass
class Case:
    """One problem with its tensors, in float64; `to` gives it in another dtype."""

    shape: Shape
    mask: Mask | None = None
    bias: Tensor | Bias | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dtype: torch.dtype = torch.float64
    tensors: tuple[Tensor, Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        s = self.shape
        self.tensors = (
            torch.randn(s.batch, s.heads, s.queries, s.width),
            torch.randn(s.batch, s.key_heads, s.keys, s.width),
            torch.randn(s.batch, s.key_heads, s.keys, s.value_width),
        )

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Every differentiable tensor, rounded to the case's dtype, then held in `dtype`."""
        values = self.bias.values if isinstance(self.bias, Bias) else self.bias
        named = dict(zip(("query", "key", "value"), self.tensors, strict=True))
        named |= {} if values is None else {"bias": values}
        named |= {} if self.sinks is None else {"sinks": self.sinks}
        return {name: x.to(self.dtype).to(dtype).requires_grad_() for name, x in named.items()}

    def options(self, leaves: dict[str, Tensor]) -> dict[str, object]:
        """The keyword arguments of `attention`."""
        bias: Tensor | Bias | None = leaves.get("bias")
        if isinstance(self.bias, Bias) and bias is not None:
            bias = scores.decode_bias(self.bias.kind, leaves["bias"], self.bias.numbers())
        return {
            "mask": self.mask,
            "bias": bias,
            "softcap": self.softcap,
            "sinks": leaves.get("sinks"),
        }

    def attend(
        self, backend: str, dtype: torch.dtype, asked: list[Statistic]
    ) -> tuple[Tensor, Report, dict[str, Tensor]]:
        """Output, report and gradients of a fixed random projection of output and lse."""
        leaves = self.leaves(dtype)
        inputs = (leaves["query"], leaves["key"], leaves["value"])
        output, report = saccade.attention(*inputs, **self.options(leaves), statistics=asked, backend=backend)
        return output, report, _gradients(output, report.lse, leaves)

    def plain(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What PyTorch's own operations give in the case's dtype: output, lse, gradients."""
        leaves = self.leaves(self.dtype)
        inputs = check_inputs(leaves["query"], leaves["key"], leaves["value"])
        problem = make_problem(inputs, scale=None, **self.options(leaves))
        query, key, value = (
            leaves["query"],
            *(leaves[name].repeat_interleave(inputs.group, 1) for name in ("key", "value")),
        )
        s = problem.scale * (query @ key.mT)
        if problem.softcap is not None:
            s = problem.softcap * torch.tanh(s / problem.softcap)
        if problem.bias is not None:
            area = scores.Area(*(slice(0, n) for n in (self.shape.batch, *s.shape[1:])))
            s = s + problem.bias.tile(area)
        if problem.mask is not None:
            s = s.masked_fill(~problem.mask.to_dense(self.shape.lengths), -torch.inf)
        logits = s
        if problem.sinks is not None:
            column = problem.sinks[..., None, None].to(s.dtype)
            logits = torch.cat([s, column.expand(*s.shape[:-1], 1)], -1)
        blind = (logits == -torch.inf).all(-1)
        logits = logits.masked_fill(blind[..., None], 0.0)
        a = torch.softmax(logits, -1)[..., : s.shape[-1]].masked_fill(blind[..., None], 0.0)
        lse = torch.logsumexp(logits, -1).masked_fill(blind, -torch.inf)
        output = a @ value
        return output, lse, _gradients(output, lse, leaves)


def _gradients(output: Tensor, lse: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator("cpu").manual_seed(3)
    weights = torch.randn(output.shape, generator=generator, device="cpu").to(output)
    lse_weights = torch.randn(lse.shape, generator=generator, device="cpu").to(lse)
    loss = (output * weights).sum() + (lse.masked_fill(lse == -torch.inf, 0.0) * lse_weights).sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


def everything(shape: Shape) -> list[Statistic]:
    """One of each statistic."""
    return [
        statistics.LogSumExp(),
        statistics.Entropy(),
        statistics.MaxWeight(),
        statistics.TopKeys(5),
        statistics.Distance(shape.offset),
        statistics.Mass(torch.arange(shape.keys) % 3 - 1, 2),
        statistics.Received(),
        statistics.Map((7, 5)),
    ]


def error(ours: Tensor, exact: Tensor) -> float:
    """The largest absolute difference; infinities and NaN must stand at the same places."""
    assert ours.shape == exact.shape
    ours, exact = ours.detach().double(), exact.detach().double()
    for special in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(special(ours), special(exact)), f"{special.__name__} differs"
    difference = (ours - exact)[exact.isfinite()]
    return float(difference.abs().max()) if difference.numel() else 0.0


def assert_close(ours: Tensor, exact: Tensor, allowed: float, what: str) -> None:
    found = error(ours, exact)
    assert found <= allowed, f"{what}: off by {found:.3g}; allowed {allowed:.3g}"


def assert_reports_agree(ours: Report, exact: Report, allowed: float) -> None:
    """All statistics; top keys by their weights, and by index wherever the weights tell keys apart."""
    assert set(ours) == set(exact)
    for name in exact:
        if name != "top_keys":
            size = max(1.0, _size(exact[name]))
            assert_close(ours[name], exact[name], allowed * size, name)
            continue
        assert_close(ours.top_keys.weights, exact.top_keys.weights, allowed, name)
        weights = exact.top_keys.weights
        gaps = (weights[..., :-1] - weights[..., 1:]) > 10 * allowed
        apart = torch.ones_like(weights, dtype=torch.bool)
        apart[..., 1:] &= gaps
        apart[..., :-1] &= gaps
        apart &= weights > 10 * allowed
        # The last one may tie with a key that is not listed.
        apart[..., -1] = False
        assert torch.equal(ours.top_keys.indices[apart], exact.top_keys.indices[apart])


def _size(x: Tensor) -> float:
    finite = x.detach()[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


class Conformance:
    """Subclass with a backend's name; pytest collects the subclass. What takes a shape runs with each of `shapes`."""

    backend: str
    shapes: Sequence[Shape] = SHAPES
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    float64 = True  # whether it computes float64, which gradcheck needs

    def check(self, case: Case, asked: list[Statistic] | None = None) -> None:
        """The error protocol for one case."""
        asked = everything(case.shape) if asked is None else asked
        exact, exact_report, exact_grads = case.attend("reference", torch.float64, asked)
        plain, plain_lse, plain_grads = case.plain()
        ours, report, grads = case.attend(self.backend, case.dtype, asked)
        floor = FLOOR[case.dtype]
        assert ours.dtype == case.dtype
        bar = max(2 * error(plain, exact), floor * max(1.0, _size(exact)))
        assert_close(ours, exact, bar, "output")
        lse_bar = max(2 * error(plain_lse, exact_report.lse), FLOOR[torch.float32] * 10)
        assert_close(report.lse, exact_report.lse, lse_bar, "lse")
        assert_reports_agree(report, exact_report, 1e-5)
        # A single tensor's error is a draw of luck: the largest among the case's gradients and output, each relative to
        # its size, is what PyTorch's own error means here.
        pairs = [(plain, exact), *((plain_grads[name], grad) for name, grad in exact_grads.items())]
        own = max(error(theirs, truth) / max(1.0, _size(truth)) for theirs, truth in pairs)
        for name, grad in exact_grads.items():
            bar = max(3 * own, floor) * max(1.0, _size(grad))
            assert_close(grads[name], grad, bar, f"gradient of {name}")

    @pytest.fixture(autouse=True)
    def _seed(self) -> None:
        torch.manual_seed(0)

    @pytest.mark.parametrize("mask", MASKS)
    def test_masks(self, mask: str, shape: Shape) -> None:
        for dtype in self.dtypes:
            self.check(Case(shape, MASKS[mask](shape), dtype=dtype))

    @pytest.mark.parametrize("bias", BIASES)
    @pytest.mark.parametrize("mask", ["none", "causal", "sinks-and-window", "dense"])
    def test_scores(self, mask: str, bias: str, shape: Shape) -> None:
        for softcap, sinks in ((None, torch.randn(shape.heads)), (2.0, None)):
            case = Case(shape, MASKS[mask](shape), BIASES[bias](shape), softcap, sinks)
            case.dtype = self.dtypes[0]
            self.check(case)

    def test_slopes_in_half_precision(self) -> None:
        """Slopes of bfloat16 are exact numbers; their distances must not be rounded to it."""
        case = Case(Shape(1, 2, 2, 400, 400, 8, 8))
        tensors = [x.to(self.dtypes[0]) for x in case.tensors]
        slopes = torch.tensor([0.01, 0.3], dtype=torch.bfloat16)
        ours = saccade.attention(*tensors, bias=scores.ALiBi(slopes), backend=self.backend)
        exact = saccade.attention(
            *(x.double() for x in tensors), bias=scores.ALiBi(slopes.double()), backend="reference"
        )
        assert_close(ours, exact, 5e-6, "output")

    def test_sinks_by_batch(self) -> None:
        shape = Shape(2, 2, 1, 9, 9, 4, 4)
        self.check(Case(shape, masks.causal(), sinks=torch.randn(2, 2), dtype=self.dtypes[0]))

    def test_groups_of_queries_and_keys_by_batch(self) -> None:
        shape = Shape(2, 2, 1, 70, 90, 4, 4)
        asked = [
            statistics.LogSumExp(),
            statistics.Mass(torch.randint(-1, 4, (2, 90)), 4),
            statistics.Received(torch.randint(-1, 3, (2, 70)), 3),
            statistics.Map((11, 13), "max"),
        ]
        self.check(Case(shape, masks.causal(20), dtype=self.dtypes[0]), asked)

    @pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
    @pytest.mark.parametrize("cells", [1, 7, (300, 3), (5, 100)])
    def test_maps(self, cells: int | tuple[int, int], reduce: str) -> None:
        shape = Shape(1, 2, 2, 257, 70, 4, 4)
        asked = [statistics.LogSumExp(), statistics.Map(cells, reduce)]
        self.check(Case(shape, MASKS["sinks-and-window"](shape), dtype=self.dtypes[0]), asked)

    def test_strides(self) -> None:
        """(B, N, H, D) seen as (B, H, N, D), every other row, an unaligned start."""
        dtype = self.dtypes[0]
        base = torch.randn(2, 40, 3, 17, dtype=torch.float64).to(dtype)
        parts = (base[..., 1:9], base[:, ::2, :, 3:11], base[:, ::2, :, 9:])
        query, key, value = (x.transpose(1, 2) for x in parts)
        assert not any(x.is_contiguous() for x in (query, key, value))
        ours = saccade.attention(query, key, value, mask=masks.causal(0), backend=self.backend)
        exact = saccade.attention(*(x.double() for x in (query, key, value)), mask=masks.causal(0), backend="reference")
        assert_close(ours, exact, 2 * FLOOR[dtype], "output")

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("where", ["query", "key", "value"])
    @pytest.mark.parametrize("mask", ["none", "causal", "sinks-and-window", "dense", "not"])
    def test_not_finite(self, mask: str, where: str, bad: float) -> None:
        """NaN comes out exactly where what is not finite is seen, for output, lse and statistics."""
        shape = Shape(2, 2, 1, 70, 70, 4, 4)
        dtype = self.dtypes[0]
        case = Case(shape, MASKS[mask](shape))
        leaves = {name: x.detach() for name, x in case.leaves(torch.float64).items()}
        leaves[where][1, 0, 33, 2] = bad
        results = [
            saccade.attention(
                *(leaves[name].to(kind) for name in ("query", "key", "value")),
                mask=case.mask,
                statistics=everything(shape),
                backend=backend,
            )
            for backend, kind in (("reference", torch.float64), (self.backend, dtype))
        ]
        (exact, exact_report), (ours, report) = results
        assert exact.isnan().any()
        assert not exact.isnan().all()
        assert_close(ours, exact, 2 * FLOOR[dtype], "output")
        assert_reports_agree(report, exact_report, 1e-5)

    def test_groups_that_nobody_is_of(self) -> None:
        query = torch.randn(2, 4, 5, 8).to(self.dtypes[0])
        nobody = torch.full((5,), -1)
        asked = [statistics.Received(nobody), statistics.Mass(nobody), statistics.Entropy()]
        _, report = saccade.attention(query, query, query, statistics=asked, backend=self.backend)
        assert report.received.shape == (2, 4, 0, 5)
        assert report.mass.shape == (2, 4, 5, 0)
        assert report.entropy.isfinite().all()

    def test_nan_is_of_one_group(self) -> None:
        """What a query with NaN gives is unknown; what those of other groups give is not."""
        query, key, value = (torch.randn(1, 2, 5, 8).to(self.dtypes[0]) for _ in range(3))
        query[0, 1, 3] = torch.nan
        asked = statistics.Received(torch.tensor([0, 1, 1, 2, -1]))
        _, report = saccade.attention(query, key, value, mask=masks.causal(), statistics=asked, backend=self.backend)
        expected = torch.zeros(2, 3, 5, dtype=torch.bool)
        expected[1, 2, :4] = True
        assert torch.equal(report.received[0].isnan().cpu(), expected.cpu())

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_gradients_that_are_not_finite(self, bad: float) -> None:
        """They come out wherever they are seen, on the way back as well."""
        leaves = [torch.randn(1, 1, 70, 4).to(self.dtypes[0]).requires_grad_() for _ in range(3)]
        grad = torch.randn(1, 1, 70, 4).to(self.dtypes[0])
        grad[0, 0, 33, 2] = bad
        output = saccade.attention(*leaves, mask=masks.causal(), backend=self.backend)
        query, key, value = torch.autograd.grad(output, leaves, grad)
        assert not query[0, 0, 33].isfinite().any()
        assert query[0, 0, :33].isfinite().all()
        assert not key[0, 0, :34].isfinite().any()
        assert not value[0, 0, :34, 2].isfinite().any()

    def test_gradients_of_rows_of_very_negative_floats(self) -> None:
        """Such a row is uniform; its lse has lost the logarithm of how many keys it sees."""
        dtype = self.dtypes[0]
        query, key, value = (torch.randn(1, 1, 40, 4).to(dtype).requires_grad_() for _ in range(3))
        bias = torch.zeros(40, 40)
        bias[7] = torch.finfo(torch.float32).min
        output = saccade.attention(query, key, value, bias=bias, backend=self.backend)
        (found,) = torch.autograd.grad(output[0, 0, 7].sum(), value)
        assert_close(found, torch.full((1, 1, 40, 4), 1 / 40, dtype=torch.float64), 2 * FLOOR[dtype], "gradient")

    @pytest.mark.parametrize("scale", [1.0, 30.0])
    def test_windows_of_rows_of_very_negative_floats(self, scale: float) -> None:
        """Their weights sum to 1 all the same, and so do those of large scores."""
        if self.backend not in {"cpu", "gpu"}:
            pytest.skip("computes windows from the lse alone, as the contract allows")
        query, key = (torch.randn(1, 2, 40, 8).to(self.dtypes[0]) * scale for _ in range(2))
        bias = torch.zeros(40, 40)
        bias[7] = torch.finfo(torch.float32).min
        pattern = saccade.Pattern(query, key, bias=bias, backend=self.backend)
        sums = pattern[:, :, :, :].sum(-1)
        assert_close(sums, torch.ones(1, 2, 40, dtype=torch.float64), 1e-5, "sums")

    def test_rows_that_a_bias_hides(self) -> None:
        """A bias of -inf leaves a row nothing to see: weights of 0 in a window, and for the keys of a part."""
        query, key = (torch.randn(1, 1, 80, 16).to(self.dtypes[0]) for _ in range(2))
        bias = torch.zeros(80, 80)
        bias[3] = -torch.inf
        pattern = saccade.Pattern(query, key, bias=bias, backend=self.backend)
        assert pattern.lse[0, 0, 3] == -torch.inf
        assert (pattern[0, 0, 3] == 0).all()
        inputs = check_inputs(query, key, key)
        problem = make_problem(inputs, mask=None, scale=None, softcap=None, bias=bias, sinks=None)
        asked = [statistics.Received(), statistics.Entropy()]
        found = backends.get(self.backend).observe(problem, inputs, pattern.lse, asked, partial=True)
        assert_close(found[0][0].sum(), torch.tensor(79.0, dtype=torch.float64), 1e-4, "received")
        assert found[1][0].isfinite().all()

    @pytest.mark.parametrize("softcap", [1e-2, 1e2, 1e5, 1e8, 1e30])
    def test_softcaps_of_all_sizes(self, softcap: float) -> None:
        self.check(Case(Shape(1, 2, 2, 40, 40, 16, 16), softcap=softcap, dtype=self.dtypes[0]))

    @pytest.mark.parametrize("bad", [torch.inf, -torch.inf])
    def test_infinite_scores_with_softcap(self, bad: float) -> None:
        """A softcap bounds what is infinite, but it was no number that can be told."""
        query, key, value = Case(Shape(1, 2, 2, 70, 70, 4, 4), dtype=self.dtypes[0]).tensors
        key[0, 1, 33, 2] = bad
        output, report = saccade.attention(
            *(x.to(self.dtypes[0]) for x in (query, key, value)),
            softcap=2.0,
            statistics=[statistics.LogSumExp(), statistics.Entropy(), statistics.TopKeys(2), statistics.Received()],
            backend=self.backend,
        )
        for found in (output, report.lse, report.entropy, report.top_keys.weights, report.received):
            assert found[0, 1].isnan().all()
            assert found[0, 0].isfinite().all()

    def test_large_scores(self) -> None:
        """Scores far beyond the range of exp, some rows all very negative."""
        shape = Shape(1, 2, 2, 70, 70, 16, 16)
        case = Case(shape, masks.causal(), dtype=self.dtypes[0])
        query, key, value = case.tensors
        case.tensors = (query * 40, key * 40, value)
        self.check(case)

    def test_masks_of_very_negative_floats(self) -> None:
        """A bias of -3.4e38 hides as long as something else is visible, and -inf hides always."""
        shape = Shape(1, 1, 1, 8, 8, 4, 4)
        lowest = torch.finfo(torch.float32).min
        bias = torch.zeros(1, 1, 8, 8).masked_fill_(~torch.ones(8, 8).tril().bool(), lowest)
        case = Case(shape, dtype=self.dtypes[0])
        leaves = {name: x.detach().to(case.dtype) for name, x in case.leaves(torch.float64).items()}
        inputs = (leaves["query"], leaves["key"], leaves["value"])
        for fill in (bias, bias.masked_fill(bias < 0, -torch.inf)):
            ours = saccade.attention(*inputs, bias=fill, backend=self.backend)
            causal = saccade.attention(*inputs, mask=masks.causal(), backend=self.backend)
            assert_close(ours, causal, FLOOR[case.dtype], "output")

    def test_rows_of_very_negative_floats(self) -> None:
        """A row whose scores are all the lowest float is uniform, not blind."""
        query = torch.randn(1, 1, 3, 4, dtype=torch.float64).to(self.dtypes[0])
        bias = torch.zeros(3, 3)
        bias[1] = torch.finfo(torch.float32).min
        ours = saccade.attention(query, query, query, bias=bias, backend=self.backend)
        assert_close(ours[0, 0, 1], query[0, 0].mean(0), 2 * FLOOR[self.dtypes[0]], "output")

    @pytest.mark.parametrize("mask", ["none", "causal", "sinks-and-window", "padding", "dense"])
    def test_given_the_lse(self, mask: str, shape: Shape) -> None:
        """Statistics, the transposed product and windows, from queries, keys and the lse."""
        dtype = self.dtypes[0]
        for options in ({}, {"softcap": 2.0, "sinks": torch.randn(shape.heads)}, {"bias": _dense_bias(shape)}):
            case = Case(shape, MASKS[mask](shape), dtype=dtype, **options)
            self.check_given_the_lse(case, everything(shape))

    def test_given_a_large_lse(self) -> None:
        """An lse in float32 has lost digits there, and they must not be missed in sums."""
        case = Case(Shape(1, 2, 2, 70, 70, 16, 16), masks.causal(), dtype=self.dtypes[0])
        query, key, value = case.tensors
        case.tensors = (query * 3, key * 30, value)
        self.check_given_the_lse(case, everything(case.shape))

    def check_given_the_lse(self, case: Case, asked: list[Statistic]) -> None:
        shape, rows = case.shape, torch.randn(*case.tensors[0].shape[:3], 5, dtype=torch.float64)
        queries, keys = slice(shape.queries // 3, shape.queries), slice(shape.keys // 4, shape.keys - shape.keys // 5)
        found = []
        for backend, dtype in (("reference", torch.float64), (self.backend, case.dtype)):
            leaves = {name: x.detach() for name, x in case.leaves(dtype).items()}
            inputs = check_inputs(leaves["query"], leaves["key"], leaves["value"])
            problem = make_problem(inputs, scale=None, **case.options(leaves))
            fitted = statistics.check_all(asked, inputs.lengths)
            chosen = backends.get(backend)
            lse = chosen.forward(problem, inputs, [], want_lse=True).lse
            results = chosen.observe(problem, inputs, lse, fitted)
            report = Report.of((s, r or (lse,)) for s, r in zip(fitted, results, strict=True))
            found.append(
                (
                    report,
                    chosen.transposed(problem, inputs, lse, rows.to(dtype)),
                    chosen.window(problem, inputs, lse, queries, keys),
                )
            )
        (exact_report, exact_product, exact_window), (report, product, window) = found
        assert_reports_agree(report, exact_report, 1e-5)
        assert_close(product, exact_product, 1e-5 * max(1.0, _size(exact_product)), "transposed product")
        # A window is exp(s - lse) of the lse given, as `Backend.window` says; large scores have lost digits, too.
        digit = 2 * torch.finfo(report.lse.dtype).eps * _size(exact_report.lse)
        assert_close(window, exact_window, 1e-5 + digit, "window")

    @pytest.mark.parametrize("reduce", ["mean", "max", "sum"])
    def test_over_heads(self, reduce: str) -> None:
        shape = Shape(2, 4, 2, 70, 90, 4, 4)
        asked = [
            statistics.LogSumExp(),
            statistics.Received(over_heads=True),
            statistics.Map((11, 13), reduce, over_heads=True),
        ]
        self.check(Case(shape, masks.causal(20), dtype=self.dtypes[0]), asked)
        asked = [statistics.LogSumExp(), statistics.Received(torch.randint(-1, 3, (2, 70)), 3, over_heads=True)]
        self.check(Case(shape, masks.causal(20), dtype=self.dtypes[0]), asked)

    @pytest.mark.parametrize("queries", [1, 3, 70])
    @pytest.mark.parametrize("asked", [[], SEVERAL], ids=["plain", "statistics"])
    def test_pages(self, queries: int, asked: list[Statistic]) -> None:
        """A cache in pages that lie in any order, some shared, the last one of each partly unwritten."""
        page, table = 16, torch.tensor([[4, 0, 6, 2], [4, 5, 1, 1]])
        lengths = torch.tensor([50, 37])
        for dtype in self.dtypes:
            query = torch.randn(2, 4, queries, 24, dtype=torch.float64).to(dtype)
            key, value = (torch.randn(7, 2, page, d, dtype=torch.float64).to(dtype) for d in (24, 20))
            key[2], value[2, :, 2:] = torch.nan, torch.inf  # of pages[0, 3], two keys are filled
            key[2, :, :2] = 1.0
            key[1, :, :] = torch.nan
            mask = masks.padding(lengths)
            gathered = [x[table].transpose(1, 2).flatten(2, 3).double() for x in (key, value)]
            clean = [x.masked_fill((torch.arange(64) >= lengths[:, None])[:, None, :, None], 0.0) for x in gathered]
            exact = saccade.attention(query.double(), *clean, mask=mask, statistics=asked, backend="reference")
            with torch.no_grad():
                ours = saccade.attention(
                    query, key, value, mask=mask, statistics=asked, page_table=table, backend=self.backend
                )
            if asked:
                assert_reports_agree(ours[1], exact[1], 1e-5 if dtype == torch.float32 else 1e-3)
                ours, exact = ours[0], exact[0]
            assert_close(ours, exact, 2 * FLOOR[dtype], "output")

    def test_same_bits_each_time(self) -> None:
        case = Case(Shape(1, 4, 2, 130, 130, 16, 16), masks.causal(), dtype=self.dtypes[0])
        first = case.attend(self.backend, case.dtype, everything(case.shape))
        for _ in range(3):
            again = case.attend(self.backend, case.dtype, everything(case.shape))
            assert torch.equal(again[0], first[0])
            assert all(torch.equal(again[2][name], first[2][name]) for name in first[2])

    def test_gradcheck(self) -> None:
        if not self.float64:
            pytest.skip("the backend computes no float64")
        shape = Shape(1, 2, 1, 3, 5, 3, 2)
        leaves = Case(shape, bias=torch.randn(1, 2, 3, 5), sinks=torch.randn(2)).leaves(torch.float64)

        def run(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
            output, report = saccade.attention(
                query,
                key,
                value,
                mask=masks.causal(1),
                bias=bias,
                sinks=sinks,
                softcap=3.0,
                statistics=[statistics.LogSumExp()],
                backend=self.backend,
            )
            return output, report.lse

        assert torch.autograd.gradcheck(run, tuple(leaves.values()))

    def test_gradcheck_of_slopes(self) -> None:
        if not self.float64:
            pytest.skip("the backend computes no float64")
        leaves = Case(Shape(1, 2, 2, 4, 4, 3, 2)).leaves(torch.float64)
        slopes = torch.rand(2, dtype=torch.float64, requires_grad=True)

        def run(slopes: Tensor) -> Tensor:
            return saccade.attention(**leaves, bias=scores.ALiBi(slopes), backend=self.backend)

        assert torch.autograd.gradcheck(run, (slopes,))

"""The operator as PyTorch's dispatcher sees it: schemas, fake tensors and autograd of both operations.

`torch.library.opcheck` compares, among other things, what fake tensors promise a compiler with what the backend
returns: shapes, dtypes and strides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from saccade import masks, scores, statistics
from saccade.backends import choose, get, operation
from saccade.backends.contract import Inputs
from saccade.functional import attention, check_inputs, make_problem

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 4, 5, 7, 8
GENERATOR = torch.Generator()


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


EVERY_STATISTIC = (
    statistics.LogSumExp(),
    statistics.Entropy(),
    statistics.MaxWeight(),
    statistics.TopKeys(3),
    statistics.Distance(2),
    statistics.Mass(torch.arange(KEYS) % 3),
    statistics.Received(torch.arange(QUERIES) % 2),
    statistics.Map((3, 2), "max"),
)


@dataclass(frozen=True)
class Example:
    """One call: which key heads, how tensors lie in memory, and what forms the pattern."""

    options: dict[str, Any] = field(default_factory=dict)
    asked: tuple[statistics.Statistic, ...] = ()
    key_heads: int = HEADS
    by_token: bool = False  # (B, N, H, D) in memory, as a projection leaves them

    def inputs(self, dtype: torch.dtype, *, requires_grad: bool = False) -> Inputs:
        sizes = ((HEADS, QUERIES), (self.key_heads, KEYS), (self.key_heads, KEYS))
        if self.by_token:
            drawn = [draw(BATCH, n, h, WIDTH).to(dtype).transpose(1, 2) for h, n in sizes]
        else:
            drawn = [draw(BATCH, h, n, WIDTH).to(dtype) for h, n in sizes]
        return check_inputs(*(x.requires_grad_(requires_grad) for x in drawn))

    def pack(self, inputs: Inputs, backend: str, *, want_lse: bool) -> tuple[Any, ...]:
        """The operation's arguments."""
        settings = dict.fromkeys(("mask", "scale", "softcap", "bias", "sinks")) | self.options
        problem = make_problem(inputs, **settings)
        chosen, _ = choose(problem, inputs, backend)
        asked = statistics.check_all(self.asked, inputs.lengths)
        return operation.Call(inputs, problem, asked, want_lse=want_lse, backend=chosen.name).pack()


EXAMPLES = {
    "plain": Example(),
    "intervals": Example({"mask": masks.causal(2) & masks.padding([7, 4], side="left")}),
    "booleans": Example({"mask": masks.Dense(torch.arange(QUERIES * KEYS).reshape(1, 1, QUERIES, KEYS) % 3 > 0)}),
    "grouped queries": Example(key_heads=2),
    "one key head": Example(key_heads=1, by_token=True),
    "by token": Example({"mask": masks.causal(2)}, by_token=True),
    "dense bias": Example({"bias": draw(HEADS, QUERIES, KEYS)}),
    "bias that repeats": Example({"bias": draw(1, 1, KEYS, HEADS).mT.expand(BATCH, -1, -1, -1)[:, :, :1]}),
    "ALiBi": Example({"bias": scores.ALiBi(scores.alibi_slopes(HEADS), offset=2)}),
    "relative bias": Example({"bias": scores.RelativeBias(draw(HEADS, 3), -1, 2)}),
    "sinks": Example({"sinks": draw(HEADS)}),
    "softcap": Example({"softcap": 2.0}),
    "statistics": Example(asked=EVERY_STATISTIC),
    "received": Example(asked=(statistics.Received(), statistics.Map(3)), key_heads=2, by_token=True),
    "over heads": Example(
        asked=(statistics.Received(over_heads=True), statistics.Map(3, over_heads=True)), by_token=True
    ),
    "all together": Example(
        {"mask": masks.causal(2), "bias": draw(HEADS, QUERIES, KEYS), "sinks": draw(HEADS), "softcap": 3.0},
        EVERY_STATISTIC,
        key_heads=2,
        by_token=True,
    ),
}

by_example = pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
# Every example in float32, those that lie most apart in bfloat16 as well.
IN_BFLOAT16 = ("plain", "dense bias", "relative bias", "statistics", "all together")
CALLS = [pytest.param(example, torch.float32, id=name) for name, example in EXAMPLES.items()] + [
    pytest.param(EXAMPLES[name], torch.bfloat16, id=f"{name}, bfloat16") for name in IN_BFLOAT16
]
by_call = pytest.mark.parametrize(("example", "dtype"), CALLS)


@pytest.fixture(autouse=True)
def seed():
    GENERATOR.manual_seed(0)


@by_call
@pytest.mark.parametrize("requires_grad", [False, True], ids=["constant", "differentiable"])
def test_forward(example: Example, dtype: torch.dtype, requires_grad: bool):
    inputs = example.inputs(dtype, requires_grad=requires_grad)
    want_lse = requires_grad or bool(example.asked)
    torch.library.opcheck(torch.ops.saccade.forward.default, example.pack(inputs, "cpu", want_lse=want_lse))


def backward_arguments(example: Example, dtype: torch.dtype, backend: str, *, want_bias: bool) -> tuple[Any, ...]:
    packed = example.pack(example.inputs(dtype), backend, want_lse=True)
    output, lse, *_ = torch.ops.saccade.forward.default(*packed)
    grads = (torch.empty_like(output).copy_(draw(*output.shape)), draw(*lse.shape))
    return *packed, output, lse, *grads, want_bias and "bias" in example.options


@by_call
def test_backward(example: Example, dtype: torch.dtype):
    torch.library.opcheck(torch.ops.saccade.backward.default, backward_arguments(example, dtype, "cpu", want_bias=True))


@pytest.mark.parametrize("name", ["dense bias", "ALiBi", "relative bias"])
def test_backward_without_the_gradient_of_the_bias(name: str):
    arguments = backward_arguments(EXAMPLES[name], torch.float32, "cpu", want_bias=False)
    torch.library.opcheck(torch.ops.saccade.backward.default, arguments)


def look(tensors: list[Tensor]) -> list[tuple[Any, ...]]:
    """Shapes, dtypes and the strides that matter: those of dimensions of more than one element."""
    strides = [[stride for stride, n in zip(x.stride(), x.shape, strict=True) if n > 1] for x in tensors]
    return [(x.shape, x.dtype, s) for x, s in zip(tensors, strides, strict=True)]


@pytest.mark.parametrize("backend", ["cpu", "tiled", "reference"])
@pytest.mark.parametrize("want_lse", [False, True])
@by_example
def test_every_backend_returns_what_fake_tensors_promise(example: Example, backend: str, want_lse: bool):
    """Whatever strides a backend happens to give its results."""
    packed = example.pack(example.inputs(torch.float32), backend, want_lse=want_lse)
    assert look(torch.ops.saccade.forward.default(*packed)) == look(operation._forward_fake(*packed))
    arguments = backward_arguments(example, torch.float32, backend, want_bias=want_lse)
    assert look(torch.ops.saccade.backward.default(*arguments)) == look(operation._backward_fake(*arguments))


@by_example
def test_output_lies_in_memory_as_queries_do(example: Example):
    inputs = example.inputs(torch.float32)
    output, *_ = torch.ops.saccade.forward.default(*example.pack(inputs, "cpu", want_lse=False))
    assert output.stride() == inputs.empty_output().stride()
    assert output.transpose(1, 2).is_contiguous() == example.by_token


@pytest.mark.parametrize("backend", ["cpu", "tiled", "reference"])
@pytest.mark.parametrize("name", ["dense bias", "bias that repeats", "ALiBi", "relative bias"])
def test_the_gradient_of_a_bias_is_computed_only_if_it_is_wanted(monkeypatch, backend: str, name: str):
    inputs = EXAMPLES[name].inputs(torch.float32, requires_grad=True)
    bias = scores.as_bias(EXAMPLES[name].options["bias"])
    kind, found, backward = type(get(backend)), [], type(get(backend)).backward

    def spy(*args: Any, **kwargs: Any):
        found.append(backward(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(kind, "backward", spy)
    for wanted in (False, True):
        values = bias.values.detach().clone().requires_grad_(wanted)
        again = scores.decode_bias(bias.kind, values, bias.numbers())
        attention(inputs.query, inputs.key, inputs.value, bias=again, backend=backend).square().sum().backward()
        assert (values.grad is not None) == (found[-1].bias is not None) == wanted
    assert found[0].query.equal(found[1].query)

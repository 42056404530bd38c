"""The public boundary: what is refused and how, the choice of a backend, autograd and torch.compile."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

import saccade
from saccade import masks, scores, statistics
from saccade.backends import choose, operation
from saccade.errors import (
    ArgumentError,
    BackendError,
    DerivativeError,
    DeviceError,
    DtypeError,
    MaskError,
    SaccadeError,
    ShapeError,
)
from saccade.functional import check_inputs, make_problem


def tensors(heads=4, key_heads=2, queries=5, keys=7, width=8):
    torch.manual_seed(0)
    return (
        torch.randn(2, heads, queries, width),
        torch.randn(2, key_heads, keys, width),
        torch.randn(2, key_heads, keys, width),
    )


Q, K, V = tensors()

BAD = {
    "three dimensions": (lambda: saccade.attention(Q[0], K[0], V[0]), ShapeError, "4 dimensions"),
    "no tensor": (lambda: saccade.attention([1.0], K, V), SaccadeError, "query is list"),
    "heads that do not divide": (
        lambda: saccade.attention(*tensors(8, 3)),
        ShapeError,
        "key has 3 heads; query has 8: 8 must be a multiple of 3",
    ),
    "widths that differ": (lambda: saccade.attention(Q[..., :4], K, V), ShapeError, "last dimension must match"),
    "batches that differ": (lambda: saccade.attention(Q[:1], K, V), ShapeError, "batch"),
    "value of other length": (lambda: saccade.attention(Q, K, V[:, :, :3]), ShapeError, "value has shape"),
    "no width": (lambda: saccade.attention(Q[..., :0], K[..., :0], V), ShapeError, "at least 1"),
    "mixed dtypes": (lambda: saccade.attention(Q, K.double(), V), DtypeError, "share one dtype"),
    "integers": (lambda: saccade.attention(Q.long(), K.long(), V.long()), DtypeError, "torch.int64"),
    "mixed devices": (lambda: saccade.attention(Q, K.to("meta"), V), DeviceError, "meta"),
    "bare causal": (lambda: saccade.attention(Q, K, V, mask=masks.causal()), MaskError, "offset=2"),
    "mask of floats": (lambda: saccade.attention(Q, K, V, mask=torch.zeros(5, 7)), MaskError, "bias="),
    "mask of other length": (
        lambda: saccade.attention(Q, K, V, mask=torch.ones(5, 6).bool()),
        MaskError,
        "6 columns",
    ),
    "mask by name": (lambda: saccade.attention(Q, K, V, mask="causal"), MaskError, "str"),
    "bias of other length": (lambda: saccade.attention(Q, K, V, bias=torch.zeros(5, 6)), ShapeError, "broadcasts"),
    "bias of booleans": (lambda: saccade.attention(Q, K, V, bias=torch.ones(5, 7).bool()), DtypeError, "mask="),
    "bias of a number": (lambda: saccade.attention(Q, K, V, bias=3.0), SaccadeError, "float"),
    "slopes of other heads": (
        lambda: saccade.attention(Q, K, V, bias=scores.ALiBi(torch.ones(3), 0)),
        ShapeError,
        "ALiBi",
    ),
    "slopes without offset": (
        lambda: saccade.attention(Q, K, V, bias=scores.ALiBi(torch.ones(4))),
        ShapeError,
        "offset=",
    ),
    "sinks of other heads": (lambda: saccade.attention(Q, K, V, sinks=torch.ones(3)), ShapeError, "sinks"),
    "softcap of zero": (lambda: saccade.attention(Q, K, V, softcap=0.0), SaccadeError, "softcap = 0.0"),
    "scale of infinity": (lambda: saccade.attention(Q, K, V, scale=torch.inf), SaccadeError, "scale = inf"),
    "scale of a word": (lambda: saccade.attention(Q, K, V, scale="x"), SaccadeError, "scale = x"),
    "sinks in a list": (lambda: saccade.attention(Q, K, V, sinks=[1.0] * 4), SaccadeError, "list"),
    "unknown backend": (lambda: saccade.attention(Q, K, V, backend="fast"), BackendError, "tiled, reference"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def test_errors_are_value_errors():
    with pytest.raises(ValueError, match="multiple of 3"):
        saccade.attention(*tensors(8, 3))


def test_a_boolean_tensor_is_a_mask():
    visible = torch.rand(2, 4, 5, 7) < 0.5
    torch.testing.assert_close(
        saccade.attention(Q, K, V, mask=visible), saccade.attention(Q, K, V, mask=masks.dense(visible))
    )


def test_choice_comes_with_a_reason():
    inputs = check_inputs(Q, K, V)
    problem = make_problem(inputs, mask=None, scale=None, softcap=None, bias=None, sinks=None)
    backend, reason = choose(problem, inputs)
    assert (backend.name, reason) == ("cpu", "the first choice serves it")
    double = check_inputs(*(x.double() for x in (Q, K, V)))
    backend, reason = choose(problem, double)
    assert (backend.name, reason) == ("tiled", "cpu: the kernels do not compute float64; gpu: tensors are on the CPU")
    assert choose(problem, inputs, "reference")[1] == "asked for by name"


def arguments(**options):
    """The operation's arguments for one call."""
    inputs = check_inputs(*(x.detach().requires_grad_() for x in tensors()))
    settings = {"mask": None, "scale": None, "softcap": None, "bias": None, "sinks": None} | options
    problem = make_problem(inputs, **settings)
    asked = statistics.check_all(
        [
            statistics.LogSumExp(),
            statistics.TopKeys(2),
            statistics.Received(torch.arange(5) % 2),
            statistics.Mass(torch.arange(7) % 3),
            statistics.Map((3, 2), "max"),
            statistics.Distance(2),
        ],
        inputs.lengths,
    )
    return operation.Call(inputs, problem, asked, want_lse=True, backend="tiled").pack()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": masks.causal(2), "bias": torch.randn(4, 5, 7), "softcap": 2.0},
        {"mask": masks.dense(torch.rand(5, 7) < 0.5), "sinks": torch.randn(4)},
        {"bias": scores.RelativeBias(torch.randn(4, 3), -1, 2)},
    ],
    ids=["plain", "causal", "dense", "relative"],
)
def test_opcheck(options):
    torch.library.opcheck(torch.ops.saccade.forward.default, arguments(**options))


def run_alone(code):
    """Run code in a fresh interpreter, without the test run's type checks."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_compiles_in_one_graph():
    assert (
        run_alone("""
        import torch, saccade
        from saccade import masks, statistics

        def run(x):
            output, report = saccade.attention(
                x * 2, x, x, mask=(masks.window(5) | masks.prefix(2)) & masks.causal(),
                statistics=[statistics.Entropy(), statistics.LogSumExp(), statistics.TopKeys(3)],
            )
            return output.sum() + report.lse.sum(), report.entropy

        torch.manual_seed(0)
        x = torch.randn(1, 4, 40, 8, requires_grad=True)
        results = []
        for f in (torch.compile(run, fullgraph=True, backend="aot_eager"), run):
            x.grad = None
            loss, entropy = f(x)
            loss.backward()
            results.append((loss.detach(), entropy, x.grad.clone()))
        for compiled, eager in zip(*results):
            torch.testing.assert_close(compiled, eager)
        print("agrees")
    """)
        == "agrees"
    )


def test_compiles_with_data_in_the_mask():
    """Dense masks and padding in one graph, with head widths that change."""
    assert (
        run_alone("""
        import torch, saccade
        from saccade import masks

        def run(x, visible, lengths):
            return saccade.attention(x, x, x, mask=masks.dense(visible) & masks.padding(lengths))

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        for width in (8, 16):
            x = torch.randn(2, 4, 40, width)
            arguments = x, torch.rand(40, 40) < 0.5, torch.tensor([40, 7])
            torch.testing.assert_close(compiled(*arguments), run(*arguments))
        print("agrees")
    """)
        == "agrees"
    )


def test_derivatives_that_do_not_exist_are_refused():
    """Neither forward mode nor second derivatives come out as silent zeros."""
    assert "forward-mode" in run_alone("""
        import torch, saccade
        x = torch.randn(1, 1, 4, 4)
        try:
            torch.func.jvp(lambda q: saccade.attention(q, q, q), (x,), (x,))
        except saccade.errors.DerivativeError as error:
            print(error)
    """)
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(saccade.attention(x, x, x).sum(), x, create_graph=True)
    with pytest.raises(DerivativeError, match="twice"):
        grad.square().sum().backward()


def test_import_is_light():
    """`import saccade` loads no optional package, and none of the command line's."""
    heavy = ["transformers", "triton", "zarr", "starlette", "typer", "rich", "matplotlib", "pandas", "torch._dynamo"]
    found = run_alone(f"""
        import torch, sys
        before = set(sys.modules)
        import saccade
        saccade.attention, saccade.attach, saccade.observe, saccade.sdpa, saccade.nn
        print([name for name in {heavy!r} if name in set(sys.modules) - before])
    """)
    assert found == "[]"


def test_public_names():
    assert set(saccade.__all__) <= set(dir(saccade))
    assert all(getattr(saccade, name) is not None for name in saccade.__all__)


def test_signatures_are_executed():
    """The test run checks the backends' shape annotations: a value of two dimensions is no value."""
    with pytest.raises(Exception, match=r"(?i)type|hint"):
        saccade.backends.Inputs(Q, K, V[0, 0])


def test_a_mask_met_in_inference_serves_training():
    """Intervals are remembered by their lengths, but not those that a gradient cannot use."""
    q = torch.randn(1, 1, 41, 4)
    with torch.inference_mode():
        saccade.attention(q, q, q, mask=masks.causal())
    q.requires_grad_()
    saccade.attention(q, q, q, mask=masks.causal()).sum().backward()
    assert q.grad is not None


def test_tensors_that_are_not_written_out():
    """Lazy negatives and zeros without memory: what counts is what they stand for."""
    x = torch.randn(1, 2, 8, 4)
    for _ in range(2):  # the second call is a repeated one
        assert torch.equal(saccade.attention(torch._neg_view(x), x, x), saccade.attention(-x, x, x))
        zero = torch._efficientzerotensor(x.shape)
        assert torch.equal(saccade.attention(zero, x, x), saccade.attention(torch.zeros_like(x), x, x))


@pytest.mark.parametrize("mask", [masks.causal(1 << 35), masks.window(2**63 - 1, 2**63 - 1), masks.window(None, None)])
def test_reaches_beyond_any_text(mask):
    x = torch.randn(1, 2, 8, 4)
    assert torch.equal(saccade.attention(x, x, x, mask=mask), saccade.attention(x, x, x))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"softcap": "1"}, "softcap = 1: expected a finite number"),
        ({"bias": scores.ALiBi([0.5, 0.2])}, "values of ALiBi are list"),
        ({"bias": scores.ALiBi(torch.ones(2), offset=1.5)}, r"ALiBi offset = 1\.5: expected an integer"),
        ({"bias": torch.ones(8, 8, device="meta")}, "bias on meta holds no numbers"),
        ({"sinks": torch.ones(2, device="meta")}, "sinks on meta hold"),
        ({"statistics": None}, "statistics = None"),
        ({"statistics": statistics.Entropy}, "expected values of saccade.statistics"),
        ({"statistics": statistics.Distance(1.5)}, "Distance offset"),
    ],
)
def test_what_is_refused(options, words):
    x = torch.randn(1, 2, 8, 4)
    with pytest.raises(SaccadeError, match=words):
        saccade.attention(x, x, x, **options)


def test_offsets_beyond_any_text_are_refused():
    with pytest.raises(MaskError, match="between"):
        masks.causal(1 << 41)


def test_sparse_tensors_are_refused():
    x = torch.randn(1, 2, 8, 4)
    with pytest.raises(ArgumentError, match=r"query is torch\.sparse_coo"):
        saccade.attention(x.to_sparse(), x, x)


def test_no_heads_are_refused():
    x = torch.randn(1, 0, 8, 4)
    with pytest.raises(ShapeError, match="0 heads"):
        saccade.attention(x, x, x)


def test_the_default_device_is_not_that_of_the_inputs():
    x = torch.randn(1, 2, 8, 4, requires_grad=True)
    asked = [statistics.Map(3), statistics.Received(), statistics.TopKeys(2)]
    expected, report = saccade.attention(x, x, x, mask=masks.causal(), statistics=asked)
    pattern = saccade.Pattern(x, x, mask=masks.causal())
    with torch.device("meta"):
        found, again = saccade.attention(x, x, x, mask=masks.causal(), statistics=asked)
        [gradient] = torch.autograd.grad(found.sum(), x)
        window = pattern[0, [1], ::2, 3]
    assert torch.equal(found, expected)
    assert torch.equal(again.map, report.map)
    assert gradient.device == x.device
    assert torch.equal(window, pattern.dense()[0, [1], ::2, 3])

"""The Triton kernels within PyTorch: compiled code, checkpoints, autocast, deterministic algorithms.

And on a GPU: CUDA graphs, streams, several devices.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import saccade
from saccade import backends, masks, scores, statistics
from saccade.backends import Inputs, gpu
from saccade.functional import make_problem
from saccade.masks import Dense, Intervals

pytest.importorskip("triton", reason="triton is an extra: pip install 'saccade[gpu]'")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs a GPU")
needs_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

pytestmark = pytest.mark.usefixtures("kernels")

EVERY = [
    statistics.LogSumExp(),
    statistics.Entropy(),
    statistics.MaxWeight(),
    statistics.TopKeys(4),
    statistics.Distance(offset=0),
    statistics.Received(),
    statistics.Map(4),
]


@pytest.fixture
def _ours(monkeypatch):
    """Have our kernels chosen where no backend is named."""
    monkeypatch.setattr(type(backends.get("cpu")), "refuses", lambda *_: "left out here")


def tensors(*shape, count=3, grad=False, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(*shape, device=DEVICE, dtype=dtype, requires_grad=grad) for _ in range(count)]


def flat(result):
    """Every tensor of a result."""
    output, report = result
    return [output, *(x for name in report for x in (report[name] if name == "top_keys" else (report[name],)))]


# ---------------------------------------------------------------------------------------- PyTorch's machinery


COMPILED = """
    import sys, torch, saccade
    from saccade import backends, masks, statistics

    type(backends.get("cpu")).refuses = lambda *_: "left out here"

    def run(query, key):
        output, report = saccade.attention(
            query * 2, key, key, mask=masks.causal(), softcap=5.0,
            statistics=[statistics.Entropy(), statistics.LogSumExp(), statistics.TopKeys(3), statistics.Received()],
        )
        return output.sum() + report.lse.sum(), report.entropy, report.top_keys.indices, report.received

    device, compiler = sys.argv[1:]
    torch.manual_seed(0)
    query, key = (torch.randn(1, 2, 40, 8, device=device, requires_grad=True) for _ in range(2))
    results = []
    for f in (torch.compile(run, fullgraph=True, backend=compiler), run):
        loss, *others = f(query, key)
        results.append([loss.detach(), *others, *torch.autograd.grad(loss, (query, key))])
    for compiled, eager in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
    x = torch.zeros(1, 1, 1, 8, device=device)
    print(backends.choose(saccade.scores.Problem(1.0), backends.Inputs(x, x, x))[0].name)
"""


def test_compiles_in_one_graph():
    """In a process of its own: what checks signatures in tests cannot be compiled."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(COMPILED), DEVICE, "inductor" if CUDA else "aot_eager"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | ({} if CUDA else {"TRITON_INTERPRET": "1"}),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "gpu\n"


def test_same_derivatives_from_a_checkpoint():
    inputs = tensors(1, 2, 40, 16, grad=True)

    def layer(query, key, value):
        return saccade.attention(query, key, value, mask=masks.causal(), backend="gpu").tanh()

    plain = torch.autograd.grad(layer(*inputs).sum(), inputs)
    again = torch.autograd.grad(checkpoint(layer, *inputs, use_reentrant=False).sum(), inputs)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("_ours")
def test_autocast():
    attend = saccade.nn.MultiheadAttention(32, 2, batch_first=True, device=DEVICE)
    peer = nn.MultiheadAttention(32, 2, batch_first=True, device=DEVICE)
    peer.load_state_dict(attend.state_dict())
    (x,) = tensors(1, 20, 32, count=1)
    with torch.autocast(DEVICE, torch.float16 if not CUDA else torch.bfloat16):
        ours, theirs = (module(x, x, x, need_weights=False)[0] for module in (attend, peer))
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)
        ours.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attend.parameters())


def test_deterministic_algorithms():
    """Then PyTorch refuses what has other bits each time, and fills new memory with NaN: none is left unwritten."""
    inputs = tensors(1, 4, 70, 16, grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(2):
            result = saccade.attention(
                *inputs,
                mask=masks.causal(),
                bias=scores.ALiBi(torch.ones(4, device=DEVICE)),
                sinks=torch.zeros(4, device=DEVICE),
                statistics=EVERY,
                backend="gpu",
            )
            grads = torch.autograd.grad(result[0].square().sum(), inputs)
            found.append([*flat(result), *grads])
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


# ---------------------------------------------------------------------------------------- models


def looked_into(model, ids):
    """What a model says, and what it attended to, by each of the doors."""
    asked = [statistics.Entropy(), statistics.TopKeys(3), statistics.Received(), statistics.Map(4)]
    with torch.no_grad(), saccade.attach(model):
        found = [model(input_ids=ids, output_attentions=True)]
    with torch.no_grad(), saccade.observe(model, asked) as observation:
        model(input_ids=ids)
    with torch.no_grad(), saccade.record(model, keep="qk") as trace:
        model(input_ids=ids)
    reports = [call.report for call in observation.calls]
    pattern = found[0].attentions[-1]
    rows = torch.randn(*pattern.shape[:3], 3, generator=torch.Generator().manual_seed(0)).to(pattern.device)
    return [
        found[0][0],
        *(weights.dense() for weights in found[0].attentions),
        *(x for report in reports for x in (report.entropy, report.top_keys.weights, report.received, report.map)),
        pattern[:, :, 3:9, :7],
        pattern.received(),
        pattern @ rows,
        pattern.mT @ rows,
        trace[0, trace.sites[-1]].pattern[:, :, 3:9, :7],
        *(trace[0, site].statistics.entropy for site in trace.sites),
    ]


@pytest.mark.parametrize("name", ["Llama", "BERT"])
def test_models(name, monkeypatch):
    """The same is seen by every door as with the CPU's kernels."""
    pytest.importorskip("transformers")
    from architectures import ARCHITECTURES, token_ids

    torch.set_default_device("cpu")
    build = next(one for one in ARCHITECTURES if one.name == name).build
    ids = token_ids(1, 24)
    expected = looked_into(build(), ids)
    monkeypatch.setattr(type(backends.get("cpu")), "refuses", lambda *_: "left out here")
    problem, x = scores.Problem(1.0), torch.zeros(1, 1, 1, 8, device=DEVICE)
    assert backends.choose(problem, Inputs(x, x, x))[0].name == "gpu"
    found = looked_into(build().to(DEVICE), ids.to(DEVICE))
    assert len(found) == len(expected) > 10
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------------------------------- what the host asks


def on_meta(problem):
    """The problem with tensors that have no numbers."""
    mask, bias, sinks = problem.mask, problem.bias, problem.sinks
    if isinstance(mask, Intervals):
        mask = Intervals(mask.starts.to("meta"), mask.stops.to("meta"), mask.keys)
    if isinstance(mask, Dense):
        mask = Dense(mask.visible.to("meta"))
    return replace(
        problem,
        mask=mask,
        bias=None if bias is None else replace(bias, values=bias.values.to("meta")),
        sinks=None if sinks is None else sinks.to("meta"),
    )


PROBLEMS = {
    "plain": {},
    "causal": {"mask": masks.causal(0)},
    "dense": {"mask": masks.dense(torch.ones(300, 300).tril().flip(0).bool())},
    "alibi": {"bias": scores.ALiBi(torch.ones(8), offset=0)},
    "relative": {"bias": scores.RelativeBias(torch.ones(8, 9), -4, offset=0)},
    "bias": {"bias": torch.ones(1, 8, 1, 300)},
    "sinks": {"sinks": torch.ones(8)},
    "softcap": {"softcap": 3.0},
}


@pytest.mark.parametrize("queries", [300, 1])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_host_waits_for_nothing(name, queries, monkeypatch):
    """On tensors without numbers: whoever asks for one, or makes a tensor on another device, fails."""
    options = PROBLEMS[name]
    if queries == 1 and name == "dense":
        pytest.skip("that mask has 300 queries")
    torch.set_default_device("cpu")
    launched = []
    monkeypatch.setattr(gpu, "unavailable", lambda _: None)
    monkeypatch.setattr(gpu, "processors", lambda _: 132)
    monkeypatch.setattr(gpu._Run, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(gpu._Run, "_launch", lambda _, name, *__: launched.append(name))
    query, key = torch.ones(2, 8, queries, 64), torch.ones(2, 4, 300, 64)
    blank = dict.fromkeys(("mask", "scale", "softcap", "bias", "sinks"))
    problem = on_meta(make_problem(Inputs(query, key, key), **blank | options))
    groups = torch.arange(300) // 70
    inputs = Inputs(query, key, key)
    asked = statistics.check_all([*EVERY, statistics.Mass(groups)], inputs.lengths)
    asked = [replace(one, groups=one.groups.to("meta")) if isinstance(one, statistics.Mass) else one for one in asked]
    inputs, backend = Inputs(query.to("meta"), key.to("meta"), key.to("meta")), backends.get("gpu")
    forward = backend.forward(problem, inputs, asked, want_lse=True)
    results = [
        forward.output,
        *(
            x
            for partial in (False, True)
            for some in backend.observe(problem, inputs, forward.lse, asked, partial=partial)
            for x in some
        ),
        backend.transposed(problem, inputs, forward.lse, forward.output),
        backend.window(problem, inputs, forward.lse, slice(0, 1), slice(2, 9)),
        *(
            x
            for x in vars(backend.backward(problem, inputs, forward, forward.output, forward.lse)).values()
            if x is not None
        ),
    ]
    assert {x.device.type for x in results} == {"meta"}
    assert {"rows", "columns", "cells", "window", "backward_start", "backward_keys", "backward_rows"} <= set(launched)


def test_how_many_rows_are_served(monkeypatch):
    monkeypatch.setattr(gpu, "unavailable", lambda _: None)

    def refusal(*shape):
        x = torch.empty(*shape, device="meta")
        return backends.get("gpu").refuses(scores.Problem(1.0), Inputs(x, x, x))

    assert refusal(70_000, 12, 8, 64) is None
    assert "at most 2,147,483,647 programs" in refusal(1 << 20, 1 << 10, 64, 64)


# ---------------------------------------------------------------------------------------- on a GPU


@needs_gpu
def test_many_short_texts():
    inputs = tensors(70_000, 1, 4, 16, grad=True)
    asked = [statistics.Received(), statistics.Entropy()]
    found = []
    for backend in ("gpu", "tiled"):
        output, report = saccade.attention(*inputs, mask=masks.causal(), statistics=asked, backend=backend)
        found.append([output, report.received, report.entropy, *torch.autograd.grad(output.square().sum(), inputs)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@needs_gpu
def test_cuda_graphs():
    inputs = tensors(2, 4, 300, 64, dtype=torch.bfloat16)
    mask = masks.causal().resolve(masks.Lengths(2, 4, 300, 300, inputs[0].device))

    def run():
        return flat(saccade.attention(*inputs, mask=mask, statistics=EVERY, backend="gpu"))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for x in inputs:
        x.copy_(torch.randn_like(x))
    graph.replay()
    for replayed, eager in zip(captured, run(), strict=True):
        assert torch.equal(replayed, eager)


@needs_gpu
def test_streams():
    inputs = tensors(2, 4, 1000, 64, dtype=torch.bfloat16)
    expected = saccade.attention(*inputs, backend="gpu")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = [x * 1 for x in inputs]
        torch.cuda._sleep(10_000_000)
        for x in late:
            x.mul_(2)
        for x in late:
            x.div_(2)
        found = saccade.attention(*late, backend="gpu")
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(found, expected)


@needs_gpus
def test_several_devices():
    """A call runs where its tensors lie, whichever device is the current one."""
    inputs = tensors(1, 2, 200, 64, grad=True)
    there = [x.detach().to("cuda:1").requires_grad_() for x in inputs]
    assert torch.cuda.current_device() == 0
    for one in (inputs, there):
        output, report = saccade.attention(*one, mask=masks.causal(), statistics=EVERY, backend="gpu")
        output.square().sum().backward()
        assert output.device == report.map.device == one[0].device
    for here, away in zip(inputs, there, strict=True):
        torch.testing.assert_close(here.grad, away.grad.to("cuda:0"))

"""Tests of Hugging Face models under torch.compile; `test_compiled.py` says why they are run by it.

What a model is promised, compiled or not: equal results, and that it is observed in full or not at all.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from architectures import ARCHITECTURES, largest_error, run, token_ids
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.testing import CompileCounterWithBackend

import saccade
from saccade import functional
from saccade.adapters import huggingface_masks
from saccade.adapters.huggingface import attach, detach, is_attached
from saccade.adapters.observation import observe
from saccade.errors import UnsupportedModelError
from saccade.statistics import Distance, Entropy

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
LAYERS = ["model.layers.0.self_attn", "model.layers.1.self_attn"]


@pytest.fixture(autouse=True)
def fresh():
    torch.set_num_threads(1)
    torch._dynamo.reset()


@pytest.fixture
def model() -> Iterator[nn.Module]:
    """A tiny Llama, attached."""
    model = BY_NAME["Llama"].build()
    with attach(model):
        yield model


@pytest.fixture
def used(model) -> nn.Module:
    """The same, after its first forward."""
    with torch.no_grad():
        model(token_ids(1, 4))
    return model


class Compiled:
    """A compiled model that knows what was compiled. Its graphs run by PyTorch's own operations: quicker to compile."""

    def __init__(self, model: nn.Module, *, fullgraph: bool = True) -> None:
        self.counter = CompileCounterWithBackend("aot_eager")
        self.call = torch.compile(model, backend=self.counter, fullgraph=fullgraph)

    def __call__(self, ids: Tensor, **options: object) -> Tensor:
        return self.call(ids, **options).logits

    @property
    def graphs(self) -> int:
        return self.counter.frame_count

    def attention_in(self, graph: int) -> int:
        """How many of our operations are in a graph."""
        nodes = self.counter.graphs[graph].graph.nodes
        return sum(node.target is torch.ops.saccade.forward.default for node in nodes)


def eager(model: nn.Module, ids: Tensor, **options: object) -> Tensor:
    return model(ids, **options).logits


def close(a: Tensor, b: Tensor) -> bool:
    return largest_error([a], [b]) < 1e-5


def padding(kind: str, batch: int, length: int) -> Tensor:
    """Row b of the batch lacks b + 2 tokens; the first row is whole."""
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(1, batch):
        where = {"left": slice(0, row + 2), "right": slice(length - row - 2, length), "holes": slice(2, None, row + 1)}
        mask[row, where[kind]] = 0
    return mask


# ---------------------------------------------------------------------------------------- equal results


# Without a cache and a mask, a compiled model looks for packed documents.
@pytest.mark.parametrize(("kind", "use_cache"), [("none", True), ("none", False), ("left", True), ("holes", False)])
def test_one_graph_for_every_length(used, kind: str, use_cache: bool):
    compiled = Compiled(used)
    for batch, length in ((3, 8), (4, 9), (5, 17), (2, 12)):
        ids, options = token_ids(batch, length), {"use_cache": use_cache}
        valid = torch.ones_like(ids)
        if kind != "none":
            options["attention_mask"] = valid = padding(kind, batch, length)
        with torch.no_grad():
            assert close(compiled(ids, **options)[valid.bool()], eager(used, ids, **options)[valid.bool()])
    assert compiled.graphs == 2  # one of the first sizes, one of any
    assert [compiled.attention_in(graph) for graph in range(2)] == [2, 2]


@pytest.mark.parametrize(("kind", "use_cache"), [("none", False), ("holes", True)])
def test_gradients(used, kind: str, use_cache: bool):
    compiled = Compiled(used)
    for length in (8, 13):
        ids = token_ids(2, length)
        mask = torch.ones_like(ids) if kind == "none" else padding(kind, 2, length)
        options = {"use_cache": use_cache, "labels": ids.masked_fill(mask == 0, -100)}
        if kind != "none":
            options["attention_mask"] = mask
        found = []
        for call in (used, compiled.call):
            used.zero_grad()
            call(ids, **options).loss.backward()
            found.append([parameter.grad.clone() for parameter in used.parameters()])
        assert largest_error(*found) < 1e-5
        assert max(float(grad.abs().max()) for grad in found[0]) > 0.1
    assert [compiled.attention_in(graph) for graph in range(compiled.graphs)] == [2, 2]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("Mistral", "left"),
        ("Gemma 2", "packed"),
        ("Llama 4", "left"),
        ("BERT", "holes"),
        ("GPT-OSS", "single"),
        ("T5", "left"),
    ],
)
def test_other_masks(name: str, case: str):
    """Windows, chunks, packed documents, both directions, sinks, softcap and position bias."""
    other = BY_NAME[name].build()
    inputs, valid = BY_NAME[name].inputs(case)
    expected = run(other, inputs, valid)
    counter = CompileCounterWithBackend("aot_eager")
    with attach(other):
        found = run(torch.compile(other, backend=counter, fullgraph=True), inputs, valid)
    assert largest_error(found, expected) < 1e-5
    assert "saccade.forward" in str(counter.graphs[0].graph)


def test_bfloat16_and_autocast(model):
    ids = token_ids(1, 12)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert (Compiled(model)(ids) - eager(model, ids)).abs().max() < 0.1
    torch._dynamo.reset()
    model.bfloat16()
    with torch.no_grad():
        assert (Compiled(model)(ids) - eager(model, ids)).abs().max() < 0.1


def test_decoding_with_a_cache(model):
    from transformers import StaticCache

    ids = token_ids(1, 9)
    with torch.no_grad():
        expected = eager(model, ids)
        compiled, cache = Compiled(model), StaticCache(config=model.config, max_cache_len=16)
        steps = [compiled(ids[:, :6], past_key_values=cache)]
        steps += [compiled(ids[:, i : i + 1], past_key_values=cache) for i in range(6, 9)]
    assert close(torch.cat(steps, 1), expected)


# ---------------------------------------------------------------------------------------- masks that do not fit a graph


def test_a_mask_of_unknown_form_is_made_outside_of_the_graph():
    """Text around pictures: some tokens see others on both sides."""
    architecture = BY_NAME["Gemma 3, pictures"]
    other = architecture.build()
    inputs, valid = architecture.inputs("left")
    expected = run(other, inputs, valid)
    with attach(other):
        found = run(torch.compile(other, backend="eager"), inputs, valid)
        assert largest_error(found, expected) < 1e-5
        torch._dynamo.reset()
        with pytest.raises(Unsupported, match="carry"):
            run(torch.compile(other, backend="eager", fullgraph=True), inputs, valid)


def test_a_mask_of_several_intervals_is_never_taken_for_one():
    from transformers import masking_utils

    def skips_three(_b, _h, _i, j):
        return j != 3

    def starts(width: int, rule) -> Tensor:
        predicate = masking_utils.and_masks(masking_utils.causal_mask_function, rule)
        carried = huggingface_masks.carry(1, width, width, 0, 0, predicate)
        return carried.visible.starts

    huggingface_masks.know_transformers()
    compiled = torch.compile(starts, backend="aot_eager", fullgraph=True)
    assert compiled(6, masking_utils.causal_mask_function).shape == (1, 1, 6, 1)
    with pytest.raises(RuntimeError, match="not one interval"):
        compiled(6, skips_three)


def test_a_mask_made_outside_serves_attention_in_a_graph(model):
    """Whoever makes the mask, attention leaves the graph for one that no graph can hold."""
    mask = huggingface_masks.carry(1, 6, 6)
    with torch.no_grad():
        found = torch.compile(model.model, backend="eager")(token_ids(1, 6), attention_mask=mask).last_hidden_state
        expected = model.model(token_ids(1, 6)).last_hidden_state
    assert close(found, expected)


# ---------------------------------------------------------------------------------------- the first forward


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def looks_nothing_up(hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
    return hidden_states, None


def test_the_first_forward_may_be_a_compiled_one(model):
    before = hooks_of(model)
    assert before == 4
    compiled = Compiled(model)
    with torch.no_grad():
        found = compiled(token_ids(1, 8))
        assert hooks_of(model) == before  # what is in a graph cannot change the model
        assert close(eager(model, token_ids(1, 8)), found)
        assert hooks_of(model) == 0
        assert close(compiled(token_ids(1, 8)), found)
    assert compiled.graphs <= 2
    assert not any("saccade" in name for layer in model.model.layers for name in vars(layer.self_attn))


def test_compiled_calls_do_not_compile_again(model):
    compiled = Compiled(model)
    with torch.no_grad():
        for _ in range(4):
            compiled(token_ids(1, 8))
    assert compiled.graphs == 1


def test_detach_after_a_compiled_first_forward():
    model = BY_NAME["Llama"].build()
    compiled, ids = Compiled(model), token_ids(1, 8)
    with torch.no_grad():
        expected = eager(model, ids)
        attach(model)
        compiled(ids)
        copied = copy.deepcopy(model)
        detach(model)
        assert hooks_of(model) == 0
        assert not any("saccade" in name for module in model.modules() for name in vars(module))
        assert torch.equal(compiled(ids), expected)  # by attention of its own
        assert compiled.attention_in(compiled.graphs - 1) == 0
        assert close(Compiled(copied)(ids), expected)
        assert close(eager(copied, ids), expected)
        assert hooks_of(copied) == 0


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_model_whose_calls_do_not_arrive_is_refused_compiled_as_well(model, fullgraph: bool):
    model.model.layers[1].self_attn.forward = looks_nothing_up
    compiled = Compiled(model, fullgraph=fullgraph)
    error, message = (
        (Unsupported, "no_attention_call_came_through")
        if fullgraph
        else (UnsupportedModelError, r"model\.layers\.1\.self_attn ran and no attention call")
    )
    with torch.no_grad(), pytest.raises(error, match=message):
        compiled(token_ids(1, 8))
    assert is_attached(model) == fullgraph  # a graph that was never made changed nothing


@pytest.mark.parametrize("arrives", [True, False])
def test_a_first_forward_of_which_only_attention_is_compiled(model, arrives: bool):
    """The hooks run as they are, the call comes from a graph."""
    for layer in model.model.layers:
        layer.self_attn.forward = torch.compile(
            layer.self_attn.forward if arrives else looks_nothing_up, backend="eager"
        )
    with torch.no_grad():
        if arrives:
            eager(model, token_ids(1, 8))
            assert hooks_of(model) == 0
            return
        with pytest.raises(UnsupportedModelError, match="no attention call"):
            eager(model, token_ids(1, 8))


@pytest.mark.parametrize("arrives", [True, False])
def test_a_first_forward_that_leaves_its_graph_within_attention(model, arrives: bool):
    """The hooks are compiled, each by itself; what is between them is not."""
    for layer in model.model.layers:
        inner = layer.self_attn.forward if arrives else looks_nothing_up
        layer.self_attn.forward = torch.compiler.disable(inner)
    compiled = Compiled(model, fullgraph=False)
    with torch.no_grad():
        if arrives:
            assert close(compiled(token_ids(1, 8)), eager(model, token_ids(1, 8)))
            return
        with pytest.raises(UnsupportedModelError, match="no attention call"):
            compiled(token_ids(1, 8))


# ---------------------------------------------------------------------------------------- observation


@contextmanager
def somebody_observes() -> Iterator[None]:
    """Another thread observes a model of its own."""
    net, opened, close_it = nn.Linear(1, 1), threading.Event(), threading.Event()
    net.forward = lambda x: saccade.attention(x, x, x)

    def go() -> None:
        with observe(net, [Entropy()]):
            opened.set()
            net(torch.zeros(1, 1, 2, 2))
            close_it.wait(60)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(go)
        assert opened.wait(60)
        try:
            yield
        finally:
            close_it.set()
        done.result()


@pytest.mark.parametrize("first", ["eager", "compiled", "observed"])
def test_a_compiled_model_is_observed_in_full(model, first: str):
    """Whether it was compiled before or while somebody observes, as often as they do."""
    compiled, ids = Compiled(model, fullgraph=False), token_ids(2, 8)
    with torch.no_grad():
        if first != "observed":
            (compiled if first == "compiled" else model)(ids)
        with observe(model, [Entropy(), Distance()]) as expected:
            eager(model, ids)
            eager(model, ids)
        for _ in range(3):
            with observe(model, [Entropy(), Distance()]) as observation:
                compiled(ids)
                compiled(ids)
            assert [(c.site, c.forward) for c in observation.calls] == [(s, n) for n in (0, 1) for s in LAYERS]
            for mine, theirs in zip(observation.calls, expected.calls, strict=True):
                assert largest_error([*mine.report.values()], [*theirs.report.values()]) < 1e-5
        assert close(compiled(ids), eager(model, ids))


def test_a_graph_of_before_is_not_used_while_somebody_observes(used):
    compiled, ids = Compiled(used, fullgraph=False), token_ids(1, 8)
    with torch.no_grad():
        compiled(ids)
        assert (compiled.graphs, compiled.attention_in(0)) == (1, 2)
        with observe(used, [Entropy()]) as observation:
            compiled(ids)
    assert observation.sites == LAYERS
    assert not any(compiled.attention_in(graph) for graph in range(1, compiled.graphs))


def test_attention_is_in_a_graph_again_when_nobody_observes(model):
    compiled, ids = Compiled(model, fullgraph=False), token_ids(1, 8)
    with torch.no_grad():
        with observe(model, [Entropy()]):
            compiled(ids)
        assert not any(compiled.attention_in(graph) for graph in range(compiled.graphs))
        graphs = compiled.graphs
        compiled(ids)
        assert sum(compiled.attention_in(graph) for graph in range(graphs, compiled.graphs)) == 2


def test_one_graph_or_none_while_somebody_observes(model):
    compiled, ids = Compiled(model), token_ids(1, 8)
    with torch.no_grad():
        expected = eager(model, ids)
        compiled(ids)
        with pytest.raises(Unsupported), observe(model, [Entropy()]):
            compiled(ids)
        assert close(compiled(ids), expected)
    assert compiled.graphs == 1


def test_a_compiled_model_beside_one_that_is_observed(model):
    whole, parts, ids = Compiled(model), Compiled(model, fullgraph=False), token_ids(1, 8)
    with torch.no_grad():
        expected = eager(model, ids)
        whole(ids)
        with somebody_observes():
            assert close(parts(ids), expected)
            with pytest.raises(Unsupported, match=r"attend|carry"):
                whole(ids)
        assert close(whole(ids), expected)
    assert not functional.OBSERVED


def test_attention_called_from_compiled_code_is_observed():
    """One of two calls is compiled: half of a model that is no Hugging Face model."""

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return attend(x) + saccade.attention(x, x, x)

    attend = torch.compile(lambda x: saccade.attention(2 * x, x, x) * 2, backend="aot_eager")
    net, x = Half(), torch.randn(1, 2, 6, 4)
    expected = net(x)
    for _ in range(2):
        with observe(net, [Entropy()]) as observation:
            assert close(net(x), expected)
        assert len(observation.calls) == 2
    assert close(net(x), expected)


def test_contexts_that_fail_count_no_longer(model):
    def fail() -> None:
        assert functional.OBSERVED
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), observe(model), observe(model):
        fail()
    assert not functional.OBSERVED

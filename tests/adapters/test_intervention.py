"""`intervening`: attention calls changed while a model runs."""

from dataclasses import replace

import architectures
import pytest
import torch
from torch import nn

import saccade
from saccade import functional
from saccade.adapters.intervention import Change, intervening
from saccade.errors import ShapeError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Attend(), Attend()

    def forward(self, x):
        return self.second(self.first(x))


class Attend(nn.Module):
    def forward(self, x):
        return saccade.attention(x, x, x)


class Silence(Change):
    def __init__(self, site):
        self.site = site

    def output(self, running, problem, inputs, output):
        return output * (running.site != self.site)


class Doubled(Change):
    def inputs(self, running, problem, inputs):
        return replace(inputs, value=inputs.value * 2)


class WithoutFirstHead(Change):
    def output(self, running, problem, inputs, output):
        return torch.cat([torch.zeros_like(output[:, :1]), output[:, 1:]], 1)


X = torch.randn(1, 2, 5, 4, generator=torch.Generator().manual_seed(0))


def test_outputs_and_inputs_are_changed_where_it_is_asked_and_only_there():
    net = Net()
    plain, first = net(X), net.first(X)
    with intervening(net, Silence("second")):
        assert torch.equal(net(X), torch.zeros_like(X))
        assert torch.equal(net.first(X), first)
        assert torch.equal(Attend()(X), first)  # of another model
    with intervening(net, Doubled()):
        torch.testing.assert_close(net(X), nn.Sequential(net.first, net.second)(X))  # a second time, unchanged
    assert torch.equal(net(X), plain)


def test_values_twice_as_large_give_twice_the_output():
    net = Attend()
    with intervening(net, Doubled()):
        changed = net(X)
    torch.testing.assert_close(changed, 2 * net(X))


def test_contexts_nest_and_what_is_observed_is_what_was_computed():
    net = Attend()
    with intervening(net, Doubled()), intervening(net, Doubled()), saccade.record(net, keep="qkv") as trace:
        four = net(X)
    torch.testing.assert_close(four, 4 * net(X))
    torch.testing.assert_close(trace[0, ""].value, 4 * X)


def test_an_error_leaves_nothing_behind():
    net = Net()

    class Wrong(Change):
        def output(self, running, problem, inputs, output):
            return output[:, :1]

    with (
        pytest.raises(ShapeError, match=r"first: the changed output has shape \(1, 1, 5, 4\); expected \(1, 2, 5, 4\)"),
        intervening(net, Wrong()),
    ):
        net(X)
    assert functional.INTERVENTION.get() is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("architecture", architectures.ARCHITECTURES, ids=lambda a: a.name)
def test_every_architecture_listens(architecture):
    model = architecture.build()
    inputs, valid = architecture.inputs("single")
    plain = architectures.run(model, inputs, valid)
    with intervening(model, Change()):
        assert architectures.largest_error(plain, architectures.run(model, inputs, valid)) < 1e-5
    with intervening(model, WithoutFirstHead()):
        assert architectures.largest_error(plain, architectures.run(model, inputs, valid)) > 1e-3

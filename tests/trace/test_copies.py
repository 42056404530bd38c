"""Copies in main memory: of what lies on a GPU they arrive later, and nobody looks at them before."""

from __future__ import annotations

import pytest
import torch
from nets import Net

import saccade
from saccade.statistics import Entropy, Received, TopKeys
from saccade.trace import storage
from saccade.trace.storage import Copies, Copy


class Late:
    """In place of an event: the numbers are there when it is waited for."""

    def __init__(self, into: torch.Tensor, numbers: torch.Tensor) -> None:
        self.into, self.numbers = into, numbers

    def synchronize(self) -> None:
        self.into.copy_(self.numbers)


@pytest.fixture
def remote(monkeypatch):
    """Have every tensor count as one on a GPU; returns the copies that were started."""
    started: list[Copy] = []

    def fetch(x):
        numbers = torch.full_like(x, 77, memory_format=torch.contiguous_format)
        started.append(Copy(numbers, Late(numbers, x.clone())))
        return started[-1]

    monkeypatch.setattr(storage, "is_remote", lambda _: True)
    monkeypatch.setattr(storage, "fetch", fetch)
    return started


def test_what_is_copied_is_nobody_elses():
    x = torch.zeros(3, 4).T
    copy = Copies().take(x)
    x += 1
    assert not copy.is_underway
    assert copy.wait().is_contiguous()
    assert copy.wait().tolist() == torch.zeros(4, 3).tolist()


def test_copies_underway_are_bounded(remote, monkeypatch):
    monkeypatch.setattr(storage, "MOST_UNDERWAY", 100)
    copies = Copies()
    taken = [copies.take(torch.full((10,), float(i))) for i in range(5)]  # 40 bytes each
    assert [copy.is_underway for copy in taken] == [False, False, False, True, True]
    assert taken[4].wait()[0] == 4  # waited for out of turn
    taken.append(copies.take(torch.full((10,), 5.0)))
    assert [copy.is_underway for copy in taken] == [False, False, False, False, False, True]
    assert [float(copy.wait()[0]) for copy in taken] == [0, 1, 2, 3, 4, 5]
    assert len(remote) == 6


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_recording_waits_for_its_copies(remote, monkeypatch, tmp_path, on_disk):
    """Late copies or none: the same trace."""
    net, x = Net(), torch.randn(2, 4, 9, 8)
    asked = [Entropy(), TopKeys(3), Received()]

    def trace(name):
        place = tmp_path / name if on_disk else None
        with saccade.record(net, keep="qk", statistics=asked, to=place) as recorded, torch.no_grad():
            net(x)
            net(x[:, :, :5])
        return saccade.open_trace(place) if on_disk else recorded

    late = trace("late")
    assert remote
    assert not any(copy.is_underway for copy in remote)
    monkeypatch.undo()
    plain = trace("plain")
    for entry in (0, 1):
        for path, array in plain[entry].metadata.arrays.items():
            ours, theirs = (recorded[entry]._arrays.read(path) for recorded in (late, plain))
            assert tuple(ours.shape) == array.shape
            assert torch.equal(ours, theirs) if torch.is_tensor(ours) else ours.tolist() == theirs.tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_from_a_gpu():
    copies = Copies()
    x = torch.arange(1 << 20, device="cuda").float().view(1024, 1024).T
    copy = copies.take(x)
    x.zero_()
    assert copy.is_underway
    expected = torch.arange(1 << 20).float().view(1024, 1024).T
    assert torch.equal(copy.wait(), expected)
    assert not copy.wait().is_pinned()

"""The compiled kernels: the suite, once for each instruction set that runs on this machine, and how they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conformance import Case, Conformance, Shape, everything

import saccade
from saccade import masks, statistics
from saccade.backends import native
from saccade.errors import BackendError

library = native.load()
assert isinstance(library, native.Library), library


@pytest.fixture(autouse=True, params=library.variants)
def variant(request):
    before = library.variant
    yield library.use(request.param)
    library.use(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class TestCPU(Conformance):
    backend = "cpu"
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    float64 = False

    @pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 31, 64, 65, 128, 129, 192, 255, 256])
    def test_widths(self, width):
        for dtype in self.dtypes:
            self.check(Case(Shape(1, 2, 1, 67, 131, width, max(1, 256 - width)), masks.causal(64), dtype=dtype))

    @pytest.mark.parametrize("group", [1, 3, 5, 16])
    @pytest.mark.parametrize("queries", [1, 2, 4, 16])
    def test_decoding(self, queries, group):
        """Few rows, many keys: keys are split, and a row's parts joined."""
        shape = Shape(1, 2 * group, 2, queries, 1100, 40, 24)
        offset = shape.offset
        for mask in (None, masks.causal(offset), (masks.window(200, offset=offset) | masks.prefix(4))):
            for dtype in self.dtypes:
                self.check(Case(shape, mask, dtype=dtype), [statistics.LogSumExp()])
        sinks, bias = torch.randn(shape.heads), torch.randn(1, shape.heads, 1, shape.keys)
        self.check_plain(Case(shape, masks.causal(offset), bias, 2.0, sinks, dtype=torch.float32))

    def check_plain(self, case):
        """Without statistics and gradients, as a decoder calls it."""
        leaves = {name: x.detach() for name, x in case.leaves(torch.float64).items()}
        ours = {name: x.to(case.dtype) for name, x in leaves.items()}
        exact, found = (
            saccade.attention(x["query"], x["key"], x["value"], **case.options(x), backend=backend)
            for x, backend in ((leaves, "reference"), (ours, "cpu"))
        )
        torch.testing.assert_close(found.double(), exact, atol=1e-5, rtol=1e-5)

    def test_keys_beyond_the_caches(self):
        """Tiles of floats are copied where keys and values of a head are large; blocks are larger then."""
        shape = Shape(1, 2, 1, 131, 1700, 256, 250)
        self.check(Case(shape, masks.causal(shape.offset), dtype=torch.float32), everything(shape))

    def test_panels_longer_than_what_is_kept(self):
        """Of a row of 140,000 keys the first ones are kept; the rest is computed again."""
        shape = Shape(1, 1, 1, 3, 140_000, 2, 2)
        self.check(Case(shape, masks.window(139_000, offset=shape.offset), dtype=torch.float32), everything(shape))


def test_results_do_not_depend_on_the_number_of_threads(threads):
    """The same bits from 1, 2 and 3 threads, statistics that are summed over queries included."""
    case = Case(Shape(1, 2, 1, 500, 700, 24, 24), masks.causal(200), dtype=torch.float32)
    leaves = {name: x.detach() for name, x in case.leaves(torch.float32).items()}
    found = []
    for count in (1, 2, 3):
        threads(count)
        output, report = saccade.attention(**leaves, mask=case.mask, statistics=everything(case.shape))
        single = saccade.attention(leaves["query"][:, :, :1], leaves["key"], leaves["value"])
        found.append([output, single, *(report[name] for name in report if name != "top_keys"), *report.top_keys])
        for _ in range(20):
            again, same = saccade.attention(**leaves, mask=case.mask, statistics=everything(case.shape))
            assert torch.equal(again, output)
            assert torch.equal(same.received, report.received)
    for others in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(others, found[0], strict=True))


def test_gradients_are_the_same_bits_each_time(threads):
    threads(2)
    case = Case(Shape(1, 2, 1, 300, 400, 24, 24), masks.causal(100), torch.randn(2, 300, 1), dtype=torch.float32)
    first = case.attend("cpu", torch.float32, [statistics.LogSumExp()])[2]
    for _ in range(20):
        again = case.attend("cpu", torch.float32, [statistics.LogSumExp()])[2]
        assert all(torch.equal(again[name], first[name]) for name in first)


def test_several_python_threads_at_once():
    q, k, v = (torch.randn(1, 4, 300, 32) for _ in range(3))
    expected = saccade.attention(q, k, v, mask=masks.causal(), backend="cpu")
    same = []

    def work():
        found = [saccade.attention(q, k, v, mask=masks.causal(), backend="cpu") for _ in range(20)]
        same.append(all(torch.equal(output, expected) for output in found))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert same == [True] * 4


def test_other_python_threads_run_during_a_call():
    """The lock of the interpreter is free while the kernel computes."""
    q, k, v = (torch.randn(1, 2, 3000, 64) for _ in range(3))
    turns, done = 0, threading.Event()

    def count():
        nonlocal turns
        while not done.wait(0.001):
            turns += 1

    counter = threading.Thread(target=count)
    counter.start()
    start = time.perf_counter()
    saccade.attention(q, k, v, statistics=everything(Shape(1, 2, 2, 3000, 3000, 64, 64)), backend="cpu")
    took, during = time.perf_counter() - start, turns
    done.set()
    counter.join()
    assert during > 2, f"{during} turns of a millisecond in {took:.3f} s"


class _Attends(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        q = torch.full((1, 4, 200, 16), 0.1 * index)
        return saccade.attention(q, q, q, mask=masks.causal(), backend="cpu")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 on: a process with threads was forked
def test_workers_of_a_data_loader(threads):
    threads(2)
    expected = [_Attends()[i] for i in range(4)]  # starts the threads that the workers will not have
    loader = torch.utils.data.DataLoader(_Attends(), num_workers=2, timeout=60, multiprocessing_context="fork")
    assert all(torch.equal(x[0], y) for x, y in zip(loader, expected, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_with_several_threads(threads):
    threads(2)
    q = torch.randn(1, 4, 200, 16)
    expected = saccade.attention(q, q, q, backend="cpu")
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that waits for threads it does not have must not outlive the test
        os._exit(0 if torch.equal(saccade.attention(q, q, q, backend="cpu"), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


_LONG = """
import torch, saccade
x = torch.randn(1, 16, 40_000, 64)
print("ready", flush=True)
try:
    saccade.attention(x, x, x, backend="cpu")
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(saccade.attention(x[:, :, :9], x[:, :, :9], x[:, :, :9], backend="cpu").isfinite().all().item())
"""


def test_ctrl_c_ends_a_long_call():
    process = subprocess.Popen([sys.executable, "-c", _LONG], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)  # the call itself would take minutes
    assert output.split() == ["interrupted", "True"]
    assert process.returncode == 0


def _variant_of(environment):
    code = "from saccade.backends import native; print(getattr(native.load(), 'variant', native.load()))"
    environment = {**os.environ, native.VARIANT: environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_the_environment_chooses_a_variant(variant):
    assert _variant_of(variant).strip() == variant
    assert _variant_of("").strip() == library.variants[0]
    assert "'sse9' does not run on this machine: expected one of" in _variant_of("sse9")


def test_a_library_of_another_kind_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(native, "_find", lambda name: tmp_path / name)
    native.load.cache_clear()
    try:
        assert "cannot be loaded" in native.load()
        with pytest.raises(BackendError, match="cannot be loaded"):
            saccade.attention(*(torch.ones(1, 1, 1, 1) for _ in range(3)), backend="cpu")
        monkeypatch.setattr(native, "_find", lambda _: None)
        native.load.cache_clear()
        assert "no compiled kernels" in native.load()
        assert saccade.attention(*(torch.ones(1, 1, 1, 1) for _ in range(3))).item() == 1.0  # by another backend
    finally:
        native.load.cache_clear()


def test_what_it_does_not_serve():
    x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    with pytest.raises(BackendError, match="float64"):
        saccade.attention(x, x, x, backend="cpu")


def test_nothing_is_read_outside_a_tensor():
    """The last row of the memory that a tensor views is at its very end: surroundings of NaN stay outside."""
    for width in (3, 16, 17):
        memory = torch.full((3, 70 * 2 * width + 2 * 64), torch.nan)
        views = [row[64:-64].view(1, 70, 2, width).transpose(1, 2) for row in memory]
        for view in views:
            view.copy_(torch.randn(view.shape))
        clean = [view.clone() for view in views]
        ours = saccade.attention(*views, mask=masks.causal(), backend="cpu")
        assert torch.equal(ours, saccade.attention(*clean, mask=masks.causal(), backend="cpu"))

"""Which tiles the GPU kernels are run with, what happens when they do not fit, and how they are tuned."""

from __future__ import annotations

import json
import math

import pytest
import torch

import saccade
from saccade import masks, statistics
from saccade.backends import gpu, gpu_tiles, gpu_tuning
from saccade.backends.gpu_tiles import TILES, Place, Tiling
from saccade.errors import BackendError

pytest.importorskip("triton", reason="triton is an extra: pip install 'saccade[gpu]'")

CARD = torch.device("cuda", 0)  # only named here
PLACE = Place("rows", 2, 64)
OTHER = Tiling(64, 64, 4, 2)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A file of tuned tiles of our own, and a GPU by name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gpu_tiles, "gpu_name", lambda _: "Card, triton 1")
    gpu_tiles.tuned.cache_clear()
    yield tmp_path / "saccade" / "gpu-tiles.json"
    gpu_tiles.tuned.cache_clear()


def test_every_kernel_has_tiles():
    for kernel in gpu_tuning.KERNELS:
        for dtype in (torch.float32, torch.bfloat16):
            for width in (1, 16, 64, 65, 128, 200, 256):
                some = TILES[gpu_tiles.place_of(kernel, dtype, width)]
                assert len(set(some)) == len(some) > 1


@pytest.mark.parametrize("tiles", [t for some in TILES.values() for t in some])
def test_tiles_are_what_the_compiler_takes(tiles):
    assert tiles.rows in {16, 32, 64, 128}
    assert tiles.keys in {16, 32, 64, 128}
    assert tiles.warps in {4, 8}
    assert 1 <= tiles.stages <= 4


def test_tuned_tiles_come_first(cache):
    assert next(gpu_tiles.candidates(PLACE, CARD)) == TILES[PLACE][0] != OTHER
    gpu_tiles.keep_tuned(CARD, {PLACE: OTHER})
    assert cache.exists()
    assert list(gpu_tiles.candidates(PLACE, CARD)) == [OTHER, *TILES[PLACE]]
    assert gpu_tiles.tuned(torch.device("cpu")) == {}


def test_tuned_tiles_are_added_to_what_is_kept(cache, monkeypatch):
    gpu_tiles.keep_tuned(CARD, {PLACE: OTHER})
    gpu_tiles.keep_tuned(CARD, {Place("few", 2, 64): OTHER})
    assert gpu_tiles.tuned(CARD) == {Place("few", 2, 64): OTHER, PLACE: OTHER}
    monkeypatch.setattr(gpu_tiles, "gpu_name", lambda _: "Another, triton 1")
    gpu_tiles.keep_tuned(CARD, {})
    assert gpu_tiles.tuned(CARD) == {}
    assert set(json.loads(cache.read_text())) == {"Card, triton 1", "Another, triton 1"}


LINES = [
    "[[]]",
    '[["rows", 2, 64, 64]]',
    '[["rows", 2, 64, 63, 64, 4, 2]]',
    '[["rows", 2, 64, "a", 64, 4, 2]]',
    '[["rows", 2, 64, [], 64, 4, 2]]',
    '[["rows", 2, 64, 64, 64, 4, 2, 1]]',
    '[["rows", 2, 64, 64, 64, 4, 2, true, true, true]]',
    '[["rows", 2, 63, 64, 64, 4, 2]]',
    '[["rows", 2, 64, 64.0, 64, 4, 2]]',
]


@pytest.mark.parametrize(
    "text", ["{", "[]", "\xff", "[" * 100_000, *(f'{{"Card, triton 1": {lines}}}' for lines in LINES)]
)
def test_a_file_that_is_none_is_passed_over_and_said(cache, text):
    cache.parent.mkdir()
    cache.write_text(text, encoding="latin-1")
    with pytest.warns(UserWarning, match=r"gpu-tiles.json .* saccade tune"):
        assert gpu_tiles.tuned(CARD) == {}
    gpu_tiles.keep_tuned(CARD, {PLACE: OTHER})
    assert gpu_tiles.tuned(CARD) == {PLACE: OTHER}


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_file_that_cannot_be_written_is_said(cache, where, run, monkeypatch):
    """Before anything is measured; attention goes on with the table."""
    if where == "file":
        cache.mkdir(parents=True)
    else:
        cache.parent.write_text("no folder")
    if where == "file":
        with pytest.warns(UserWarning, match="saccade tune"):
            assert gpu_tiles.tuned(CARD) == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu, "unavailable", lambda _: None)
    code, out, error = run("tune")
    assert (code, out) == (2, "")
    assert error.startswith(f"saccade: {cache} cannot be written: ")
    assert "XDG_CACHE_HOME" in error


def test_no_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert str(gpu_tiles.tuned_file()) == "/somewhere/.cache/saccade/gpu-tiles.json"
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert gpu_tiles.tuned_file().name == "gpu-tiles.json"


def _answers(queries=70, keys=150):
    """What our kernels and the reference say of one problem, gradients included."""
    torch.manual_seed(0)
    query = torch.randn(1, 4, queries, 16, requires_grad=True)
    key, value = (torch.randn(1, 2, keys, 16, requires_grad=True) for _ in range(2))
    asked = [
        statistics.LogSumExp(),
        statistics.Entropy(),
        statistics.TopKeys(3),
        statistics.Received(),
        statistics.Map(4),
    ]
    for backend in ("gpu", "reference"):
        output, report = saccade.attention(
            query, key, value, mask=masks.causal(keys - queries), statistics=asked, backend=backend
        )
        grads = torch.autograd.grad(output.square().sum(), (query, key, value))
        yield [output, report.lse, report.entropy, report.top_keys.weights, report.received, report.map, *grads]


def _agree():
    for ours, exact in zip(*_answers(), strict=True):
        torch.testing.assert_close(ours, exact, atol=2e-5, rtol=1e-4)
    for ours, exact in zip(*_answers(queries=1), strict=True):
        torch.testing.assert_close(ours, exact, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("kernels")
def test_tiles_that_do_not_fit_are_passed_over(monkeypatch):
    from triton.runtime.errors import OutOfResources

    launch, used = gpu._Run._launch, []

    def small_ones(self, name, grid, tiles, *arguments):
        if tiles.rows > 32 or tiles.stages > 2:
            raise OutOfResources(1 << 20, 99 << 10, "shared memory")
        used.append(name)
        launch(self, name, grid, tiles, *arguments)

    monkeypatch.setattr(gpu._Run, "_launch", small_ones)
    _agree()
    assert {"rows", "columns", "backward_keys", "backward_rows"} <= set(used)

    monkeypatch.setattr(gpu_tiles, "TILES", {place: some[:1] for place, some in TILES.items()})
    with pytest.raises(BackendError, match="no tiles of kernel 'rows' fit"):
        _agree()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("programs", [1, 3])
def test_persistent_programs_take_every_block(monkeypatch, programs):
    persistent = {
        place: tuple(tiles._replace(persistent=place.kernel in {"rows", "few"}) for tiles in some)
        for place, some in TILES.items()
    }
    monkeypatch.setattr(gpu_tiles, "TILES", persistent)
    monkeypatch.setattr(gpu, "processors", lambda _: programs)
    grids, launch = [], gpu._Run._launch

    def noted(self, name, grid, tiles, *arguments):
        grids.append((name, grid[0]))
        launch(self, name, grid, tiles, *arguments)

    monkeypatch.setattr(gpu._Run, "_launch", noted)
    _agree()
    assert ("rows", programs) in grids


SIZES = gpu_tuning.Sizes(tokens=40, heads=2, sequences=1, cached=40)


@pytest.mark.usefixtures("kernels")
def test_tuning_tries_what_there_is():
    """Here a call takes as long as its tiles are high, and small ones do not fit."""

    def measure(call):
        call()
        (tiles,) = gpu_tiles._tried.values()
        if tiles.keys == 32:
            raise BackendError("no tiles fit")
        return tiles.rows + tiles.keys / 1000 + (0.5 if tiles.persistent else 0)

    device = torch.get_default_device()
    found = list(gpu_tuning.tune(device, torch.float32, [64], sizes=SIZES, measure=measure))
    assert not gpu_tiles._tried
    places = {one.place for one in found}
    assert places == {Place(kernel, 4, 64) for kernel in gpu_tuning.KERNELS}
    for place in places:
        mine = [one for one in found if one.place == place]
        assert [one.tiles for one in mine][: len(TILES[place])] == list(TILES[place])
        assert [one.is_first_choice for one in mine].count(True) == 1
        assert all(math.isnan(one.milliseconds) == (one.tiles.keys == 32) for one in mine)
    rows = [one.tiles for one in found if one.place.kernel == "rows"]
    assert rows[-1].persistent
    assert rows[-2].descriptors is False
    best = gpu_tuning.fastest(found)
    assert best[Place("rows", 4, 64)] == TILES[Place("rows", 4, 64)][0]._replace(descriptors=True)
    assert Place("backward_keys", 4, 64) in best


def test_tune_without_a_gpu(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("tune") == (2, "", "saccade: no GPU is found: saccade doctor says what there is\n")
    code, _, error = run("tune", "--width", "300")
    assert (code, error) == (2, "saccade: --width 300: expected 1 to 256\n")
    code, _, error = run("tune", "--dtype", "int8")
    assert (code, error) == (2, "saccade: --dtype int8: expected one of bfloat16, float16, float32\n")


def test_tune_keeps_the_fastest(run, monkeypatch, cache):
    """A GPU that is made up, and what would be measured on it."""
    first, second = TILES[PLACE][:2]

    def tune(device, dtype, widths):
        assert (device, dtype, widths) == (CARD, torch.float16, [64])
        yield gpu_tuning.Measured(PLACE, first, 2.0, is_first_choice=True)
        yield gpu_tuning.Measured(PLACE, second, 1.5, is_first_choice=False)
        yield gpu_tuning.Measured(PLACE, OTHER, math.nan, is_first_choice=False)

    monkeypatch.setattr(gpu_tuning, "tune", tune)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu, "unavailable", lambda _: None)
    code, out, error = run("tune", "--width", "64", "--dtype", "float16")
    assert (code, error) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["Card, triton 1", "rows, 16 bits, heads 64 wide"]
    assert "2.000 ms  first choice of the table" in lines[2]
    assert "does not fit" in lines[4]
    assert lines[-1] == f"kept in {cache}"
    assert gpu_tiles.tuned(CARD) == {PLACE: second}


def test_doctor_says_where_tiles_come_from(monkeypatch, cache):
    from saccade.views import diagnosis

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Card")
    monkeypatch.setattr(gpu, "unavailable", lambda _: None)
    assert diagnosis._gpu().endswith("tiles from the table: saccade tune measures them")
    gpu_tiles.keep_tuned(CARD, {PLACE: OTHER})
    assert cache.exists()
    assert diagnosis._gpu().endswith("tiles tuned here: 1")
    monkeypatch.setattr(gpu, "unavailable", lambda _: "too old")
    assert diagnosis._gpu().endswith("no kernels of ours")

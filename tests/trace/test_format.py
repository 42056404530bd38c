"""The format on disk: what others read of it, the page that specifies it, and the golden trace."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import Layer, inputs

import saccade
from saccade import masks
from saccade.trace import metadata
from saccade.trace.verification import SENTENCES, verify

zarr = pytest.importorskip("zarr")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/trace-format.md").read_text()
GOLDEN = Path(__file__).with_name("golden.zarr")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A trace with several shards, chunks that do not divide, precisions, a grouped net."""
    path = tmp_path_factory.mktemp("format") / "run.zarr"
    net = Layer(key_heads=2, mask=masks.causal())
    with saccade.record(net, keep="qkv", to=path):
        net(inputs(0))
        net(inputs(2).bfloat16())
        net(torch.randn(2, 4, 4133, 40))  # Q of 2.6 MiB a row: chunks of 1 MiB
    return path


def test_zarr_reads_every_array(path):
    trace = saccade.open_trace(path)
    for entry in trace:
        for name, array in entry.metadata.arrays.items():
            theirs = zarr.open_array(path / f"entries/{entry.index:06d}" / name, mode="r")
            mine = entry._arrays.read(name)
            assert theirs.shape == array.shape
            assert theirs.metadata.dimension_names == array.dims
            if array.dtype == "string":
                assert theirs[...].tolist() == mine.tolist()
            else:
                mine = mine.float() if mine.dtype == torch.bfloat16 else mine
                np.testing.assert_array_equal(theirs[...], mine.numpy())
                assert theirs.dtype == mine.numpy().dtype


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_may_lie_in_several_shards(rows, tmp_path, monkeypatch):
    """Written layer by layer, or all at once: the same numbers, for us and for zarr."""
    monkeypatch.setattr("saccade.trace.writing.FLUSH_BYTES", rows * 4 * 4 * 20)

    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer() for _ in range(5)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    net, x = Deep(), torch.randn(1, 4, 20, 8)
    with saccade.record(net, keep="qk") as expected:
        net(x)
    with saccade.record(net, keep="qk", to=tmp_path / "run.zarr") as trace:
        net(x)
    place = tmp_path / "run.zarr/entries/000000/stacks/0/entropy"
    assert len(list(place.glob("c.*"))) == -(-5 // rows)
    for layers in (None, 3, [4, 0], slice(1, 4), slice(None, None, 2)):
        for heads in (None, [2, 1], 3):
            found = trace[0].stacked("entropy", layers=layers, heads=heads)
            assert torch.equal(found, expected[0].stacked("entropy", layers=layers, heads=heads))
    np.testing.assert_array_equal(zarr.open_array(place, mode="r")[...], expected[0].stacked("entropy").numpy())
    assert verify(tmp_path / "run.zarr").right


def test_a_part_is_read_alone(path):
    """One head of the long entry: a few chunks, not the whole shard."""
    entry = saccade.open_trace(path)[2]
    read = []
    entry._arrays.files.part, part = lambda *a: (read.append(a[2]), part(*a))[1], entry._arrays.files.part
    one = entry._arrays.read("stacks/0/queries", (0, slice(None), 1, slice(4000, 4133)))
    assert one.shape == (2, 133, 40)
    assert sum(read) < 3 << 20
    assert torch.equal(one, entry.stacked("queries")[0, :, 1, 4000:])


def test_xarray_reads_it(path):
    xarray = pytest.importorskip("xarray")
    trace = saccade.open_trace(path)
    for entry in trace:
        dataset = trace.to_dataset(entry.index)
        assert dataset.entropy.dims == ("layer", "batch", "head", "query")
        np.testing.assert_array_equal(dataset.entropy.sel(head=3).values, entry.stacked("entropy", heads=3).numpy())
        assert dataset["layer"].values.tolist() == list(entry.stacks[0].sites)
    tree = xarray.open_datatree(path, engine="zarr", consolidated=False, chunks=None)
    cells = tree["entries/000002/maps/0/1/s0/map"]
    np.testing.assert_array_equal(cells[0].values, trace[2, 0].statistics.map[1].numpy())
    net = Layer()
    with saccade.record(net, keep="qk") as memory:
        net(inputs(0).bfloat16())
    assert memory.to_dataset().queries.shape == (1, 1, 4, 100, 16)
    with pytest.raises(IndexError, match="has 1 stacks"):
        memory.to_dataset(0, 1)


def test_ome_zarr_reads_the_maps(path):
    models = pytest.importorskip("ome_zarr_models.v05")
    group = zarr.open_group(path / "entries/000002/maps/0/0", mode="r")
    image = models.Image.from_zarr(group)
    assert [axis.name for axis in image.ome_attributes.multiscales[0].axes] == ["layer", "head", "query", "key"]
    assert len(image.ome_attributes.multiscales[0].datasets) == len(list(group.group_keys())) > 1


def test_sizes(path):
    """Statistics take at most 200 bytes for each token of a head; queries and keys 1.02 of what they are."""
    net = Layer(mask=masks.causal())
    for tokens, dtype in ((512, torch.float32), (2048, torch.bfloat16), (2048, torch.float16)):
        x = torch.randn(2, 8, tokens, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
        sizes = {}
        for keep in ("statistics", "qk"):
            place = path.parent / f"{keep}{tokens}{dtype}.zarr"
            with saccade.record(net, keep=keep, hidden=False, to=place):
                net(x)
            sizes[keep] = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        assert sizes["statistics"] <= 200 * x[..., 0].numel()
        assert sizes["qk"] - sizes["statistics"] <= 1.02 * 2 * x.numel() * x.element_size()


# ---------------------------------------------------------------------------------------- the page


def test_every_sentence_is_checked_and_every_check_is_of_a_sentence():
    numbered = [int(n) for n in re.findall(r"^- \*\*(\d+)\*\* ", PAGE, re.MULTILINE)]
    assert numbered == list(range(1, len(numbered) + 1))
    assert {int(n) for sentences in SENTENCES.values() for n in sentences.split()} == set(numbered)


def test_the_page_names_every_member_and_array(path):
    names = set(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)))
    kinds = (metadata.TraceMetadata, metadata.EntryMetadata, metadata.Site, metadata.Stack, metadata.Asked,
             metadata.Sequence, metadata.MaskForm, metadata.BiasForm, metadata.Hidden, metadata.Source)  # fmt: skip
    members = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert members <= names
    arrays = {name.rpartition("/")[2] for entry in saccade.open_trace(path) for name in entry.metadata.arrays}
    assert {name for name in arrays if name not in names} <= {"map", "states", "layer", "head"}  # written as paths
    assert int(re.match(r"# The trace format, version (\d+)", PAGE)[1]) == metadata.VERSION
    assert len(PAGE.splitlines()) < 150  # a page


# ---------------------------------------------------------------------------------------- golden


def test_the_golden_trace_reads_as_it_was_written():
    """Bytes that were written once: whoever changes the format has to say so."""
    assert verify(GOLDEN).right
    trace, expected = saccade.open_trace(GOLDEN), json.loads(GOLDEN.with_suffix(".json").read_text())
    assert [entry.sites for entry in trace] == expected["sites"]
    assert trace[0].tokens.labels() == expected["labels"]
    for name, values in expected["arrays"].items():
        found = trace[0]._arrays.read(name)
        listed = found.double().tolist() if isinstance(found, torch.Tensor) else found.tolist()
        assert listed == values, name
    torch.testing.assert_close(trace[0, 0].pattern.dense(), torch.tensor(expected["pattern"]))


def test_the_script_makes_the_golden_trace(tmp_path):
    """The same metadata and arrays; numbers up to how this machine rounds."""
    script = ROOT / "scripts/golden_trace.py"
    subprocess.run([sys.executable, script, tmp_path / "golden.zarr"], check=True)
    made, golden = saccade.open_trace(tmp_path / "golden.zarr"), saccade.open_trace(GOLDEN)
    assert len(made) == len(golden)
    for mine, theirs in zip(made, golden, strict=True):
        assert mine.metadata == theirs.metadata
        for name, array in mine.metadata.arrays.items():
            if array.dtype == "string":
                assert mine._arrays.read(name).tolist() == theirs._arrays.read(name).tolist()
            else:
                torch.testing.assert_close(mine._arrays.read(name), theirs._arrays.read(name), rtol=1e-4, atol=1e-5)

"""What a trace is worth when its recorder is killed, its disk is full, or its files are not what was written."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from nets import ENTRIES, Layer, Net, inputs, record_all

import saccade
from saccade import masks
from saccade.errors import (
    DamagedTraceError,
    NotATraceError,
    TraceBusyError,
    TraceError,
    TraceExistsError,
    TraceFormatError,
    TraceVersionError,
    TraceWriteError,
)
from saccade.trace.metadata import digest
from saccade.trace.shards import frame_content_size
from saccade.trace.verification import verify

pytest.importorskip("zarr")

NETS = Path(__file__).with_name("nets.py")


def same(a: saccade.trace.Entry, b: saccade.trace.Entry) -> bool:
    """Whether two entries hold the same bits."""
    if a.metadata != b.metadata:
        return False
    for path, array in a.metadata.arrays.items():
        mine, theirs = a._arrays.read(path), b._arrays.read(path)
        if not (mine.tolist() == theirs.tolist() if array.dtype == "string" else torch.equal(mine, theirs)):
            return False
    return True


@pytest.fixture(scope="module")
def expected():
    """The whole recording of `nets.record_all`, in memory."""
    net = Net()
    with saccade.record(net, keep="qk") as trace:
        for entry in range(ENTRIES):
            net(inputs(entry))
    return trace


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small trace, to be copied and damaged."""
    path = tmp_path_factory.mktemp("good") / "good.zarr"
    net = Layer(mask=masks.causal())
    with saccade.record(net, keep="qk", to=path) as trace:
        net(inputs(0))
        net(inputs(1)[:, :, :9].bfloat16())
    assert verify(path).right
    del trace
    return path


@pytest.fixture
def bad(good, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(good, tmp_path / "bad.zarr")


# ---------------------------------------------------------------------------------------- killed

KILLS = 50


def test_killed_at_any_moment(tmp_path, expected):
    """Finished entries are whole, the others marked; a resumed recording is the one that was never killed."""
    rng = random.Random(0)
    command = [sys.executable, NETS, "recorders", tmp_path, str(KILLS + 2)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as recorders:

        def say() -> str:
            recorders.stdin.write("\n")
            recorders.stdin.flush()
            return recorders.stdout.readline()

        whole = 0.0
        for run in range(KILLS + 2):
            begin = time.perf_counter()
            child = int(say())
            if run > 1:  # the first ones end by themselves, and the second says how long that takes
                time.sleep(rng.uniform(0, whole))
                os.kill(child, signal.SIGKILL)
            assert say() == "ended\n"
            if run == 1:
                whole = time.perf_counter() - begin
    seen = [check_killed(tmp_path / f"{run}.zarr", expected) for run in range(KILLS + 2)]
    assert seen[:2] == [ENTRIES] * 2
    assert len(set(seen)) > 2  # else all were killed at one moment, and this tested little


def check_killed(path: Path, expected) -> int:
    finished = 0
    if (path / "zarr.json").exists():
        trace = saccade.open_trace(path)
        finished = len(trace)
        assert all(same(trace[i], expected[i]) for i in range(finished))
        assert trace.complete == (finished == ENTRIES and trace.unfinished is None) or finished == ENTRIES
        begun = sorted(int(p.name) for p in (path / "entries").glob("0*"))
        assert trace.unfinished == (begun[-1] if len(begun) > finished else None)
        verdict = verify(path)
        assert verdict.right, verdict.findings
        assert verdict.complete == trace.complete
    record_all(path, resume=True)
    trace = saccade.open_trace(path)
    assert trace.complete
    assert len(trace) == ENTRIES
    assert all(same(trace[i], expected[i]) for i in range(ENTRIES))
    return finished


# ---------------------------------------------------------------------------------------- no room, no right


def test_a_file_that_may_not_grow(tmp_path, expected):
    """The disk refuses in the middle: a named error, and what was finished before is whole."""
    path, net = tmp_path / "run.zarr", Net()
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(TraceWriteError, match="entries that were finished are whole"):  # noqa: PT012, SIM117
            with saccade.record(net, keep="qk", to=path):
                net(inputs(0))
                net(inputs(1))
                resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
                net(inputs(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    trace = saccade.open_trace(path)
    assert len(trace) == 2
    assert all(same(trace[i], expected[i]) for i in range(2))
    assert verify(path).right
    record_all(path, resume=True)
    assert same(saccade.open_trace(path)[5], expected[5])


FULL = """
import sys, saccade
sys.path.insert(0, sys.argv[1])
from nets import Net, inputs
from saccade.errors import TraceWriteError
net = Net()
try:
    with saccade.record(net, keep="qk", to=sys.argv[2]):
        for entry in range(1000):
            net(inputs(0))
except TraceWriteError as error:
    print(error)
trace = saccade.open_trace(sys.argv[2])
from saccade.trace.verification import verify
print(len(trace), verify(sys.argv[2]).right)
"""


def test_a_full_disk(tmp_path):
    """A real one, of 2 MB."""
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    script = f'mount -t tmpfs -o size=2m none "{tmp_path}" && exec "$@"'
    if shutil.which("unshare") is None or subprocess.run([*mount, script, "-", "true"], check=False).returncode:
        pytest.skip("this user may not mount a small file system")
    command = [*mount, script, "-", sys.executable, "-c", FULL, str(NETS.parent), str(tmp_path / "run.zarr")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert "No space left on device" in found
    count, right = found.splitlines()[-1].split()
    assert int(count) > 2
    assert right == "True"


def test_a_second_recorder_is_refused(tmp_path):
    path, net = tmp_path / "run.zarr", Net()
    with saccade.record(net, to=path):
        for resume in (False, True):
            with pytest.raises((TraceBusyError, TraceExistsError)), saccade.record(Net(), to=path, resume=resume):
                pytest.fail("there are two")
        with pytest.raises(TraceBusyError, match="another recorder"), saccade.record(Net(), to=path, resume=True):
            pytest.fail("there are two")
        other = subprocess.run([sys.executable, NETS, "once", path], capture_output=True, text=True, check=False)
        assert other.returncode
        assert "TraceBusyError" in other.stderr or "TraceExistsError" in other.stderr
        net(inputs(0))
    assert verify(path).right
    assert not (path / ".lock").exists()


@pytest.mark.parametrize("what", ["file", "folder", "model", "options", "no right"])
def test_a_place_that_is_taken(what, tmp_path):
    path = tmp_path / "run.zarr"
    options = {"resume": True}
    if what == "file":
        path.write_text("mine")
    elif what == "folder":
        path.mkdir()
        (path / "thesis.tex").write_text("mine")
    elif what == "no right":
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        tmp_path.chmod(0o500)
    else:
        net = Net()
        with saccade.record(net, to=path, keep="qk"):
            net(inputs(0))
    net = Net() if what != "model" else Layer()
    if what == "model":
        options["keep"] = "qk"
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()} if path.is_dir() else None
    error = TraceWriteError if what == "no right" else TraceExistsError
    with pytest.raises(error), saccade.record(net, to=path, **options):
        pytest.fail("it was overwritten")
    assert before is None or before == {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


# ---------------------------------------------------------------------------------------- damaged

ENTRY = "entries/000000"
SHARD = f"{ENTRY}/stacks/0/queries/c.0.0.0.0.0"
ARRAY = f"{ENTRY}/stacks/0/queries/zarr.json"


def read_all(path) -> None:
    """Read every number of a trace, as a user could."""
    for entry in saccade.open_trace(path):
        for name in entry.metadata.arrays:
            entry._arrays.read(name)


def change(path: Path, edit, member: str = "saccade") -> None:
    """Change what a group says of itself, and seal it again: not an accident, but ill will."""
    document = json.loads(path.read_text())
    said = document["attributes"][member]
    edit(said)
    if "digest" in said:
        said["digest"] = digest(said)
    path.write_text(json.dumps(document))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def rewrite(path: Path, edit) -> None:
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


ACCIDENTS = {
    "no root": (lambda p: (p / "zarr.json").unlink(), NotATraceError),
    "another root": (lambda p: (p / "zarr.json").write_text("{}"), NotATraceError),
    "a root that is no JSON": (lambda p: (p / "zarr.json").write_text("{"), NotATraceError),
    "a root that is no text": (lambda p: (p / "zarr.json").write_bytes(b"\xff\xfe\x00"), NotATraceError),
    "a root of ten thousand brackets": (lambda p: (p / "zarr.json").write_text("[" * 100_000), NotATraceError),
    "a root that was edited": (
        lambda p: rewrite(p / "zarr.json", lambda d: d["attributes"]["saccade"].update(keep="qkv")),
        DamagedTraceError,
    ),
    "a root in UTF-16": (
        lambda p: (p / "zarr.json").write_bytes((p / "zarr.json").read_text().encode("utf-16")),
        NotATraceError,
    ),
    "no entry": (lambda p: shutil.rmtree(p / ENTRY), DamagedTraceError),
    "one entry too few": (lambda p: shutil.rmtree(p / "entries/000001"), DamagedTraceError),
    "no metadata": (lambda p: (p / ENTRY / "zarr.json").unlink(), DamagedTraceError),
    "metadata cut off": (lambda p: cut(p / ENTRY / "zarr.json", 500), DamagedTraceError),
    "metadata that were edited": (
        lambda p: rewrite(p / ENTRY / "zarr.json", lambda d: d["attributes"]["saccade"]["sites"][0].update(scale=0.5)),
        DamagedTraceError,
    ),
    "metadata with NaN": (
        lambda p: rewrite(
            p / ENTRY / "zarr.json", lambda d: d["attributes"]["saccade"]["sites"][0].update(scale=float("nan"))
        ),
        DamagedTraceError,
    ),
    "a shard is missing": (lambda p: (p / SHARD).unlink(), DamagedTraceError),
    "a shard is empty": (lambda p: cut(p / SHARD, 0), DamagedTraceError),
    "a shard is cut off": (lambda p: cut(p / SHARD, 1000), DamagedTraceError),
    "a shard is short of a byte": (lambda p: cut(p / SHARD, (p / SHARD).stat().st_size - 1), DamagedTraceError),
    "a shard of another array": (
        lambda p: shutil.copy(p / f"{ENTRY}/stacks/0/lse/c.0.0.0.0", p / SHARD),
        DamagedTraceError,
    ),
    "a shard is a folder": (lambda p: ((p / SHARD).unlink(), (p / SHARD).mkdir()), DamagedTraceError),
    "a shard is noise": (lambda p: (p / SHARD).write_bytes(random.Random(0).randbytes(5000)), DamagedTraceError),
    "no array metadata": (lambda p: (p / ARRAY).unlink(), DamagedTraceError),
    "array metadata cut off": (lambda p: cut(p / ARRAY, 100), DamagedTraceError),
}


@pytest.mark.parametrize("name", ACCIDENTS)
def test_accidents(name, bad):
    damage, error = ACCIDENTS[name]
    damage(bad)
    with pytest.raises(error) as raised:
        read_all(bad)
    assert "bad.zarr" in str(raised.value)
    if error is NotATraceError:
        with pytest.raises(error):
            verify(bad)
    else:
        assert not verify(bad).right


def entry_edit(edit):
    return lambda p: change(p / ENTRY / "zarr.json", edit)


def stack_edit(**changes):
    return entry_edit(lambda said: said["stacks"][0].update(changes))


def site_edit(**changes):
    return entry_edit(lambda said: said["sites"][0].update(changes))


def array_edit(edit):
    return lambda p: rewrite(p / ARRAY, edit)


def link_out(path: Path) -> None:
    """A shard that is somebody else's file."""
    secret = path.parent / "secret"
    secret.write_bytes((path / SHARD).read_bytes())
    (path / SHARD).unlink()
    (path / SHARD).symlink_to(secret)


def link_folder_out(path: Path) -> None:
    shutil.move(path / ENTRY, path.parent / "elsewhere")
    (path / ENTRY).symlink_to(path.parent / "elsewhere")


HOSTILE = {
    "version 2": (lambda p: change(p / "zarr.json", lambda said: said.update(version=2)), TraceVersionError),
    "version true": (lambda p: change(p / "zarr.json", lambda said: said.update(version=True)), TraceVersionError),
    "no version": (lambda p: change(p / "zarr.json", lambda said: said.pop("version")), TraceVersionError),
    "keep": (lambda p: change(p / "zarr.json", lambda said: said.update(keep="../..")), TraceFormatError),
    "entries": (lambda p: change(p / "zarr.json", lambda said: said.update(entries=10**12)), DamagedTraceError),
    "huge entries": (lambda p: change(p / "zarr.json", lambda said: said.update(entries=10**30)), TraceFormatError),
    "beyond any float": (
        lambda p: change(p / "zarr.json", lambda said: said.update(entries=10**400)),
        TraceFormatError,
    ),
    "a scale beyond any float": (site_edit(scale=10**400), TraceFormatError),
    "members missing": (entry_edit(lambda said: said.pop("sites")), TraceFormatError),
    "a list for a number": (stack_edit(heads=[4]), TraceFormatError),
    "a string for a number": (stack_edit(heads="4"), TraceFormatError),
    "heads that are not there": (stack_edit(heads=5, head_numbers=[0, 1, 2, 3, 4]), TraceFormatError),
    "negative": (stack_edit(queries=-1), TraceFormatError),
    "a huge batch": (stack_edit(batch=1 << 39), TraceFormatError),
    "huge lengths": (stack_edit(queries=1 << 39, keys=1 << 39), TraceFormatError),
    "larger than 2**40": (stack_edit(queries=1 << 41), TraceFormatError),
    "a float for a size": (stack_edit(queries=40.0), TraceFormatError),
    "another dtype": (stack_edit(precision="float64"), TraceFormatError),
    "an object dtype": (stack_edit(precision="object"), TraceFormatError),
    "a way out": (stack_edit(kept=["../../../secret"]), TraceFormatError),
    "a statistic that there is not": (
        stack_edit(statistics=[{"field": "../x", "numbers": [], "grouped": False}]),
        TraceFormatError,
    ),
    "a map of 2**40 cells": (
        stack_edit(statistics=[{"field": "map", "numbers": [1 << 40, 1 << 40, 1, 0], "grouped": False}]),
        TraceFormatError,
    ),
    "numbers missing": (stack_edit(statistics=[{"field": "map", "numbers": [], "grouped": False}]), TraceFormatError),
    "numbers too many": (stack_edit(statistics=[{"field": "lse", "numbers": [1], "grouped": False}]), TraceFormatError),
    "groups without end": (
        stack_edit(statistics=[{"field": "mass", "numbers": [1 << 40], "grouped": True}]),
        DamagedTraceError,  # there are no such arrays
    ),
    "two sites of a name": (entry_edit(lambda said: said["sites"].append(said["sites"][0])), TraceFormatError),
    "a row that there is not": (site_edit(row=7), TraceFormatError),
    "a stack that there is not": (site_edit(stack=-1), TraceFormatError),
    "a mask that there is not": (site_edit(mask=3), TraceFormatError),
    "another entry": (entry_edit(lambda said: said.update(index=1)), TraceFormatError),
    "an entry that is not done": (entry_edit(lambda said: said.update(complete=False)), DamagedTraceError),
    "softcap": (site_edit(softcap=-1.0), TraceFormatError),
    "array: shape": (array_edit(lambda d: d.update(shape=[1, 1, 4, 1 << 40, 16])), TraceFormatError),
    "array: data type": (array_edit(lambda d: d.update(data_type="float64")), TraceFormatError),
    "array: is a group": (array_edit(lambda d: d.update(node_type="group")), TraceFormatError),
    "array: another codec": (array_edit(lambda d: d.update(codecs=[{"name": "numcodecs.pickle"}])), TraceFormatError),
    "array: pickle within": (
        array_edit(lambda d: d["codecs"][0]["configuration"]["codecs"].insert(0, {"name": "numcodecs.pickle"})),
        TraceFormatError,
    ),
    "array: no checksum": (
        array_edit(lambda d: d["codecs"][0]["configuration"]["codecs"][1]["configuration"].update(checksum=False)),
        TraceFormatError,
    ),
    "array: chunks without end": (
        array_edit(lambda d: d["codecs"][0]["configuration"].update(chunk_shape=[1, 1, 1 << 20, 1 << 20, 16])),
        TraceFormatError,
    ),
    "array: shards without end": (
        array_edit(lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[1, 1, 4, 1 << 39, 16])),
        TraceFormatError,
    ),
    "array: chunks of nothing": (
        array_edit(lambda d: d["codecs"][0]["configuration"].update(chunk_shape=[1, 1, 0, 40, 16])),
        TraceFormatError,
    ),
    "array: tiny chunks": (
        array_edit(lambda d: d["codecs"][0]["configuration"].update(chunk_shape=[1, 1, 1, 1, 1])),
        DamagedTraceError,
    ),
    "array: transformers": (array_edit(lambda d: d.update(storage_transformers=[{"name": "x"}])), TraceFormatError),
    "array: other names": (array_edit(lambda d: d.update(dimension_names=["a", "b", "c", "d", "e"])), TraceFormatError),
    "array: other keys": (array_edit(lambda d: d.update(chunk_key_encoding={"name": "v2"})), TraceFormatError),
    "array: a list": (lambda p: (p / ARRAY).write_text("[]"), TraceFormatError),
    "a link out": (link_out, TraceFormatError),
    "a folder that is a link out": (link_folder_out, TraceFormatError),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_ill_will(name, bad):
    damage, error = HOSTILE[name]
    damage(bad)
    with pytest.raises(error):
        read_all(bad)
    if error is TraceVersionError:
        with pytest.raises(error):
            verify(bad)
    else:
        assert not verify(bad).right


def test_a_bomb_does_not_go_off(bad):
    """A chunk that says it unpacks to a terabyte, and one that unpacks to a gigabyte without saying so."""
    import numpy as np
    from numcodecs.zstd import Zstd

    shard = bad / SHARD
    size = int(np.prod(json.loads((bad / ARRAY).read_text())["codecs"][0]["configuration"]["chunk_shape"])) * 4
    head = bytearray(Zstd(level=1, checksum=True).encode(bytes(size)))
    assert frame_content_size(bytes(head)) == size
    bomb = Zstd(level=1, checksum=True).encode(bytes(1 << 28))
    assert len(bomb) < 1 << 16
    import google_crc32c

    for content in (bomb, b"\x28\xb5\x2f\xfd\xe4" + (1 << 40).to_bytes(8, "little") + bomb[13:]):
        index = np.array([[0, len(content)]] * 1, "<u8").tobytes()
        shard.write_bytes(content + index + google_crc32c.value(index).to_bytes(4, "little"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(DamagedTraceError, match=r"frame|cut off|lacks"):
            read_all(bad)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # KiB


def test_any_flipped_bit_is_found_or_means_nothing(bad, good):
    """Zstandard has bits that no decoder looks at; all others change what is read, and are found."""
    whole = saccade.open_trace(good)
    rng = random.Random(1)
    for file in sorted(p for p in bad.rglob("*") if p.is_file()):
        content = file.read_bytes()
        for _ in range(6):
            broken = bytearray(content)
            broken[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.write_bytes(broken)
            try:
                trace = saccade.open_trace(bad)
                assert all(same(trace[i], whole[i]) for i in range(2)), file
            except TraceError:
                pass
        file.write_bytes(content)
    assert verify(bad).right


def numbers_edit(name: str, edit):
    """Change the numbers of an array, with right checksums."""

    def damage(path: Path) -> None:
        import zarr

        array = zarr.open_array(path / ENTRY / name, mode="r+")
        values = array[...]
        edit(values)
        array[...] = values

    return damage


def set_all(value):
    def edit(values) -> None:
        values[...] = value

    return edit


LIES = {
    "19": numbers_edit("stacks/0/entropy", set_all(99)),
    "19 weights": numbers_edit("stacks/0/top_weights", set_all(-0.5)),
    "20": numbers_edit("stacks/0/top_keys", set_all(100)),
    "20 twice": numbers_edit("stacks/0/top_keys", set_all(3)),
    "22": numbers_edit("maps/0/0/s1/map", set_all(0.5)),
    "23": numbers_edit("masks/0/starts", set_all(101)),
    "25": numbers_edit("stacks/0/head", set_all(2)),
    "18": lambda p: rewrite(
        p / f"{ENTRY}/stacks/0/lse/zarr.json", lambda d: d["attributes"].update(precision="float16")
    ),
    "17": lambda p: rewrite(p / f"{ENTRY}/stacks/0/lse/zarr.json", lambda d: d.update(fill_value=0.0)),
    "11 21": lambda p: rewrite(p / f"{ENTRY}/maps/0/0/zarr.json", lambda d: d["attributes"].clear()),
    "18 bfloat16": numbers_edit("../000001/stacks/0/queries", set_all(0.1)),
}


@pytest.mark.parametrize("name", LIES)
def test_numbers_that_cannot_be(name, bad):
    LIES[name](bad)
    found = verify(bad).findings
    sentences = {sentence for finding in found for sentence in finding.sentence.split()}
    assert name.split()[0] in sentences, found


# ---------------------------------------------------------------------------------------- many readers


def _entropy(path: str) -> float:
    torch.set_num_threads(1)
    return float(saccade.open_trace(path)[0, 0].statistics.entropy.sum())


def test_several_processes_read(good):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_entropy, [str(good)] * 4))
    assert set(found) == {float(saccade.open_trace(good)[0, 0].statistics.entropy.sum())}


class Files(BaseHTTPRequestHandler):
    """Serves the files of `root`; knows ranges if `ranges`."""

    root: Path
    ranges = True

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.root / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content, status = path.read_bytes(), 200
        total, part = len(content), self.headers.get("Range")
        if part and self.ranges:
            first, last = part.removeprefix("bytes=").split("-")
            start = int(first) if first else max(0, total - int(last))
            stop = min(int(last) + 1, total) if first and last else total
            content, status = content[start:stop], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_over_http(good, ranges):
    pytest.importorskip("aiohttp")
    handler = type("Handler", (Files,), {"root": good.parent, "ranges": ranges})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        found, local = saccade.open_trace(f"{url}/good.zarr"), saccade.open_trace(good)
        assert len(found) == 2
        assert all(same(found[i], local[i]) for i in range(2))
        assert torch.equal(found[0, 0, [1]].pattern.dense(), local[0, 0, [1]].pattern.dense())
        assert verify(f"{url}/good.zarr").right
        with pytest.raises(NotATraceError):
            saccade.open_trace(f"{url}/nothing.zarr")
        server.shutdown()
        thread.join()
    with pytest.raises(NotATraceError):
        saccade.open_trace(f"{url}/good.zarr")

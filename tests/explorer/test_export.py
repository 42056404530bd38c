"""Saved pages: a file for a text, a folder for a trace."""

from __future__ import annotations

import base64
import codecs
import gzip
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import saccade
from saccade.adapters import pretrained
from saccade.errors import ArgumentError, DamagedTraceError, SaccadeError
from saccade.explorer import folder, standalone
from saccade.explorer import page as built_page
from saccade.explorer.explorer import Explorer
from saccade.trace.verification import verify

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/trace/golden.zarr"
SAVED = Path(__file__).with_name("saved.bin")


@pytest.fixture
def page(tmp_path):
    """What the browser's part is built to, as far as it matters here; the script is as large as it may be."""
    place = tmp_path / "page"
    letters = np.random.default_rng(0).integers(33, 97, 230_000, dtype=np.uint8).tobytes().decode()
    files = {
        "index.html": (ROOT / "web/index.html").read_text().replace("/src/main.ts", "./assets/index-1.js"),
        "icon.svg": "<svg/>",
        "assets/index-1.js": "0",
        "embed/embed.js": f"//{letters}\nconst é = '</script><!-- <script>';\n",
        "embed/embed.css": "a > b { color: red }",
        "assets/.hidden": "no part of it",
    }
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    return place


def unlettered(found):
    """The bytes of an element of a saved page, as its own script unpacks them."""
    plain = re.sub("~(.)", lambda match: chr(ord(match[1]) ^ 0x8000), found["content"], flags=re.DOTALL)
    return gzip.decompress(plain.encode("utf-16-le", "surrogatepass")[: int(found["bytes"])])


def read_page(path):
    """The text of a saved page; it says its encoding by its first bytes."""
    assert path.read_bytes().startswith(codecs.BOM_UTF16_LE)
    return path.read_bytes().decode("utf-16")


def element(text, name):
    pattern = (
        rf'<script type="text/plain" id="packed-{name}" data-bytes="(?P<bytes>\d+)"[^>]*>(?P<content>[^<]*)</script>'
    )
    return re.search(pattern, text).groupdict()


def unpacked(parcel):
    """A parcel's answer, arrays in their places."""
    length = int.from_bytes(parcel[:4], "little")
    header = json.loads(parcel[4 : 4 + length])
    base = -(-(4 + length) // 8) * 8
    found = dict(header["answer"])
    for name, array in header["arrays"].items():
        count = int(np.prod(array["shape"]))
        found[name] = np.frombuffer(parcel, f"<{array['dtype']}", count, base + array["offset"]).reshape(array["shape"])
    return found


def files_of(path):
    """The files in a saved page."""
    return {
        name: content.tobytes() for name, content in unpacked(unlettered(element(read_page(path), "files"))).items()
    }


def array_of(files, path):
    """An array of the store in a saved page."""
    about = json.loads(files[f"{path}/zarr.json"])
    (chunk,) = (content for name, content in files.items() if name.startswith(f"{path}/c"))
    dtype = np.dtype(about["data_type"])
    plain = np.frombuffer(chunk, np.uint8).reshape(dtype.itemsize, -1).T.tobytes()
    return np.frombuffer(plain, dtype).reshape(about["shape"])


@pytest.fixture
def explorer(model):
    return standalone.reading(pretrained.load(model), "He left the rose by the bank.")[0]


ENTRY = "trace/entries/000000"

# ---------------------------------------------------------------------------------------- one file


def test_a_page_holds_the_numbers_of_its_text(explorer, page, tmp_path):
    out = tmp_path / "page.html"
    assert standalone.write_page(explorer, out, folder=page) is False
    files, (text,) = files_of(out), explorer.library.texts
    for name in ("queries", "keys", "values", "lse"):
        found, expected = array_of(files, f"{ENTRY}/stacks/0/{name}"), text.entry.stacked(name)
        np.testing.assert_array_equal(found, expected.numpy())
    np.testing.assert_array_equal(array_of(files, f"{ENTRY}/hidden/0/states")[0], text.entry[0].hidden.numpy())
    about = unpacked(files["answers/document"])
    assert about["precision"] == "full"
    assert "saved" in about["abilities"]["read"]
    assert about["abilities"]["inside"] is True
    assert [site["map"] for site in about["texts"][0]["sites"]] == [None] * 3
    assert json.loads(files["answers/places"]) == {"0": [0, 0]}
    tokens = unpacked(files["answers/tokens/0/0"])
    assert tokens["labels"] == explorer.answer("tokens", {"text": "0", "sequence": "0"})["labels"]
    assert unpacked(files["answers/roles/0"])["roles"] == explorer.run("roles", {"text": "0"})["roles"]
    assert not any(re.search("entropy|maps|top_keys", name) for name in files)


def test_a_page_may_run_its_two_scripts_only(explorer, page, tmp_path):
    out = tmp_path / "page.html"
    standalone.write_page(explorer, out, look='/pattern?site=1"', folder=page)
    text = read_page(out)
    policy = html.unescape(re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1])
    script = unlettered(element(text, "page"))
    assert script == (page / "embed/embed.js").read_bytes()
    (loader,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    style = unlettered(element(text, "style"))
    assert style.startswith((page / "embed/embed.css").read_bytes())

    def hashed(content):
        return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"

    assert f"script-src {hashed(loader.encode())} {hashed(script)};" in policy
    assert f"style-src {hashed(style)};" in policy
    assert policy.startswith("default-src 'none'; ")
    assert not re.search(r"unsafe|https?:|\*", policy)
    assert not re.search(r"(src|href)=\"(?!data:)", text), "it fetches something"
    assert text.index("Content-Security-Policy") < text.index("<script")
    assert 'data-look="/pattern?site=1&quot;"' in text


HOSTILE = "</script><script>alert(1)</script> <!-- ]]> \u2028 \u2029 & \" ' {{page}} <b> \x01"


def test_hostile_text_stays_text(model, page, tmp_path):
    out = tmp_path / "page.html"
    explorer, _ = standalone.reading(pretrained.load(model), HOSTILE)
    standalone.write_page(explorer, out, folder=page)
    text = read_page(out)
    assert text.count("<script") == text.count("</script>") == 4
    assert not re.search("[\0\r]", text)
    text = re.sub(r'id="packed-[^<]*<', "", text)
    assert "alert(1)" not in re.sub(r"<title>.*?</title>", "", text, flags=re.DOTALL)
    title = re.search(r"<title>(.*?)</title>", text, re.DOTALL)[1]
    assert "<" not in title
    assert html.unescape(title).startswith("</script><script>alert(1)</script>")
    assert not re.search("[\u2028\u2029\x00-\x08]", text)
    assert unpacked(files_of(out)["answers/document"])["texts"][0]["text"] == HOSTILE


class Deep(nn.Module):
    """Attention of the shapes of a base-size encoder; its queries, keys and values are as hard to pack as any."""

    def __init__(self, layers=12, heads=12, width=64, scale=1.0):
        super().__init__()
        self.layers = nn.ModuleList([Normal(heads, width, scale, seed) for seed in range(layers)])

    def forward(self, input_ids):
        heads, width = self.layers[0].heads, self.layers[0].width
        hidden = torch.randn(1, input_ids.shape[1], heads * width, generator=torch.Generator().manual_seed(0))
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Normal(nn.Module):
    def __init__(self, heads, width, scale, seed):
        super().__init__()
        self.heads, self.width, self.scale, self.seed = heads, width, scale, seed

    def forward(self, hidden_states):
        shape = (3, 1, self.heads, hidden_states.shape[1], self.width)
        random = torch.Generator().manual_seed(self.seed)
        query, key, value = torch.randn(shape, generator=random) * self.scale
        saccade.attention(query, key, value)
        return hidden_states + torch.randn(hidden_states.shape, generator=random)


def deep(tokens, **sizes):
    net = Deep(**sizes)
    with saccade.record(net, keep="qkv", name="deep") as trace:
        net(input_ids=torch.arange(tokens)[None])
    return Explorer(trace)


def test_a_sentence_of_a_base_size_model_stays_small(page, tmp_path):
    """18 tokens, 12 x 12 heads, width 768: at most 1.5 MB, in half precision; rows still sum to 1."""
    out = tmp_path / "page.html"
    assert standalone.write_page(deep(18), out, folder=page) is True
    assert 1_000_000 < out.stat().st_size <= standalone.SMALL == 1_500_000
    files = files_of(out)
    assert unpacked(files["answers/document"])["precision"] == "half"
    query, key = (array_of(files, f"{ENTRY}/stacks/0/{name}") for name in ("queries", "keys"))
    assert query.dtype == key.dtype == np.float16
    lse = array_of(files, f"{ENTRY}/stacks/0/lse")
    scores = query.astype(float) @ key.astype(float).swapaxes(-1, -2) / 8
    np.testing.assert_allclose(np.exp(scores - lse[..., None]).sum(-1), 1, atol=2e-6)


def test_what_half_precision_cannot_hold_is_not_rounded(page, tmp_path):
    out = tmp_path / "page.html"
    assert standalone.write_page(deep(16, scale=1e5), out, folder=page) is True
    files = files_of(out)
    assert array_of(files, f"{ENTRY}/stacks/0/queries").dtype == np.float32
    assert array_of(files, f"{ENTRY}/hidden/0/states").dtype == np.float16


def test_a_long_text_is_for_a_folder(page, tmp_path, monkeypatch):
    monkeypatch.setattr(standalone, "LARGEST", 1 << 20)
    with pytest.raises(ArgumentError, match=r"the text is 64 tokens long.* 5 MiB.*saccade export"):
        standalone.write_page(deep(64), tmp_path / "page.html", folder=page)
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_is_not_built_is_said_to_be_missing(explorer, page, tmp_path):
    shutil.rmtree(page / "embed")
    with pytest.raises(SaccadeError, match=r"embed\.js is missing.*make page"):
        standalone.write_page(explorer, tmp_path / "page.html", folder=page)


# ---------------------------------------------------------------------------------------- the command


def test_show_writes_a_page(run, model, page, tmp_path, monkeypatch):
    monkeypatch.setattr(built_page, "BUILT", page)
    monkeypatch.setattr(
        standalone.write_page, "__kwdefaults__", {**standalone.write_page.__kwdefaults__, "folder": page}
    )
    out = tmp_path / "page.html"
    code, said, remarks = run(
        "show", "He left the rose.", "--model", model, "--layer", 2, "--head", 1, "--special", "-o", out
    )
    assert (code, said.strip(), remarks) == (0, f"wrote {out}", "")
    assert 'data-look="/pattern?site=2&amp;head=1&amp;special=1"' in read_page(out)
    code, _, said = run("show", "He left.", "--model", model, "--token", "left", "--out", tmp_path / "other.html")
    assert code == 2
    assert "--token" in said
    code, _, said = run("show", "he " * 100, "--model", model, "--truncate", "--out", out)
    assert code == 0, said
    assert "38 tokens at the end were cut off" in said
    code, _, said = run("show", "He left.", "--model", model, "--layer", 9, "--out", tmp_path / "other.html")
    assert code == 2
    assert "layer" in said
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["page.html"]


# ---------------------------------------------------------------------------------------- a folder


def write(trace, out, page, **more):
    folder.write_folder(trace, out, folder=page, **more)
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_a_folder_holds_page_answers_and_trace(page, tmp_path):
    out = tmp_path / "out"
    files = write(GOLDEN, out, page)
    assert {name for name in files if not name.startswith("trace/")} == {
        "index.html", "icon.svg", "assets/index-1.js", "answers/document", "answers/places", "answers/tokens/0/0",
        "answers/heads/0", "answers/roles/0",
    }  # fmt: skip
    copied = {path.relative_to(GOLDEN).as_posix(): path for path in GOLDEN.rglob("*") if path.is_file()}
    assert {name.removeprefix("trace/") for name in files if name.startswith("trace/")} == set(copied)
    for name, path in copied.items():
        if path.name != "zarr.json" or "stacks" in name:
            assert (out / "trace" / name).read_bytes() == path.read_bytes()
    assert verify(out / "trace").right
    assert saccade.open_trace(out / "trace")[0].metadata == saccade.open_trace(GOLDEN)[0].metadata
    index = (out / "index.html").read_text()
    assert '<meta name="saccade-exported" />' in index
    assert index.index("Content-Security-Policy") < index.index("<script")
    assert not os.access(out, os.X_OK, effective_ids=False) or out.stat().st_mode & 0o555 == 0o555


@pytest.fixture
def several(tmp_path):
    """A trace of four entries."""
    net = Deep(layers=2, heads=2, width=4)
    with saccade.record(net, keep="qkv", to=tmp_path / "run.zarr", name="several") as trace:
        for tokens in (5, 6, 7, 8):
            net(input_ids=torch.arange(tokens)[None])
    assert len(trace) == 4
    return tmp_path / "run.zarr"


def test_some_entries(several, page, tmp_path):
    out = tmp_path / "out"
    write(several, out, page, entries=[3, 1])
    assert verify(out / "trace").right
    trace, given = saccade.open_trace(out / "trace"), saccade.open_trace(several)
    assert [entry.stacks[0].queries for entry in trace] == [6, 8]
    assert torch.equal(trace[1].stacked("queries"), given[3].stacked("queries"))
    about = unpacked((out / "answers/document").read_bytes())
    places = json.loads((out / "answers/places").read_text())
    assert [places[text["id"]] for text in about["texts"]] == [[0, 0], [1, 0]]
    assert [text["sites"][0]["queries"] for text in about["texts"]] == [6, 8]


def test_what_lies_beside_is_not_copied(several, page, tmp_path):
    entry = several / "entries/000000"
    (entry / "stacks/0/queries/secret.txt").write_text("secret")
    (entry / "stacks/0/queries/c.9.0.0.0.0").write_text("secret")
    (several / "elsewhere").symlink_to(tmp_path)
    files = write(several, tmp_path / "out", page)
    assert not [name for name in files if "secret" in name or "c.9" in name or "elsewhere" in name]


def test_no_link_is_followed_out_of_the_trace(several, page, tmp_path):
    shard = next((several / "entries/000001/stacks/0/queries").glob("c.*"))
    shard.rename(tmp_path / "outside")
    shard.symlink_to(tmp_path / "outside")
    with pytest.raises(SaccadeError, match="leads out of the trace"):
        folder.write_folder(several, tmp_path / "out", folder=page)
    assert not (tmp_path / "out").exists()
    write(several, tmp_path / "out", page, entries=[0])


def test_a_damaged_trace_is_not_exported(several, page, tmp_path):
    shard = next((several / "entries/000002/stacks/0/values").glob("c.*"))
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedTraceError, match="was not exported"):
        folder.write_folder(several, tmp_path / "out", folder=page)
    shard.unlink()
    with pytest.raises(DamagedTraceError, match="is missing"):
        folder.write_folder(several, tmp_path / "out", folder=page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "run.zarr"]


def test_nothing_is_overwritten(several, page, tmp_path):
    out = tmp_path / "out"
    for make in (out.mkdir, lambda: out.write_text("mine"), lambda: out.symlink_to(tmp_path / "nowhere")):
        make()
        with pytest.raises(ArgumentError, match="nothing is overwritten"):
            folder.write_folder(several, out, folder=page)
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    with pytest.raises(ArgumentError, match="there is no folder"):
        folder.write_folder(several, tmp_path / "no/out", folder=page)
    with pytest.raises(ArgumentError, match=r"entries 4: .* has 4 entries, from 0"):
        folder.write_folder(several, out, entries=[4], folder=page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "run.zarr"]


def test_a_stopped_export_leaves_nothing(several, page, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write_folder(several, tmp_path / "out", folder=page, progress=stop)
    monkeypatch.setattr(folder, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ArgumentError, match="was not written: No space left"):
        folder.write_folder(several, tmp_path / "out", folder=page)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page", "run.zarr"]


def test_export_writes_a_folder(run, several, page, tmp_path, monkeypatch):
    monkeypatch.setattr(built_page, "BUILT", page)
    monkeypatch.setattr(folder.write_folder, "__kwdefaults__", {**folder.write_folder.__kwdefaults__, "folder": page})
    out = tmp_path / "out"
    assert run("export", several, "--entries", "1-2", "--out", out) == (0, f"wrote {out}\n", "")
    assert len(saccade.open_trace(out / "trace")) == 2
    code, _, said = run("export", several, "--out", out)
    assert code == 2
    assert "nothing is overwritten" in said
    code, _, said = run("export", several)
    assert code == 2
    assert "--out FOLDER" in said


# ---------------------------------------------------------------------------------------- for the browser's tests


def test_the_script_makes_what_the_browser_is_compared_with(tmp_path):
    """The same files and answers; numbers up to how this machine rounds."""
    script = ROOT / "scripts/saved_answers.py"
    subprocess.run([sys.executable, script, tmp_path / "saved.bin"], check=True)
    made, kept = (unpacked(gzip.decompress(path.read_bytes())) for path in (tmp_path / "saved.bin", SAVED))
    assert made["cases"] == kept["cases"]
    assert made.keys() == kept.keys()
    for case in kept["cases"]:
        mine, theirs = (unpacked(found[case["answer"]].tobytes()) for found in (made, kept))
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_allclose(mine[name], value, rtol=1e-4, atol=1e-5, err_msg=f"{case} {name}")
            elif isinstance(value, float):
                assert mine[name] == pytest.approx(value, rel=1e-4), f"{case} {name}"
            else:
                assert mine[name] == value, f"{case} {name}"

"""Saved pages in the browser: one file, opened from a disk or a host, and a folder on any static host."""

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from test_numbers import agree, close, hovered

import saccade
from saccade.adapters import pretrained
from saccade.explorer import folder, standalone
from saccade.explorer.parcel import pack

TEXT = "He left the roses by the bank."
ANY_HOST = "http://127.0.0.1:9/"  # nothing comes there: the test answers


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of one sentence."""
    out = tmp_path_factory.mktemp("saved") / "page.html"
    explorer, _ = standalone.reading(pretrained.load(None), TEXT)
    assert standalone.write_page(explorer, out, look="/pattern?site=2&head=5") is False
    return out


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The address of a folder on a plain file server."""
    place, reader = tmp_path_factory.mktemp("exported"), pretrained.load(None)
    with saccade.record(reader.model, reader.tokenizer, keep="qkv", to=place / "run.zarr") as trace, torch.no_grad():
        trace.next(texts=[TEXT])
        reader.model(**reader.tokenizer(TEXT, return_tensors="pt"))
    folder.write_folder(place / "run.zarr", place / "site", reader=reader)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=place / "site"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_file_on_a_disk(visit, file, reading):
    """It opens at the look it was saved with, says the right numbers, and asks for nothing."""
    visit.open(file.as_uri())
    agree(found := hovered(visit, 8), reading(TEXT).weights[2, 5])
    assert len(found) > 30
    assert visit.asked == [file.as_uri()]
    assert visit.tab.title() == f"{TEXT} – Saccade"


def test_a_text_that_is_not_in_a_file(visit, file):
    visit.open(f"{file.as_uri()}#/pattern?text=~Typed%20here")
    notice = visit.tab.get_by_role("region", name="Text", exact=True).get_by_role("status")
    assert notice.inner_text().startswith("The link names a text that is not open here")


@pytest.mark.parametrize("says", ["text/html", "text/html; charset=utf-8", "text/html; charset=windows-1252"])
def test_a_file_on_a_host_that_says_another_encoding(visit, file, reading, says):
    visit.tab.route(ANY_HOST, lambda route: route.fulfill(body=file.read_bytes(), content_type=says))
    visit.open(f"{ANY_HOST}#/pattern?site=1&head=3")
    saved = visit.saved_json()
    assert saved["query_tokens"] == reading(TEXT).tokens_as_printed()
    close(saved["weights"], reading(TEXT).weights[1, 3], 1e-5)


def test_every_number_of_sixteen_bits_comes_out_of_a_file(visit, tmp_path, monkeypatch):
    """HTML and UTF-16 bear most of them; the others are written otherwise."""
    compress = standalone.gzip.compress
    monkeypatch.setattr(standalone.gzip, "compress", lambda content, _, mtime: compress(content, 0, mtime=mtime))
    files = {"all": np.arange(1 << 16, dtype="<u2").tobytes() + b"an odd end"}
    show = "document.querySelector('#saccade').textContent = [...new Uint8Array(saccadeSaved.files)].join()"
    out = tmp_path / "page.html"
    out.write_bytes(standalone._html(files, {"js": show, "css": "", "icon": "<svg/>"}, title="all", look=""))
    visit.tab.goto(out.as_uri())
    visit.tab.get_by_text(re.compile(r"^\d+,")).wait_for()
    found = bytes(int(byte) for byte in visit.tab.locator("#saccade").inner_text().split(","))
    assert found == pack({name: np.frombuffer(content, np.uint8) for name, content in files.items()})


def test_a_folder_on_a_plain_host(visit, host, reading):
    visit.open(f"{host}#/pattern?site=2&head=5")
    agree(found := hovered(visit, 8), reading(TEXT).weights[2, 5])
    assert len(found) > 30
    assert all(url.startswith((host, f"blob:{host}")) for url in visit.asked if url != "about:blank")

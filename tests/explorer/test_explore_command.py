"""`saccade explore` as a user meets it: what it refuses, the link, and how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import tiny_models
from serving import Served, message, until

from saccade.cli import explore
from saccade.explorer import page

TEXT = "He left the roses by the bank."
TOKEN = "abcdefghijklmnop"  # noqa: S105

# The command, with the test's page; a job that never asks whether it was given up is a large model's forward.
COMMAND = """
import sys, time
from pathlib import Path
from saccade import cli
from saccade.explorer import page, roles

def stuck(explorer, parameters, progress, cancelled):
    progress(0.5, "stuck")
    time.sleep(3600)

page.BUILT, roles.roles = Path(sys.argv.pop(1)), stuck
cli.main()
"""


@pytest.fixture
def built(tmp_path, monkeypatch):
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("the page")
    monkeypatch.setattr(page, "BUILT", folder)
    return folder


@contextmanager
def exploring(built, *arguments):
    """The process of a running command, and what its link leads to."""
    command = [sys.executable, "-c", COMMAND, built, "explore", "--no-open", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        try:
            link = process.stdout.readline()
            found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=([A-Za-z0-9_-]{16,})#/heads\n", link)
            assert found, link + process.stderr.read()
            yield process, Served(None, int(found[1]), found[2])
        finally:
            process.kill()


def end(process, number):
    """Its exit code, and what else it wrote, if it ends at once."""
    process.send_signal(number)
    process.wait(10)  # a stuck job would go on for an hour
    return process.returncode, process.stdout.read(), process.stderr.read()


# ----------------------------------------------------------------------------------------- what it refuses

BAD = {
    "unquoted": (["He", "left"], 'needs quotes: saccade explore "some words"'),
    "two traces": (["a.zarr", "b.zarr"], "expected one trace, one text, or one of each; came 2 and 0"),
    "no trace": (["nowhere.zarr"], "nowhere.zarr: there is nothing of that name"),
    "a folder that is none": (["FOLDER"], "FOLDER"),
    "text without a model": (["x.zarr", "a text"], "expected --model, the one that x.zarr was recorded from"),
    "empty text": ([" "], "the text is empty"),
    "text and file": (["a text", "--file", "x"], "expected a text or --file, not both"),
    "no model": ([TEXT, "-m", "/nowhere"], "/nowhere: there is no such folder"),
    "open to all": (["--host", "0.0.0.0"], "can be reached from other machines: expected --token SECRET"),  # noqa: S104
    "open to a name": (["--host", "desk.example"], "can be reached from other machines: expected --token SECRET"),
    "short token": (["--token", "secret"], "--token: it has 6 characters; expected at least 16"),
    "odd token": (["--token", "a secret & a half"], "--token: expected letters, digits, - and _ only"),
    "no host": (["--host", "nowhere.invalid", "--token", TOKEN], "this machine knows no such host"),
    "no such address": (["--host", "192.0.2.1", "--token", TOKEN], "--host 192.0.2.1 --port 0 cannot be listened on"),
}


@pytest.mark.parametrize(("arguments", "expected"), BAD.values(), ids=BAD)
def test_bad_requests(run, built, arguments, expected):
    arguments = [str(built) if argument == "FOLDER" else argument for argument in arguments]
    code, out, err = run("explore", "--no-open", *arguments)
    assert (code, out) == (2, "")
    assert expected.replace("FOLDER", str(built)) in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("built")
def test_a_port_that_is_taken(run):
    from saccade.explorer.server import listen

    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, _, err = run("explore", "--port", port)
    assert (code, err) == (
        2,
        f"saccade: --host 127.0.0.1 --port {port} cannot be listened on: Address already in use\n",
    )


def test_a_page_that_is_not_built(run, built):
    (built / "index.html").unlink()
    code, out, err = run("explore")
    assert (code, out) == (2, "")
    assert err == (
        f"saccade: the page is not built: there is no {built / 'index.html'}. Released packages bring it. In a "
        "checkout, install Node.js 20 or later, then run: make page\n"
    )


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_package_that_is_not_installed(run, monkeypatch, package):
    monkeypatch.setattr(explore, "find_spec", lambda name: None if name == package else "found")
    assert run("explore") == (2, "", f"saccade: {package} is not installed: pip install 'saccade[explore]'\n")


def test_beyond_this_machine_is_warned_of(capsys):
    assert explore.check_token("0.0.0.0", TOKEN) == TOKEN  # noqa: S104
    assert "warning: 0.0.0.0 can be reached from other machines" in capsys.readouterr().err
    assert explore.check_token("127.0.0.1", TOKEN) == TOKEN
    assert explore.check_token("127.0.0.1", None) != explore.check_token("127.0.0.1", None)
    assert capsys.readouterr().err == ""


# --------------------------------------------------------------------------------------------- how it runs


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_it_ends_at_once_in_the_middle_of_jobs(built, model, number, code):
    """One has a process of its own, one is stuck; neither outlives the command."""
    with (
        exploring(built, TEXT, "-m", model) as (process, served),
        served.stream("cost") as costs,
        served.stream("roles", text="0") as stuck,
    ):
        assert json.loads(next(stuck)[1])["what"] == "stuck"
        assert any("measured" in data for _, data in costs)
        assert group_lives(process.pid)
        assert end(process, number) == (code, "", "")
        assert [list(stream)[-1][0] for stream in (costs, stuck)] == ["error"] * 2
        until(lambda: not group_lives(process.pid))


def group_lives(number):
    """Whether a process and those that it began are there."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_trace_and_a_text_with_the_model_that_made_it(built, model, run, tmp_path):
    trace, other = tmp_path / "t.zarr", tiny_models.save(tmp_path / "other", "gpt2")
    assert run("record", "--keep", "qk", "-o", trace, "-m", model, stdin=TEXT.encode())[0] == 0
    code, _, err = run("explore", trace, "-m", other)
    assert code == 2
    assert "the trace was recorded from" in err
    with exploring(built, trace, "The bank.", "-m", model) as (process, served):
        content = served.ask("/api/document").content
        assert TEXT.encode() in content
        assert b"The bank." in content
        assert served.ask("/").content == b"the page"
        status, body = served.get("/api/document")
        assert status == 401
        message(body)
        assert end(process, signal.SIGINT) == (130, "", "")
    assert sorted(built.rglob("*")) == [built / "index.html"]


def test_nothing_at_all_shows_the_senses_of_a_word():
    texts = explore.example_texts()
    assert texts[0] == TEXT
    assert len(texts) > 3
    assert all("bank" in text for text in texts)


def test_what_is_a_trace(tmp_path):
    for trace in ("runs/x.zarr", "x.zarr/", "https://host/x", "s3://bucket/x", str(tmp_path)):
        assert explore.is_trace(trace)
    for text in (TEXT, "zarr", "x" * 100_000, "a\0b", "-"):
        assert not explore.is_trace(text)


def test_a_browser_is_opened_where_there_is_a_screen(monkeypatch):
    monkeypatch.setattr(explore.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(explore.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not explore._has_screen()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert explore._has_screen()
    monkeypatch.setattr(explore.sys.stdout, "isatty", lambda: False, raising=False)
    assert not explore._has_screen()
